"Recordings, captions and models from disk, laid out as published, in the place of rendered clips."
import os, subprocess, sys
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest, soundfile as sf, torch
from logocentric.captioner.model import Captioner, model_key
from logocentric.core import LogocentricError, load_records, read_json, shipped_path
from logocentric.data.corpus import LABELS
from logocentric.data.manifests import DataError, read_dataset, read_table, write_skip_list
from logocentric.pipeline.experiments import Lab, published, reproduce, results_table, run_output, table
from logocentric.audio.frontend import LogMel
from logocentric.data.shards import LazyPairs, write_shards
from logocentric.pipeline.sources import (GENRE_TESTS, Source, Sources, hear_tracks, read_sources, set_apart,
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
        (lists/f'{part}_filtered.txt').write_text('\n'.join([*parts[part], *(next(pick) for _ in range(n - len(parts[part])))]) + '\n')
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
    rows = [dict(file_name=f'{i:02}.wav', caption=f'{w} tone {"low" if i < 30 else "high"}') for i in range(60) for w in ('a steady', 'one plain')]
    for i in range(60): sound(folder/f'{i:02}.wav', 150 + 30*i, seed=i, seconds=1 + i % 3)
    pd.DataFrame(rows).to_csv(folder/'captions.csv', index=False)


@pytest.fixture(scope='module')
def disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp('disk')
    gtzan(folder/'gtzan'); fma(folder/'fma'); captions(folder/'own')
    (folder/'sources.toml').write_text("[gtzan]\nfolder = 'gtzan'\nfiltered = 'gtzan/lists'\nskip = 'gtzan/skip.csv'\n[fma_small]\nfolder = 'fma'\nskip = 'fma/skip.csv'\n"
                                       "[captions]\ndataset = 'table'\nfolder = 'own/captions.csv'\n[models]\n'my-gpt2' = 'own'\n")
    return folder


@pytest.fixture(scope='module')
def home(home):
    (home/'data').mkdir()
    (home/'data'/'published.json').write_bytes((Path(__file__).parents[1]/'data'/'published.json').read_bytes())
    return home


@pytest.fixture(scope='module')
def lab(disk, home, one_thread): return Lab.at('smoke', sources=str(disk/'sources.toml'))


# --- the file

@pytest.mark.parametrize('text, said', [
    ("[gtzan]\nfolder = 'nowhere'\n", 'there is no .*nowhere'), ('[gtzan]\n', 'folder is missing'), ("[gtzan]\nfolder = '.'\nsplit = 'x'\n", 'unknown split; it has folder, filtered, skip'),
    ("[gtzam]\nfolder = '.'\n", 'unknown section gtzam; there are gtzan'), ("gtzan = '.'\n", r'write \[gtzan\]'), ('[gtzan\n', 'is not TOML'),
    ("[captions]\nfolder = '.'\n", 'dataset is missing'), ("[tags]\ndataset = 'audioset2'\nfolder = '.'\n", "no data set 'audioset2'")])
def test_a_slip_in_the_file_is_named(tmp_path, text, said):
    (tmp_path/'s.toml').write_text(text)
    with pytest.raises(LogocentricError, match=said): read_sources(tmp_path/'s.toml')


def test_models_are_looked_for_before_anything_begins(tmp_path, monkeypatch):
    "All that are missing are named, with what to do; nothing is rendered before."
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9'); monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')
    assert set(Lab.at('paper').pretrained()) == {'gpt2', 'gpt2-medium', 'gpt2-large', 'EleutherAI/gpt-neo-1.3B'} and not Lab.at('mini').pretrained()
    (tmp_path/'there').mkdir(); (tmp_path/'there/model.safetensors').write_bytes(b'w'); (tmp_path/'empty').mkdir()
    (tmp_path/'s.toml').write_text("[models]\n'gpt2' = 'there'\n'gpt2-medium' = 'empty'\n'gpt2-large' = 'there'\n'EleutherAI/gpt-neo-1.3B' = 'there'\n")
    with pytest.raises(LogocentricError, match=r'Hub: gpt2-medium \(the folder has no weights\)\. .*hf download.*\[models\]'): reproduce('paper', sources=str(tmp_path/'s.toml'))
    with pytest.raises(LogocentricError, match='Hub: no-such/model'): Sources().need_models(['no-such/model'])


def test_two_copies_of_a_name_are_two_models(tmp_path):
    "What lies in a folder tells models apart, not what the folder is called or where it is."
    for where, weights in dict(a=b'one', b=b'two', c=b'one').items():
        (tmp_path/where/'1').mkdir(parents=True); (tmp_path/where/'1'/'config.json').write_text('{}'); (tmp_path/where/'1'/'model.safetensors').write_bytes(weights)
    a, b, c = (model_key(tmp_path/where/'1') for where in 'abc')
    assert a == c != b and model_key('gpt2-large') == 'gpt2-large'
    (tmp_path/'s.toml').write_text("[models]\n'gpt2-large' = 'a/1'\n'EleutherAI/gpt-neo-1.3B' = 'b/1'\n")
    lab = Lab.at('paper', sources=str(tmp_path/'s.toml'))
    assert [lab._key(lab.reasoner(r)) for r in lab.scale.readers] == [a, b]


def test_the_first_pairs_are_different_recordings_in_no_order(lab):
    first, all_of_them = lab.pairs('train', 10), lab.pairs('train')
    assert len(set(first.ids)) == 10 and len(set(all_of_them.ids)) == 54 and len(all_of_them) == 108
    numbers = [int(i) for i in all_of_them.ids[:54]]
    assert numbers != sorted(numbers) and all_of_them.ids[:54] == all_of_them.ids[54:]


def test_no_file_is_nothing_on_disk():
    assert read_sources('') == Sources()
    with pytest.raises(LogocentricError, match='no file of sources'): read_sources('/no/such.toml')


def test_a_changed_file_is_read_again(tmp_path):
    import os
    file = tmp_path/'s.toml'
    file.write_text("[models]\na = '.'\n")
    assert list(read_sources(file).models) == ['a']
    file.write_text("[models]\nb = '.'\n"); os.utime(file, (1, 1))
    assert list(read_sources(file).models) == ['b']


def test_rows_that_the_sources_allow(disk):
    sources = read_sources(disk/'sources.toml')
    assert sources.tests() == GENRE_TESTS
    assert list(replace(sources, genres={'gtzan': replace(sources.genres['gtzan'], filtered='')}).tests()) == ['gtzan_all']
    with pytest.raises(LogocentricError, match='the sources have gtzan_all, gtzan_filtered, fma_small_all, fma_small_test'): sources.test('gtzan')


# --- genres

def test_each_row_asks_its_recordings(lab):
    assert {t: len(lab.clips(t)) for t in lab.tests} == dict(gtzan_all=30, gtzan_filtered=10, fma_small_all=24, fma_small_test=8)
    for t in lab.tests: assert set(lab.truth(t)) == set(lab.labels(t))
    filtered = lab.clips('gtzan_filtered')
    assert filtered['id'].str.endswith('00002').all() and filtered.loc[filtered['id'] == 'hiphop.00002', 'label'].item() == 'hip-hop'
    assert lab.corpus('gtzan_all').folder == lab.corpus('gtzan_filtered').folder    # read once
    assert lab.named('gtzan_all') != lab.named('gtzan_filtered')


def test_windows_cover_a_recording():
    for frames in (1, 99, 100, 999, 1000, 1001, 1100, 2999, 3001):
        found = track_windows(frames)
        assert found[0][0] == 0 and all(b == c for (_, b), (c, _) in zip(found, found[1:])) and frames - found[-1][1] < 100


def test_a_recording_is_heard_as_describe_hears_it(disk, lab):
    model = Captioner.from_pretrained(shipped_path('captioner'))
    clips = lab.corpus('gtzan_all')
    one = next(iter(hear_tracks(model, clips, [3])))[0]
    picture = LogMel(model.frontend.config)(torch.from_numpy(sf.read(disk/'gtzan'/clips.table['path'].iloc[3])[0].astype(np.float32)))
    assert int(clips.frames[3]) == len(picture)
    batch, mask = model.length.batch([picture], model.frontend.config.silence)
    torch.testing.assert_close(one, model.encode(batch, mask)[0].detach(), atol=2e-2, rtol=2e-2)   # pictures are kept in half precision


def test_supervised_lines_learn_from_the_sets_own_split(lab):
    for t, learned in dict(gtzan_all=20, gtzan_filtered=20, fma_small_test=16).items():
        line = lab.baselines(t)
        assert line['supervised_labels'] == learned and line['supervised']['n'] == len(lab.clips(t)) and line['bayes'] is None
        assert line['supervised']['value'] > .6 > line['chance'] == 1/len(lab.labels(t))    # pitches are easy


# --- captions

def test_captioned_clips_are_shared_out_once(lab):
    ids = {p: set(lab.corpus(p).table['id']) for p in ('train', 'valid', 'heldout')}
    assert {p: len(i) for p, i in ids.items()} == dict(train=54, valid=3, heldout=3) and len(set.union(*ids.values())) == 60
    assert lab.scale.pairs == (10, 108)                     # two captions each
    pairs = lab.pairs('train', 108)
    assert len(pairs) == 108 and len(set(pairs.texts)) == 4
    whole = lab.pairs('valid')
    batch = whole.batch([0, 1, 2], np.random.default_rng(0))
    assert max(pairs.frames) < 320 < batch['logmel'].shape[1] and batch['frame_mask'].sum(1).tolist() == whole.frames[:3]   # three seconds at most of ten


def test_shards_are_learned_from_as_they_lie(disk, home, one_thread, tmp_path):
    "The same clips, packed: each in one part; training reads them one by one in the order of the shards, and hears no padding."
    shards = write_shards(disk/'packed', read_table(disk/'own/captions.csv'), seconds=3., size=8, processes=1)
    (tmp_path/'s.toml').write_text(f"[captions]\ndataset = 'shards'\nfolder = '{disk/'packed'}'\n")
    lab = Lab.at('smoke', sources=str(tmp_path/'s.toml'))
    parts = {p: lab.corpus(p).table['id'].tolist() for p in ('valid', 'heldout', 'train')}
    assert sum(parts.values(), []) == shards.table['id'].tolist() and {p: len(i) for p, i in parts.items()} == dict(valid=3, heldout=3, train=54) and lab.scale.pairs == (5, 54)
    learn, valid = lab.lessons(None, 20, tmp_path)
    assert isinstance(learn, LazyPairs) and len(learn) == 20 and sorted(learn.order(1, 0)) == list(range(20))
    batch = learn.batch([0, 7], np.random.default_rng(0))
    assert batch['id'] == [parts['train'][0], parts['train'][7]] and batch['logmel'].shape[1] == lab.crop_frames()
    assert valid.batch([0, 1, 2], None)['frame_mask'].sum(1).tolist() == valid.frames and min(valid.frames) < 301
    assert learn.clips.order(1, 0) is learn.clips.order(1, 0) and lab.corpus('train').table is lab.corpus('train').table # millions are put in order, and listed, once
    folder = lab.captioner(54)
    assert (folder/'model.safetensors').exists() and len(lab.captions('valid', 54)) == 3
    assert lab.used()['train']['clips'] == 60


def test_shards_that_are_not_there_are_named(tmp_path):
    (tmp_path/'s.toml').write_text("[captions]\ndataset = 'shards'\nfolder = 'https://127.0.0.1:9/nothing'\n")
    with pytest.raises(LogocentricError, match='no finished shards at https://127.0.0.1:9/nothing'): Lab.at('smoke', sources=str(tmp_path/'s.toml'))
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
    frame.to_csv(tmp_path/'t.csv', index=False)
    with pytest.raises(DataError, match='no split to train on: it has test'): Source('table', str(tmp_path/'t.csv')).caption_parts()
    frame.assign(caption='', split='train').to_csv(tmp_path/'t.csv', index=False)
    with pytest.raises(DataError, match='has no captions'): Source('table', str(tmp_path/'t.csv')).caption_parts()
    frame.assign(split='train').to_csv(tmp_path/'t.csv', index=False)
    with pytest.raises(DataError, match='too few'): Source('table', str(tmp_path/'t.csv')).caption_parts()


# --- the laboratory

def test_a_row_on_recordings(lab):
    reader = lab.scale.readers[-1]
    row = lab.row('gtzan_filtered', reader, lab.scale.pairs[-1])
    assert row['n'] == 10 and row['true'] is None and row['predicted']['n'] == row['drawn']['n'] == 10
    shown = table([row], {'gtzan_filtered': lab.baselines('gtzan_filtered')})
    assert shown.index[0] == ('GTZAN, fault-filtered test', 10) and shown['from true words'].item() == '–'
    learned = read_json(lab.captioner(lab.scale.pairs[-1])/'done.json')['config']
    assert learned['corpora'][0] == lab.corpus('train').folder.name and 'captions-train' in learned['corpora'][0]


def test_rendered_clips_keep_their_lines_beside_recorded_captions(disk, home, one_thread):
    (disk/'told.toml').write_text("[captions]\ndataset = 'table'\nfolder = 'own/captions.csv'\n")
    lab = Lab.at('smoke', sources=str(disk/'told.toml'))
    assert set(lab.tests) == {'gtzan', 'gtzan_shifted', 'fma_shifted'} and lab.baselines('gtzan')['bayes'] > 0


def test_models_of_the_file(lab, disk):
    named = Lab(replace(lab.scale, decoder='my-gpt2', warmup=None, readers=('my-gpt2',)), sources=lab.sources)
    assert named.voice() == named.reasoner('my-gpt2') == str(disk/'own')
    with pytest.raises(LogocentricError, match=r'no tokenizer of .*section \[models\]'): named.tokenizer()


def test_runs_of_recordings_have_a_folder_of_their_own(lab):
    there, here = (run_output('table1_reasoner_size', dict(scale='smoke', seed=1, **given)) for given in ({}, dict(sources=lab.sources)))
    assert there[0].parent.name == 'smoke-1' and here[0].parent == lab.folder and lab.folder.name.startswith('smoke-1-sources-') and there[1] != here[1]


@pytest.mark.slow
def test_reproduce_on_recordings(disk, home, one_thread):
    told = reproduce('smoke', sources=str(disk/'sources.toml'))
    for words in ('Measured on recordings', 'GTZAN, fault-filtered test', 'FMA small, test split'): assert words in told
    records = {r.name: r for r in load_records(Lab.at('smoke', sources=str(disk/'sources.toml')).folder/'records')}
    assert records['table1_reasoner_size'].metrics['recordings']['gtzan_filtered']['asked'] == 10
    assert records['table1_reasoner_size'].params['sources'] == 'sources.toml'


@pytest.mark.slow
def test_reproduce_on_recordings_under_a_launch(disk, tmp_path):
    "Two processes over gloo, each of which asks for every folder of clips: read once, learned together, told once."
    (disk/'both.toml').write_text("[gtzan]\nfolder = 'gtzan'\nskip = 'gtzan/skip.csv'\n[captions]\ndataset = 'table'\nfolder = 'own/captions.csv'\n")
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/'published.json').write_bytes((ROOT/'data'/'published.json').read_bytes())
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(Path(sys.executable).with_name('logocentric')), 'reproduce', '--scale', 'smoke',
               '--sources', str(disk/'both.toml'), '--parts', '2', '--recompute']
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, env=os.environ | dict(LOGOCENTRIC_HOME=str(tmp_path), ACCELERATE_USE_CPU='true'))
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.count('# logocentric: scale smoke') == ran.stdout.count('\nreport: ') == 1 and 'GTZAN, all clips' in ran.stdout
    cache = tmp_path/'data'/'cache'
    assert len(list((cache/'clips').glob('*/clips.json'))) == 4 and not list((cache/'scratch').glob('*'))
    assert {len(list((cache/kind).glob('*/model.safetensors'))) for kind in ('captioner', 'mae')} == {2}
