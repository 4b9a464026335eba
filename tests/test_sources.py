"Recordings, captions and models from disk, laid out as published, in the place of rendered clips."
import os, subprocess, sys
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest, soundfile as sf, torch
from logocentric.audio.frontend import LogMel
from logocentric.captioner.model import Captioner, model_key
from logocentric.core import LogocentricError, load_records, read_json, shipped_path
from logocentric.data.clipset import LazyPairs
from logocentric.data.datasets import read_dataset
from logocentric.data.lists import DataError, write_skip_list
from logocentric.data.packing import write_shards
from logocentric.data.shards import Shards
from logocentric.data.styles import LABELS
from logocentric.data.tables import read_table
from logocentric.pipeline.captioner_stages import captioned_pairs, descriptions, text_decoder, trained_captioner
from logocentric.pipeline.data_stages import asked, crop_frames, evaluation_sets, tokenizer, training_clips
from logocentric.pipeline.experiments import fingerprint, output_path, run_experiment
from logocentric.pipeline.reasoner_stages import reasoner_stage
from logocentric.pipeline.report import reproduce
from logocentric.pipeline.results import genre_baselines, genre_row, genre_table, recordings_used
from logocentric.pipeline.scales import ReasonerScale, Setup
from logocentric.pipeline.sources import (GENRE_TESTS, DataSource, Sources, encode_tracks, read_sources, set_apart,
                                          track_windows)

ROOT = Path(__file__).parents[1]
GTZAN, FMA = LABELS['gtzan'], LABELS['fma']
HEADER = (',set,set,track\n,split,subset,genre_top\ntrack_id,,,\n')


def sound(path, pitch=440., seconds=1., seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(int(seconds*16_000))/16_000
    sf.write(path, .1*np.sin(2*np.pi*pitch*t) + .02*np.random.default_rng(seed).standard_normal(len(t)), 16_000)


def gtzan(folder):
    "Three clips of each genre, and the lists of a filtered split that names two for training and one for the test."
    stems = [g.replace('-', '') for g in GTZAN]
    for k, g in enumerate(stems):
        for i in range(3): sound(folder/'genres'/g/f'{g}.{i:05}.wav', 200*(k + 1), seed=3*k + i, seconds=1.5)
    lists = folder/'lists'
    lists.mkdir()
    test = {f'{g}/{g}.00002.wav' for g in stems}
    every = [f'{g}/{g}.{i:05}.wav' for g in stems for i in range(100)]
    pick = iter([e for e in every if e not in test and not e.endswith(('.00000.wav', '.00001.wav'))])
    parts = dict(train=[f'{g}/{g}.{i:05}.wav' for g in stems for i in (0, 1)], valid=[], test=sorted(test))
    for part, n in dict(train=443, valid=197, test=290).items():
        named = [*parts[part], *(next(pick) for _ in range(n - len(parts[part])))]
        (lists/f'{part}_filtered.txt').write_text('\n'.join(named) + '\n')
    write_skip_list(folder/'skip.csv', {i: 'not made here' for i in read_dataset('gtzan', folder).absent()})


def fma(folder):
    "8,000 tracks in the list, three of each genre on disk."
    rows, there = [], {}
    for n in range(8000):
        genre, split = FMA[n % 8], 'test' if n // 8 % 10 == 0 else 'validation' if n // 8 % 10 == 1 else 'training'
        rows.append(f'{n + 2},{split},small,{genre}')
        if n < 8 or 16 <= n < 32: there[f'{n + 2:06}'] = n % 8
    (folder/'fma_metadata').mkdir(parents=True)
    (folder/'fma_metadata'/'tracks.csv').write_text(HEADER + '\n'.join(rows) + '\n')
    for i, g in there.items(): sound(folder/'fma_small'/i[:3]/f'{i}.wav', 150*(g + 1), seed=int(i))
    write_skip_list(folder/'skip.csv', read_dataset('fma_small', folder).absent())


def captions(folder):
    "Sixty clips, each with two captions."
    words = lambda i: [f'{w} tone {"low" if i < 30 else "high"}' for w in ('a steady', 'one plain')]
    rows = [dict(file_name=f'{i:02}.wav', caption=said) for i in range(60) for said in words(i)]
    for i in range(60): sound(folder/f'{i:02}.wav', 150 + 30*i, seed=i, seconds=1 + i % 3)
    pd.DataFrame(rows).to_csv(folder/'captions.csv', index=False)


SOURCES = """
[gtzan]
folder = 'gtzan'
filtered = 'gtzan/lists'
skip = 'gtzan/skip.csv'
[fma_small]
folder = 'fma'
skip = 'fma/skip.csv'
[captions]
dataset = 'table'
folder = 'own/captions.csv'
[models]
'my-gpt2' = 'own'
"""

@pytest.fixture(scope='module')
def disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp('disk')
    gtzan(folder/'gtzan')
    fma(folder/'fma')
    captions(folder/'own')
    (folder/'sources.toml').write_text(SOURCES)
    return folder


@pytest.fixture(scope='module')
def setup(disk, smoke_home): return Setup.at('smoke', sources=str(disk/'sources.toml'))


# --- the file

@pytest.mark.parametrize('text, said', [
    ("[gtzan]\nfolder = 'nowhere'\n", 'there is no .*nowhere'),
    ('[gtzan]\n', 'folder is missing'),
    ("[gtzan]\nfolder = '.'\nsplit = 'x'\n", 'unknown split; it has folder, filtered, skip'),
    ("[gtzam]\nfolder = '.'\n", 'unknown section gtzam; there are gtzan'),
    ("gtzan = '.'\n", r'write \[gtzan\]'),
    ('[gtzan\n', 'is not TOML'),
    ("[captions]\nfolder = '.'\n", 'dataset is missing'),
    ("[tags]\ndataset = 'audioset2'\nfolder = '.'\n", "no data set 'audioset2'")])
def test_a_slip_in_the_file_is_named(tmp_path, text, said):
    (tmp_path/'s.toml').write_text(text)
    with pytest.raises(LogocentricError, match=said): read_sources(tmp_path/'s.toml')


def test_models_are_looked_for_before_anything_begins(tmp_path, monkeypatch):
    "All that are missing are named, with what to do; nothing is rendered before."
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')
    names = ['gpt2', 'gpt2-medium', 'gpt2-large', 'EleutherAI/gpt-neo-1.3B']
    assert set(Setup.at('paper').pretrained()) == set(names) and not Setup.at('mini').pretrained()
    for folder in ('there', 'empty'): (tmp_path/folder).mkdir()
    (tmp_path/'there/model.safetensors').write_bytes(b'w')
    lines = [f"'{name}' = '{'empty' if name == 'gpt2-medium' else 'there'}'" for name in names]
    (tmp_path/'s.toml').write_text('\n'.join(['[models]', *lines, '']))
    said = r'Hub: gpt2-medium \(the folder has no weights\)\. .*hf download.*\[models\]'
    with pytest.raises(LogocentricError, match=said): reproduce('paper', sources=str(tmp_path/'s.toml'))
    with pytest.raises(LogocentricError, match='Hub: no-such/model'): Sources().need_models(['no-such/model'])


def test_two_copies_of_a_name_are_two_models(tmp_path):
    "What lies in a folder tells models apart, not what the folder is called or where it is."
    for where, weights in dict(a=b'one', b=b'two', c=b'one').items():
        folder = tmp_path/where/'1'
        folder.mkdir(parents=True)
        (folder/'config.json').write_text('{}')
        (folder/'model.safetensors').write_bytes(weights)
    a, b, c = (model_key(tmp_path/where/'1') for where in 'abc')
    assert a == c != b and model_key('gpt2-large') == 'gpt2-large'
    (tmp_path/'s.toml').write_text("[models]\n'gpt2-large' = 'a/1'\n'EleutherAI/gpt-neo-1.3B' = 'b/1'\n")
    setup = Setup.at('paper', sources=str(tmp_path/'s.toml'))
    assert [reasoner_stage(setup, name).key for name in setup.scale.reasoner.names] == [a, b]


def test_the_first_pairs_are_different_recordings_in_no_order(setup):
    stage = captioned_pairs(setup, 'train')
    first, all_of_them = stage.load(10), stage.load()
    assert len(set(first.ids)) == 10 and len(set(all_of_them.ids)) == 54 and len(all_of_them) == 108
    numbers = [int(i) for i in all_of_them.ids[:54]]
    assert numbers != sorted(numbers) and all_of_them.ids[:54] == all_of_them.ids[54:]


def test_no_file_is_nothing_on_disk():
    assert read_sources('') == Sources()
    with pytest.raises(LogocentricError, match='no file of sources'): read_sources('/no/such.toml')


def test_a_changed_file_is_read_again(tmp_path):
    file = tmp_path/'s.toml'
    file.write_text("[models]\na = '.'\n")
    assert list(read_sources(file).models) == ['a']
    file.write_text("[models]\nb = '.'\n")
    os.utime(file, (1, 1))
    assert list(read_sources(file).models) == ['b']


def test_rows_that_the_sources_allow(disk):
    sources = read_sources(disk/'sources.toml')
    assert sources.tests() == GENRE_TESTS
    unfiltered = replace(sources.genres['gtzan'], filtered='')
    assert list(replace(sources, genres={'gtzan': unfiltered}).tests()) == ['gtzan_all']
    said = 'the sources have gtzan_all, gtzan_filtered, fma_small_all, fma_small_test'
    with pytest.raises(LogocentricError, match=said): sources.test('gtzan')


# --- genres

def test_each_row_asks_its_recordings(setup):
    rows = {t: asked(setup, t) for t in evaluation_sets(setup)}
    n = dict(gtzan_all=30, gtzan_filtered=10, fma_small_all=24, fma_small_test=8)
    assert {t: len(row.table) for t, row in rows.items()} == n
    for row in rows.values(): assert set(row.truth) == set(row.labels)
    filtered = rows['gtzan_filtered'].table
    assert filtered['id'].str.endswith('00002').all()
    assert filtered.loc[filtered['id'] == 'hiphop.00002', 'label'].item() == 'hip-hop'
    every, some = rows['gtzan_all'].clips, rows['gtzan_filtered'].clips
    assert every.load().folder == some.load().folder, 'read once'
    assert every.key != some.key


def test_windows_cover_a_recording():
    for frames in (1, 99, 100, 999, 1000, 1001, 1100, 2999, 3001):
        found = track_windows(frames)
        assert found[0][0] == 0 and all(b == c for (_, b), (c, _) in zip(found, found[1:]))
        assert frames - found[-1][1] < 100


def test_a_recording_is_encoded_as_describe_encodes_it(disk, setup):
    model = Captioner.from_pretrained(shipped_path('captioner'))
    clips = asked(setup, 'gtzan_all').clips.load()
    one = next(iter(encode_tracks(model, clips, [3])))[0]
    wave = sf.read(disk/'gtzan'/clips.table['path'].iloc[3])[0].astype(np.float32)
    logmel = LogMel(model.frontend.config)(torch.from_numpy(wave))
    assert int(clips.frames[3]) == len(logmel)
    batch, mask = model.length.batch([logmel], model.frontend.config.silence)
    expected = model.encode(batch, mask)[0].detach()
    torch.testing.assert_close(one, expected, atol=2e-2, rtol=2e-2)     # log-mels are kept in half precision


def test_supervised_baselines_learn_from_the_sets_own_split(setup):
    for t, learned in dict(gtzan_all=20, gtzan_filtered=20, fma_small_test=16).items():
        found, of = genre_baselines(setup, t), asked(setup, t)
        supervised = found['supervised']
        assert found['supervised_labels'] == learned and supervised['n'] == len(of.table) and found['bayes'] is None
        assert supervised['value'] > .6 > found['chance'] == 1/len(of.labels)    # pitches are easy


# --- captions

PARTS = ('valid', 'heldout', 'train')

def test_captioned_clips_are_shared_out_once(setup):
    ids = {p: set(training_clips(setup, p).load().table['id']) for p in PARTS}
    assert {p: len(i) for p, i in ids.items()} == dict(valid=3, heldout=3, train=54)
    assert len(set.union(*ids.values())) == 60
    assert setup.scale.data.pairs == (10, 108)              # two captions each
    pairs = captioned_pairs(setup, 'train').load(108)
    assert len(pairs) == 108 and len(set(pairs.texts)) == 4
    whole = captioned_pairs(setup, 'valid').load()
    batch = whole.batch([0, 1, 2], np.random.default_rng(0))
    assert max(pairs.frames) < 320 < batch['logmel'].shape[1]      # three seconds at most of ten
    assert batch['frame_mask'].sum(1).tolist() == whole.frames[:3]


@pytest.fixture
def sharded(disk, smoke_home, tmp_path):
    "The same clips, packed."
    if not (disk/'packed').exists():
        write_shards(disk/'packed', read_table(disk/'own/captions.csv'), seconds=3., size=8, processes=1)
    (tmp_path/'s.toml').write_text(f"[captions]\ndataset = 'shards'\nfolder = '{disk/'packed'}'\n")
    return Setup.at('smoke', sources=str(tmp_path/'s.toml'))


def test_shards_are_learned_from_as_they_lie(disk, sharded, tmp_path):
    "Each clip in one part; training reads them one by one in the order of the shards, and encodes no padding."
    parts = {p: training_clips(sharded, p).load().table['id'].tolist() for p in PARTS}
    assert {p: len(i) for p, i in parts.items()} == dict(valid=3, heldout=3, train=54)
    assert sum(parts.values(), []) == Shards(disk/'packed').table['id'].tolist()
    assert sharded.scale.data.pairs == (5, 54)
    learn, valid = trained_captioner(sharded, 20).training_data(None, tmp_path)
    assert isinstance(learn, LazyPairs) and len(learn) == 20 and sorted(learn.order(1, 0)) == list(range(20))
    batch = learn.batch([0, 7], np.random.default_rng(0))
    assert batch['id'] == [parts['train'][0], parts['train'][7]] and batch['logmel'].shape[1] == crop_frames(sharded)
    assert valid.batch([0, 1, 2], None)['frame_mask'].sum(1).tolist() == valid.frames and min(valid.frames) < 301
    # millions are put in order, and listed, once
    assert learn.clips.order(1, 0) is learn.clips.order(1, 0)
    assert training_clips(sharded, 'train').load().table is training_clips(sharded, 'train').load().table


def test_shards_become_a_captioner(sharded):
    folder = trained_captioner(sharded, 54).folder()
    assert (folder/'model.safetensors').exists() and len(descriptions(sharded, 'valid', 54).load()) == 3
    assert recordings_used(sharded)['train']['clips'] == 60


def test_shards_that_are_not_there_are_named(tmp_path):
    (tmp_path/'s.toml').write_text("[captions]\ndataset = 'shards'\nfolder = 'https://127.0.0.1:9/nothing'\n")
    said = 'no finished shards at https://127.0.0.1:9/nothing'
    with pytest.raises(LogocentricError, match=said): Setup.at('smoke', sources=str(tmp_path/'s.toml'))
    (tmp_path/'s.toml').write_text("[tags]\ndataset = 'shards'\nfolder = '.'\n")
    with pytest.raises(LogocentricError, match="no data set 'shards'"): read_sources(tmp_path/'s.toml')


def test_one_in_twenty_is_set_apart_and_the_same_ones_everywhere():
    ids = [f'clip {i}' for i in range(100)]
    part = set_apart(ids)
    assert np.bincount(part).tolist() == [5, 5, 90]
    order = np.random.default_rng(0).permutation(100)
    assert (set_apart([ids[i] for i in order]) == part[order]).all()


def test_evaluation_sets_are_not_learned_from(tmp_path):
    frame = pd.DataFrame(dict(file_name=['a.wav', 'b.wav'], caption=['one', 'two'], split=['test', 'test']))
    for f in frame.file_name: sound(tmp_path/f)
    changed = [(dict(), 'no split to train on: it has test'), (dict(caption='', split='train'), 'has no captions'),
               (dict(split='train'), 'too few')]
    for columns, said in changed:
        frame.assign(**columns).to_csv(tmp_path/'t.csv', index=False)
        with pytest.raises(DataError, match=said): DataSource('table', str(tmp_path/'t.csv')).caption_parts()


# --- rows, models and runs

def test_a_row_on_recordings(setup):
    most = setup.scale.data.pairs[-1]
    row = genre_row(setup, 'gtzan_filtered', setup.scale.reasoner.names[0], most)
    assert row['n'] == 10 and row['true'] is None and row['predicted']['n'] == row['sampled']['n'] == 10
    shown = genre_table([row], {'gtzan_filtered': genre_baselines(setup, 'gtzan_filtered')})
    assert shown.index[0] == ('GTZAN, fault-filtered test', 10) and shown['from true words'].item() == '–'
    learned = read_json(trained_captioner(setup, most).folder()/'done.json')['config']
    clips = training_clips(setup, 'train')
    assert learned['pairs']['clips'] == clips.key and 'captions-train' in str(clips.folder())


def test_rendered_clips_keep_their_baselines_beside_recorded_captions(disk, smoke_home):
    (disk/'captions.toml').write_text("[captions]\ndataset = 'table'\nfolder = 'own/captions.csv'\n")
    setup = Setup.at('smoke', sources=str(disk/'captions.toml'))
    assert set(evaluation_sets(setup)) == {'gtzan', 'gtzan_shifted', 'fma_shifted'}
    assert genre_baselines(setup, 'gtzan')['bayes'] > 0


def test_models_of_the_file(setup, disk):
    captioner = replace(setup.scale.captioner, decoder='my-gpt2', warmup=None)
    scale = replace(setup.scale, captioner=captioner, reasoner=ReasonerScale(('my-gpt2',)))
    named = Setup(scale, sources=setup.sources)
    assert text_decoder(named).folder() == reasoner_stage(named, 'my-gpt2').folder() == str(disk/'own')
    with pytest.raises(LogocentricError, match=r'no tokenizer of .*section \[models\]'): tokenizer(named).load()


def test_runs_of_recordings_have_a_folder_of_their_own(setup):
    rendered = dict(scale='smoke', seed=1)
    recorded = rendered | dict(sources=setup.sources)
    there, here = (output_path('table1_reasoner_size', given) for given in (rendered, recorded))
    assert there.parent.name == 'smoke-1' and here.parent == setup.folder
    assert setup.folder.name.startswith('smoke-1-sources-')
    assert fingerprint('table1_reasoner_size', rendered) != fingerprint('table1_reasoner_size', recorded)


@pytest.mark.slow
def test_reproduce_on_recordings(disk, smoke_home):
    report = reproduce('smoke', sources=str(disk/'sources.toml'))
    said = ('Measured on recordings', 'GTZAN, fault-filtered test', 'FMA small, test split')
    assert all(words in report for words in said)
    folder = Setup.at('smoke', sources=str(disk/'sources.toml')).folder
    record = {r.name: r for r in load_records(folder/'records')}['table1_reasoner_size']
    assert record.metrics['recordings']['gtzan_filtered']['asked'] == 10
    assert record.params['sources'] == 'sources.toml'


@pytest.mark.slow
def test_reproduce_on_recordings_under_a_launch(disk, tmp_path):
    "Two processes over gloo, each of which asks for every folder of clips: read once, learned together, reported once."
    (disk/'both.toml').write_text("[gtzan]\nfolder = 'gtzan'\nskip = 'gtzan/skip.csv'\n"
                                  "[captions]\ndataset = 'table'\nfolder = 'own/captions.csv'\n")
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    program = [str(Path(sys.executable).with_name('logocentric')), 'reproduce', '--scale', 'smoke']
    command = [*launch, *program, '--sources', str(disk/'both.toml'), '--parts', '2', '--recompute']
    env = os.environ | dict(LOGOCENTRIC_HOME=str(tmp_path), ACCELERATE_USE_CPU='true')
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, env=env)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.count('# logocentric: scale smoke') == ran.stdout.count('\nreport: ') == 1
    assert 'GTZAN, all clips' in ran.stdout
    cache = tmp_path/'data'/'cache'
    assert len(list((cache/'clips').glob('*/clips.json'))) == 4 and not list((cache/'scratch').glob('*'))
    assert {len(list((cache/kind).glob('*/model.safetensors'))) for kind in ('captioner', 'mae')} == {2}


@pytest.mark.slow
def test_the_road_on_recordings_takes_a_published_set(disk, smoke_home):
    "Every clip is asked about; half of them choose for the other half, and no pairs of the set were learned from."
    given = dict(sources=str(disk/'sources.toml'), test='gtzan_all')
    run_experiment('road_on_recordings', 'smoke', 1, **given)
    found, = load_records(Setup.at('smoke', sources=given['sources']).folder/'records', name='road_on_recordings')
    rows = found.metrics['rows']
    assert {r['question'] for r in rows} == {'genre'} and {r['both_ways']['n'] for r in rows} == {30}
    assert {r['hears'] for r in rows} == {'tags', 'captioner'} and found.metrics['others'] == []
    assert all(0 < r['reported']['n'] < 30 for r in rows)
