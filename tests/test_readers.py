"The studies of readers at scale smoke: each runs to its end and writes a record that says enough."
import pytest
from logocentric.core import LogocentricError, load_records, shared_path
from logocentric.pipeline.scales import SCALES
from logocentric.pipeline.data_stages import TEST_SETS
from logocentric.pipeline.experiments import run_experiment
from logocentric.reasoner.sentences import minilm_folder
from logocentric.reasoner.tasks import METRICS, TASKS
from logocentric.reasoner.analysis import PROMPT_LAB, VERDICTS

N, DRAWS, READERS = SCALES['smoke'].test, SCALES['smoke'].draws, SCALES['smoke'].readers


def metrics(home, name):
    run_experiment(name, 'smoke', 1)
    return load_records(home/'data'/'runs'/'smoke-1'/'records', name=name)[0].metrics


def is_share(s, n): return 0 <= s['low'] <= s['value'] <= s['high'] <= 1 and s['n'] == n


def test_every_error_is_the_ears_or_the_readers(home):
    found = metrics(home, 'ear_or_reader')
    assert found['reader'] == READERS[-1] and found['draws'] == DRAWS and set(found['shares']) == set(TEST_SETS)
    for t, both in found['shares'].items():
        assert set(both) == {'likeliest', 'drawn'}
        for source, e in both.items():
            assert list(e['overall']) == list(VERDICTS) and all(is_share(s, N) for s in e['overall'].values())
            assert sum(s['value'] for s in e['overall'].values()) == pytest.approx(1)
            assert sum(s['right']['n'] for s in e['by_label'].values()) == N and e['lucky'] <= e['overall']['right']['value']
            assert is_share(found['calibration'][t][source], N) and found['calibration'][t][source]['accuracy'] == e['overall']['right']['value']
            wrong = found['fallback'][t][source]
            assert is_share(wrong, N - round(N*e['overall']['right']['value'])) and wrong['blank'] == max(found['prior'][t], key=found['prior'][t].get)
        assert sum(sum(row.values()) for row in found['moved'][t].values()) == N
    for p in found['paired']:
        drawn, likeliest = (found['shares'][p['test']][s]['overall']['right']['value'] for s in ('drawn', 'likeliest'))
        assert p['value'] == pytest.approx(drawn - likeliest) and p['low'] <= p['value'] <= p['high'] and p['p'] <= p['p_holm'] <= 1


def test_every_way_to_ask_is_measured(home):
    found = metrics(home, 'prompt_lab')
    asked = {(r['test'], r['prompt'], r['words'], r['rule']): r['accuracy'] for r in found['accuracy']}
    assert set(asked) == {(t, p, w, r) for t in TEST_SETS for p in PROMPT_LAB for w in ('plain', 'described') for r in ('sum', 'mean', 'pmi', 'calibrated')}
    for t, s in found['spread'].items():
        choice = found['choice']['fma' if t == 'fma_shifted' else 'gtzan']
        ways = [a for (test, *_), a in asked.items() if test == t]
        assert s['chosen'] == asked[(t, *choice['chosen'].split(', '))] and s['n'] == choice['n'][t] == N and 0 < choice['n']['valid'] <= SCALES['smoke'].held_out
        assert (s['min'], s['max']) == (min(ways), max(ways)) and choice['valid'][choice['chosen']] == max(choice['valid'].values())


def test_prompts_with_few_and_many_pairs_and_described_labels(home):
    found = metrics(home, 'prompt_lab')
    asked = {(r['prompt'], r['rule']): r['accuracy'] for r in found['accuracy'] if (r['test'], r['words']) == ('fma_shifted', 'plain')}
    assert len(found['more_pairs']) == 2*len(PROMPT_LAB)
    for row in found['more_pairs']:
        assert row['many'] == pytest.approx(asked[row['prompt'], row['rule']]) and row['difference'] == pytest.approx(row['many'] - row['few']) and row['p'] <= row['p_holm'] <= 1
    for rule, s in found['sizes'].items():
        assert s['gain']['value'] == pytest.approx(sum(r['difference'] for r in found['more_pairs'] if r['rule'] == rule)/len(PROMPT_LAB))
    sources = {'predicted', 'true', 'predicted, all prompts'}
    assert {(r['source'], r['rule']) for r in found['described']} == {(s, r) for s in sources for r in ('sum', 'mean', 'pmi', 'calibrated')}
    assert {'experimental', 'international'} <= {r['label'] for r in found['described']}
    for row in found['described']: assert row['difference'] == pytest.approx(row['described'] - row['named']) and row['n'] > 0


def test_the_sentence_encoder_is_a_line_of_the_table(home):
    try: minilm_folder()
    except LogocentricError as error: pytest.skip(str(error))
    found = metrics(home, 'sentence_reader')
    ways = ('words', 'described', 'described, centred')
    for t in TEST_SETS:
        assert set(found['accuracy'][t]) == {f'MiniLM, {way}' for way in ways} | {f'{r} reader' for r in READERS} == set(found['ranks'][t])
        for by_source in found['accuracy'][t].values(): assert set(by_source) == {'predicted', 'drawn', 'true'} and all(is_share(s, N) for s in by_source.values())
    assert {(p['test'], p['descriptions'], p['way']) for p in found['paired']} == {(t, s, w) for t in TEST_SETS for s in ('predicted', 'drawn', 'true') for w in ways}
    for p in found['paired']:
        ours, largest = (found['accuracy'][p['test']][name][p['descriptions']]['value'] for name in (f"MiniLM, {p['way']}", found['largest']))
        assert p['difference'] == pytest.approx(ours - largest) and p['p'] <= p['p_holm'] <= 1


def test_every_task_is_a_row(home):
    found = metrics(home, 'sixteen_tasks')
    assert [r['task'] for r in found['rows']] == list(TASKS)
    for r in found['rows']:
        task = TASKS[r['task']]
        assert r['metric'] == METRICS[task.kind] and r['answers'] == len(task.labels) and 0 < r['n'] <= N
        for key in ('supervised', 'predicted', 'drawn', 'true'): assert 0 <= r[key]['low'] <= r[key]['high'] and r[key]['n'] == r['n'] and r[key]['value'] >= 0
    for row in found['macro_f1'].values():
        for s in row.values(): assert 0 <= s['low'] <= s['high'] <= 1 and s['n'] == N
    assert found['facts']['true'].keys() == found['facts']['predicted'].keys() and all(f['right'] == f['told'] == 1 for f in found['facts']['true'].values())


@pytest.mark.skipif(shared_path() is None, reason='the folder of real recordings is not there')
def test_recordings_are_asked_what_their_names_say(home):
    found = metrics(home, 'recordings')
    assert {r['attribute'] for r in found['rows']} == {'kind', 'voice', 'drums', 'lead', 'tempo'} and len(found['said']) > 150
    for r in found['rows']: assert is_share(r['words'], r['n']) and is_share(r['rendered'], N) and 0 < r['majority'] <= 1
    for r in found['instruments']:
        assert (is_share(r['named'], r['n']) and 0 <= r['elsewhere'] <= 1) if r['n'] else r['named'] is r['elsewhere'] is None
        for s in (r['false_alarms'], *r['rendered'].values()): assert is_share(s, s['n']) and s['n'] > N
