"Table 3 at scale smoke: rendered mixtures, AudioSet as it is published in small, and folds of recordings."
from dataclasses import replace
import numpy as np, pytest, soundfile as sf, torch
import logocentric.pipeline.other_set_stages as other_sets
import logocentric.pipeline.tagging_stages as module
from logocentric.core import LogocentricError, load_records, read_json
from logocentric.data.clips import build_clips
from logocentric.data.datasets import read_dataset
from logocentric.data.lists import DataError, write_skip_list
from logocentric.data.mixtures import VOCABULARY
from logocentric.pipeline.data_stages import BuiltClips, RenderedClasses
from logocentric.pipeline.experiments import run_experiment
from logocentric.pipeline.other_set_stages import ForeignFeatures, fold_scores, rendered_class_scores
from logocentric.pipeline.scales import SCALES, Setup
from logocentric.pipeline.tagging_stages import (SPLITS, TaggingSetup, classifier_scores, held_out, split_names,
                                                 tag_counts, tag_encoder, tag_manifest, tag_recipe, tag_scores,
                                                 tag_split, trained_classifier, trained_tagger)
from logocentric.reasoner.tagging import TAG_RULES
from logocentric.runs import TrainConfig

pytestmark = [pytest.mark.usefixtures('smoke_home'),
              pytest.mark.filterwarnings('ignore::logocentric.reasoner.model.LabelWarning')]
NAMES = ['Speech', 'Male speech, man speaking', 'Dog', 'Chirp, tweet', 'Bell (church), bell tower']


@pytest.fixture
def no_training(monkeypatch):
    def train(*args, **kwargs): raise AssertionError('something is trained again')
    for of in (module, other_sets): monkeypatch.setattr(of, 'train', train)


@pytest.fixture
def trained_on(monkeypatch):
    "What each training has seen, and its validation, and its steps."
    seen, real = [], module.train
    def train(model, pairs, settings, valid=None, **kwargs):
        seen.append((pairs.inputs, valid and valid.inputs, settings.steps))
        return real(model, pairs, settings, valid, **kwargs)
    for of in (module, other_sets): monkeypatch.setattr(of, 'train', train)
    return seen


# --- rendered mixtures

@pytest.fixture(scope='module')
def setup(smoke_home): return TaggingSetup.at('smoke')


def assert_scores(scores, n, labels):
    assert set(scores) == {*TAG_RULES, 'unknown'} and 0 <= scores['unknown'] <= 1
    for rule in TAG_RULES:
        values = scores[rule].astype(float)
        assert values.shape == (n, labels) and np.isfinite(values).all() and values.min() >= 0, rule
    assert scores['first'].sum(1).max() <= 1 + 1e-5 and scores['sampled'].max() <= 1


def both(setup, split='test'):
    "What the small tagger and the classifier score."
    return tag_scores(setup, 'small', split).load(), classifier_scores(setup, split).load()


@pytest.fixture(scope='module')
def mixtures(setup): return both(setup)


def test_counts_are_those_of_the_scale(setup):
    counts = tag_counts(setup)
    assert list(counts.index) == list(SPLITS)
    assert tuple(counts.clips) == setup.scale.clips == SCALES['smoke'].tagging.clips
    for split in SPLITS:
        truth, of = tag_split(setup, split).truth(), counts.loc[split]
        assert truth.shape == (of.clips, len(VOCABULARY)) and of.tags == truth.sum() and of.most == truth.sum(1).max()
        assert of.labels == truth.any(0).sum() and of.rarest == truth.sum(0).min()
    train = tag_split(setup, 'train')
    assert max(map(len, train.places())) == counts.most['train'] and train.labels == list(VOCABULARY)


def test_every_rule_has_scores(setup, mixtures):
    words, direct = mixtures
    n = setup.scale.clips[2]
    assert_scores(words, n, len(VOCABULARY))
    assert direct.shape == (n, len(VOCABULARY)) and np.isfinite(direct).all() and direct.std() > 0
    folders = trained_tagger(setup, 'small').folder(), trained_classifier(setup).folder()
    assert [read_json(f/'history.json')['rows'][-1]['step'] for f in folders] == [setup.scale.train.steps]*2


def test_a_run_of_the_paper_has_the_same_stages(setup):
    assert module.tagging_setup(Setup.at('smoke', 1)) == setup


def test_a_second_call_trains_nothing(setup, mixtures, no_training):
    words, direct = both(setup)
    assert all(np.array_equal(mixtures[0][k], words[k]) for k in mixtures[0]) and np.array_equal(mixtures[1], direct)
    another = TaggingSetup.at('smoke', prompt='table3')
    with pytest.raises(AssertionError, match='trained again'): trained_tagger(another, 'small').folder()


def test_another_prompt_asks_the_same_captioner(setup, mixtures, no_training):
    asked = tag_scores(setup, 'small', 'test', 'table3').load()
    assert_scores(asked, setup.scale.clips[2], len(VOCABULARY))
    assert not np.array_equal(asked['first'], mixtures[0]['first'])


def test_an_encoder_with_random_weights_is_another(setup, mixtures):
    def weights(of):
        recipe = tag_recipe(of)
        return recipe.joined(recipe.tags()).encoder.state_dict()
    random = TaggingSetup.at('smoke', encoder='random')
    a, b = weights(setup), weights(random)
    assert a.keys() == b.keys() and any(not a[k].equal(b[k]) for k in a)
    assert all(b[k].equal(v) for k, v in weights(random).items()), 'the same weights at every call'
    assert trained_tagger(random, 'small').folder() != trained_tagger(setup, 'small').folder()
    assert trained_classifier(random).folder() != trained_classifier(setup).folder()
    words, direct = both(random)
    assert not np.allclose(words['first'], mixtures[0]['first']) and not np.allclose(direct, mixtures[1])


# --- splits

HELD_OUT_OF_100 = [24, 27, 60, 81]

def test_one_clip_in_twenty_is_held_out():
    ids = [f'clip {i}' for i in range(20_000)]
    out = held_out(ids)
    assert out.dtype == bool and abs(out.mean() - .05) < 5*np.sqrt(.05*.95/len(ids))
    assert np.array_equal(held_out(ids[::-1])[::-1], out) and held_out([]).shape == (0,)
    assert np.flatnonzero(out[:100]).tolist() == HELD_OUT_OF_100, 'the same on every machine, in every version'


def test_what_is_unknown_is_refused(setup):
    said = "unknown scale 'huge': choose from smoke, mini, gpu, paper"
    with pytest.raises(LogocentricError, match=said): TaggingSetup.at('huge')
    with pytest.raises(LogocentricError, match='unknown scale'): Setup.at('huge')
    said = "unknown encoder 'left': choose from shipped, random"
    with pytest.raises(LogocentricError, match=said): TaggingSetup.at('smoke', encoder='left')
    said = "no decoder 'medium' at this scale: there are small, large"
    with pytest.raises(LogocentricError, match=said): trained_tagger(setup, 'medium').folder()


def sound(path, seconds=1., seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, .1*np.random.default_rng(seed).standard_normal(int(seconds*16_000)), 16_000)


def text(path, words):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(words)


@pytest.fixture
def as_listed(monkeypatch):
    "Sets may be smaller than their publishers count."
    monkeypatch.setattr(module, 'read_dataset', lambda *args, **kw: replace(read_dataset(*args, **kw), expected={}))


def counts_of(data, folder, **settings):
    return tag_counts(TaggingSetup.at('smoke', data=data, folder=str(folder), **settings))


def test_half_asked_labels_are_refused(tmp_path, as_listed):
    text(tmp_path/'openmic-2018-aggregated-labels.csv', 'sample_key,instrument,relevance,num_responses\n'
                                                        '000046_3840,flute,0.1,3\n000178_3840,drums,0.9,3\n')
    for part, i in (('train', '000046_3840'), ('test', '000178_3840')):
        text(tmp_path/'partitions'/f'split01_{part}.csv', f'{i}\n')
        sound(tmp_path/'audio'/'000'/f'{i}.wav')
    said = 'openmic2018 asked about some labels of a clip only.*complete labels'
    with pytest.raises(LogocentricError, match=said): counts_of('openmic2018', tmp_path)


SONGS = ('caption_id,track_id,caption,is_valid_subset,familiarity,artist_id,album_id,path,duration\n'
         '1,200,odd,True,0,1,2,00/200.mp3,1\n')

def songs(folder):
    text(folder/'song_describer.csv', SONGS)
    sound(folder/'audio'/'00'/'200.2min.wav')


def test_sets_without_labels_are_refused(tmp_path, as_listed):
    songs(tmp_path)
    said = 'song_describer has no labels to predict: choose a set of tags'
    with pytest.raises(LogocentricError, match=said): counts_of('song_describer', tmp_path)


def test_a_set_cut_short_is_refused(tmp_path):
    songs(tmp_path)
    with pytest.raises(DataError, match='706 clips are expected and 1 listed'): counts_of('song_describer', tmp_path)


def test_a_table_of_your_own(tmp_path):
    parts = (('train', 6), ('valid', 2), ('test', 4))
    rows = [f'{s}/{i}.wav,{"Dog; Bark" if i % 2 else "Rain"},{s}' for s, n in parts for i in range(n)]
    text(tmp_path/'own.csv', '\n'.join(['file_name,labels,split', *rows]) + '\n')
    for k, row in enumerate(rows): sound(tmp_path/row.split(',')[0], seed=k)
    own = TaggingSetup.at('smoke', data='table', folder=str(tmp_path/'own.csv'))
    test = tag_split(own, 'test')
    assert test.labels == ['Bark', 'Dog', 'Rain'] and tag_counts(own).clips.tolist() == [6, 2, 4]
    assert_scores(tag_scores(own, 'small', 'test').load(), 4, 3)
    assert test.truth().tolist() == [[False, False, True], [True, True, False]]*2


# --- AudioSet, as it is published

def _ids():
    "Names of clips: for training, of those held out, for the test."
    some = [f'{i:02d}aBc_-xYz' for i in range(200)]
    learn, out = ([i for i in some if held_out([i])[0] == want] for want in (False, True))
    return ['-aBcdefghij', *learn[:12]], out[:3], learn[12:22]

LEARN, HELD, TEST = _ids()
LOST = LEARN[5]


def segments(folder, part, ids, mids):
    "One of AudioSet's lists."
    of = lambda k: ','.join(mids[(k + j) % len(mids)] for j in range(1 + k % 3))
    head = ('# Segments csv created Sun Mar  5 10:54:31 2017\n'
            f'# num_ytids={len(ids)}, num_segs={len(ids)}, num_unique_labels=5, num_positive_labels=9\n'
            '# YTID, start_seconds, end_seconds, positive_labels\n')
    rows = ''.join(f'{i}, 30.000, 40.000, "{of(k)}"\n' for k, i in enumerate(ids))
    text(folder/f'{part}_segments.csv', head + rows)


@pytest.fixture(scope='module')
def audioset(tmp_path_factory):
    "25 sounds in both lists' folders, and one that is listed and not there."
    folder = tmp_path_factory.mktemp('sets')/'audioset'
    mids = [f'/m/{i}' for i in range(len(NAMES))]
    names = ''.join(f'{i},{m},"{n}"\n' for i, (m, n) in enumerate(zip(mids, NAMES)))
    text(folder/'class_labels_indices.csv', 'index,mid,display_name\n' + names)
    for part, ids, seed in (('balanced_train', [*LEARN, *HELD], 0), ('eval', TEST, 100)):
        segments(folder, part, ids, mids)
        for k, i in enumerate(ids):
            if i != LOST: sound(folder/f'{part}_segments'/f'Y{i}.wav', 1 + .1*(k % 3), seed + k)
    return folder


@pytest.fixture(scope='module')
def skip(audioset): return str(write_skip_list(audioset.parent/'skip.csv', {LOST: 'the sound file is missing'}))


@pytest.fixture(scope='module')
def real(audioset, skip, smoke_home): return TaggingSetup.at('smoke', folder=str(audioset), skip=skip)


def clips(setup, split): return tag_split(setup, split).clips.load()

def ids_of(setup, split): return clips(setup, split).table['id'].tolist()


def test_a_clip_that_is_not_there_is_named(audioset):
    said = f'audioset: 25 of 26 clips are there. Missing: .*{LOST}'
    with pytest.raises(DataError, match=said) as error:
        tag_scores(TaggingSetup.at('smoke', folder=str(audioset)), 'small', 'test').load()
    assert 'skip=' in str(error.value)


def test_audioset_from_lists_to_scores(real, trained_on):
    assert tag_split(real, 'train').labels == NAMES
    words, direct = both(real)
    assert_scores(words, len(TEST), len(NAMES))
    assert direct.shape == (len(TEST), len(NAMES)) and len(trained_on) == 2
    for learned, valid, _ in trained_on:
        assert sorted(learned.ids) == sorted(set(LEARN) - {LOST}) and sorted(valid.ids) == sorted(HELD)
        assert len(learned) == len(LEARN) - 1 and len(valid) == len(HELD)
    assert tag_scores(real, 'small', 'validation').load()['first'].shape == (len(HELD), len(NAMES))


def test_splits_of_audioset_share_no_clip(real):
    ids = {s: clips(real, s).table['id'].iloc[tag_split(real, s).rows].tolist() for s in SPLITS}
    expected = dict(train=sorted(set(LEARN) - {LOST}), validation=sorted(HELD), test=sorted(TEST))
    assert {s: sorted(i) for s, i in ids.items()} == expected and '-aBcdefghij' in ids['train']
    counts = tag_counts(real)
    assert counts.clips.to_dict() == {s: len(i) for s, i in ids.items()} and counts.most['train'] == 3
    labels = dict(zip(ids_of(real, 'test'), tag_split(real, 'test').places()))
    assert [labels[i] for i in TEST] == [[(k + j) % 5 for j in range(1 + k % 3)] for k in range(len(TEST))]


def test_what_a_record_keeps_of_the_set(real):
    test, learn = (clips(real, s).manifest for s in ('test', 'train'))
    assert test['name'] == 'audioset' and test['hash'] == tag_manifest(real).take('evaluation').hash != learn['hash']
    kept = lambda m: (m['clips'], m['skipped'], m['splits'])
    there = len(LEARN) + len(HELD) - 1
    assert kept(test) == (len(TEST), 0, dict(evaluation=len(TEST))) and test['there'] == len(TEST)
    assert kept(learn) == (there, 1, dict(balanced=there))
    assert sum(test['fit'].values()) == len(TEST) and test['fit']['padded'] == len(TEST)


def test_another_skip_list_is_another_set(audioset, real):
    more = write_skip_list(audioset.parent/'more.csv', {LOST: 'lost', LEARN[1]: 'not wanted'})
    other, before = TaggingSetup.at('smoke', folder=str(audioset), skip=str(more)), ids_of(real, 'train')
    assert LEARN[1] not in ids_of(other, 'train') and clips(other, 'train').folder != clips(real, 'train').folder
    assert ids_of(real, 'train') == before and clips(other, 'test').folder == clips(real, 'test').folder
    assert trained_tagger(other, 'small').key != trained_tagger(real, 'small').key


def test_names_of_splits(real, audioset, skip):
    manifest = tag_manifest(real)
    assert [split_names(manifest, s) for s in SPLITS] == [('balanced',), (), ('evaluation',)]
    said = 'audioset has no split to {} on: it has {}'
    with pytest.raises(LogocentricError, match=said.format('test', 'balanced')):
        split_names(manifest.take('balanced'), 'test')
    with pytest.raises(LogocentricError, match=said.format('train', 'evaluation')):
        split_names(manifest.take('evaluation'), 'train')
    with pytest.raises(DataError, match="no data set 'audiosets'"): counts_of('audiosets', audioset, skip=skip)


# --- folds

@pytest.fixture(scope='module')
def folds(tmp_path_factory, smoke_home):
    "Two folds of ESC-50 with three classes."
    folder, kinds = tmp_path_factory.mktemp('sets')/'esc50', ['dog', 'crackling_fire', 'sea_waves']
    rows = [(f'{f}-{i}-A-{i % 3}.wav', f, i % 3, kinds[i % 3]) for f in (1, 2) for i in range(6)]
    listed = ''.join(f'{n},{f},{t},{k},True,1,A\n' for n, f, t, k in rows)
    text(folder/'meta'/'esc50.csv', 'filename,fold,target,category,esc10,src_file,take\n' + listed)
    for s, (n, *_) in enumerate(rows): sound(folder/'audio'/n, 5., s)
    manifest = read_dataset('esc50', folder)
    return build_clips(folder.parent/'clips', manifest, seconds=5., n=len(manifest))


@pytest.mark.parametrize('system', ['words', 'words after mixtures', 'sigmoids'])
def test_each_fold_is_scored_by_models_of_the_others(setup, mixtures, folds, system, trained_on):
    given = BuiltClips(str(folds.folder))
    trained_tagger(setup, 'small').folder()
    stage, built = fold_scores(setup, given, 'small', system, 4), given.load()
    trained_on.clear()
    scores = stage.load()
    assert scores.shape == (12, 3) and np.isfinite(scores).all() and (scores != 0).any(1).all()
    assert built.vocabulary == ['crackling fire', 'dog', 'sea waves']
    features = ForeignFeatures(trained_tagger(setup, 'small'), given).load()
    assert len(trained_on) == 2
    for fold, (learned, _, steps) in zip(('1', '2'), trained_on):
        assert steps == 4 and np.array_equal(learned.sounds, features[built.table['split'] != fold])
    assert np.array_equal(stage.load(), scores) and len(trained_on) == 2, 'kept'
    if system != 'sigmoids': assert (scores >= 0).all() and scores.sum(1).max() <= 1 + 1e-5


def test_a_captioner_of_rendered_classes_scores_recordings(setup, mixtures, folds, monkeypatch):
    "It learns from rendered clips alone, and writes the labels of the recordings' vocabulary."
    learned_from, real = [], module.train
    def train(model, pairs, settings, *args, **kwargs):
        learned_from.append((pairs, settings.steps))
        return real(model, pairs, settings, *args, **kwargs)
    given, kinds = BuiltClips(str(folds.folder)), {'sea waves': 'waves', 'dog': 'bark', 'crackling fire': 'fire'}
    trained_tagger(setup, 'small').folder()
    stage = rendered_class_scores(setup, given, 'small', kinds, length=1., n=9, steps=4)
    for of in (module, other_sets): monkeypatch.setattr(of, 'train', train)
    scores = stage.load()
    (pairs, steps), = learned_from
    features = ForeignFeatures(trained_tagger(setup, 'small'), stage.sounds).load()
    assert steps == 4 and np.array_equal(pairs.inputs.sounds, features) and len(features) == 9
    assert pairs.tags.labels == given.load().vocabulary == ['crackling fire', 'dog', 'sea waves']
    assert [[pairs.tags.labels[p] for p in places] for places in pairs.places] == stage.sounds.load().labels
    assert scores.shape == (12, 3) and np.isfinite(scores).all() and np.exp(scores).sum(1).max() <= 1 + 1e-5
    assert stage.sounds.load().labels == [['sea waves'], ['dog'], ['crackling fire']]*3


# --- an encoder that learns along, as at scale `paper`

def test_an_encoder_is_pretrained_and_learns_along(smoke_home):
    few = TrainConfig(steps=2, batch_size=4)
    scale = replace(SCALES['smoke'].tagging, clips=(12, 6, 6), encoder='tiny', pretrain=few, train=few)
    setup = TaggingSetup(scale)
    words, direct = both(setup)
    assert not setup.frozen and words['inclusion'].shape == direct.shape == (6, len(VOCABULARY))
    before, after = tag_encoder(setup).load().encoder, trained_tagger(setup, 'small').load().encoder
    both_of_each = zip(before.parameters(), after.parameters(), strict=True)
    assert any(not torch.equal(p, q) for p, q in both_of_each), 'it has learned'


# --- the notebook

@pytest.fixture
def own_home(tmp_path, monkeypatch):
    "Not where the tables of the paper lie."
    monkeypatch.setenv('LOGOCENTRIC_HOME', str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_the_notebook_runs_on_audioset(audioset, skip, own_home):
    run_experiment('table3_audioset', 'smoke', 1, folder=str(audioset), skip=skip)
    record, = load_records(own_home/'data'/'runs'/'smoke-1'/'records', name='table3_audioset')
    metrics = record.metrics
    assert record.params['folder'] is True
    assert (metrics['n'], metrics['labels'], metrics['n_recordings']) == (len(TEST), len(NAMES), 0)
    systems = {'words, small', 'words, large', 'sigmoids', 'prior', 'sigmoids, random weights'}
    assert systems <= set(metrics['systems'])
    for row in metrics['systems'].values():
        mean = row['map']
        assert 0 <= mean['low'] <= mean['value'] <= mean['high'] <= 1 and mean['n'] == len(TEST)
    data_set = metrics['data_set']
    assert data_set['name'] == 'audioset' and data_set['clips'] == len(TEST) and metrics['rule'] in TAG_RULES


@pytest.mark.slow
def test_the_notebook_says_what_it_does_not_know(audioset, skip, own_home):
    with pytest.raises(LogocentricError, match="^no data set 'audiosets'"):
        run_experiment('table3_audioset', 'smoke', 1, folder=str(audioset), skip=skip, data='audiosets')
    with pytest.raises(LogocentricError, match="unknown scale 'huge'"): run_experiment('table3_audioset', 'huge', 1)
    with pytest.raises(LogocentricError, match='no parameter colour'):
        run_experiment('table3_audioset', 'smoke', 1, colour='red')
