"""Sounds that are not music: every kind renders, formants and pitches land, descriptions are true, builds resume."""
import json, multiprocessing, re
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
import numpy as np, pytest, torch
from scipy.signal import find_peaks, welch
from logocentric.core import LogocentricError
from logocentric.data.corpus import build_corpus
from logocentric.data.descriptions import genre_words
from logocentric.audio.frontend import FrontendConfig, LogMel
from logocentric.audio.synthesis import FREQUENCIES, band, filtered, frames_of, modal, partials, pulses, resonance
from logocentric.audio.sounds import KINDS, N, TICKS
from logocentric.data.sound_corpus import (MODES, Layer, SoundCorpus, arrange, build_sounds, describe_sound,
                                           draw_sound, event_times, render_sound)
from logocentric.audio.voices import (PHONES, STOPS, UNKNOWN, VOWELS, Speaker, Utterance, random_word, segments, speak,
                                      utter)
from logocentric.data.rendering import RATE
from logocentric.data.sound_corpus import _put

SPEECH = ['word', 'talk', 'whisper', 'chatter', 'vowel', 'laugh', 'cry']
rng = lambda seed=0: np.random.default_rng(seed)

@pytest.fixture(scope='module')
def clips():
    specs = [draw_sound(31, i) for i in range(400)]
    return [(s, made := render_sound(s), describe_sound(s, made)) for s in specs]

# --- source and filter

@pytest.mark.parametrize('n', [1, 127, 128, 5000, 16001])
def test_a_gain_of_one_returns_the_source(n):
    source = rng().standard_normal(n).astype(np.float32)
    assert np.abs(filtered(source, np.ones((frames_of(n), len(FREQUENCIES)), np.float32)) - source).max() < 1e-4
    assert np.allclose(filtered(source, 3.), 3*source, atol=1e-4) and len(filtered(source, 1)) == n

def test_filters_land_where_asked():
    noise = rng().standard_normal(20*RATE).astype(np.float32)
    for gain in (resonance(1500, 100), band(1500, .2)):
        f, power = welch(filtered(noise, gain), RATE, nperseg=1024)
        assert abs(f[power.argmax()] - 1500) < 60
    assert np.isclose(resonance(1500, 100).max(), 15, rtol=.02) and np.isclose(resonance(1500, 100)[0], 1)

def test_a_filter_changes_in_time():
    gain = np.ones((frames_of(RATE), 1), np.float32); gain[len(gain)//2:] = 0
    out = filtered(np.ones(RATE, np.float32), gain)
    assert np.allclose(out[:7000], 1, atol=1e-3) and np.allclose(out[9000:], 0, atol=1e-3)

def test_pitch_of_partials_and_pulses():
    f0 = np.full(N, 220.5)
    for wave in (partials(f0, (1, .5, .3), rng()), pulses(f0, rng())):
        spectrum = np.abs(np.fft.rfft(wave))
        peaks = np.fft.rfftfreq(N, 1/RATE)[find_peaks(spectrum, height=.2*spectrum.max())[0]]
        assert np.allclose(peaks[:3], 220.5*np.arange(1, 4), atol=.11)
    assert abs((pulses(np.full(RATE, 100.), rng()) > 0).sum()/2 - 100) <= 50

def test_partials_do_not_alias():
    wave = partials(np.full(N, 3000.), np.ones(10), rng())
    power = np.abs(np.fft.rfft(wave))**2; f = np.fft.rfftfreq(N, 1/RATE)
    assert power[(np.abs(f - 3000) > 5) & (np.abs(f - 6000) > 5)].sum() < 1e-6*power.sum()
    assert not partials(np.full(100, 7900.), np.ones(3), rng()).any()
    slide = partials(np.linspace(500, 5000, N), np.ones(10), rng())   # only the first partial stays below the edge
    for k in (2, 5, 8):
        part = slide[k*RATE:k*RATE + 1600]*np.hanning(1600)
        assert abs(np.abs(np.fft.rfft(part)).argmax()*10 - (500 + 450*(k + .05))) < 30

def test_modes_ring_and_decay_as_asked():
    wave = modal(rng(), RATE, [500., 1800.], [1., .5], [.8, .8])
    level = lambda t: np.sqrt(np.mean(wave[int(t*RATE):int((t + .05)*RATE)]**2))
    assert abs(20*np.log10(level(.1)/level(.5)) - 30) < 1
    f, power = welch(wave, RATE, nperseg=4096)
    assert np.allclose(f[find_peaks(power, height=.1*power.max())[0]], [500, 1800], atol=5)

# --- speech

@pytest.mark.parametrize('vowel', ['i', 'A', 'E', 'u'])
@pytest.mark.parametrize('tract', [.9, 1.2])
def test_formants_land_where_asked(vowel, tract):
    row = segments([vowel], rng()); row[0, 0] = 20
    wave = utter(row, Speaker(100, tract, tilt=0), rng(), whisper=True).wave
    f, power = welch(wave, RATE, nperseg=512)
    peaks = f[find_peaks(10*np.log10(power), prominence=1)[0]]
    for formant in VOWELS[vowel][:2]: assert np.abs(peaks/(formant*tract) - 1).min() < .15, (peaks, formant*tract)

def test_a_voice_has_the_pitch_of_its_speaker():
    row = segments(['A'], rng()); row[0, 0] = 4
    wave = utter(row, Speaker(150, lively=0.), rng(1)).wave
    r = np.fft.irfft(np.abs(np.fft.rfft(wave, 2*len(wave)))**2)[:RATE//60]
    assert abs(RATE/(100 + r[100:].argmax())/150 - 1) < .15     # speech falls by up to 0.15 octaves around it

def test_words_are_made_of_phones():
    for k in range(200): assert set(random_word(rng(k), 3)) <= set(PHONES)
    assert PHONES[0] == '' and len(set(PHONES)) == len(PHONES) == 33 and set(STOPS) < set(PHONES)
    word = ['s', 'i', 't', 'A', 'b', 'u']
    said = speak([word, ['m', 'o']], Speaker(120), rng())
    order = [PHONES[p] for k, p in enumerate(said.phones) if k == 0 or p != said.phones[k - 1]]
    assert order[:-1] == [*word, '', 'm', 'o'] and order[-1] == '' and len(said.phones) == -(-len(said.wave)//160)

def test_fricatives_hiss_high_and_vowels_do_not():
    made = speak([['s', 'A']]*20, Speaker(120), rng())
    share = {}
    for p in ('s', 'A'):
        at = np.repeat(made.phones == PHONES.index(p), 160)[:len(made.wave)]
        f, power = welch(made.wave[at], RATE); share[p] = power[f > 4000].sum()/power.sum()
    assert share['s'] > .8 and share['A'] < .05

# --- kinds and clips

def test_speech_like_kinds():
    assert {k.name for k in KINDS.values() if k.group == 'speech-like'} == set(SPEECH)
    assert {k.group for k in KINDS.values()} == {'speech-like', 'other'}
    for name, k in KINDS.items():
        assert k.name == name and k.form in MODES and 3 <= len(k.phrases) <= 4
        assert len(k.plurals) == (len(k.phrases) if k.form == 'event' else 0)
        assert bool(k.as_background) == (name != 'silence') and k.weight > 0

@pytest.mark.parametrize('kind', list(KINDS))
def test_every_kind_renders(kind):
    for i in range(3):
        spec = draw_sound(32, i, kind)
        wave, phones, active, onsets = render_sound(spec)
        assert spec.kind == kind and wave.shape == (N,) == (160_000,) and wave.dtype == np.float32
        assert np.isfinite(wave).all() and np.abs(wave).max() <= 1 and (kind == 'silence' or wave.std() > 1e-4)
        assert phones.shape == active.shape == (TICKS,) == (1001,) and phones.dtype == np.int8 and active.dtype == bool
        assert UNKNOWN <= phones.min() and phones.max() < len(PHONES) and active[phones > 0].all()
        assert (phones > 0).any() == (kind in ('word', 'talk', 'whisper')) and active.any() == (kind != 'silence')
        if not spec.background and kind not in ('word', 'talk', 'whisper'):
            assert (phones == UNKNOWN).any() == (kind in SPEECH)
        assert bool(onsets) == (KINDS[kind].form != 'bed') and onsets == sorted(onsets)

def test_two_words_at_once_are_unknown():
    layer = Layer(np.zeros(N, np.float32), np.zeros(TICKS, np.int8), [])
    said = lambda p: Utterance(np.ones(160*20, np.float32), np.full(20, p, np.int8))
    for p, t in ((16, 1.), (16, 1.1), (5, 1.3)): _put(layer, said(p), t, 1.)
    assert (layer.phones[100:110] == 16).all() and (layer.phones[110:120] == UNKNOWN).all()
    assert (layer.phones[120:130] == 16).all()
    assert (layer.phones[130:150] == 5).all() and not layer.phones[150:].any() and not layer.phones[:100].any()

def test_talk_in_the_background_is_unknown():
    spec = replace(draw_sound(35, 1, 'engine'), background='talk')
    phones = render_sound(spec).phones
    assert (phones == UNKNOWN).any() and not (phones > 0).any()
    alone = render_sound(replace(draw_sound(35, 1, 'talk'), background='')).phones
    both = render_sound(replace(draw_sound(35, 1, 'talk'), background='chatter')).phones
    assert (alone > 0).any() and not (alone == UNKNOWN).any() and (both[:1000] == UNKNOWN).all()

def test_active_is_where_the_sound_is():
    layer = arrange(KINDS['knock'], 'once', rng(3))
    made = np.flatnonzero(layer.wave)
    assert abs(made[0]/RATE - layer.onsets[0]) < .01 and made[-1] - made[0] < .3*RATE
    spec = draw_sound(33, 0, 'knock')
    wave, _, active, onsets = render_sound(spec)
    for t in onsets: assert active[int(t*100):int(t*100) + 3].any()

def test_silence_is_silent_but_for_the_noise_floor():
    floors = []
    for i in range(40):
        spec = draw_sound(34, i, 'silence'); p = spec.place
        wave, phones, active, _ = render_sound(spec)
        assert not phones.any() and not active.any() and not spec.background
        expected = 10**((p.floor + p.level)/20) if p.floor > -100 else 0
        if not p.codec: assert abs(wave.std() - expected) <= .02*expected + 1e-5
        floors.append(expected)
    assert 0 in floors and max(floors) < 10**(-30/20)

def test_clips_depend_on_seed_and_index_only():
    specs = [draw_sound(35, i) for i in range(8)]
    waves = [render_sound(s).wave for s in specs]
    for i in (6, 1, 3): assert draw_sound(35, i) == specs[i] and np.array_equal(render_sound(specs[i]).wave, waves[i])
    assert len({hash(s) for s in specs}) == 8 and draw_sound(36, 0) != specs[0]
    assert draw_sound(35, 3, 'bell').place == specs[3].place

def test_kinds_are_drawn_by_weight():
    specs = [draw_sound(37, i) for i in range(5000)]
    counts, total = Counter(s.kind for s in specs), sum(k.weight for k in KINDS.values())
    for name, k in KINDS.items(): assert abs(counts[name]/5000 - k.weight/total) < 5*np.sqrt(k.weight/total/5000), name
    assert .3 < np.mean([s.background != '' for s in specs]) < .38
    assert not any(s.background in (s.kind, 'silence') for s in specs)
    assert {s.mode for s in specs} == {m for table in MODES.values() for m in table}

def test_event_times():
    for seed in range(50):
        once, regular, groups = (event_times(rng(seed), m, .1) for m in ('once', 'regular', 'groups'))
        assert len(once) == 1 and once[0] < 5 and len(regular) <= 60 and max(regular + groups) < 10
        assert np.ptp(np.diff(regular)) < 1e-9 if len(regular) > 1 else True
        if len(groups) > 8: assert min(np.diff(groups)[3::4]) > 2.9*max(np.delete(np.diff(groups), slice(3, None, 4)))

# --- descriptions

def test_descriptions_are_true(clips):
    for spec, made, text in clips:
        kind, n = KINDS[spec.kind], sum(t < 9.9 for t in made.onsets)
        assert any(p in text for p in kind.phrases) == (n <= 1 or kind.form != 'event'), text
        assert any(p in text for p in kind.plurals) == (n > 1 and kind.form == 'event'), text
        if kind.form == 'event':
            assert bool(re.search(r', (once|a single time)\b', text)) == (n == 1), text
            assert bool(re.search(r', (twice|two times)\b', text)) == (n == 2), text
        ended = spec.kind != 'silence' and not made.active[667:].any()
        endings = [bool(re.search(f', then {e}$', text)) for e in ('silence', 'only hiss', 'only the background')]
        assert sum(endings) == ended and (', then ' in text) == ended, text
        if ended:
            hissy, behind = spec.place.floor > -45, bool(spec.background)
            assert endings == [not behind and not hissy, not behind and hissy, behind]
        assert ('hissy' in text) == (spec.place.floor > -45) or spec.kind == 'silence'
        assert not spec.background or KINDS[spec.background].as_background in text
        swells = any(w in text for w in ('coming and going', 'swelling and', 'now near'))
        assert swells == (spec.mode == 'swelling'), text

def test_descriptions_are_english_without_genres(clips):
    for _, _, text in clips:
        assert not genre_words(text), (text, genre_words(text))
        assert not re.search(r'\ba [aeiou]', text) and not re.search(r'\ban [^aeiou]', text), text
        assert not re.search(r'\b(music\w*|songs?|melod\w*|tunes?)\b', text) and '  ' not in text and ', ,' not in text
        assert text[0].islower() and text[-1].isalpha() and len(text.split()) <= 45, text
    texts = [t for _, _, t in clips]
    assert len(set(texts)) > .9*len(texts) and 0 < sum('no instruments' in t for t in texts) < .1*len(texts)

def test_no_phrase_holds_a_genre_word():
    for k in KINDS.values():
        for phrase in [*k.phrases, *k.plurals, k.as_background]: assert not genre_words(phrase), phrase
        assert not [p for p in k.plurals if re.match('(a|an|one) ', p)], k.plurals

def test_descriptions_have_variants(clips):
    spec, made, text = next(c for c in clips if c[0].background and c[2].count(',') > 2)
    assert len({describe_sound(spec, made, variant=v) for v in range(8)}) > 3
    assert describe_sound(spec) == text

# --- the corpus

@pytest.fixture
def small(monkeypatch):
    for module in ('corpus', 'sound_corpus'): monkeypatch.setattr(f'logocentric.data.{module}.SHARD', 4)

def arrays(corpus): return [a[:].copy() for a in (corpus.features, corpus.phones, corpus.active)]

def test_a_corpus_holds_its_clips(tmp_path, small):
    corpus = build_sounds(tmp_path, 6, seed=38, processes=1)
    assert len(corpus) == 6 and corpus.features.shape == (6, 1001, 80) and corpus.features.dtype == np.float16
    assert corpus.phones.shape == corpus.active.shape == (6, 1001) and corpus.phones.dtype == np.int8
    assert corpus.active.dtype == bool
    assert list(corpus.table) == ['id', 'kind', 'group', 'mode', 'background', 'description', 'seed', 'index']
    assert corpus.specs() == [draw_sound(38, i) for i in range(6)] and 'SoundCorpus(6 clips' in repr(corpus)
    for i in (0, 5):
        made = render_sound(draw_sound(38, i))
        assert torch.allclose(corpus.logmel(i), LogMel(FrontendConfig())(torch.from_numpy(made.wave)), atol=.02)
        assert np.array_equal(corpus.phones[i], made.phones) and np.array_equal(corpus.active[i], made.active)
        assert corpus.table.description[i] == describe_sound(draw_sound(38, i))

def test_a_build_continues_to_the_same_corpus(tmp_path, small):
    before = arrays(build_sounds(tmp_path, 10, seed=39, processes=1)); rows = (tmp_path/'clips.jsonl').read_bytes()
    (tmp_path/'clips.jsonl').unlink(); (tmp_path/'shards'/'00001.json').unlink()
    with pytest.raises(LogocentricError): SoundCorpus(tmp_path)
    for name in ('features', 'phones', 'active'): np.lib.format.open_memmap(tmp_path/f'{name}.npy', 'r+')[4:8] = 0
    untouched = (tmp_path/'shards'/'00000.json').stat().st_mtime_ns
    again = arrays(build_sounds(tmp_path, 10, seed=39, processes=1))
    assert all(np.array_equal(a, b) for a, b in zip(before, again)) and (tmp_path/'clips.jsonl').read_bytes() == rows
    assert (tmp_path/'shards'/'00000.json').stat().st_mtime_ns == untouched

def test_another_process_makes_the_same_clips(tmp_path):
    here = arrays(build_sounds(tmp_path/'here', 3, seed=40, processes=1))
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        pool.submit(build_sounds, tmp_path/'there', 3, seed=40, processes=1).result()
    there = arrays(SoundCorpus(tmp_path/'there'))
    assert all(np.array_equal(a, b) for a, b in zip(here, there))
    assert (tmp_path/'here'/'clips.jsonl').read_bytes() == (tmp_path/'there'/'clips.jsonl').read_bytes()

def test_other_settings_are_refused(tmp_path):
    build_sounds(tmp_path, 2, seed=41, processes=1)
    for other in (dict(seed=42), dict(n=3), dict(config=FrontendConfig(n_mels=64))):
        with pytest.raises(LogocentricError, match='other settings'):
            build_sounds(tmp_path, **dict(n=2, seed=41) | other)
    with pytest.raises(LogocentricError, match='other settings'): build_corpus(tmp_path, 2, 41)
    assert json.loads((tmp_path/'corpus.json').read_text())['kind'] == 'sounds'


@pytest.mark.parametrize('build', [build_corpus, build_sounds])
def test_rendering_leaves_the_threads_alone(tmp_path, build):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        build(tmp_path/'clips', 2, seed=1, processes=1)
        assert torch.get_num_threads() == 2
    finally: torch.set_num_threads(before)
