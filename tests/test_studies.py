"Our own studies at scale smoke: each runs to its end and writes a record that says enough."
import numpy as np, pytest, soundfile as sf, torch
from logocentric.captioner.model import Captioner
from logocentric.core import LogocentricError, load_records, read_json
from logocentric.encoder.audio_encoder import load_encoder
from logocentric.pipeline.scales import SCALES
from logocentric.pipeline.experiments import Lab, run_experiment
from logocentric.pipeline.plan import plan
from logocentric.encoder.pretrain import Objective


def record(home, name, **parameters):
    run_experiment(name, 'smoke', 1, **parameters)
    return load_records(home/'data'/'runs'/'smoke-1'/'records', name=name)[0]


def test_the_study_of_ears_measures_every_variant(home):
    metrics = record(home, 'ear_study').metrics
    assert {'log-mel statistics', 'random weights, 0', 'the recipe'} <= set(metrics['accuracy'])
    for row in metrics['accuracy'].values():
        assert set(row) == set(metrics['n']) == set(metrics['chance']) and all(0 <= v <= 1 for v in row.values())


def test_the_probes_have_all_their_lines(home):
    metrics = record(home, 'probe_ear').metrics
    for task, lines in metrics['accuracy'].items():
        assert {'log-mel statistics', 'random weights 0', 'the ear'} <= set(lines)
        for s in lines.values(): assert 0 <= s['low'] <= s['value'] <= s['high'] <= 1 and s['n'] == 40
    assert {(p['task'], p['against']) for p in metrics['paired']} == {(t, line) for t in metrics['accuracy'] for line in ('log-mel statistics', 'random weights 0')}
    assert all(p['p'] <= p['p_holm'] <= 1 for p in metrics['paired'])


def test_a_captioner_begins_where_it_is_told(home):
    labs = {start: Lab.at('smoke', 1, start) for start in ('random', 'ear', 'ear_random', 'paper75')}
    assert len({lab.captioner(8) for lab in labs.values()}) == 4
    shipped, painted = load_encoder(), labs['paper75'].mae_model(.75).encoder
    for start, expected in (('ear', shipped.encoder), ('paper75', painted)):
        for a, b in zip(getattr(labs[start].hearing()[0], 'encoder', labs[start].hearing()[0]).parameters(), expected.parameters(), strict=True): assert torch.equal(a, b)
    assert labs['ear'].hearing()[1] == labs['ear_random'].hearing()[1] == shipped.frontend != labs['random'].hearing()[1] == labs['random'].frontend()
    still = Captioner.from_pretrained(labs['ear'].captioner(8))
    assert still.frontend.config.mean == shipped.frontend.mean and still.config.lags == list(labs['ear'].scale.lags)
    assert all(torch.equal(a, b) for a, b in zip(still.encoder.parameters(), shipped.encoder.parameters(), strict=True))
    assert labs['ear'].still and not labs['ear_random'].still
    with pytest.raises(LogocentricError, match='unknown start'): Lab.at('smoke', 1, 'asleep')


def test_an_ear_that_stands_still_hears_training_clips_twice(home, tmp_path):
    lab = Lab.at('smoke', 1, 'ear')
    model = lab.unheard(8)
    learn, valid = lab.lessons(model, 8, tmp_path)
    plain = lab.pairs('train', 8)
    n, many = len(plain), learn.logmels[0].shape[0]
    assert len(learn) == 2*n and learn.texts == plain.texts*2 and len(valid) == len(lab.pairs('valid')) and valid.crop is None
    assert learn.crop == (many//3, many) and not any(np.array_equal(a, b) for a, b in zip(learn.logmels[:n], learn.logmels[n:]))
    assert all(a is None or (len(a) == many and a.any() == b.any()) for a, b in zip(learn.active, plain.active*2))
    again, _ = lab.lessons(model, 8, tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(learn.logmels, again.logmels)) and not any(p.requires_grad for p in model.encoder.parameters())
    assert lab.bridge['lags'] == list(lab.scale.lags) and 'lags' not in Lab.at('smoke', 1, 'ear_random').bridge


def test_each_way_to_learn_is_a_stage_of_its_own(home):
    lab = Lab.at('smoke', 1)
    ways = [lab.ear(), lab.ear(Objective(mask_ratios=(.15,))), lab.ear(of='music'), lab.ear(patch_frames=8), lab.ear(steps=2), lab.ear(Objective(reconstruction=0.))]
    assert len(set(ways)) == 6 and lab.ear() == ways[0]
    assert read_json(ways[4]/'history.json')['passes'] == 2*lab.scale.ear.batch_size


def test_a_scale_without_a_recipe_says_so():
    with pytest.raises(LogocentricError, match='no recipe'): Lab.at('paper').ear()


def test_a_start_is_worth_its_steps(home):
    metrics = record(home, 'warm_start', starts='ear ear_random paper75 random').metrics
    names = {'ear', 'ear_random', 'paper75', 'random'}
    assert set(metrics['loss']) == set(metrics['accuracy']) == names and {r['rival'] for r in metrics['speed'].values()} == {'ear_random', 'random'}
    assert {(p['a'], p['b']) for p in metrics['paired']} == {('ear', 'ear_random'), ('paper75', 'random')} and all(p['p'] <= p['p_holm'] <= 1 for p in metrics['paired'])
    for s in metrics['accuracy'].values(): assert 0 <= s['low'] <= s['value'] <= s['high'] <= 1 and s['n'] == 40
    assert metrics['speed']['random']['share'] == metrics['speed']['ear_random']['share'] == 1


def test_music_voices_and_the_rest_are_told_apart_by_words(home):
    metrics = record(home, 'music_or_not').metrics
    assert set(metrics['accuracy']) == set(metrics['heard']) == set(metrics['statistics']) == {'rendered music, test', 'made-up voices, validation', 'other made-up sounds, validation'}
    for row in metrics['heard'].values(): assert abs(sum(row.values()) - 1) < 1e-9
    assert metrics['accuracy']['rendered music, test']['value'] == metrics['heard']['rendered music, test']['music']


def test_captions_stand_beside_the_lines_and_are_asked_for_the_truth(home):
    found = record(home, 'caption_quality')
    metrics, lines = found.metrics, {'tag template', 'most common caption', 'shuffled pairs'}
    assert found.params['beams'] == 1 and len(metrics['captioner']) == 12 and metrics['n'] == dict(gtzan=40, gtzan_shifted=40) == {n: t['drums']['clips'] for n, t in metrics['attributes'].items()}
    for name, scores in metrics['scores'].items():
        assert set(scores) == {'captions', *lines} and set(metrics['differences'][name]) == lines
        for line, row in metrics['differences'][name].items():
            for metric, d in row.items(): assert d['value'] == pytest.approx(scores['captions'][metric]['value'] - scores[line][metric]['value'])
        assert metrics['differences'][name]['shuffled pairs']['CIDEr-D']['low'] > 0 and scores['most common caption']['new captions']['value'] == 0
    for row in metrics['reading']['gtzan'].values(): assert row['precision'] > .9 and row['recall'] > .8
    for heard in metrics['instruments'].values(): assert heard['captions']['hallucinated']['value'] < heard['shuffled pairs']['hallucinated']['value']


def test_captions_of_a_table_of_ones_own(home, tmp_path):
    rate = 16_000
    rows = []
    for i in range(3):
        sf.write(tmp_path/f'{i}.wav', np.sin(2*np.pi*200*(i + 1)*np.arange(2*rate)/rate).astype(np.float32)*.1, rate)
        rows.append(f'{i}.wav,a plain tone,hum\n{i}.wav,tone number {i},hum\n')
    (tmp_path/'mine.csv').write_text('path,caption,labels\n' + ''.join(rows))
    run_experiment('caption_quality', 'smoke', 1, dataset='table', folder=str(tmp_path/'mine.csv'))
    metrics = load_records(home/'data'/'runs'/'smoke-1'/'records', name='caption_quality', dataset='table')[0].metrics
    assert metrics['n'] == dict(mine=3) and metrics['manifest']['clips'] == 3 and metrics['attributes'] == metrics['beam'] == {} and metrics['scores']['mine']['captions']['BLEU-1']['n'] == 3


def test_bridges_are_compared_at_equal_budgets(home):
    found = record(home, 'bridge_study', rates='1e-4 3e-4', budget=500_000, weights=2, batch=8)
    metrics, names = found.metrics, {'prefix', 'resampler', 'cross'}
    assert all(abs(metrics['parameters'][n]/500_000 - 1) < .02 for n in names) and set(metrics['rate']) == set(metrics['parameters']) == {*names, 'today'}
    for n in names: assert metrics['tried'][n][f"{metrics['rate'][n]:g}"] == min(metrics['tried'][n].values())
    assert {n: len(of) for n, of in metrics['captioner'].items()} == dict(prefix=2, resampler=2, cross=2, today=1) and len(set(sum(metrics['captioner'].values(), []))) == 7
    for split in ('valid', 'gtzan', 'gtzan_shifted'):
        loss, n = metrics['loss'][split], metrics['n'][split]
        assert {*names, 'today', 'hears nothing', *(f'{b}, sound of another clip' for b in names)} == set(loss) and all(v['n'] == n and v['low'] <= v['value'] <= v['high'] for v in loss.values())
        for pair, d in metrics['loss_differences'][split].items():
            a, b = pair.split(' − ')
            both = list(zip(loss[a]['each'], loss[b]['each']))
            assert d['each'] == pytest.approx([x - y for x, y in both]) and d['value'] == pytest.approx(sum(d['each'])/len(both)) and d['low'] <= d['value'] <= d['high']
            assert (d['weights'] > 0) == (len(both) > 1) # the spread over first weights is in the interval, where there is one
    assert metrics['loss']['gtzan']['cross']['value'] == pytest.approx(metrics['loss']['gtzan']['hears nothing']['value'], abs=.5) # it has hardly learned, and began as GPT-2
    for split in ('gtzan', 'gtzan_shifted'): assert set(metrics['captions'][split]) == {*names, 'today', 'tag template', 'most common caption', 'shuffled pairs'}
    same = {(n, when): v for n, of in metrics['alike'].items() for when, v in of.items()}
    assert all(-1 <= v['cosine'] <= 1 and 0 < v['shared'] <= 1.001 for v in same.values()) and same['prefix', 'at the start']['shared'] < .3 # its vectors begin apart
    assert set(metrics['why']) == {'prefix', 'resampler', 'one layer', 'three layers', 'columns think first', 'queries start apart', 'prefix without changes'} and metrics['why']['resampler'] == min(metrics['tried']['resampler'].values())
    assert set(metrics['long']) == {*names, 'today'} and metrics['n']['long'] == metrics['n']['said'] == 40 and all(v > 0 for v in metrics['seconds_a_step'].values())


def test_a_device_is_checked_and_a_plan_rests_on_it(home):
    found = record(home, 'device_check')
    metrics, device = found.metrics, found.metrics['device']
    assert device['name'] == found.params['device'] == 'cpu' and not metrics['is_gpu'] and device['fp32'] > 0
    rows = {r['kind']: r for r in metrics['rows']}
    assert {'paint 0.15', 'text', 'captioner', 'reader large', 'tagger small', 'sigmoids', 'hear', 'describe', 'read large'} <= set(rows)
    for r in rows.values(): assert r['outcome'] == 'measured' and r['seconds'] > 0 and r['memory'] > 0 and r['predicted_seconds'] > 0 and r['mfu'] > 0
    assert set(metrics['curves']['device']) == set(metrics['apart']) == {'cpu, bfloat16'} and len(metrics['curves']['cpu']) == 3
    assert 0 < metrics['apart']['cpu, bfloat16']['loss']['largest'] and all(len(c['loss']) == 10 for c in metrics['curves']['cpu'])
    path, = (home/'data'/'runs'/'smoke-1'/'records').glob('device_check-*.json')
    assert plan(SCALES['smoke'], None, 'cpu', measured=path).terms.shares['captioner'] == rows['captioner']['mfu']
