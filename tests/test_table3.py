"Table 3 at scale smoke: rendered mixtures, AudioSet as it is published in small, and folds of recordings."
from dataclasses import replace
import numpy as np, pytest, soundfile as sf, torch
import logocentric.pipeline.table3 as module
from logocentric.captioner.model import Captioner
from logocentric.data.clips import build_clips
from logocentric.core import LogocentricError, load_records, read_json
from logocentric.data.lists import DataError, write_skip_list
from logocentric.data.datasets import read_dataset
from logocentric.pipeline.experiments import Lab, run_experiment
from logocentric.data.mixtures import VOCABULARY
from logocentric.encoder.audio_encoder import load_encoder
from logocentric.pipeline.table3 import PLANS, TagLab, set_aside
from logocentric.pipeline.tagging_stages import SPLITS
from logocentric.reasoner.tagging import TAG_RULES
from logocentric.runs import TrainConfig

pytestmark = [pytest.mark.usefixtures('one_thread', 'home'), pytest.mark.filterwarnings('ignore::logocentric.reasoner.model.LabelWarning')]
NAMES = ['Speech', 'Male speech, man speaking', 'Dog', 'Chirp, tweet', 'Bell (church), bell tower']


@pytest.fixture
def no_training(monkeypatch):
    def train(*args, **kwargs): raise AssertionError('something is trained again')
    monkeypatch.setattr(module, 'train', train)


@pytest.fixture
def lessons(monkeypatch):
    "Ids and features that each training has seen, and those of its validation."
    seen, real = [], module.train
    def train(model, pairs, settings, valid=None, **kwargs):
        seen.append((pairs.heard, valid and valid.heard))
        return real(model, pairs, settings, valid, **kwargs)
    monkeypatch.setattr(module, 'train', train)
    return seen


# --- rendered mixtures

@pytest.fixture(scope='module')
def lab(home, one_thread): return TagLab.at('smoke')


def assert_scores(scores, n, labels):
    assert set(scores) == {*TAG_RULES, 'strange'} and 0 <= scores['strange'] <= 1
    for rule in TAG_RULES: assert scores[rule].shape == (n, labels) and np.isfinite(scores[rule].astype(float)).all() and scores[rule].min() >= 0, rule
    assert scores['first'].sum(1).max() <= 1 + 1e-5 and scores['sampled'].max() <= 1


@pytest.fixture(scope='module')
def mixtures(lab): return lab.scores('small', 'test'), lab.direct_scores('test')


def test_counts_are_those_of_the_plan(lab):
    counts = lab.counts()
    assert list(counts.index) == list(SPLITS) and tuple(counts.clips) == lab.plan.clips == PLANS['smoke'].clips
    for split in SPLITS:
        truth = lab.truth(split)
        assert truth.shape == (counts.clips[split], len(VOCABULARY)) and counts.tags[split] == truth.sum() and counts.most[split] == truth.sum(1).max()
        assert counts.labels[split] == truth.any(0).sum() and counts.rarest[split] == truth.sum(0).min()
    assert lab.longest() == counts.most['train'] and lab.labels() == list(VOCABULARY)


def test_every_rule_has_scores(lab, mixtures):
    words, direct = mixtures
    assert_scores(words, lab.plan.clips[2], len(VOCABULARY))
    assert direct.shape == (lab.plan.clips[2], len(VOCABULARY)) and np.isfinite(direct).all() and direct.std() > 0
    assert read_json(lab.tagger('small')/'history.json')['rows'][-1]['step'] == read_json(lab.direct()/'history.json')['rows'][-1]['step'] == lab.plan.train.steps


def test_a_second_call_trains_nothing(lab, mixtures, no_training):
    again = lab.scores('small', 'test'), lab.direct_scores('test')
    assert all(np.array_equal(mixtures[0][k], again[0][k]) for k in mixtures[0]) and np.array_equal(mixtures[1], again[1])
    with pytest.raises(AssertionError, match='trained again'): TagLab.at('smoke', prompt='table3').tagger('small')


def test_another_prompt_asks_the_same_captioner(lab, mixtures, no_training):
    asked = lab.scores('small', 'test', 'table3')
    assert_scores(asked, lab.plan.clips[2], len(VOCABULARY))
    assert not np.array_equal(asked['first'], mixtures[0]['first'])


def test_an_ear_with_random_weights_is_another(lab, mixtures):
    deaf = TagLab.at('smoke', ear='random')
    a, b = lab.hearing()[0].state_dict(), deaf.hearing()[0].state_dict()
    assert a.keys() == b.keys() and any(not a[k].equal(b[k]) for k in a)
    assert all(b[k].equal(v) for k, v in deaf.hearing()[0].state_dict().items()), 'the same weights at every call'
    assert deaf.tagger('small') != lab.tagger('small') and deaf.direct() != lab.direct()
    assert not np.allclose(deaf.scores('small', 'test')['first'], mixtures[0]['first']) and not np.allclose(deaf.direct_scores('test'), mixtures[1])


# --- roles

ASIDE_OF_100 = [24, 27, 60, 81]

def test_one_clip_in_twenty_is_set_aside():
    ids = [f'clip {i}' for i in range(20_000)]
    out = set_aside(ids)
    assert out.dtype == bool and abs(out.mean() - .05) < 5*np.sqrt(.05*.95/len(ids))
    assert np.array_equal(set_aside(ids[::-1])[::-1], out) and set_aside([]).shape == (0,)
    assert np.flatnonzero(out[:100]).tolist() == ASIDE_OF_100, 'the same on every machine, in every version'


def test_what_is_unknown_is_refused(lab):
    with pytest.raises(LogocentricError, match="unknown scale 'huge': choose from smoke, mini, gpu, paper"): TagLab.at('huge')
    with pytest.raises(LogocentricError, match='unknown scale'): Lab.at('huge')
    with pytest.raises(LogocentricError, match="unknown ear 'left': choose from ear, random"): TagLab.at('smoke', ear='left')
    with pytest.raises(LogocentricError, match="no decoder 'medium' in this plan: there are small, large"): lab.tagger('medium')


def sound(path, seconds=1., seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, .1*np.random.default_rng(seed).standard_normal(int(seconds*16_000)), 16_000)


def text(path, words):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(words)


@pytest.fixture
def as_listed(monkeypatch):
    "Sets may be smaller than their publishers count."
    monkeypatch.setattr(module, 'read_dataset', lambda *args, **kwargs: replace(read_dataset(*args, **kwargs), expected={}))


def test_half_asked_labels_are_refused(tmp_path, as_listed):
    text(tmp_path/'openmic-2018-aggregated-labels.csv', 'sample_key,instrument,relevance,num_responses\n000046_3840,flute,0.1,3\n000178_3840,drums,0.9,3\n')
    for part, i in (('train', '000046_3840'), ('test', '000178_3840')):
        text(tmp_path/'partitions'/f'split01_{part}.csv', f'{i}\n')
        sound(tmp_path/'audio'/'000'/f'{i}.wav')
    with pytest.raises(LogocentricError, match='openmic2018 asked about some labels of a clip only.*complete labels'): TagLab.at('smoke', data='openmic2018', folder=str(tmp_path)).counts()


def test_sets_without_labels_are_refused(tmp_path, as_listed):
    text(tmp_path/'song_describer.csv', 'caption_id,track_id,caption,is_valid_subset,familiarity,artist_id,album_id,path,duration\n1,200,odd,True,0,1,2,00/200.mp3,1\n')
    sound(tmp_path/'audio'/'00'/'200.2min.wav')
    with pytest.raises(LogocentricError, match='song_describer has no labels to predict: choose a set of tags'): TagLab.at('smoke', data='song_describer', folder=str(tmp_path)).counts()


def test_a_set_cut_short_is_refused(tmp_path):
    text(tmp_path/'song_describer.csv', 'caption_id,track_id,caption,is_valid_subset,familiarity,artist_id,album_id,path,duration\n1,200,odd,True,0,1,2,00/200.mp3,1\n')
    sound(tmp_path/'audio'/'00'/'200.2min.wav')
    with pytest.raises(DataError, match='706 clips are expected and 1 listed'): TagLab.at('smoke', data='song_describer', folder=str(tmp_path)).counts()


def test_a_table_of_your_own(tmp_path, home, one_thread):
    rows = [f'{s}/{i}.wav,{"Dog; Bark" if i % 2 else "Rain"},{s}' for s, n in (('train', 6), ('valid', 2), ('test', 4)) for i in range(n)]
    text(tmp_path/'own.csv', '\n'.join(['file_name,labels,split', *rows]) + '\n')
    for k, row in enumerate(rows): sound(tmp_path/row.split(',')[0], seed=k)
    lab = TagLab.at('smoke', data='table', folder=str(tmp_path/'own.csv'))
    assert lab.labels() == ['Bark', 'Dog', 'Rain'] and lab.counts().clips.tolist() == [6, 2, 4]
    assert_scores(lab.scores('small', 'test'), 4, 3)
    assert lab.truth('test').tolist() == [[False, False, True], [True, True, False]]*2


# --- AudioSet, as it is published

def _ids():
    "Names of clips: for training, of those set aside, for the test."
    some = [f'{i:02d}aBc_-xYz' for i in range(200)]
    learn, aside = ([i for i in some if set_aside([i])[0] == out] for out in (False, True))
    return ['-aBcdefghij', *learn[:12]], aside[:3], learn[12:22]

LEARN, ASIDE, TEST = _ids()
LOST = LEARN[5]


@pytest.fixture(scope='module')
def audioset(tmp_path_factory):
    "25 sounds in both lists' folders, and one that is listed and not there."
    folder = tmp_path_factory.mktemp('sets')/'audioset'
    mids = [f'/m/{i}' for i in range(len(NAMES))]
    text(folder/'class_labels_indices.csv', 'index,mid,display_name\n' + ''.join(f'{i},{m},"{n}"\n' for i, (m, n) in enumerate(zip(mids, NAMES))))
    for part, ids, seed in (('balanced_train', [*LEARN, *ASIDE], 0), ('eval', TEST, 100)):
        rows = ''.join(f'{i}, 30.000, 40.000, "{",".join(mids[(k + j) % len(mids)] for j in range(1 + k % 3))}"\n' for k, i in enumerate(ids))
        text(folder/f'{part}_segments.csv', '# Segments csv created Sun Mar  5 10:54:31 2017\n'
             f'# num_ytids={len(ids)}, num_segs={len(ids)}, num_unique_labels=5, num_positive_labels=9\n# YTID, start_seconds, end_seconds, positive_labels\n{rows}')
        for k, i in enumerate(ids):
            if i != LOST: sound(folder/f'{part}_segments'/f'Y{i}.wav', 1 + .1*(k % 3), seed + k)
    return folder


@pytest.fixture(scope='module')
def skip(audioset): return str(write_skip_list(audioset.parent/'skip.csv', {LOST: 'the sound file is missing'}))


@pytest.fixture(scope='module')
def real(audioset, skip, home, one_thread): return TagLab.at('smoke', folder=str(audioset), skip=skip)


def test_a_clip_that_is_not_there_is_named(audioset):
    with pytest.raises(DataError, match=f'audioset: 25 of 26 clips are there. Missing: .*{LOST}') as error: TagLab.at('smoke', folder=str(audioset)).scores('small', 'test')
    assert 'skip=' in str(error.value)


def test_audioset_from_lists_to_scores(real, lessons):
    assert real.labels() == NAMES
    assert_scores(real.scores('small', 'test'), len(TEST), len(NAMES))
    assert real.direct_scores('test').shape == (len(TEST), len(NAMES))
    assert len(lessons) == 2
    for learned, held_out in lessons:
        assert sorted(learned.ids) == sorted(set(LEARN) - {LOST}) and sorted(held_out.ids) == sorted(ASIDE)
        assert len(learned) == len(LEARN) - 1 and len(held_out) == len(ASIDE)
    assert real.scores('small', 'validation')['first'].shape == (len(ASIDE), len(NAMES))


def test_splits_of_audioset_share_no_clip(real):
    ids = {s: real.clips(s).table['id'].iloc[real.rows(s)].tolist() for s in SPLITS}
    assert {s: sorted(i) for s, i in ids.items()} == dict(train=sorted(set(LEARN) - {LOST}), validation=sorted(ASIDE), test=sorted(TEST))
    assert '-aBcdefghij' in ids['train'] and real.counts().clips.to_dict() == {s: len(i) for s, i in ids.items()}
    labels = dict(zip(real.clips('test').table['id'], real.places('test')))
    assert [labels[i] for i in TEST] == [[(k + j) % 5 for j in range(1 + k % 3)] for k in range(len(TEST))]
    assert real.longest() == 3


def test_what_a_record_keeps_of_the_set(real):
    test, learn = (real.clips(s).manifest for s in ('test', 'train'))
    assert test['name'] == 'audioset' and test['hash'] == real.manifest().take('evaluation').hash != learn['hash']
    assert (test['clips'], test['there'], test['skipped'], test['splits']) == (len(TEST), len(TEST), 0, dict(evaluation=len(TEST)))
    assert (learn['clips'], learn['skipped'], learn['splits']) == (len(LEARN) + len(ASIDE) - 1, 1, dict(balanced=len(LEARN) + len(ASIDE) - 1))
    assert sum(test['fit'].values()) == len(TEST) and test['fit']['padded'] == len(TEST)


def test_another_skip_list_is_another_set(audioset, real):
    other = TagLab.at('smoke', folder=str(audioset), skip=str(write_skip_list(audioset.parent/'more.csv', {LOST: 'lost', LEARN[1]: 'not wanted'})))
    before = real.clips('train').table['id'].tolist()
    assert LEARN[1] not in other.clips('train').table['id'].tolist() and other.clips('train').folder != real.clips('train').folder
    assert real.clips('train').table['id'].tolist() == before and other.clips('test').folder == real.clips('test').folder


def test_roles_of_splits(real, audioset, skip):
    manifest = real.manifest()
    assert [real.role(manifest, s) for s in SPLITS] == [['balanced'], [], ['evaluation']]
    with pytest.raises(LogocentricError, match='audioset has no split to test on: it has balanced'): real.role(manifest.take('balanced'), 'test')
    with pytest.raises(LogocentricError, match='audioset has no split to train on: it has evaluation'): real.role(manifest.take('evaluation'), 'train')
    with pytest.raises(DataError, match="no data set 'audiosets'"): TagLab.at('smoke', data='audiosets', folder=str(audioset), skip=skip).counts()


# --- folds

@pytest.fixture(scope='module')
def folds(tmp_path_factory, home):
    "Two folds of ESC-50 with three classes."
    folder, kinds = tmp_path_factory.mktemp('sets')/'esc50', ['dog', 'crackling_fire', 'sea_waves']
    rows = [(f'{f}-{i}-A-{i % 3}.wav', f, i % 3, kinds[i % 3]) for f in (1, 2) for i in range(6)]
    text(folder/'meta'/'esc50.csv', 'filename,fold,target,category,esc10,src_file,take\n' + ''.join(f'{n},{f},{t},{k},True,1,A\n' for n, f, t, k in rows))
    for s, (n, *_) in enumerate(rows): sound(folder/'audio'/n, 5., s)
    manifest = read_dataset('esc50', folder)
    return build_clips(folder.parent/'clips', manifest, seconds=5., n=len(manifest))


@pytest.mark.parametrize('kind', ['words', 'words after mixtures', 'sigmoids'])
def test_each_fold_is_scored_by_models_of_the_others(lab, mixtures, folds, kind, monkeypatch):
    seen, real = [], module.train
    def train(model, pairs, settings, **kwargs):
        seen.append((np.asarray(pairs.heard.sounds), settings.steps))
        return real(model, pairs, settings, **kwargs)
    lab.tagger('small')
    monkeypatch.setattr(module, 'train', train)
    scores = lab.by_folds(folds, 'small', kind, 4)
    assert scores.shape == (12, 3) and np.isfinite(scores).all() and (scores != 0).any(1).all() and folds.vocabulary == ['crackling fire', 'dog', 'sea waves']
    features = lab.foreign(folds, 'small')
    assert len(seen) == 2
    for fold, (learned, steps) in zip(('1', '2'), seen): assert steps == 4 and np.array_equal(learned, features[folds.table['split'] != fold])
    assert np.array_equal(lab.by_folds(folds, 'small', kind, 4), scores) and len(seen) == 2, 'kept'
    if kind != 'sigmoids': assert (scores >= 0).all() and scores.sum(1).max() <= 1 + 1e-5


# --- an encoder that learns along, as in the plan `paper`

def test_an_encoder_paints_and_learns_along(home):
    few = TrainConfig(steps=2, batch_size=4)
    lab = TagLab.at('smoke')
    lab = replace(lab, plan=replace(lab.plan, clips=(12, 6, 6), encoder='tiny', paint=few, train=few))
    assert not lab.still and lab.scores('small', 'test')['inclusion'].shape == lab.direct_scores('test').shape == (6, len(lab.labels()))
    before, after = load_encoder(lab.painted())[0], Captioner.from_pretrained(lab.tagger('small')).encoder
    assert any(not torch.equal(p, q) for p, q in zip(before.parameters(), after.parameters())), 'it has learned'


# --- the notebook

@pytest.mark.slow
def test_the_notebook_runs_on_audioset(audioset, skip, home):
    run_experiment('table3_audioset', 'smoke', 1, folder=str(audioset), skip=skip)
    record = load_records(home/'data'/'runs'/'smoke-1'/'records', name='table3_audioset')[0]
    metrics = record.metrics
    assert record.params['folder'] is True and (metrics['n'], metrics['labels'], metrics['n_recordings']) == (len(TEST), len(NAMES), 0)
    assert {'words, small', 'words, large', 'sigmoids', 'prior', 'sigmoids, random weights'} <= set(metrics['systems'])
    for row in metrics['systems'].values(): assert 0 <= row['map']['low'] <= row['map']['value'] <= row['map']['high'] <= 1 and row['map']['n'] == len(TEST)
    assert metrics['data_set']['name'] == 'audioset' and metrics['data_set']['clips'] == len(TEST) and metrics['rule'] in TAG_RULES


@pytest.mark.slow
def test_the_notebook_says_what_it_does_not_know(audioset, skip):
    from papermill.exceptions import PapermillExecutionError
    with pytest.raises(PapermillExecutionError, match="no data set 'audiosets'"): run_experiment('table3_audioset', 'smoke', 1, folder=str(audioset), skip=skip, data='audiosets')
    with pytest.raises(PapermillExecutionError, match="unknown scale 'huge'"): run_experiment('table3_audioset', 'huge', 1)
    with pytest.raises(LogocentricError, match='no parameter colour'): run_experiment('table3_audioset', 'smoke', 1, colour='red')
