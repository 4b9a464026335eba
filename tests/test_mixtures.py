"Mixtures: names that AudioSet has, tags of what sounds, a long tail, clips that depend on seed and index only."
import csv, json, multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
import numpy as np, pytest, torch
from symusic.core import NoteSecondList, ScoreSecond, TrackSecond
from logocentric.data import mixtures
from logocentric.core import LogocentricError, shared_path
from logocentric.data.composition import compose_score
from logocentric.data.corpus import build_corpus
from logocentric.data.rendering import CLIP_SECONDS, loudness, play_track, synthesizer
from logocentric.data.styles import LABELS as GENRES, sample_clip
from logocentric.audio.frontend import FrontendConfig, LogMel
from logocentric.data.mixtures import (MAX_LABELS, SOURCE_COUNTS, SOUND_SOURCES, VOCABULARY, SOURCE_WEIGHTS, Mixtures,
                                       build_mixtures, draw_mixture, mixture_labels, mixture_row, piece_labels,
                                       render_mixture, source_waves)

rng = lambda seed=0: np.random.default_rng(seed)

@pytest.fixture(scope='module')
def specs(): return [draw_mixture(51, i) for i in range(3000)]

@pytest.fixture(scope='module')
def tags(specs): return [mixture_labels(s) for s in specs]

@pytest.fixture(scope='module')
def audioset():
    if not shared_path(): pytest.skip('the shared folder with AudioSet\'s list of labels is absent')
    return shared_path()/'data'/'audioset'

# --- names

def test_every_name_is_audiosets_and_in_its_order(audioset):
    with (audioset/'class_labels_indices.csv').open(encoding='utf-8', newline='') as f:
        names = [r['display_name'] for r in csv.DictReader(f)]
    assert VOCABULARY == [n for n in names if n in set(VOCABULARY)] and len(VOCABULARY) == len(set(VOCABULARY)) >= 60

def test_second_names_are_ancestors(audioset):
    nodes = {n['id']: n for n in json.loads((audioset/'ontology.json').read_text(encoding='utf-8'))}
    parents = {}
    for n in nodes.values():
        for child in n['child_ids']: parents.setdefault(nodes[child]['name'], set()).add(n['name'])
    def ancestors(name): return parents.get(name, set()).union(*map(ancestors, parents.get(name, set())))
    others = {s.name for s in SOUND_SOURCES.values() for label in s.labels[1:] if label not in ancestors(s.labels[0])}
    assert 'Dog' in ancestors('Bark') and others == {'whisper', 'alarm'}      # as the notebook says

def test_vocabulary_is_what_the_sources_are_called():
    assert set(VOCABULARY) == {label for s in SOUND_SOURCES.values() for label in s.labels}
    for name, s in SOUND_SOURCES.items():
        assert name == s.name and 1 <= len(s.labels) <= 3 and len(set(s.labels)) == len(s.labels)
    assert {'Chirp, tweet', 'Waves, surf', 'Thump, thud', 'Telephone bell ringing', 'Gunshot, gunfire',
            'Baby cry, infant cry'} <= set(VOCABULARY)
    assert {'Drum', 'Drum kit', 'Drum roll', 'Drum machine', 'Cat', 'Cattle, bovinae'} <= set(VOCABULARY)
    assert VOCABULARY is not GENRES
    assert set(SOURCE_WEIGHTS) == set(SOUND_SOURCES) and np.isclose(sum(SOURCE_WEIGHTS.values()), 1)

# --- sources

@pytest.mark.parametrize('name', list(SOUND_SOURCES))
def test_every_source_sounds(name):
    player = synthesizer()
    for k in range(4):
        wave = SOUND_SOURCES[name].make(rng(100 + k), player)
        assert wave.shape == (160_000,) and wave.dtype == np.float32, (name, k)
        assert np.isfinite(wave).all() and loudness(wave) > 3e-4, (name, k)

def test_a_melody_has_a_note():
    for k in range(3000): assert mixtures._melody(rng(k), list(range(24)), .6)

def test_phrases_stay_within_the_clip():
    for k in range(100):
        for phrase in mixtures.PHRASES.values():
            notes = phrase(rng(k), list(range(50, 65)), .3)
            assert all(0 <= t <= 2*CLIP_SECONDS and length > 0 for t, length, _ in notes)
        notes = mixtures._track(0, [(9.8, 3., 60), (9.99, 1., 62), (1., .5, 64)], rng(k)).notes
        assert len(notes) == 2 and max(n.start + n.duration for n in notes) <= CLIP_SECONDS + .01

def test_a_passage_has_edges_and_a_middle():
    lengths = []
    for k in range(200):
        passage = mixtures._passage(rng(k), np.ones(160_000, np.float32))
        at = np.flatnonzero(passage)
        assert len(at) == np.ptp(at) + 1 and passage.max() == 1 and np.abs(np.diff(passage)).max() < .001
        lengths.append(len(at)/16_000)
    assert min(lengths) > 3.9 and max(lengths) <= 10 and np.ptp(lengths) > 4

@pytest.mark.parametrize('program, labels', [(0, ['Piano']), (24, ['Acoustic guitar', 'Guitar']),
                                             (110, ['Violin, fiddle']), (38, ['Synthesizer']), (41, []),
                                             (47, ['Timpani'])])
def test_a_piece_is_called_by_its_programs(program, labels):
    score = ScoreSecond(480); score.tracks.append(TrackSecond(name='lead', program=program))
    assert piece_labels(score) == ['Music', *labels]

@pytest.mark.parametrize('kit, keys, labels', [(0, (36, 38, 42), ['Drum kit']), (0, (62, 64, 70), ['Drum', 'Maraca']),
                                               (25, (36, 42), ['Drum machine', 'Drum kit'])])
def test_drums_of_a_piece_are_called_by_kit_and_keys(kit, keys, labels):
    score, track = ScoreSecond(480), TrackSecond(name='drums', program=kit, is_drum=True)
    n = len(keys)
    track.notes = NoteSecondList.from_numpy(np.arange(n, dtype=np.float32), np.ones(n, np.float32),
                                            np.array(keys, np.int8), np.full(n, 90, np.int8))
    score.tracks.append(track)
    assert piece_labels(score) == ['Music', *labels]

def test_who_is_named_in_a_piece_plays():
    seen = Counter()
    for k in range(40):
        spec = sample_clip(700 + k); score, player = compose_score(spec), synthesizer()
        for track in score.tracks: assert loudness(play_track(track, player)) > 1e-3, (k, track.name)
        labels = piece_labels(score); seen.update(labels)
        assert ('Drum' in labels) == (spec.attributes['drums'] == 'hand_drums')
        assert ('Drum kit' in labels) == (spec.attributes['drums'] not in ('none', 'timpani', 'hand_drums'))
    assert seen['Music'] == 40 and len(seen) > 12 and set(seen) <= set(VOCABULARY)

# --- mixtures

def test_a_mixture_has_few_labels_and_no_source_in_vain(specs, tags):
    for spec, labels in zip(specs, tags):
        assert 1 <= len(spec.sources) == len(spec.levels) <= max(SOURCE_COUNTS) and 1 <= len(labels) <= MAX_LABELS == 6
        assert spec.levels[0] == 0 == max(spec.levels) and min(spec.levels) >= -12
        assert labels == sorted(labels, key=VOCABULARY.index) and len(labels) == len(set(labels))
        sets = mixtures._label_sets(spec)
        assert not any(a <= b for i, a in enumerate(sets) for j, b in enumerate(sets) if i != j)
    assert 2.5 < np.mean([len(t) for t in tags]) < 3.1 and set(map(len, tags)) == set(range(1, 7))

def test_labels_have_a_long_tail(tags):
    often = Counter(label for t in tags for label in t)
    share = np.array([often[v] for v in VOCABULARY])/len(tags)
    assert VOCABULARY[share.argmax()] == 'Speech' and .13 < share.max() < .2 and often.most_common(2)[1][0] == 'Music'
    assert .006 < share.min() < .015 and np.median(share) < .03
    for half in (tags[:1500], tags[1500:]):
        counts = Counter(label for t in half for label in t)
        assert min(counts[v] for v in VOCABULARY) >= 8

def test_sources_have_their_levels(specs):
    for spec in specs[:25]:
        for level, part in zip(spec.levels, source_waves(spec)):
            assert abs(20*np.log10(loudness(part)/.1) - level) < .01

def test_render(specs):
    for spec in specs[:40]:
        wave = render_mixture(spec)
        assert wave.shape == (160_000,) and wave.dtype == np.float32
        assert np.isfinite(wave).all() and np.abs(wave).max() <= 1 and wave.std() > 1e-4

def test_a_source_is_heard_in_its_mixture(specs):
    clean = dict(tilt=0, low_pass=0, high_pass=0, wet=0, floor=-100, codec=False, level=-3)
    for spec in [s for s in specs[:60] if len(s.sources) > 1]:
        spec = replace(spec, place=replace(spec.place, **clean)); wave = render_mixture(spec)
        for part in source_waves(spec):
            spectrum = [np.fft.rfft(x) for x in (wave, part)]
            shared = np.abs(np.vdot(*spectrum))/np.prod([np.linalg.norm(s) for s in spectrum])
            assert shared > .05, (spec.sources, shared)

def test_clips_depend_on_seed_and_index_only(specs):
    waves = [render_mixture(s) for s in specs[:6]]
    for i in (5, 0, 3):
        assert draw_mixture(51, i) == specs[i] and np.array_equal(render_mixture(draw_mixture(51, i)), waves[i])
    assert len({hash(s) for s in specs}) == len(specs)

def test_splits_share_no_clip(specs):
    other = [draw_mixture(52, i) for i in range(1000)]
    assert not {s.place for s in specs} & {s.place for s in other}
    assert not {s.rng(10).random() for s in specs} & {s.rng(10).random() for s in other}

def test_row(specs):
    row = mixture_row(specs[7])
    assert row == json.loads(json.dumps(row)) and row['id'] == '51-000007' and row['labels'] == mixture_labels(specs[7])
    assert row['sources'] == list(specs[7].sources) and (row['seed'], row['index']) == (51, 7)

# --- the corpus

@pytest.fixture
def small(monkeypatch):
    for module in ('corpus', 'mixtures'): monkeypatch.setattr(f'logocentric.data.{module}.SHARD', 4)

def test_a_corpus_holds_its_clips(tmp_path, small):
    corpus = build_mixtures(tmp_path, 6, seed=53, processes=1)
    assert len(corpus) == 6 and corpus.features.shape == (6, 1001, 80) and corpus.features.dtype == np.float16
    assert list(corpus.table) == ['id', 'labels', 'sources', 'levels', 'seed', 'index']
    assert 'Mixtures(6 clips' in repr(corpus)
    assert corpus.specs() == [draw_mixture(53, i) for i in range(6)]
    mel = LogMel(FrontendConfig())
    for i in (0, 5):
        assert torch.allclose(corpus.logmel(i), mel(torch.from_numpy(render_mixture(draw_mixture(53, i)))), atol=.02)

def test_targets(tmp_path):
    corpus = build_mixtures(tmp_path, 5, seed=54, processes=1)
    wanted = corpus.targets()
    assert wanted.shape == (5, len(VOCABULARY)) and wanted.dtype == bool
    for row, labels in zip(wanted, corpus.table['labels']): assert [v for v, on in zip(VOCABULARY, row) if on] == labels
    some = [corpus.table['labels'][2][0], 'Speech']
    assert np.array_equal(corpus.targets(some), wanted[:, [VOCABULARY.index(v) for v in some]])
    with pytest.raises(LogocentricError, match='Unicorn'): corpus.targets(['Speech', 'Unicorn'])

def test_a_build_continues_to_the_same_corpus(tmp_path, small):
    def build(): return build_mixtures(tmp_path, 10, seed=55, processes=1)
    before, rows = build().features[:].copy(), (tmp_path/'clips.jsonl').read_bytes()
    (tmp_path/'clips.jsonl').unlink(); (tmp_path/'shards'/'00001.json').unlink()
    with pytest.raises(LogocentricError): Mixtures(tmp_path)
    np.lib.format.open_memmap(tmp_path/'features.npy', 'r+')[4:8] = 0
    untouched = (tmp_path/'shards'/'00000.json').stat().st_mtime_ns
    assert np.array_equal(build().features, before) and (tmp_path/'clips.jsonl').read_bytes() == rows
    assert (tmp_path/'shards'/'00000.json').stat().st_mtime_ns == untouched

def test_another_process_makes_the_same_clips(tmp_path):
    here = build_mixtures(tmp_path/'here', 3, seed=56, processes=1)
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        pool.submit(build_mixtures, tmp_path/'there', 3, seed=56, processes=1).result()
    assert np.array_equal(here.features, Mixtures(tmp_path/'there').features)
    assert len({(tmp_path/f/'clips.jsonl').read_bytes() for f in ('here', 'there')}) == 1

def test_other_settings_are_refused(tmp_path):
    build_mixtures(tmp_path, 2, seed=57, processes=1)
    for other in (dict(seed=58), dict(n=3), dict(config=FrontendConfig(n_mels=64))):
        with pytest.raises(LogocentricError, match='other settings'):
            build_mixtures(tmp_path, **dict(n=2, seed=57) | other)
    with pytest.raises(LogocentricError, match='other settings'): build_corpus(tmp_path, 2, 57)
    with pytest.raises(LogocentricError, match='sample_rate'):
        build_mixtures(tmp_path/'new', 2, 57, config=FrontendConfig(sample_rate=22_050))
