"Our own studies at scale smoke: each runs to its end and writes a record that says enough."
from dataclasses import replace
import numpy as np, pytest, soundfile as sf, torch
from conftest import needs_recordings
from logocentric.core import LogocentricError, load_records, read_json
from logocentric.encoder.audio_encoder import load_encoder
from logocentric.encoder.heads import load_heads
from logocentric.encoder.pretrain import Objective
from logocentric.pipeline.captioner_stages import captioned_pairs, trained_captioner
from logocentric.pipeline.data_stages import frontend
from logocentric.pipeline.encoder_stages import captioner_encoder, masked_autoencoder, multitask_encoder
from logocentric.pipeline.experiments import run_experiment
from logocentric.pipeline.plan import plan
from logocentric.pipeline.scales import SCALES, Setup


def records(home, name, **params):
    return load_records(home/'data'/'runs'/'smoke-1'/'records', name=name, **params)


def run(home, name, **parameters):
    run_experiment(name, 'smoke', 1, **parameters)
    return records(home, name)[0]


def in_order(s): return s['low'] <= s['value'] <= s['high']


# --- encoders

@pytest.mark.slow
def test_the_study_of_encoders_measures_every_variant(smoke_home):
    metrics = run(smoke_home, 'encoder_study', steps=20).metrics
    assert {'log-mel statistics', 'random weights, 0', 'the recipe'} <= set(metrics['accuracy'])
    assert 'reconstruction, 15 % masked' in metrics['accuracy']
    for row in metrics['accuracy'].values():
        assert set(row) == set(metrics['n']) == set(metrics['chance']) and all(0 <= v <= 1 for v in row.values())


@pytest.mark.slow
def test_the_probes_have_all_their_baselines(smoke_home):
    metrics = run(smoke_home, 'probe_encoder').metrics
    baselines = ('log-mel statistics', 'random weights 0')
    for task, systems in metrics['accuracy'].items():
        assert {*baselines, 'the encoder'} <= set(systems)
        for s in systems.values(): assert 0 <= s['low'] <= s['value'] <= s['high'] <= 1 and s['n'] == 40
    asked = {(task, baseline) for task in metrics['accuracy'] for baseline in baselines}
    assert {(p['task'], p['against']) for p in metrics['paired']} == asked
    assert all(p['p'] <= p['p_holm'] <= 1 for p in metrics['paired'])


def test_each_objective_is_a_stage_of_its_own(smoke_home):
    setup = Setup.at('smoke', 1)
    ways = [multitask_encoder(setup), multitask_encoder(setup, Objective(mask_ratios=(.15,))),
            multitask_encoder(setup, of='music'), multitask_encoder(setup, patch_frames=8),
            multitask_encoder(setup, steps=2), multitask_encoder(setup, Objective(reconstruction=0.))]
    folders = [way.folder() for way in ways]
    assert len(set(folders)) == 6 and multitask_encoder(setup).folder() == folders[0]
    assert read_json(folders[4]/'history.json')['passes'] == 2*setup.scale.encoder.multitask.batch_size


def test_a_scale_without_a_recipe_says_so():
    with pytest.raises(LogocentricError, match='no recipe'): multitask_encoder(Setup.at('paper'))


# --- where captioners begin

STARTS = ('random', 'ear', 'ear_random', 'paper75')

def few_clips(start):
    "Scale smoke with a handful of clips: the shipped encoder is no toy, and what begins with it encodes them all."
    setup = Setup.at('smoke', 1, start)
    return replace(setup, scale=replace(setup.scale, data=replace(setup.scale.data, pairs=(4, 8), held_out=8)))


@pytest.fixture(scope='module')
def setups(): return {start: few_clips(start) for start in STARTS}


def same_weights(a, b): return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_captioner_begins_where_its_setup_says(smoke_home, setups):
    assert len({trained_captioner(s, 8).folder() for s in setups.values()}) == 4
    shipped, pretrained = load_encoder(), masked_autoencoder(setups['paper75'], .75).load().encoder
    for start, expected in (('ear', shipped.encoder), ('paper75', pretrained)):
        first = captioner_encoder(setups[start]).initial()[0]
        assert same_weights(getattr(first, 'encoder', first), expected)
    with pytest.raises(LogocentricError, match='unknown start'): Setup.at('smoke', 1, 'asleep')


def test_the_frontend_comes_with_the_encoder(smoke_home, setups):
    of = {start: captioner_encoder(s).initial()[1] for start, s in setups.items()}
    assert of['ear'] == of['ear_random'] == load_encoder().frontend
    assert of['random'] == frontend(setups['random']).load() != of['ear']


def test_a_frozen_encoder_stays_as_it_was(smoke_home, setups):
    shipped, scale = load_encoder(), setups['ear'].scale.captioner
    model = trained_captioner(setups['ear'], 8).load().cpu()
    assert model.frontend.config.mean == shipped.frontend.mean and model.config.lags == list(scale.lags)
    assert same_weights(model.encoder, shipped.encoder)
    assert scale.is_frozen and not setups['ear_random'].scale.captioner.is_frozen


def test_a_frozen_encoder_encodes_training_clips_twice(smoke_home, setups, tmp_path):
    stage, plain = trained_captioner(setups['ear'], 8), captioned_pairs(setups['ear'], 'train').load(8)
    model = stage.untrained()
    learn, valid = stage.training_data(model, tmp_path)
    n, many = len(plain), learn.logmels[0].shape[0]
    assert len(learn) == 2*n and learn.texts == plain.texts*2
    assert len(valid) == len(captioned_pairs(setups['ear'], 'valid').load()) and valid.crop is None
    assert learn.crop == (many//3, many)
    assert not any(np.array_equal(a, b) for a, b in zip(learn.logmels[:n], learn.logmels[n:]))
    for a, b in zip(learn.active, [*plain.active, *plain.active]):
        assert a is None or (len(a) == many and a.any() == b.any())
    again, _ = stage.training_data(model, tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(learn.logmels, again.logmels))
    assert not any(p.requires_grad for p in model.encoder.parameters())


def test_lags_are_compared_where_the_encoder_is_frozen(setups):
    scale = setups['ear'].scale.captioner
    assert scale.whole_bridge['lags'] == list(scale.lags)
    assert 'lags' not in setups['ear_random'].scale.captioner.whole_bridge


@pytest.mark.slow
def test_a_start_is_worth_its_steps(smoke_home):
    metrics = run(smoke_home, 'warm_start', starts='ear ear_random paper75 random').metrics
    assert set(metrics['loss']) == set(metrics['accuracy']) == set(STARTS)
    assert {r['rival'] for r in metrics['speed'].values()} == {'ear_random', 'random'}
    assert {(p['a'], p['b']) for p in metrics['paired']} == {('ear', 'ear_random'), ('paper75', 'random')}
    assert all(p['p'] <= p['p_holm'] <= 1 for p in metrics['paired'])
    for s in metrics['accuracy'].values(): assert 0 <= s['low'] <= s['value'] <= s['high'] <= 1 and s['n'] == 40
    assert metrics['speed']['random']['share'] == metrics['speed']['ear_random']['share'] == 1
    assert {'loss_of_shipped', 'difference_of_shipped'} <= set(metrics['twice'])


# --- what captions say

@pytest.mark.slow
def test_music_voices_and_the_rest_are_told_apart_by_words(smoke_home):
    metrics = run(smoke_home, 'music_or_not').metrics
    sets = {'rendered music, test', 'made-up voices, validation', 'other made-up sounds, validation'}
    assert set(metrics['accuracy']) == set(metrics['predicted']) == set(metrics['statistics']) == sets
    for row in metrics['predicted'].values(): assert abs(sum(row.values()) - 1) < 1e-9
    music = 'rendered music, test'
    assert metrics['accuracy'][music]['value'] == metrics['predicted'][music]['music']


@pytest.fixture(scope='module')
def quality(smoke_home):
    run_experiment('caption_quality', 'smoke', 1)
    return next(r for r in records(smoke_home, 'caption_quality') if 'dataset' not in r.params)


BASELINES = {'tag template', 'most common caption', 'shuffled pairs'}

@pytest.mark.slow
def test_captions_are_compared_with_baselines(quality):
    metrics = quality.metrics
    assert quality.params['beams'] == 1 and len(metrics['captioner']) == 12
    for name, scores in metrics['scores'].items():
        assert set(scores) == {'captions', *BASELINES} and set(metrics['differences'][name]) == BASELINES
        for baseline, row in metrics['differences'][name].items():
            for metric, d in row.items():
                ours, theirs = (scores[system][metric]['value'] for system in ('captions', baseline))
                assert d['value'] == pytest.approx(ours - theirs)
        assert metrics['differences'][name]['shuffled pairs']['CIDEr-D']['low'] > 0
        assert scores['most common caption']['new captions']['value'] == 0


@pytest.mark.slow
def test_captions_are_asked_for_the_truth(quality):
    metrics = quality.metrics
    clips = {n: t['drums']['clips'] for n, t in metrics['attributes'].items()}
    assert metrics['n'] == dict(gtzan=40, gtzan_shifted=40) == clips
    for row in metrics['reading']['gtzan'].values(): assert row['precision'] > .9 and row['recall'] > .8
    for of in metrics['instruments'].values():
        assert of['captions']['hallucinated']['value'] < of['shuffled pairs']['hallucinated']['value']


@pytest.mark.slow
def test_captions_of_a_table_of_ones_own(smoke_home, tmp_path):
    rate = 16_000
    rows = []
    for i in range(3):
        tone = np.sin(2*np.pi*200*(i + 1)*np.arange(2*rate)/rate).astype(np.float32)*.1
        sf.write(tmp_path/f'{i}.wav', tone, rate)
        rows.append(f'{i}.wav,a plain tone,hum\n{i}.wav,tone number {i},hum\n')
    (tmp_path/'mine.csv').write_text('path,caption,labels\n' + ''.join(rows))
    run_experiment('caption_quality', 'smoke', 1, dataset='table', folder=str(tmp_path/'mine.csv'))
    metrics = records(smoke_home, 'caption_quality', dataset='table')[0].metrics
    assert metrics['n'] == dict(mine=3) and metrics['manifest']['clips'] == 3
    assert metrics['attributes'] == metrics['beam'] == {} and metrics['scores']['mine']['captions']['BLEU-1']['n'] == 3


# --- bridges

@pytest.fixture(scope='module')
def bridges(smoke_home):
    return run(smoke_home, 'bridge_study', rates='1e-4 3e-4', budget=500_000, weights=2, batch=8).metrics


NAMES = {'prefix', 'resampler', 'cross'}

@pytest.mark.slow
def test_bridges_are_compared_at_equal_budgets(bridges):
    assert all(abs(bridges['parameters'][n]/500_000 - 1) < .02 for n in NAMES)
    assert set(bridges['rate']) == set(bridges['parameters']) == {*NAMES, 'today'}
    for n in NAMES: assert bridges['tried'][n][f"{bridges['rate'][n]:g}"] == min(bridges['tried'][n].values())
    trainings = {n: len(of) for n, of in bridges['captioner'].items()}
    assert trainings == dict(prefix=2, resampler=2, cross=2, today=1)
    assert len(set(sum(bridges['captioner'].values(), []))) == 7


@pytest.mark.slow
@pytest.mark.parametrize('split', ['valid', 'gtzan', 'gtzan_shifted'])
def test_losses_of_bridges_and_of_baselines(bridges, split):
    loss, n = bridges['loss'][split], bridges['n'][split]
    assert {*NAMES, 'today', 'no audio', *(f'{b}, sound of another clip' for b in NAMES)} == set(loss)
    assert all(v['n'] == n and in_order(v) for v in loss.values())
    for pair, d in bridges['loss_differences'][split].items():
        a, b = pair.split(' − ')
        both = list(zip(loss[a]['each'], loss[b]['each']))
        assert d['each'] == pytest.approx([x - y for x, y in both])
        assert d['value'] == pytest.approx(sum(d['each'])/len(both)) and in_order(d)
        assert (d['weights'] > 0) == (len(both) > 1) # the spread over first weights, where there are several


@pytest.mark.slow
def test_cross_attention_begins_as_gpt2(bridges):
    loss = bridges['loss']['gtzan']
    assert loss['cross']['value'] == pytest.approx(loss['no audio']['value'], abs=.5) # it has hardly learned


@pytest.mark.slow
def test_what_else_the_study_of_bridges_finds(bridges):
    for split in ('gtzan', 'gtzan_shifted'): assert set(bridges['captions'][split]) == {*NAMES, 'today', *BASELINES}
    same = {(n, when): v for n, of in bridges['alike'].items() for when, v in of.items()}
    assert all(-1 <= v['cosine'] <= 1 and 0 < v['shared'] <= 1.001 for v in same.values())
    assert same['prefix', 'at the start']['shared'] < .3 # its vectors begin apart
    variants = {'one layer', 'three layers', 'MLP before attention', 'queries start apart', 'prefix without changes'}
    assert set(bridges['why']) == {'prefix', 'resampler', *variants}
    assert bridges['why']['resampler'] == min(bridges['tried']['resampler'].values())
    assert set(bridges['long']) == {*NAMES, 'today'} and bridges['n']['long'] == bridges['n']['captions'] == 40
    assert all(v > 0 for v in bridges['seconds_a_step'].values())


# --- devices

@pytest.mark.slow
def test_a_device_is_checked_and_a_plan_rests_on_it(smoke_home):
    found = run(smoke_home, 'device_check')
    metrics, device = found.metrics, found.metrics['device']
    assert device['name'] == found.params['device'] == 'cpu' and not metrics['is_gpu'] and device['fp32'] > 0
    rows = {r['kind']: r for r in metrics['rows']}
    assert {'paint 0.15', 'text', 'captioner', 'reader large', 'tagger small', 'sigmoids', 'hear', 'describe',
            'read large'} <= set(rows)
    for r in rows.values():
        assert r['outcome'] == 'measured' and r['seconds'] > 0 and r['memory'] > 0
        assert r['predicted_seconds'] > 0 and r['mfu'] > 0
    curves = metrics['curves']
    assert set(curves['device']) == set(metrics['apart']) == {'cpu, bfloat16'} and len(curves['cpu']) == 3
    assert 0 < metrics['apart']['cpu, bfloat16']['loss']['largest'] and all(len(c['loss']) == 10 for c in curves['cpu'])
    path, = (smoke_home/'data'/'runs'/'smoke-1'/'records').glob('device_check-*.json')
    assert plan(SCALES['smoke'], None, 'cpu', measured=path).terms.shares['captioner'] == rows['captioner']['mfu']


# --- recordings

@needs_recordings
@pytest.mark.slow
def test_the_road_on_recordings_has_a_row_for_every_way(smoke_home):
    metrics = run(smoke_home, 'road_on_recordings').metrics
    ways = {(r['question'], r['hears'], r['struck'], r['reads'], r['way']) for r in metrics['rows']}
    assert len(ways) == len(metrics['rows']) == 2*2*3*3
    for row in metrics['rows']: assert in_order(row['reported']) and in_order(row['both_ways'])
    for found in metrics['baselines'].values(): assert {'commonest of those that choose', 'blank, ours'} <= set(found)
    assert {w['struck'] for w in metrics['written']} == {'none', 'asked'}


@needs_recordings
@pytest.mark.slow
def test_words_on_recordings_are_measured_beside_saying_everything(smoke_home):
    metrics = run(smoke_home, 'words_on_recordings').metrics
    found = metrics['instruments']
    assert found['everything']['recall']['value'] == 1 and {'tags, named', 'captioner, named'} <= set(found)
    for who in metrics['retrieval'].values():
        assert who['R@1']['value'] <= who['R@5']['value'] <= who['R@10']['value']
    for who in metrics['meanings'].values():
        gain = who['described'] - who['named']
        assert who['difference']['value'] == pytest.approx(gain) and in_order(who['difference'])


@needs_recordings
@pytest.mark.slow
def test_summaries_are_read_beside_words_and_tags(smoke_home):
    metrics = run(smoke_home, 'summaries_on_recordings').metrics
    read = {'summary', "captioner's words", 'both', 'seven tags'}
    assert set(metrics['genre']) == set(metrics['instruments']) == read
    for row in metrics['genre'].values():
        assert in_order(row['all']) and row['all']['value'] == pytest.approx(np.mean(row['right']))
        assert row['among_three']['value'] >= row['all']['value']
    gain = [np.mean(metrics['genre'][read]['right']) for read in ('summary', "captioner's words")]
    assert metrics['gain']['value'] == pytest.approx(gain[0] - gain[1]) and in_order(metrics['gain'])
    assert metrics['other_words']['with the lexicon'] == 0 and all(metrics['summaries'].values())
    for of in metrics['presence'].values(): assert 'heads' in of and all(in_order(r['reported']) for r in of.values())


@needs_recordings
@pytest.mark.slow
def test_heads_are_chosen_on_some_recordings_and_reported_on_others(smoke_home):
    metrics = run(smoke_home, 'heads_on_recordings').metrics
    tried, reads = metrics['tried'], metrics['chosen']['reads']
    for question, parts in reads.items():
        name = ' + '.join(f'{part} {C:g}' for part, C in parts.items())
        musicnn = [row for other, row in tried.items() if 'ours' not in other and 'log-mel' not in other]
        assert (tried[name].get(question) or 0) == max(row.get(question) or 0 for row in musicnn)
    assert set(metrics['chosen']['calibrated_by']) == {'kind', 'voice', 'drums', 'tempo', 'instruments'}
    for found in metrics['reported'].values():
        mean = np.mean([*found['recall'].values()])
        assert in_order(found['value']) and found['value']['value'] == pytest.approx(mean)
    inputs = load_heads(smoke_home/'data/runs/smoke-1/heads').config.inputs
    assert inputs.keys() == {part for parts in reads.values() for part in parts}


@pytest.mark.slow
@pytest.mark.parametrize('clips', [pytest.param(10, marks=needs_recordings, id='recordings'),
                                   pytest.param(8, id='rendered sets alone')])
def test_a_prompt_of_ones_own_is_compared_on_the_same_recordings(smoke_home, tmp_path, clips):
    run_experiment('prompt_per_set', 'smoke', 1, clips=clips, **(dict(folder=str(tmp_path)) if clips == 8 else {}))
    metrics, = [r.metrics for r in records(smoke_home, 'prompt_per_set', clips=clips)]
    assert len(metrics['gains']) == len(metrics['accuracy']) == 4
    for way, scores in zip(metrics['gains'], metrics['accuracy']):
        mean, sets = way['sets'].pop('mean')['gain'], way['sets']
        assert set(sets) == set(scores['sets'])
        assert sum(title.startswith('recordings') for title in sets) == (2 if clips == 10 else 0)
        for title, row in sets.items():
            assert row['gain']['value'] == pytest.approx(row['own']['value'] - row['common']['value'])
            assert in_order(row['gain']) and {p[k] for p in row['prompts'] for k in p} <= set(scores['sets'][title])
            assert row['own']['n'] == metrics['baselines'][title]['n']
        assert mean['value'] == pytest.approx(np.mean([row['gain']['value'] for row in sets.values()]))
    matrix = np.array(metrics['agreement'][0]['sets']['matrix'])
    assert np.allclose(matrix, matrix.T) and np.abs(matrix).max() <= 1 + 1e-9
