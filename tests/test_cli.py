"The command line, as a user meets it."
import json, os, subprocess, sys
from pathlib import Path
import numpy as np, pytest, soundfile as sf, torch
from typer.testing import CliRunner
from logocentric.captioner import Captioner
from logocentric.cli import app, sound_files
from logocentric.core import LogocentricError, set_seed, shared_path
from logocentric.knowledge import knowledge_text, train_tokenizer
from logocentric.mae import MAEConfig
from logocentric.reasoner import Reasoner
from logocentric.sounds import draw_sound, render_sound

run = CliRunner().invoke


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "An untrained captioner and reasoner in one folder."
    from transformers import GPTNeoConfig, GPTNeoForCausalLM
    set_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp('model'), train_tokenizer(knowledge_text(200, seed=0), 600)
    ear = Captioner.from_parts(MAEConfig.preset('tiny'), dict(n_embd=32, n_layer=1, n_head=2), tokenizer)
    noise = [torch.randn(40, 200, 80)*3 - 7 for _ in range(2)]
    ear.calibrate(noise[:1], knowledge_text(20, seed=1)).calibrate_novelty(noise[:1], noise[1:]).save_pretrained(folder/'captioner')
    size = dict(vocab_size=len(tokenizer), hidden_size=32, num_layers=2, num_heads=2, attention_types=[[['global', 'local'], 1]],
                max_position_embeddings=256, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    GPTNeoForCausalLM(GPTNeoConfig(**size)).save_pretrained(folder/'reasoner')
    tokenizer.save_pretrained(folder/'reasoner')
    return folder


@pytest.fixture
def sounds(tmp_path):
    rng = np.random.default_rng(0)
    sf.write(tmp_path/'noise.wav', rng.normal(0, .1, 16000*3), 16000)
    sf.write(tmp_path/'long.flac', rng.normal(0, .1, (44100*23, 2)), 44100)
    (tmp_path/'broken.mp3').write_text('no sound at all')
    return tmp_path


@pytest.mark.parametrize('command', [[], ['describe'], ['classify'], ['reproduce']])
def test_help(command):
    said = run(app, [*command, '--help'])
    assert said.exit_code == 0 and 'Usage' in said.output


def test_describe_goes_on_past_a_bad_file(sounds, model):
    said = run(app, ['describe', str(sounds), '--model', str(model), '--json', str(sounds/'out.json')])
    assert said.exit_code == 1
    rows = json.loads((sounds/'out.json').read_text())
    assert 'rendered' in rows['note'] and len(rows['files']) == 3
    by_name = {r['file'].split('/')[-1]: r for r in rows['files']}
    assert 'broken.mp3' in by_name['broken.mp3']['error']
    assert len(by_name['long.flac']['windows']) == 3 and 'dropped' in by_name['long.flac']['heard']
    assert 0 <= by_name['noise.wav']['novelty'] <= 1
    assert 'noise.wav' in said.output and '1 of 3' in said.output


def test_what_comes_with_the_package_answers_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv('LOGOCENTRIC_HOME', str(tmp_path))
    wave = render_sound(draw_sound(98, 3, 'talk')).wave
    sf.write(tmp_path/'talk.wav', wave, 16000)
    said = run(app, ['classify', str(tmp_path/'talk.wav'), '--labels', 'jazz,metal', '--json', '-'])
    row = json.loads(said.stdout)['files'][0]
    assert said.exit_code == 0 and len(row['text'].split()) > 3 and row['label'] in ('jazz', 'metal') and 0 <= row['novelty'] <= 1
    assert any(word in row['text'] for word in ('voice', 'talk', 'speech', 'word', 'whisper'))


def test_json_to_standard_output_is_only_json(sounds, model):
    said = run(app, ['describe', str(sounds/'noise.wav'), '--model', str(model), '--json', '-'])
    assert said.exit_code == 0 and json.loads(said.stdout)['files'][0]['text'] is not None


def test_classify_scores_every_label(sounds, model):
    said = run(app, ['classify', str(sounds/'noise.wav'), '--labels', 'blues, jazz,hip-hop', '--model', str(model), '--json', '-'])
    row = json.loads(said.stdout)['files'][0]
    assert set(row['scores']) == {'blues', 'jazz', 'hip-hop'} and sum(row['scores'].values()) == pytest.approx(1, abs=1e-4)
    assert row['label'] == max(row['scores'], key=row['scores'].get)


def test_a_folder_without_a_model_says_what_to_do(sounds, tmp_path):
    said = subprocess.run([Path(sys.executable).with_name('logocentric'), 'describe', sounds/'noise.wav', '--model', tmp_path], capture_output=True, text=True)
    assert said.returncode == 2 and 'no trained captioner' in said.stderr and 'give a folder' in said.stderr and 'Traceback' not in said.stderr


def test_folders(sounds, tmp_path):
    assert [p.name for p in sound_files([sounds])] == ['broken.mp3', 'long.flac', 'noise.wav']
    (tmp_path/'empty').mkdir()
    with pytest.raises(LogocentricError, match='no sound files'): sound_files([tmp_path/'empty'])


@pytest.mark.slow
def test_every_shared_recording_is_described_or_refused(model, tmp_path):
    if shared_path() is None: pytest.skip('no real recordings beside this checkout')
    folder = shared_path()/'data'/'recordings'
    run(app, ['describe', str(folder), '--model', str(model), '--json', str(tmp_path/'out.json')])
    rows = json.loads((tmp_path/'out.json').read_text())['files']
    assert len(rows) == len(sound_files([folder]))
    for row in rows: assert ('error' in row and row['error']) or (row['windows'] and 0 <= row['novelty'] <= 1)
