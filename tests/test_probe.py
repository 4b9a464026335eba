"Probes: features that do not depend on neighbours, settings that never see the test clips, and HEAR's contract."
import copy, importlib, json, math, sys, types
from dataclasses import replace
from importlib.util import find_spec
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, soundfile as sf, torch
from logocentric.captioner.bridges import pool
from logocentric.core import LogocentricError, shared_path, shipped_path, write_json
from logocentric.data.corpus import Corpus
from logocentric.data.difficulty import logmel_statistics
from logocentric.audio.frontend import FrontendConfig, LogMel
from logocentric.encoder.mae import MAEConfig, MAEEncoder, MAEModel
from logocentric.metrics import mcnemar
from logocentric.encoder.fine_tuning import (FINE_TUNING, Augmentation, FineTuned, LabelledClips, drop_patches,
                                             fine_tune, layer_groups)
from logocentric.encoder.probe import (BASELINES, PROBES, compare_features, inner_folds, probe, random_like,
                                       show_probe, clip_statistics)
from logocentric.encoder.probe_tasks import (SONIC_PI, ProbeTask, esc10, rendered_task, sonic_pi, sonic_pi_kind,
                                             spoken_digits)
from logocentric.encoder.audio_encoder import (HearModel, get_scene_embeddings, get_timestamp_embeddings, load_encoder,
                                               load_model, save_encoder)
from logocentric.encoder.features import (clip_features, embed_frames, extract, layer_embeddings, max_columns,
                                          piece_edges)
from logocentric.encoder.published import build_encoder
from logocentric.runs import TrainConfig
from logocentric.training import train
from sklearn.base import clone

CONFIG, MEL = FrontendConfig(), LogMel()


@pytest.fixture(scope='module')
def encoder():
    torch.manual_seed(0)
    return MAEEncoder(MAEConfig.preset('tiny')).eval().requires_grad_(False)

def tabled(columns=20): # as published encoders are: a class token, a table of positions
    torch.manual_seed(1)
    config = MAEConfig.preset('tiny', cls_token=True, position_grid=[5, columns])
    return build_encoder(config).eval().requires_grad_(False)

def logmels(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((n, 80))*3 - 8).astype(np.float32) for n in lengths]

def sound(seconds, n=2, seed=0):
    return torch.rand(n, int(seconds*16_000), generator=torch.Generator().manual_seed(seed))*2 - 1

def task(n=60, labels=3, folds=3, seed=0, signal=1.5, dims=12, groups=None, **kwargs):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % labels
    x = rng.standard_normal((n, dims)); x[np.arange(n), y] += signal
    fold = np.arange(n)//labels % folds if isinstance(folds, int) else np.asarray(folds)
    return x, ProbeTask('made up', [np.zeros((2, 80), np.float16)]*n, [f'kind {i}' for i in y], fold, groups, **kwargs)

def relabelled(t, labels): return ProbeTask(t.name, t.clips, labels, t.folds, t.groups)

# --- features

LENGTHS = [40, 7, 130, 64, 16, 1, 90, 33]

@pytest.mark.parametrize('kind', ['sinusoids', 'tabled'])
def test_extract_equals_one_clip_at_a_time_in_any_order(encoder, kind):
    e, clips = encoder if kind == 'sinusoids' else tabled(), logmels(*LENGTHS)
    with torch.no_grad():
        alone = torch.cat([clip_features(*embed_frames(e, MEL.normalise(torch.tensor(c))[None]))
                           for c in clips]).numpy()
    order = np.random.default_rng(1).permutation(len(clips))
    np.testing.assert_allclose(extract(e, CONFIG, clips, batch_size=3), alone, atol=1e-4)
    np.testing.assert_allclose(extract(e, CONFIG, [clips[i] for i in order]), alone[order], atol=1e-4)

def test_a_neighbour_does_not_matter(encoder):
    a, loud = logmels(30, 150)
    np.testing.assert_allclose(extract(encoder, CONFIG, [a, loud])[0], extract(encoder, CONFIG, [a, loud*0 + 40])[0],
                               atol=1e-4)

def test_clips_may_be_tensors_half_precision_or_read_only(encoder):
    clips = logmels(40, 25)
    frozen = [c.astype(np.float16) for c in clips]
    for c in frozen: c.setflags(write=False)
    expected = extract(encoder, CONFIG, [torch.tensor(c) for c in frozen])
    np.testing.assert_array_equal(extract(encoder, CONFIG, frozen), expected)
    np.testing.assert_allclose(extract(encoder, CONFIG, clips), expected, atol=2e-2)

def test_long_clips_are_cut_and_short_neighbours_do_not_matter(encoder):
    clips = logmels(2300, 20, 1300)
    together = extract(encoder, CONFIG, clips)
    for i, clip in enumerate(clips):
        np.testing.assert_allclose(extract(encoder, CONFIG, [clip])[0], together[i], atol=1e-4)
    assert extract(tabled(20), CONFIG, clips).shape == (3, 640)          # 20 columns reach over 320 frames only

@pytest.mark.parametrize('frames', [1, 16, 1008, 1009, 5000, 12345])
def test_pieces_are_nearly_equal(frames):
    edges = np.array(piece_edges(frames, 16, 63))
    columns = np.ceil(np.diff(edges)/16)
    assert edges[0] == 0 and edges[-1] == frames and not (edges[:-1] % 16).any()
    assert columns.max() <= 63 and columns.max() - columns.min() <= 1

def test_max_columns(encoder):
    assert max_columns(encoder, CONFIG) == math.ceil(1001/16) and max_columns(tabled(20), CONFIG) == 20

@pytest.mark.parametrize('make', [lambda: MAEEncoder(MAEConfig.preset('tiny')).eval(), tabled])
@torch.no_grad()
def test_layers_are_the_residual_stream(make):
    e, x, mask = make(), torch.randn(2, 64, 80), torch.arange(64) < torch.tensor([[64], [30]])
    outputs = []
    hook = e.blocks[0].register_forward_hook(lambda _, __, out: outputs.append(out))
    states, real = layer_embeddings(e, x, mask)
    hook.remove()
    patches = outputs[0][:, -20:].view(2, 5, 4, 64).permute(0, 2, 1, 3).reshape(2, 4, 320)
    assert len(states) == 3 and real.tolist() == [[True]*4, [True]*2 + [False]*2]
    torch.testing.assert_close(states[0][real], patches[real])
    torch.testing.assert_close(states[-1], embed_frames(e, x, mask)[0])
    assert not any(s[~real].any() for s in states)

def test_pooling_is_the_captioners():
    x, real = torch.randn(3, 9, 4), torch.arange(9) < torch.tensor([[9], [4], [1]])
    torch.testing.assert_close(clip_features(x, real), pool(x, real))
    torch.testing.assert_close(torch.cat([clip_features(x, real, 'mean'), clip_features(x, real, 'std')], 1),
                               pool(x, real))
    with pytest.raises(LogocentricError, match='mean, std, thirds'): clip_features(x, real, 'max')

def test_thirds_know_the_order():
    x, real = torch.arange(9.).view(1, 9, 1), torch.ones(1, 9, dtype=torch.bool)
    torch.testing.assert_close(clip_features(x, real, 'thirds'), torch.tensor([[1., 4., 7.]]))
    torch.testing.assert_close(clip_features(x.flip(1), real, 'thirds'), torch.tensor([[7., 4., 1.]]))
    four = torch.tensor([[True]*4 + [False]*5])
    torch.testing.assert_close(clip_features(x, four, 'thirds'), torch.tensor([[.25, 1.5, 2.75]]))
    one = torch.tensor([[True] + [False]*8])
    torch.testing.assert_close(clip_features(x + 5, one, 'thirds'), torch.full((1, 3), 5.))
    assert torch.equal(clip_features(x, four, 'thirds+mean'),
                       torch.cat([clip_features(x, four, 'thirds'), clip_features(x, four, 'mean')], 1))

def test_several_layers_are_concatenated(encoder):
    clips = logmels(40, 25)
    both = extract(encoder, CONFIG, clips, layer=[0, -1], how='mean')
    np.testing.assert_allclose(both, np.hstack([extract(encoder, CONFIG, clips, i, how='mean') for i in (0, 2)]),
                               atol=1e-6)
    assert both.shape == (2, 640) and not np.allclose(both[:, :320], both[:, 320:])

def test_extract_refuses_other_mels(encoder):
    with pytest.raises(LogocentricError, match='frames, 80'): extract(encoder, CONFIG, [np.zeros((20, 64))])

def test_statistics_equal_the_corpus():
    clips = logmels(50, 50, 50)
    np.testing.assert_allclose(clip_statistics(clips), logmel_statistics(np.stack(clips)), atol=1e-6)
    uneven = clip_statistics(logmels(50, 9, 1))
    assert uneven.shape == (3, 240) and np.isfinite(uneven).all() and not uneven[2, 80:].any()

def test_random_like_is_seeded_and_leaves_the_global_state_alone(encoder):
    state = torch.get_rng_state()
    a, b, c = random_like(encoder, 1), random_like(encoder, 1), random_like(encoder, 2)
    assert torch.equal(torch.get_rng_state(), state) and a.config is not encoder.config
    assert {n: p.shape for n, p in a.named_parameters()} == {n: p.shape for n, p in encoder.named_parameters()}
    weight = lambda e: e.blocks[0].mlp.fc1.weight
    assert torch.equal(weight(a), weight(b)) and not torch.equal(weight(a), weight(c))
    assert not torch.equal(weight(a), weight(encoder))

# --- tasks

@pytest.mark.parametrize('change, message', [
    (dict(labels=['a']*5), 'labels'), (dict(labels=['a']*6), 'nothing to tell apart'),
    (dict(folds=[-1]*6), 'no clip belongs'), (dict(folds=[0]*6), 'nothing to tell apart'),
    (dict(folds=[0, 0, 0, 0, 1, 1], labels=list('ababaa')), 'outside fold 0'),
    (dict(groups=list('ppqqrr'), folds=[0, 1, 0, 0, 1, 1]), 'group p is parted')])
def test_meaningless_tasks_are_refused(change, message):
    with pytest.raises(LogocentricError, match=message):
        ProbeTask(**dict(name='x', clips=[np.zeros((2, 80))]*6, labels=list('ababab'), folds=[0, 0, 0, 1, 1, 1])
                  | change)

def test_chance_of_lopsided_labels():
    t = ProbeTask('x', [np.zeros((2, 80))]*8, list('aaabaaab'), [0]*4 + [1]*4)
    assert t.chance == .75 and task()[1].chance == pytest.approx(1/3)

def corpus(folder, gtzan, config=CONFIG):
    folder.mkdir()
    rng = np.random.default_rng(len(gtzan))
    np.save(folder/'features.npy', rng.standard_normal((len(gtzan), 20, 80)).astype(np.float16))
    (folder/'clips.jsonl').write_text(''.join(json.dumps(dict(id=str(i), style='s', gtzan=g, lead='piano')) + '\n'
                                              for i, g in enumerate(gtzan)))
    write_json(folder/'corpus.json', dict(frontend=config.to_dict()))
    return Corpus(folder)

def test_rendered_trains_on_the_first_labelled_clips(tmp_path):
    train = corpus(tmp_path/'a', ['jazz', None, 'rock', 'jazz', 'rock', 'rock'])
    test = corpus(tmp_path/'b', ['rock', None, 'jazz'])
    t = rendered_task(train, test, 'gtzan', n=3)
    assert t.folds.tolist() == [-1, -1, -1, 0, 0] and t.labels.tolist() == ['jazz', 'rock', 'jazz', 'rock', 'jazz']
    assert not t.development
    np.testing.assert_array_equal(t.clips[1], train.features[2])
    np.testing.assert_array_equal(t.clips[4], test.features[2])
    with pytest.raises(LogocentricError, match='no column'): rendered_task(train, test, 'colour')
    other = corpus(tmp_path/'c', ['rock', 'jazz'], FrontendConfig(f_min=20.))
    with pytest.raises(LogocentricError, match='settings'): rendered_task(train, other, 'gtzan')

def wav(path, rate=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, np.random.default_rng(0).standard_normal(rate//10)*.1, rate)

def test_spoken_digits_leave_a_speaker_out(tmp_path):
    for name in ('3_anna_0', '3_bert_0', '7_anna_0', '7_bert_0', '7_bert_30'): wav(tmp_path/f'{name}.wav')
    t = spoken_digits(tmp_path, CONFIG)
    assert sorted(zip(t.labels, t.folds)) == [('3', 0), ('3', 1), ('7', 0), ('7', 1)]
    assert set(t.groups[t.folds == 1]) == {'bert'}
    # 0.1 s at the frontend's rate, not at the file's
    assert all(len(c) == 11 for c in t.clips)
    with pytest.raises(LogocentricError, match='index'): spoken_digits(tmp_path, CONFIG, indices=[99])

def test_esc10_takes_its_ten_kinds_and_folds(tmp_path):
    rows = [('a.wav', 1, 'dog', True, 'r1'), ('b.wav', 2, 'rain', True, 'r2'), ('c.wav', 1, 'rain', True, 'r3'),
            ('d.wav', 2, 'dog', True, 'r4'), ('e.wav', 1, 'siren', False, 'r5')]
    for row in rows: wav(tmp_path/'audio'/row[0])
    (tmp_path/'meta').mkdir()
    table = pd.DataFrame(rows, columns=['filename', 'fold', 'category', 'esc10', 'src_file'])
    table.to_csv(tmp_path/'meta'/'esc50.csv', index=False)
    t = esc10(tmp_path, CONFIG)
    assert t.labels.tolist() == ['dog', 'rain', 'rain', 'dog'] and t.folds.tolist() == [1, 2, 1, 2]

@pytest.mark.parametrize('make, hint',
                         [(esc10, 'ESC-50'), (spoken_digits, 'free-spoken-digit-dataset'), (sonic_pi, 'etc/samples')])
def test_a_missing_folder_says_what_to_do(make, hint, tmp_path):
    with pytest.raises(LogocentricError, match=hint): make(tmp_path/'nowhere', CONFIG)

def test_kinds_of_sonic_pi():
    names = dict(bd_808='kick', drum_bass_soft='kick', bass_dnb_f='bass', elec_lo_snare='snare', elec_cymbal='cymbal',
                 hat_zap='cymbal', mehackit_robot3='robot', mehackit_phone1=None, loop_drone_g_97='ambience',
                 ambi_dark_woosh='noise', loop_tabla='loop',
                 elec_flip='blip', guit_em9=None, drum_roll=None, misc_crow=None)
    assert {name: sonic_pi_kind(name) for name in names} == names

REAL = shared_path() and shared_path()/'data'
real = pytest.mark.skipif(not (REAL and REAL.is_dir()), reason='no real recordings beside this checkout')

@real
def test_real_esc10(encoder):
    t = esc10(REAL/'esc10', CONFIG)
    assert len(t.clips) == 240 and len(set(t.labels)) == 10 and t.chance == .1 and not t.development
    assert (pd.crosstab(t.labels, t.folds).to_numpy() == 8).all() and t.test_folds == [1, 2, 3]
    assert np.isfinite(extract(encoder, CONFIG, t.clips[:2])).all()
    assert .6 < probe(clip_statistics(t.clips), t).score.value < .8           # 0.73 without tuning

@real
def test_real_digits():
    t = spoken_digits(REAL/'fsdd'/'recordings', CONFIG)
    assert len(t.clips) == 1000 and t.test_folds == [0, 1, 2, 3, 4]
    assert (pd.crosstab(t.labels, t.groups).to_numpy() == 20).all()

@real
def test_real_sonic_pi():
    t = sonic_pi(REAL/'recordings'/'sonicpi', CONFIG)
    counts = pd.crosstab(t.labels, t.folds)
    assert len(t.clips) == 156 and set(counts.index) == set(SONIC_PI) and t.development
    counts = counts.to_numpy()
    assert counts.sum(1).min() >= 8 and counts.min() >= 1 and np.ptp(counts, axis=1).max() <= 1

# --- probes

@pytest.mark.parametrize('kind', PROBES)
def test_labels_of_the_test_fold_change_nothing(kind):
    x, t = task(folds=[-1]*36 + [0]*24)
    changed = np.where(t.test, np.roll(t.labels, 1), t.labels)
    a, b = probe(x, t, kind), probe(x, relabelled(t, changed), kind)
    assert a.chosen == b.chosen and (a.predictions == b.predictions).all() and (b.truth == changed[36:]).all()
    assert a.score.value > .6 > b.score.value

def test_features_of_the_test_fold_change_nothing():
    x, t = task()
    shifted = np.where((t.folds == 1)[:, None], x*100 + 7, x)
    a, b = (probe(f, t).models[1] for f in (x, shifted))
    np.testing.assert_array_equal(a['scale'].mean_, b['scale'].mean_)
    np.testing.assert_array_equal(a['model'].coef_, b['model'].coef_)

def test_inner_folds_are_the_other_folds():
    _, t = task(folds=np.r_[[-1]*6, np.arange(54)//3 % 3])
    train = np.flatnonzero(t.folds != 2)
    splits = list(inner_folds(t, train).split(train))
    assert [set(t.folds[train][test]) for _, test in splits] == [{0}, {1}]
    assert [set(t.folds[train][fit]) for fit, _ in splits] == [{-1, 1}, {-1, 0}]

def test_inner_folds_never_part_a_group():
    groups = np.r_[np.arange(48)//4, [99]*12]
    _, t = task(folds=[-1]*48 + [0]*12, groups=groups)
    train = np.flatnonzero(t.folds != 0)
    splits = list(inner_folds(t, train).split(train, t.labels[train], t.groups[train]))
    assert len(splits) == 3 and not any(set(t.groups[train][fit]) & set(t.groups[train][test]) for fit, test in splits)
    assert probe(task(folds=[-1]*48 + [0]*12)[0], t).score.n == 12

def test_score_is_pooled_with_wilsons_interval():
    x, t = task()
    r = probe(x, t)
    k, n, z = (r.truth == r.predictions).sum(), 60, 1.959964
    middle, half = (k + z*z/2)/(n + z*z), z/(n + z*z)*math.sqrt(k*(n - k)/n + z*z/4)
    assert (r.score.value, r.score.n) == (k/n, n)
    assert (r.score.low, r.score.high) == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert sum(a*(t.folds == fold).sum() for fold, a in r.fold_accuracy.items()) == pytest.approx(k)
    assert (t.labels[r.rows] == r.truth).all()

@pytest.mark.parametrize('kind', ['svm', 'mlp'])
def test_a_probe_is_deterministic(kind):
    x, t = task(folds=[-1]*36 + [0]*24)
    a, b = probe(x, t, kind, seed=3), probe(x, t, kind, seed=3)
    assert (a.predictions == b.predictions).all() and a.chosen == b.chosen

def test_there_is_nothing_in_noise():
    x, t = task(n=240, labels=2, signal=0, dims=30)
    assert .35 < probe(x, t).score.value < .65

@pytest.mark.parametrize('features, kind, message',
                         [(np.zeros((59, 4)), 'logistic', 'no features of 60'),
                          (np.full((60, 4), np.nan), 'logistic', 'not finite'),
                                                     (np.zeros((60, 4)), 'forest', 'logistic, svm, mlp, knn')])
def test_a_probe_refuses(features, kind, message):
    with pytest.raises(LogocentricError, match=message): probe(features, task()[1], kind)

def test_comparison_is_paired():
    x, t = task()
    rng = np.random.default_rng(9)
    sets = {BASELINES['p_statistics']: rng.standard_normal((60, 3)), 'ours': x}
    frame = compare_features(t, sets)
    a, b = (probe(f, t) for f in sets.values())
    assert frame.loc['ours', 'p_statistics'] == mcnemar(a.truth, a.predictions, b.predictions)
    assert frame['p_random'].isna().all()
    assert math.isnan(frame['p_statistics'].iloc[0]) and frame['dims_percent'].tolist() == [25, 100]
    assert (frame['n'] == 60).all()
    assert frame.loc['ours', ['accuracy', 'low', 'high']].tolist() == [b.score.value, b.score.low, b.score.high]

def test_plot_shows_rows_and_chance():
    x, t = task()
    ax = show_probe(compare_features(t, {'a': x, 'b': x[:, :2]}))
    assert [label.get_text() for label in ax.get_yticklabels()] == ['a', 'b']
    assert any(set(line.get_xdata()) == {t.chance} for line in ax.lines)
    plt.close('all')

# --- fine-tuning

FEW = replace(FINE_TUNING, steps=3, batch_size=6, mixed_precision='no')
PLAIN = Augmentation(shift=0, level=0, slope=0, mix=0, drop=0, smoothing=0)

def sounds(n=18, labels='abc', seed=0):
    "Clips of unequal lengths, one longer than the encoder takes at once."
    lengths = np.random.default_rng(seed).integers(1, 90, n); lengths[n//2] = 1100
    clips = [np.maximum(x - 2*(i % len(labels)), CONFIG.silence).astype(np.float32)
             for i, x in enumerate(logmels(*lengths, seed=seed))]
    return ProbeTask('sounds', clips, [labels[i % len(labels)] for i in range(n)], np.arange(n)//len(labels) % 3)

def few(e, t, **kwargs): return fine_tune(e, CONFIG, t, **dict(config=FEW, progress=False, keep_models=True) | kwargs)

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.parametrize('make', [lambda: MAEEncoder(MAEConfig.preset('tiny')).eval().requires_grad_(False), tabled])
def test_a_copy_is_trained_and_every_test_clip_answered(make):
    e, t = make(), sounds()
    before, global_state = copy.deepcopy(e.state_dict()), torch.get_rng_state()
    r = few(e, t)
    assert same(e.state_dict(), before) and not any(p.requires_grad for p in e.parameters())
    assert torch.equal(torch.get_rng_state(), global_state)
    assert r.kind == 'fine-tuned' and r.rows.tolist() == [*range(18)] and set(r.predictions) <= set('abc')
    assert r.score.n == 18
    assert set(r.fold_accuracy) == set(r.models) == set(r.chosen) == {0, 1, 2}
    for model in r.models.values():
        changed = {n for n, p in model.encoder.named_parameters() if not torch.equal(p.cpu(), before[n])}
        assert {'patch_embed.weight', 'blocks.0.mlp.fc1.weight', 'blocks.1.attn.qkv.weight', 'norm.weight'} <= changed
    assert not fine_tune(e, CONFIG, t, FEW, progress=False).models

def test_fine_tuning_is_deterministic(encoder):
    t = sounds()
    a, b, c = few(encoder, t, seed=1), few(encoder, t, seed=1), few(encoder, t, seed=2)
    assert all(same(a.models[k].state_dict(), b.models[k].state_dict()) for k in a.models)
    assert (a.predictions == b.predictions).all()
    assert not same(a.models[0].state_dict(), c.models[0].state_dict())

def test_nothing_of_the_test_fold_is_learned(encoder):
    t = sounds()
    fold = t.folds == 0
    labels = np.where(fold, np.roll(t.labels, 1), t.labels); labels[np.flatnonzero(fold)[0]] = 'unknown before'
    a, b = few(encoder, t), few(encoder, relabelled(t, labels))
    assert same(a.models[0].state_dict(), b.models[0].state_dict())
    assert (a.predictions[fold] == b.predictions[fold]).all()
    assert a.models[0].names.tolist() == list('abc') and not same(a.models[1].state_dict(), b.models[1].state_dict())
    other = ProbeTask('other', [x*0 if f else x for x, f in zip(t.clips, fold)], t.labels, t.folds)
    assert same(a.models[0].state_dict(), few(encoder, other).models[0].state_dict())

def test_two_labels_and_no_step_worth_the_name(encoder):
    t = sounds(labels='ab')
    frozen = probe(extract(encoder, CONFIG, t.clips), t)
    unmoved = few(encoder, t, config=replace(FEW, lr=1e-12))
    assert (unmoved.predictions == frozen.predictions).all() and unmoved.chosen == frozen.chosen

def test_a_head_without_a_start_learns(encoder):
    t = sounds()
    start = clone(PROBES['logistic'][0]).fit(extract(encoder, CONFIG, t.clips), t.labels)
    model, config = FineTuned(encoder, CONFIG, start), replace(FEW, steps=30, lr=1e-3)
    for p in model.head.parameters(): torch.nn.init.zeros_(p)
    history = train(model, LabelledClips(t.clips, t.labels, encoder, CONFIG), config,
                    param_groups=lambda m: layer_groups(m, config), progress=False)
    assert history.rows[0]['loss'] == pytest.approx(math.log(3), abs=1e-3) and history.rows[-1]['loss'] < .9
    assert (model.predict(t.clips) == t.labels).mean() > .8

def test_half_precision_and_checkpoints(encoder, tmp_path):
    t, half = sounds(), replace(FEW, mixed_precision='bf16')
    a = few(encoder, t, config=half, folder=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {'fold0', 'fold1', 'fold2'}
    b = few(encoder, t, config=half, folder=tmp_path)                    # what is finished is not trained again
    assert same(a.models[2].state_dict(), b.models[2].state_dict()) and a.models[0].head.weight.dtype == torch.float32

@pytest.mark.parametrize('make', [lambda: MAEEncoder(MAEConfig.preset('tiny')).eval(), tabled])
def test_a_batch_of_unequal_lengths_is_answered_like_whole_clips(make):
    e, t = make(), sounds()
    clips, labels = t.clips[:8], t.labels[:8]
    start = clone(PROBES['logistic'][0]).fit(extract(e, CONFIG, clips), labels)
    model, data = FineTuned(e, CONFIG, start).eval(), LabelledClips(clips, labels, e, CONFIG, PLAIN)
    batch = data.batch([*range(8)], np.random.default_rng(0))
    assert batch.pop('id') == [*'01234567'] and batch['frame_mask'].sum(1).tolist() == [len(x) for x in clips]
    np.testing.assert_allclose(model(**batch).logits.detach().softmax(-1),
                               start.predict_proba(extract(e, CONFIG, clips)), atol=1e-4)
    alone = [model(**{k: v for k, v in data.batch([i], np.random.default_rng(i)).items() if k != 'id'}).logits
             for i in range(8)]
    torch.testing.assert_close(torch.cat(alone), model(**batch).logits, atol=1e-3, rtol=1e-3)

def test_batches_are_augmented_within_bounds(encoder):
    t = sounds()
    data = LabelledClips(t.clips, t.labels, encoder, CONFIG, Augmentation(seconds=.5, mix=1.))
    a, b = (data.batch([*range(18)], np.random.default_rng(s)) for s in (0, 1))
    assert a['logmel'].shape[1] <= math.ceil((50 + 16)/16)*16 and a['logmel'].isfinite().all()
    assert not torch.equal(a['target'], b['target'])
    torch.testing.assert_close(a['target'].sum(1), torch.ones(18))
    # the first has the larger share
    assert (a['target'].argmax(1).numpy() == data.numbers).all() and a['target'].min() >= .1/3 - 1e-6
    assert a['logmel'].min() >= (CONFIG.silence - CONFIG.mean)/CONFIG.std - 1e-4
    short = tabled(2)                                                    # takes 32 frames at once
    batch = LabelledClips(t.clips, t.labels, short, CONFIG).batch([*range(18)], np.random.default_rng(0))
    assert batch['logmel'].shape[1] <= 32

@pytest.mark.parametrize('drop', [0, .3, .9])
def test_every_row_keeps_equally_many_real_patches(drop):
    widths = np.array([1, 4, 7])
    mask = torch.arange(7*16) < torch.tensor(widths*16 - 5)[:, None]
    keep = drop_patches(mask, 16, 5, drop, np.random.default_rng(0)).view(3, 5, -1).numpy()
    left = np.maximum(1, np.round((1 - drop)*widths))
    assert keep.shape[2] == left.max()
    for rows, width, n in zip(keep, widths, left):
        for h, row in enumerate(rows):
            chosen = row[row >= 0]
            assert len(set(chosen)) == len(chosen) == n and (chosen//7 == h).all() and (chosen % 7 < width).all()

def test_lower_layers_learn_slower():
    e = tabled()
    start = clone(PROBES['logistic'][0]).fit(np.random.default_rng(0).standard_normal((6, 640)), list('ababab'))
    model, config = FineTuned(e, CONFIG, start), TrainConfig(steps=1, lr=1., weight_decay=.1)
    found = {id(p): g for g in layer_groups(model, config, .5) for p in g['params']}
    rate = {n: found[id(p)]['lr'] for n, p in model.named_parameters()}
    assert len(found) == len(rate) and rate['head.weight'] == 1 and rate['encoder.norm.bias'] == .5
    assert rate['encoder.blocks.1.mlp.fc1.weight'] == .25 and rate['encoder.blocks.0.mlp.fc1.weight'] == .125
    assert rate['encoder.patch_embed.weight'] == rate['encoder.cls_token'] == 1/16
    assert {found[id(p)]['weight_decay'] for p in model.parameters() if p.ndim == 1} == {0}

# --- HEAR

@pytest.mark.parametrize('make', [lambda: MAEEncoder(MAEConfig.preset('tiny')).eval(), tabled])
def test_an_encoder_travels_with_its_frontend(make, tmp_path):
    e, config, clips = make(), FrontendConfig(mean=-6.5, std=3.9), logmels(30, 50)
    loaded, settings = load_encoder(save_encoder(e, config, tmp_path/'encoder'))
    assert settings == config
    np.testing.assert_array_equal(extract(loaded, settings, clips), extract(e, config, clips))

def test_an_autoencoders_folder_needs_a_frontend(tmp_path):
    model = MAEModel(MAEConfig.preset('tiny'))
    model.save_pretrained(tmp_path)
    with pytest.raises(LogocentricError, match='frontend.json'): load_model(tmp_path)
    write_json(tmp_path/'frontend.json', CONFIG.to_dict())
    assert torch.equal(load_model(tmp_path).encoder.patch_embed.weight, model.encoder.patch_embed.weight)
    write_json(tmp_path/'frontend.json', FrontendConfig(n_mels=64).to_dict())
    with pytest.raises(LogocentricError, match='80 mel bands'): load_model(tmp_path)
    with pytest.raises(LogocentricError, match='save_encoder'): load_model(tmp_path/'nowhere')

@pytest.mark.parametrize('seconds', [1.07, 1.98, 4., 1., .03, 11.5])
def test_timestamps_as_the_validator_wants_them(encoder, seconds):
    model = HearModel(encoder, CONFIG).eval()
    vectors, times = get_timestamp_embeddings(sound(seconds), model)
    assert vectors.shape == (*times.shape, model.timestamp_embedding_size) and vectors.shape[0] == 2
    assert vectors.dtype == torch.float32
    assert isinstance(model.sample_rate, int) and isinstance(model.scene_embedding_size, int)
    steps = times.diff()
    assert torch.allclose(steps, torch.full_like(steps, 160.)) and times.max() <= 1000*seconds
    assert times.max() >= 1000*seconds - 2*160
    assert times.min() <= 160 and vectors.isfinite().all()

@pytest.mark.parametrize('seconds', [.7, 12.])
def test_a_sound_alone_or_among_others(encoder, seconds):
    model, audio = HearModel(encoder, CONFIG).eval(), sound(seconds, n=18 if seconds < 1 else 3)*.3
    both, scenes = get_timestamp_embeddings(audio, model)[0], get_scene_embeddings(audio, model)
    assert scenes.shape == (len(audio), model.scene_embedding_size)
    for i in (0, len(audio) - 1):
        torch.testing.assert_close(get_timestamp_embeddings(audio[i:i + 1], model)[0][0], both[i], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(get_scene_embeddings(audio[i:i + 1], model)[0], scenes[i], atol=1e-5, rtol=1e-5)

@pytest.mark.parametrize('seconds', [.8, 23.])
def test_a_scene_is_what_extract_says(encoder, seconds):
    audio = sound(seconds, n=1)*.1
    np.testing.assert_allclose(get_scene_embeddings(audio, HearModel(encoder, CONFIG).eval()).numpy(),
                               extract(encoder, CONFIG, MEL(audio)), atol=1e-4)

def test_pieces_have_no_seams(encoder):
    audio, model = sound(3, n=1)*.1, HearModel(encoder, CONFIG)
    edges = piece_edges(301, 16, 5)
    pieces = torch.cat([model.piece(audio, a, b) for a, b in zip(edges, edges[1:])], 1)
    torch.testing.assert_close(pieces, MEL.normalise(MEL(audio)), atol=1e-5, rtol=1e-5)

def test_a_click_shows_at_its_time(encoder):
    quiet = torch.zeros(1, 16_000)
    click = quiet.clone(); click[0, 9_000] = 1                           # at 562.5 ms
    model = HearModel(encoder, CONFIG, layer=0).eval()
    (a, times), (b, _) = get_timestamp_embeddings(quiet, model), get_timestamp_embeddings(click, model)
    assert times[0, (a - b).norm(dim=-1)[0].argmax()].item() == 555      # column 3 is frames 48–63

def test_silence_and_wrong_shapes(encoder):
    model = HearModel(encoder, CONFIG).eval()
    for n in (1, 100, 16_000): assert get_scene_embeddings(torch.zeros(2, n), model).isfinite().all()
    with pytest.raises(LogocentricError, match='sounds, samples'): get_scene_embeddings(torch.zeros(100), model)
    with pytest.raises(LogocentricError, match='without samples'): get_scene_embeddings(torch.zeros(1, 0), model)

def test_hear_without_a_file_loads_the_encoder_that_ships(tmp_path):
    audio = sound(1.)*.1
    given, default = load_model(save_encoder(*load_encoder(), tmp_path/'ear')), load_model()
    assert isinstance(default, HearModel) and not default.training
    assert torch.equal(get_scene_embeddings(audio, default), get_scene_embeddings(audio, given))

@pytest.mark.slow
@pytest.mark.parametrize('place', ['', shipped_path('ear')], ids=['default', 'folder'])
@pytest.mark.filterwarnings('ignore:We suggest a interval between timestamps')  # 50 ms, for transcription; ours is 80
def test_the_validator_of_hear_passes(place, capsys):
    "The package asks for TensorFlow at its first line, and has no use for it where a model is of torch."
    if find_spec('hearvalidator') is None:
        pytest.skip('no hearvalidator: pip install --no-deps hearvalidator==2021.0.2')
    tensorflow = types.ModuleType('tensorflow'); tensorflow.Module = type('Module', (), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, 'tensorflow', tensorflow)
        validate = importlib.import_module('hearvalidator.validate')
    validate.ValidateModel('logocentric.encoder.audio_encoder', str(place), 'cpu')()
    said = capsys.readouterr().out
    assert 'Checking get_scene_embeddings' in said and 'Received timestamps of shape' in said
