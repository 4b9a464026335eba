"Varied clips: sung and played in tune, true facts, every form, any length; sources that are there, that are missing."
import itertools, shutil
from collections import Counter
from dataclasses import replace
import numpy as np, pytest
from symusic import Synthesizer
from logocentric.audio import singing
from logocentric.audio.singing import Melody, Singer, random_melody, random_singer, sing, sing_together
from logocentric.audio.voices import Speaker
from logocentric.core import LogocentricError, load_asset
from logocentric.data import corpus, players, variety
from logocentric.data.players import (INSTRUMENT_GROUPS, Habits, HumanPlayer, Studio, chosen_sources, missing_sources,
                                      perform, program_groups, swap_program, tuned_path, tuned_soundfont,
                                      variety_sources)
from logocentric.data.rendering import RATE, make_track, play_track, soundfont_path
from logocentric.data.variety import (FORMS, MAKERS, Scene, Stem, VarietyCorpus, build_variety, draw_variety,
                                      heard_stems, join_passages, passages, render_varied, scene_facts)

PLAIN = ['TimGM6mb'] # what every machine has
rng = lambda seed=0: np.random.default_rng(seed)


@pytest.fixture(scope='module')
def studio(): return Studio(PLAIN)


@pytest.fixture(scope='module')
def timgm(): return Synthesizer(sf_path=str(tuned_path(chosen_sources(PLAIN)[0])), sample_rate=RATE)


@pytest.fixture(scope='module')
def clips(studio): # four of each form, none longer than ten seconds
    specs = [replace(draw_variety(31, 100*k + i, form), seconds=s)
             for k, form in enumerate(FORMS) for i, s in enumerate((10., 4., 1.5, 1.))]
    return [(spec, render_varied(spec, studio)) for spec in specs]


def measured_pitch(wave): # a MIDI pitch, by the autocorrelation at an eighth of a sample
    lags = np.fft.irfft(np.abs(np.fft.rfft(wave, 2*len(wave)))**2, 16*len(wave))[:8*RATE//50]
    lags[:8*RATE//2500] = 0
    return 69 + 12*np.log2(8*RATE/np.argmax(lags)/440)


def one_note(program, key, start=0., name='lead'):
    return make_track(name, program, *(np.array([x]) for x in (start, 1.5, key, 100)))


# --- singing

def test_notes_are_sung_at_their_pitch():
    "In the middle of each note, from a bass to a child; octave errors of the measurement count as in tune."
    for f0, tract in ((110, .9), (220, 1.1), (330, 1.3)):
        melody = Melody(np.arange(4.), np.full(4, .9), np.array([0, 2, 4, 7]), f0, (0, 2, 4, 5, 7, 9, 11))
        wave = sing(melody, Singer(Speaker(f0, tract), vibrato=.005), rng(1), 4.2, way='vowel')
        for start, hz in zip(melody.start, melody.hz()):
            heard = measured_pitch(wave[int((start + .35)*RATE):int((start + .75)*RATE)])
            off = heard - 69 - 12*np.log2(hz/440)
            assert abs(off - 12*round(off/12)) < .4, (f0, hz, off)


def test_a_melody_stays_in_its_scale_and_its_time():
    for k in range(200):
        m = random_melody(rng(k), 1 + k/10, 220.)
        assert len(m.start) and np.all(np.diff(m.start) > 0) and np.all(m.seconds > 0)
        assert m.start[-1] + m.seconds[-1] <= 1 + k/10
        assert np.all(m.start[:-1] + m.seconds[:-1] <= m.start[1:] + 1e-9) and np.ptp(m.steps) <= 8
        semitones = 12*np.log2(m.hz()/220)
        assert {int(s) % 12 for s in semitones.round()} <= set(m.scale) and np.allclose(semitones, semitones.round())
        assert np.allclose(m.hz(len(m.scale)), 2*m.hz())


def test_a_syllable_fills_its_note():
    for k in range(300):
        rows = singing.segments(singing.random_word(rng(k), 1), rng(k))
        for seconds in (.1, .5, 4.):
            fitted = singing.fitted(rows, seconds)
            assert abs(fitted[:, 0].sum() - seconds) < 1e-4 and np.all(fitted[:, 0] > 0)
            assert np.array_equal(fitted[:, 1:], rows[:, 1:])


@pytest.mark.parametrize('way', singing.WAYS_TO_SING)
def test_all_ways_of_singing_sound_in_notes_and_not_in_pauses(way):
    melody = Melody(np.array([1., 3.]), np.array([1., 1.]), np.array([0, 2]), 200., (0, 2, 4, 5, 7, 9, 11))
    wave = sing(melody, random_singer(rng(3)), rng(4), 5., way=way)
    level = np.sqrt(np.mean(wave.reshape(-1, 1600)**2, 1)) # every 0.1 s
    assert wave.shape == (5*RATE,) and np.abs(wave).max() == 1 and np.isfinite(wave).all()
    assert min(level[12:19].max(), level[32:39].max()) > 20*max(level[:8].max(), level[23:28].max(), level[44:].max())


def test_choirs_depend_on_their_seed_alone():
    melody = random_melody(rng(2), 3, 200.)
    a, b, c = (sing_together(melody, 4, rng(s), 3.) for s in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c) and a.shape == (3*RATE,)


# --- soundfonts in tune

@pytest.mark.parametrize('program', [0, 4, 6, 11, 22, 25, 33, 40, 42, 46, 56, 65, 71, 73, 81, 105])
def test_instruments_are_in_tune(program, timgm):
    "Within half a semitone; octaves are a matter of registration, and of the measurement."
    for key in (48, 55, 60, 67):
        off = measured_pitch(play_track(one_note(program, key), timgm)[4800:12800]) - key
        assert abs(off - 12*round(off/12)) < .5, (key, off)


def test_tuning_a_soundfont_twice_changes_nothing_more():
    once = tuned_soundfont(soundfont_path().read_bytes())
    assert len(once) > soundfont_path().stat().st_size and int.from_bytes(once[4:8], 'little') == len(once) - 8
    generators = players._tables(once)
    assert list(generators) == [b'phdr', b'pbag', b'pmod', b'pgen', b'inst', b'ibag', b'imod', b'igen', b'shdr']
    assert tuned_soundfont(once) == once


# --- people

def test_a_machine_plays_what_is_written():
    track = make_track('lead', 0, np.array([0., .5]), np.array([.4, .4]), np.array([60, 64]), np.array([80, 90]))
    played = perform(track, Habits(), rng()).notes.numpy()
    for column, written in track.notes.numpy().items(): assert np.array_equal(played[column], written)


def test_habits_do_what_they_say():
    n = 400
    track = make_track('lead', 0, np.arange(n)/8, np.full(n, .1), np.full(n, 60), np.full(n, 80))
    played = perform(track, Habits(lag=.05, jitter=.01, spread=10, force=.9, hold=1.5, pace=1.04), rng()).notes.numpy()
    off = played['time'] - 1.04*np.arange(n)/8
    assert abs(off[1:].mean() - .05) < .003 and abs(off.std() - .01) < .002 and np.all(np.diff(played['time']) >= 0)
    assert abs(played['velocity'].mean() - 72) < 2 and abs(played['velocity'].std() - 10) < 1.5
    assert np.allclose(played['duration'], .1*1.5*1.04, atol=1e-5)


@pytest.mark.parametrize('cents', [-40., 25.])
def test_who_is_out_of_tune_is_on_time(cents, timgm):
    track = one_note(73, 72, start=8.)
    right, off = play_track(track, timgm), play_track(track, HumanPlayer(timgm, Habits(cents=cents), rng()))
    a, b = (measured_pitch(w[int(8.3*RATE):int(9.3*RATE)]) for w in (right, off))
    assert abs(100*(b - a) - cents) < 6
    begins = lambda w: np.argmax(np.abs(w) > .1*np.abs(w).max())/RATE
    assert abs(begins(right) - begins(off)) < .01


def test_swaps_stay_in_their_group():
    for program, k in itertools.product(range(128), range(5)):
        other = swap_program(program, False, rng(k))
        groups = program_groups(program)
        assert other == program if not groups else other in INSTRUMENT_GROUPS[groups[0]]
    assert {swap_program(0, True, rng(k)) for k in range(100)} == set(players.KITS)


def test_groups_are_those_of_the_answers():
    named = set(load_asset('heard_instruments.toml'))
    assert named - {'drums'} <= set(INSTRUMENT_GROUPS)
    assert all(0 <= p < 128 for programs in INSTRUMENT_GROUPS.values() for p in programs)


# --- sources

def nowhere(monkeypatch): # a machine without any package
    bare = lambda r: {k: v for k, v in r.items() if k not in ('paths', 'program')}
    rows = {n: bare(r) | ({} if n in PLAIN else dict(paths=[f'/nowhere/{n}']))
            for n, r in load_asset('variety.toml')['sources'].items()}
    monkeypatch.setattr(players, '_TABLES', dict(players._TABLES, sources=rows))


def test_missing_sources_are_named_with_their_packages(monkeypatch):
    nowhere(monkeypatch)
    assert [s.name for s in variety_sources() if s.place] == [s.name for s in chosen_sources()] == PLAIN
    said = missing_sources(variety_sources())
    for s in variety_sources()[1:]: assert s.name in said and s.debian in said and s.licence
    with pytest.raises(LogocentricError, match='apt install fluid-soundfont-gm$'): chosen_sources(['FluidR3'])
    with pytest.raises(LogocentricError, match='no source is called'): Studio(['Steinway'])


def test_speech_needs_no_reader(monkeypatch):
    nowhere(monkeypatch)
    for k in range(6):
        wave, by = Studio().speech(rng(k), 3*RATE)
        assert by == 'voices' and wave.shape == (3*RATE,) and np.abs(wave).max() > .1


def test_a_reader_that_fails_says_why(tmp_path):
    program = tmp_path/'reader'
    program.write_text('#!/bin/sh\necho no such voice >&2\nexit 1\n'); program.chmod(0o755)
    with pytest.raises(LogocentricError, match='no such voice'): players.read_aloud(str(program), rng(), RATE)


@pytest.mark.skipif(not shutil.which('espeak-ng'), reason='espeak-ng is not installed')
def test_a_reader_reads_the_same_twice_and_as_long_as_asked():
    for seconds in (1, 20):
        a, b = (players.read_aloud(shutil.which('espeak-ng'), rng(5), seconds*RATE) for _ in range(2))
        assert np.array_equal(a, b) and a.shape == (seconds*RATE,) and np.abs(a[-RATE:]).max() > .01


# --- clips

def test_forms_and_lengths_are_drawn_as_the_table_says():
    specs = [draw_variety(4, i) for i in range(6000)]
    forms, seconds = Counter(s.form for s in specs), np.array([s.seconds for s in specs])
    for form, row in FORMS.items(): assert abs(forms[form]/len(specs) - row['share']) < .02
    assert seconds.min() >= .3 and seconds.max() <= 30 and .35 < np.mean(seconds == 10) < .45
    assert .07 < np.mean(seconds > 10) < .13 and .12 < np.mean(seconds < 1) < .18
    with pytest.raises(LogocentricError, match='no clip has the form'): draw_variety(1, 1, 'opera')


def test_every_form_sounds_and_keeps_its_length(clips):
    for spec, (wave, facts) in clips:
        assert wave.dtype == np.float32 and len(wave) == round(spec.seconds*RATE) and np.abs(wave).max() <= 1
        level = 20*np.log10(max(np.sqrt(np.mean(wave**2)), 1e-9))
        assert np.isfinite(wave).all() and (-60 < level < -9 or facts['form'] == 'sound:silence'), (spec, level)
        assert facts['form'].partition(':')[0] == spec.form


def test_facts_are_possible(clips):
    groups = {*INSTRUMENT_GROUPS, 'drums'}
    for spec, (_, f) in clips:
        assert f['kind'] == dict(speech='speech', sound='other').get(spec.form, 'music')
        assert f['instruments'] == sorted(f['instruments']) and set(f['instruments']) <= groups
        assert ('drums' in f['instruments']) == (f['drums'] is True)
        assert f['tempo'] in ('slow', 'moderate', 'fast', None) and f['drums'] in (True, False, None)
        assert f['voice'] in ('sung', 'spoken', 'none', None)
        if spec.form in ('song', 'bare voice', 'choir'): assert f['voice'] == 'sung'
        if spec.form == 'speech': assert (f['voice'], f['drums'], f['instruments']) == ('spoken', False, [])
        if spec.form == 'drums': assert f['drums'] is True and f['instruments'] == ['drums']
        if spec.form == 'sound': assert f['drums'] is False and f['instruments'] == [] and f['voice'] in ('none', None)
        assert (f['attributes'] is not None) == (spec.form in ('piece', 'song')) == (f['style'] is not None)


def test_a_clip_depends_on_seed_number_and_sources_alone(clips):
    for spec, (wave, facts) in clips[::7]:
        again = render_varied(spec, Studio(PLAIN))
        assert np.array_equal(wave, again.wave) and facts == again.facts


@pytest.mark.parametrize('form', ['piece', 'stem', 'speech', 'sound', 'choir'])
def test_long_clips(form, studio):
    wave, facts = render_varied(replace(draw_variety(6, 3, form), seconds=27.5), studio)
    assert len(wave) == 27.5*RATE and facts['seconds'] == 27.5
    level = np.sqrt(np.mean(wave.reshape(-1, 8000)**2, 1)) # every half second
    assert level[:20].max() < 30*level[20:40].max() and level[-10:].max() > 1e-4


def test_players_of_a_band_are_the_facts(monkeypatch, studio):
    "What the score's tracks are is what the stems say; a band without a drummer has no drums."
    seen = Counter()
    for k in range(25):
        tracks = []
        score = variety.compose_score
        monkeypatch.setattr(variety, 'compose_score', lambda spec: tracks.append(s := score(spec)) or s)
        scene = MAKERS['piece'](rng(k), studio, 160_000)
        monkeypatch.undo()
        about = scene.about['attributes']
        assert (True in {s.drums for s in scene.stems}) == any(t.is_drum for t in tracks[0].tracks if len(t.notes))
        if about['drums'] == 'timpani': assert None in {s.drums for s in scene.stems}
        for stem in scene.stems:
            lead = next((t for t in tracks[0].tracks if t.name == stem.role), None)
            assert lead.is_drum or stem.groups == tuple(program_groups(lead.program))
            if stem.role in ('lead', 'accompaniment', 'bass') and about[stem.role]:
                assert variety._still_true(stem.role, about[stem.role], lead.program)
            seen[stem.role] += 1
    assert set(seen) >= {'lead', 'accompaniment', 'bass', 'drums'}


def test_every_instrument_alone_is_known_by_its_group(studio):
    for name, programs in variety._SOLOS.items():
        for program in programs:
            stem, _ = variety._alone(rng(3), studio, 16_000, name, program, programs=[program])
            assert stem.groups == tuple(program_groups(program)) and np.abs(stem.wave).max() > 0, (name, program)
            assert stem.drums is (None if name == 'timpani' else False), name
    nameless = {n for n, ps in variety._SOLOS.items() if not any(map(program_groups, ps))}
    assert nameless == {'timpani', 'bagpipes', 'steelpan'}


def test_what_is_struck_is_drums_and_only_a_kit_has_that_form(studio):
    for name in variety._STRUCK:
        scene = variety._struck_alone(rng(1), studio, 16_000, [name])
        assert scene.stems[0].drums is True and (scene.form == 'drums') == (name in variety._DRUMS)
    assert {'tambourine', 'cowbell', 'maraca', 'wood block'} == set(variety._STRUCK) - set(variety._DRUMS)


def test_a_stem_counts_where_it_can_be_heard():
    n, tone = 160_000, .1*np.sin(np.arange(160_000)*.3).astype(np.float32)
    half = np.where(np.arange(n) < n//2, tone, 0).astype(np.float32)
    stems = [Stem(tone, 'lead', ('piano',)), Stem(half, 'drums', (), True), Stem(tone*.01, 'bass', ('bass',))]
    assert [s.role for s in heard_stems(stems, slice(0, n//2))] == ['lead', 'drums']
    assert [s.role for s in heard_stems(stems, slice(n//2, n))] == ['lead']
    scene = Scene('music', 'stem', stems)
    assert scene_facts(scene, slice(0, n//2))['instruments'] == ['drums', 'piano']
    assert scene_facts(scene, slice(n//2, n))['drums'] is False
    opinion = Scene('music', 'solo', [Stem(tone, 'lead', (), None, None)])
    assert (scene_facts(opinion, slice(0, n))['drums'], scene_facts(opinion, slice(0, n))['voice']) == (None, None)


def test_what_is_behind_is_no_fact():
    tone = .1*np.sin(np.arange(160_000)*.3).astype(np.float32)
    scene = Scene('speech', 'speech', [Stem(tone, 'voice', voice='spoken'), Stem(tone, 'background', leads=False)])
    alone = Scene('speech', 'speech', scene.stems[:1])
    kinds = {variety._with_background(alone, rng(k), 160_000).about.get('background') for k in range(60)}
    assert None in kinds and len(kinds) > 5 and not kinds & {*variety._VOICED, 'silence'}
    assert scene_facts(scene, slice(0, 160_000))['instruments'] == []


def test_passages_cover_a_clip():
    for n in range(16_000, 500_000, 9_999):
        whole = join_passages([np.ones(160_000, np.float32)]*passages(n))
        assert len(whole) >= n and np.allclose(whole, 1, atol=1e-6)
        assert passages(n) == 1 or len(whole) - 152_000 < n


# --- a corpus

@pytest.fixture
def small_shards(monkeypatch): # of five clips
    for module in (variety, corpus): monkeypatch.setattr(module, 'SHARD', 5)


def test_a_corpus_goes_on_where_it_was(tmp_path, small_shards):
    whole = build_variety(tmp_path/'a', 12, 8, PLAIN, processes=1)
    waves = [whole.wave(i) for i in range(12)]
    (tmp_path/'a'/'clips.jsonl').unlink(); (tmp_path/'a'/'shards'/'00001.json').unlink()
    (tmp_path/'a'/'waves-00001.npy').unlink()
    untouched = (tmp_path/'a'/'waves-00000.npy').stat().st_mtime_ns
    again = build_variety(tmp_path/'a', 12, 8, processes=1) # with the sources it was begun with
    assert (tmp_path/'a'/'waves-00000.npy').stat().st_mtime_ns == untouched and again.sources == PLAIN
    assert again.facts == whole.facts and len(again) == 12
    for i in range(12): assert np.array_equal(again.wave(i), waves[i]), i


def test_a_corpus_holds_what_is_rendered(tmp_path, small_shards):
    built = build_variety(tmp_path, 7, 9, PLAIN, processes=1)
    for i in (0, 4, 6):
        clip = render_varied(draw_variety(9, i), Studio(PLAIN))
        assert np.abs(built.wave(i) - clip.wave).max() < 1e-4 and built.wave(i).dtype == np.float32
        row = built.table.iloc[i]
        assert row.id == f'9-{i:06d}' and all(row[k] == v for k, v in clip.facts.items() if v is not None)
        assert all(row[k] is None for k, v in clip.facts.items() if v is None)
    assert 'VarietyCorpus(7 clips' in repr(built)
    with pytest.raises(IndexError): built.wave(7)
    with pytest.raises(LogocentricError, match='other settings'): build_variety(tmp_path, 7, 10, PLAIN)


def test_no_corpus(tmp_path):
    with pytest.raises(LogocentricError, match='no finished corpus'): VarietyCorpus(tmp_path)
