"""The corpus: true, varied and genre-free descriptions, repeatable sound, resumable builds, and a fixed difficulty."""
import json, os, re, shutil, signal, subprocess, sys, time
from collections import Counter
from pathlib import Path
import numpy as np, pytest
from logocentric import core
from logocentric.core import code_hash, shipped_path
from logocentric.data import corpus
from logocentric.data.composition import PROGRAMS, TEMPO_RANGES, compose_score, make_band
from logocentric.data.corpus import CORPUS_MODULES, build_corpus, draw_production, render
from logocentric.data.descriptions import describe_clip, genre_words
from logocentric.data.difficulty import bayes_ceiling, difficulty, single_cues
from logocentric.data.rendering import loudness, play_track
from logocentric.data.styles import (ATTRIBUTES, FMA_LABELS, GTZAN_LABELS, LABEL_STYLES, STYLES, allowed_feels,
                                     corpus_clip, sample_clip)

@pytest.fixture(scope='module')
def clips(): return [sample_clip(11, i) for i in range(5000)]

def test_no_genre_words(clips):
    found = {w for c in clips for w in genre_words(describe_clip(c))}
    assert not found
    for label in GTZAN_LABELS + FMA_LABELS: assert genre_words(f'it sounds {label.lower()} here'), label
    for style in STYLES: assert genre_words(style.replace('_', ' ')) or genre_words(style.replace('_', '-')), style

def test_english(clips):
    for text in map(describe_clip, clips):
        assert not re.search(r'\ba [aeiou](?!ne-)', text) and not re.search(r'\ban [^aeiou]', text), text
        assert text[0].islower() and text[-1] not in '.;,' and '  ' not in text and '{' not in text, text
        assert 25 <= len(text.split()) <= 60, text

def test_descriptions_vary_and_state_the_attributes(clips):
    assert len({describe_clip(c) for c in clips}) > 4990
    c = clips[0]
    assert len({describe_clip(c, variant=v) for v in range(8)}) == 8
    for c in clips[:500]:
        for a in ATTRIBUTES: assert any(p in describe_clip(c) for p in ATTRIBUTES[a][c.attributes[a]])

def test_every_value_is_used_and_feels_fit():
    clips = [sample_clip(12, i) for i in range(4000)]
    for a, values in ATTRIBUTES.items(): assert {c.attributes[a] for c in clips} == set(values), a
    assert all(c.attributes['feel'] in allowed_feels(c.attributes['drums']) for c in clips)
    assert len(STYLES) >= 16 and all(len(s) for t in LABEL_STYLES.values() for s in t.values())

def test_every_lead_accompaniment_and_drum_pattern_sounds():
    for a in ('lead', 'accompaniment', 'drums', 'bass'):
        for value in ATTRIBUTES[a]:
            spec = next(c for i in range(10**5) if (c := sample_clip(13, i)).attributes[a] == value)
            names = [t.name for t in compose_score(spec).tracks if len(t.notes)]
            assert (value == 'none') == (a not in names) or value == 'timpani' and 'timpani' in names, (a, value)
            assert all(t.is_drum or t.notes.numpy()['pitch'].max() <= 84 for t in compose_score(spec).tracks)
            assert all(loudness(play_track(t)) > .002 for t in compose_score(spec).tracks)

def test_shift_shifts():
    for i in range(300):
        plain, shifted = (sample_clip(14, i, shift=s) for s in (False, True))
        assert plain.attributes == shifted.attributes and describe_clip(plain) == describe_clip(shifted)
        low, high = TEMPO_RANGES[plain.attributes['tempo']]
        inside = [.2 <= (make_band(c).bpm - low)/(high - low) <= .8 for c in (plain, shifted)]
        assert inside == [True, False]
        for c, side in ((plain, 0), (shifted, 1)):
            lead = compose_score(c).tracks[0]
            programs = PROGRAMS['lead'][c.attributes['lead']].split('|')[side].split()
            assert lead.name == 'lead' and str(lead.program) in programs
        levels = [draw_production(c)[0]['level'] for c in (plain, shifted)]
        assert -25.21 < levels[0] < -16.79 and not -25.19 < levels[1] < -16.81

def test_sound_is_a_function_of_seed_and_index():
    waves = [render(sample_clip(15, i)) for i in range(6)]
    for i in (5, 2, 0): assert np.array_equal(render(sample_clip(15, i)), waves[i])
    assert all(w.shape == (160_000,) and np.isfinite(w).all() and np.abs(w).max() <= 1 and w.std() > .01 for w in waves)

def test_sound_does_not_depend_on_what_was_rendered_before():
    specs = [sample_clip(16, i) for i in (36, 44, 45, 48, 49, 50, 52, 54, 57, 59)]
    first = {s.index: render(s) for s in specs}
    for s in reversed(specs): assert np.array_equal(render(s), first[s.index])

BUILD = """
import sys
from logocentric.data.corpus import build_corpus
if __name__ == '__main__': build_corpus(sys.argv[1], 501, seed=16, processes=int(sys.argv[2]))
"""

@pytest.mark.slow
def test_killed_build_continues_to_the_same_corpus(tmp_path):
    script = tmp_path/'build.py'; script.write_text(BUILD)
    def run(folder, processes):
        command = [sys.executable, script, tmp_path/folder, str(processes)]
        return subprocess.Popen(command, env={**os.environ, 'LOGOCENTRIC_QUIET': '1'})
    killed = run('killed', 1)
    deadline = time.time() + 120
    while time.time() < deadline and not list((tmp_path/'killed').glob('shards/*.json')): time.sleep(.1)
    killed.send_signal(signal.SIGKILL); killed.wait()
    assert not (tmp_path/'killed'/'clips.jsonl').exists()
    assert run('killed', 2).wait() == 0 and run('whole', 2).wait() == 0
    for name in ('features.npy', 'clips.jsonl'):
        assert (tmp_path/'killed'/name).read_bytes() == (tmp_path/'whole'/name).read_bytes()

def test_shards_do_not_depend_on_processes(tmp_path, monkeypatch):
    monkeypatch.setattr('logocentric.data.corpus.SHARD', 8)
    one = build_corpus(tmp_path/'one', 20, seed=17, processes=1)
    (tmp_path/'one'/'clips.jsonl').unlink(); (tmp_path/'one'/'shards'/'00001.json').unlink()
    before = one.features[:].copy()
    np.lib.format.open_memmap(tmp_path/'one'/'features.npy', 'r+')[8:16] = 0
    again = build_corpus(tmp_path/'one', 20, seed=17, processes=1)
    assert np.array_equal(again.features[:], before) and again.specs() == [sample_clip(17, i) for i in range(20)]

TABLES = 'attributes.toml', 'styles.toml', 'composition.toml', 'descriptions.toml', 'productions.toml'

@pytest.fixture
def tables(tmp_path, monkeypatch):
    "A copy of the tables that may be changed, and the key of a corpus under them."
    for table in TABLES: shutil.copy(shipped_path(table), tmp_path)
    monkeypatch.setattr(core, 'shipped_path', lambda name: tmp_path/name)
    def key():
        code_hash.cache_clear()
        return code_hash(*CORPUS_MODULES)
    yield tmp_path, key
    code_hash.cache_clear()

def test_a_change_of_a_table_changes_the_key_of_a_corpus(tables):
    folder, key = tables
    before = key()
    for changed in TABLES:
        text = (folder/changed).read_text()
        (folder/changed).write_text(text + '\n[other]\n')
        assert key() != before, changed
        (folder/changed).write_text(text)
    assert key() == before

def test_the_key_of_a_corpus_counts_every_chapter_and_table():
    folder = Path(corpus.__file__).parent
    sources = [(folder/f'{name[5:]}.py').read_text() for name in CORPUS_MODULES if name.startswith('data.')]
    used = {f'data.{m}' for source in sources for m in re.findall(r'^from \.(\w+) import', source, re.M)}
    assert used - {'data.clipset'} <= set(CORPUS_MODULES)
    assert {t for source in sources for t in re.findall(r"load_asset\('(\w+\.toml)'\)", source)} == set(TABLES)

def test_ceilings_and_single_cues():
    for labels, seed, floor in (('gtzan', 18, .95), ('fma', 19, .85)):
        assert bayes_ceiling([corpus_clip(seed, i, labels=labels) for i in range(2000)], labels) >= floor
    assert max(single_cues('gtzan').values()) <= .45

def test_exact_cues_agree_with_counting():
    clips = [corpus_clip(20, i, labels='gtzan') for i in range(6000)]
    for a, exact in single_cues('gtzan').items():
        counts = Counter((c.attributes[a], c.label('gtzan')) for c in clips)
        best = {v: max(n for (w, _), n in counts.items() if w == v) for v, _ in counts}
        assert abs(sum(best.values())/len(clips) - exact) < .02, a

@pytest.mark.slow
def test_difficulty_at_full_size(tmp_path):
    train = build_corpus(tmp_path/'train', 2750, seed=1)
    test = build_corpus(tmp_path/'test', 1000, seed=2, labels='gtzan')
    result = difficulty(train, test)
    print(json.dumps(result, indent=2))
    assert result['labelled'] >= 1990 and .55 <= result['statistics'] <= .75 and result['bayes'] >= .94
