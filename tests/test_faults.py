"""A suite of faults: files of every kind are damaged at random, and every one of them is answered, or refused in a
sentence. Nothing else is raised, hangs, crashes, fills the memory, is not a number, or is said to be heard unheard."""
import os, signal, sys, time
import pytest
import faults


def share(family, n): return [(family, number) for number in range(n)]


def check(cases, processes):
    faults.prepare()
    found = faults.outcomes(cases, processes)
    print(faults.counts(found))
    bad = [o for o in found if o.verdict not in faults.GOOD]
    shown = '\n'.join(map(str, bad[:20]))
    assert len(found) == len(cases)
    assert not bad, f'{len(bad)} of {len(cases)} cases came to what must not be:\n{faults.counts(found)}\n{shown}'


def test_what_is_damaged_is_answered_or_refused_in_a_sentence():
    check(share('audio', 180) + share('tables', 100) + share('shards', 60) + share('models', 30), 1)


def hang(rng, folder): return 'a pipe', lambda: time.sleep(60)
def crash(rng, folder): return 'a bug in C', lambda: os.kill(os.getpid(), signal.SIGSEGV)
def fill(rng, folder): return 'a bomb', lambda: bytes(8 << 30)
def lie(rng, folder): return 'a lie', lambda: faults.finite([0., float('nan')], 'a sound')
def refuse(rng, folder): return 'a poem', lambda: faults.attempt(lambda: faults.load_audio(folder/'poem.mp3')) != [None]
def answer(rng, folder): return 'a song', lambda: True


@pytest.mark.skipif(sys.platform != 'linux', reason='the size of a process is limited on Linux only')
def test_nothing_that_goes_wrong_escapes_the_count(monkeypatch):
    kinds = [hang, crash, fill, lie, refuse, answer]
    monkeypatch.setattr(faults, 'FAMILIES', {f.__name__: f for f in kinds})
    monkeypatch.setattr(faults, 'SECONDS', .5)
    found = faults.outcomes([(f.__name__, i) for i in range(2) for f in kinds], 1)
    came = sorted((o.family, o.number, o.verdict) for o in found)
    verdicts = dict(answer='answered', crash='crashed', fill='foreign', hang='hung', lie='NaN', refuse='refused')
    assert came == [(f, i, v) for f, v in verdicts.items() for i in range(2)]
    assert 'MemoryError' in next(o.why for o in found if o.family == 'fill')


def test_what_is_not_damaged_is_answered(tmp_path):
    for i in range(6): (tmp_path/f'{i}.wav').touch()
    for suffix, raw in [*dict(faults.sounds()).items(), *faults.tables()[:3]]:
        path = tmp_path/f'it.{suffix.split(".")[0].lower()}'
        path.write_bytes(raw)
        assert (faults.check_sound if '.' in suffix else faults.check_table)(path), suffix
    assert all(faults.CHECK_MODEL[kind](folder) for kind, folder in faults.model_folders().items())
    assert faults.check_shards(faults.shard_folder())


def test_a_case_is_the_same_when_it_is_done_again(tmp_path):
    for family in faults.FAMILIES:
        made = []
        for name in ('a', 'b'):
            (tmp_path/family/name).mkdir(parents=True)
            what, _ = faults.begin(family, 7, tmp_path/family/name)
            made.append((what, [p.read_bytes() for p in sorted((tmp_path/family/name).rglob('*')) if p.is_file()]))
        assert made[0] == made[1]


@pytest.mark.slow
def test_ten_thousand_damaged_files_are_answered_or_refused_in_a_sentence():
    check(share('audio', 5500) + share('tables', 2400) + share('shards', 1200) + share('models', 1000), 2)
