"Tasks: truths and scores worked by hand, questions put one by one, prompts that no reasoner has read."
import random
import numpy as np, pandas as pd, pytest
from logocentric.core import LogocentricError, set_seed
from logocentric.data.styles import ATTRIBUTES, sample_clip
from logocentric.data.descriptions import describe_clip
from logocentric.metrics import wilson_interval
from logocentric.reasoner import facts as F, knowledge as K
from logocentric.reasoner.model import Reasoner, Scores
from logocentric.reasoner.tasks import (INSTRUMENTS, TASKS, Task, attribute_accuracy, beats_per_minute, energy,
                                        instruments, mood, stated_attributes)


@pytest.fixture(scope='module')
def specs(): return [sample_clip(7, i) for i in range(400)]


@pytest.fixture(scope='module')
def clips(specs): return pd.DataFrame([dict(s.attributes, gtzan=s.label('gtzan'), fma=s.label('fma')) for s in specs])


@pytest.fixture(scope='module')
def reasoner():
    "An untrained GPT-2 of two layers."
    from transformers import GPT2Config, GPT2LMHeadModel
    set_seed(0)
    tokenizer = K.train_tokenizer(K.knowledge_text(300, seed=0), 700)
    ends = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    size = dict(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=256, initializer_range=.5)
    return Reasoner(GPT2LMHeadModel(GPT2Config(**size, **ends)), tokenizer)


# --- truths

def clip(text): return dict(zip('drums bass lead accompaniment harmony tempo feel production'.split(), text.split()))

# arousal -2 + .5 - .5, valence -1.5 - .6
SITAR = clip('backbeat bowed sitar keyboard_loop minor slow straight warm')
# arousal -.5 - 1.5 - .5, valence .7 - .6 + .2
WALTZ = clip('none none violin drone extended moderate waltz dry')
# arousal 2 + .5 + 1.5 + .7, valence -3 + .3 - .6
CHOIR = clip('hand_drums riff voices power_chords chromatic fast straight loud')
# arousal 1 + .3 + .3, valence 2 + .5 + .6 + .3 + .3
TRUMPET = clip('shuffle none trumpet strum major lively swung bright')
# arousal 1 + .3
DRIER = dict(TRUMPET, production='dry')


def test_instruments():
    assert instruments(SITAR) == {'a sitar', 'an electric piano', 'strings', 'a bass', 'drums'}
    assert instruments(WALTZ) == {'strings', 'a drone'}
    assert instruments(CHOIR) == {'a choir', 'a guitar', 'drums', 'hand drums', 'a bass'}
    assert instruments(TRUMPET) == {'brass', 'a guitar', 'drums'}


def test_every_lead_can_be_asked_for():
    askable = {v for where in INSTRUMENTS.values() for v in where.get('lead', '').split()}
    assert askable == set(ATTRIBUTES['lead'])


def test_mood_energy_and_tempo():
    assert [mood(c) for c in (SITAR, WALTZ, CHOIR, TRUMPET)] == ['sad', 'calm', 'angry', 'happy']
    assert [energy(c) for c in (SITAR, WALTZ, CHOIR, TRUMPET, DRIER)] == ['low', 'low', 'high', 'high', 'medium']
    assert [beats_per_minute(c) for c in (SITAR, WALTZ, CHOIR, TRUMPET)] == [70, 97, 162, 125]


def test_truths_of_the_tasks():
    truth = {name: [t.truth(dict(c, gtzan='jazz', fma='Hip-Hop')) for c in (SITAR, CHOIR)] for name, t in TASKS.items()}
    assert truth['genre'] == ['jazz', 'jazz'] and truth['genre (FMA)'] == ['hip-hop', 'hip-hop']
    assert truth['lead instrument'] == ['sitar', 'choir'] and truth['drum pattern'] == ['backbeat', 'hand drums']
    assert truth['tempo class'] == ['slow', 'fast'] and truth['mode'] == ['minor', None]
    assert truth['rhythm'] == ['straight', 'straight']
    assert truth['recording'] == ['warm', 'loud'] and truth['choir or voice patch'] == ['no', 'yes']
    assert truth['drums'] == ['yes', 'yes'] and truth['piano'] == ['no', 'no'] and truth['saxophone'] == ['no', 'no']
    assert truth['tempo in beats per minute'] == [70, 162]
    assert truth['instruments'] == [instruments(SITAR), instruments(CHOIR)]


def test_asked_of_leaves_out_what_has_no_answer():
    table = pd.DataFrame([dict(SITAR, gtzan='rock', fma=None), dict(CHOIR, gtzan=None, fma='Pop'),
                          dict(WALTZ, gtzan=float('nan'), fma=float('nan'))])
    table['fma'] = [float('nan'), 'Pop', float('nan')]
    asked = {name: TASKS[name].ground_truth(table) for name in ('genre', 'genre (FMA)', 'mode', 'instruments')}
    assert asked['genre'][0].tolist() == [0] and asked['genre'][1] == ['rock']
    assert asked['genre (FMA)'][0].tolist() == [1] and asked['genre (FMA)'][1] == ['pop']
    assert asked['mode'][0].tolist() == [0] and asked['mode'][1] == ['minor']
    assert asked['instruments'][0].tolist() == [0, 1, 2]
    assert asked['instruments'][1] == [instruments(c) for c in (SITAR, CHOIR, WALTZ)]


@pytest.mark.parametrize('task', TASKS.values(), ids=TASKS)
def test_every_truth_is_among_the_answers(task, clips):
    rows, truth = task.ground_truth(clips)
    assert len(rows) == len(truth) > 50
    if task.kind == 'number':
        assert min(truth) >= min(map(float, task.labels)) and max(truth) <= max(map(float, task.labels))
    else:
        given = {label for t in truth for label in (t if task.kind == 'each' else [t])}
        assert given <= set(task.labels) and len(given) > 1 and len(set(task.labels)) == len(task.labels)


# --- judging

def says(labels, *rows): return Scores(np.array(rows, float), labels)

CHOICE = Task('choice', '{description}', ['a', 'b', 'c'])
YES_OR_NO = Task('yes or no', '{description}', ['yes', 'no'], 'yes_or_no')
EACH = Task('each', '{description} {label}?', ['a', 'b'], 'each')
NUMBER = Task('number', '{description}', ['60', '120'], 'number')


def test_choice():
    scores = says(['a', 'b', 'c'], [3, 1, 2], [1, 2, 3], [0, 1, 0], [5, 1, 1])
    assert CHOICE.answers(scores) == ['a', 'c', 'b', 'a']
    found = CHOICE.judge(scores, ['a', 'c', 'a', 'a'])
    assert (found.value, found.low, found.high, found.n) == pytest.approx((.75, *wilson_interval(3, 4), 4))
    assert CHOICE.chance(['a', 'a']) == pytest.approx(1/3)
    assert CHOICE.majority(['a', 'b', 'b'], ['b', 'a', 'c', 'c']) == .25


def test_yes_or_no():
    scores = says(['yes', 'no'], [1, 0], [0, 1], [1, 0], [0, 1], [0, 1])
    found = YES_OR_NO.judge(scores, ['yes', 'yes', 'no', 'no', 'no'])
    assert found.value == pytest.approx((1/2 + 2/3)/2) and found.low <= found.value <= found.high and found.n == 5
    assert YES_OR_NO.chance(['no']*5) == .5 == YES_OR_NO.majority(['no']*9 + ['yes'], ['yes', 'no', 'no'])


def test_each():
    scores = says(['a', 'b'], [.9, -.1], [.8, .5], [.7, .9], [-.1, -.2])
    # by falling score, a: right, wrong, right, wrong; b: wrong, right, wrong, wrong
    truth = [{'a'}, {'b'}, {'a'}, set()]
    assert EACH.answers(scores) == [['a'], ['a', 'b'], ['a', 'b'], []]
    assert EACH.judge(scores, truth).value == pytest.approx(((1 + 2/3)/2 + 1/2)/2)
    assert EACH.chance(truth) == pytest.approx((2/4 + 1/4)/2) == EACH.majority([{'a'}], truth)
    assert EACH.chance([{'a'}, {'a'}, set(), set()]) == .5  # as mAP, over labels that have clips


def test_number():
    scores = says(['60', '120'], np.log([.5, .5]), np.log([.25, .75]))
    assert NUMBER.answers(scores) == pytest.approx([90, 105])
    assert NUMBER.judge(scores, [100, 100]).value == pytest.approx((10 + 5)/2)
    assert NUMBER.majority([60, 90, 200], [100, 120]) == pytest.approx((10 + 30)/2)


def test_chance_of_numbers_is_another_clips_truth():
    truth = [60., 100., 120.]
    rng = np.random.default_rng(0)
    another = lambda i: truth[rng.choice([j for j in range(3) if j != i])]
    blind = np.mean([abs(another(i) - truth[i]) for i in rng.integers(3, size=6000)])
    assert NUMBER.chance(truth) == pytest.approx((40 + 60 + 20)/3) == pytest.approx(blind, abs=.8)


@pytest.mark.parametrize('task', [CHOICE, YES_OR_NO, EACH, NUMBER], ids=lambda t: t.name)
def test_one_truth_an_answer(task):
    scores = says(task.labels, [0.]*len(task.labels))
    with pytest.raises(LogocentricError, match='1 answers and 2 truths'): task.judge(scores, ['a', 'b'])


@pytest.mark.parametrize('arguments, reason', [
    (('So its genre is', ['a']), 'must contain'), (('{description} {label}', ['a']), 'only they'),
    (('{description}', ['a'], 'each'), 'only they'), (('{description}', ['a'], 'guess'), 'no kind')])
def test_a_task_says_what_is_wrong_with_it(arguments, reason):
    with pytest.raises(LogocentricError, match=reason): Task('x', *arguments)


# --- asking

DESCRIPTIONS = ['slow and dark, with a piano', 'a fast banjo over drums, in a dusty recording', 'a drone']


HERE = Task('here', 'It is {description}. With {label} too?', ['a flute', 'a flute or an organ', 'drums'], 'each')

@pytest.mark.parametrize('task', [TASKS['instruments'], HERE], ids=lambda t: t.name)
def test_each_is_one_question_a_label(task, reasoner):
    together = task.ask(reasoner, DESCRIPTIONS)
    def alone(label):
        yes_no = reasoner.reason(DESCRIPTIONS, ['yes', 'no'], task.prompt.replace('{label}', label), 'sum').values
        return yes_no[:, 0] - yes_no[:, 1]
    assert together.labels == task.labels and together.values.shape == (3, len(task.labels))
    assert together.values.std() > .1
    assert together.values == pytest.approx(np.stack([alone(l) for l in task.labels], 1), abs=1e-3)


@pytest.mark.filterwarnings('ignore::logocentric.reasoner.model.LabelWarning')
def test_the_others_are_one_question_a_clip(reasoner):
    task = TASKS['mood']
    for rule in ('sum', 'first_token'):
        found = task.ask(reasoner, DESCRIPTIONS, rule=rule).values
        assert found == pytest.approx(reasoner.reason(DESCRIPTIONS, task.labels, task.prompt, rule).values, abs=1e-5)


# --- what the reasoner has read

def spans(task):
    "Fixed words of a task's prompt, before and after the description, with each label that is asked for."
    for prompt in {task.prompt.replace('{label}', l) for l in task.labels}:
        yield from (w for part in prompt.split('{description}') if (w := K.words(part)))


@pytest.fixture(scope='module')
def read(knowledge_sentences):
    "Runs of 3 and 4 words in sentences, and in all shapes of sentences with all that they ask for."
    rng, facts = random.Random(0), F.load_facts()
    shapes = [*K.TOPIC_FRAMES, *K.PRESENCE_FRAMES, *K.PLAIN_FRAMES, *K.ANSWER_FRAMES, *K.OBJECT_FRAMES,
              *K.GENRE_FIRST_FRAMES, *K.THINGS, *K.STATEMENTS]
    asks = [a for topic in facts['topic'].values() for a in topic['ask']] + list(facts['presence'])
    readings = {F.expand(s, rng) for s in shapes for _ in range(40 if '(' in s else 1)}
    asked = [r.replace('{ask}', a) for r in readings for a in (asks if '{ask}' in r else [''])]
    return {n: {g for text in [*knowledge_sentences, *asked] for g in K.ngrams(text, n)} for n in (3, 4)}


@pytest.mark.parametrize('task', TASKS.values(), ids=TASKS)
def test_no_task_prompt_in_the_knowledge(task, read):
    "No 4-gram of a prompt's fixed words, and no whole span where it is shorter."
    for span in spans(task):
        n = min(4, len(span))
        shared = {' '.join(g) for g in zip(*(span[i:] for i in range(n))) if g in read[n]}
        assert shared == set()


def test_every_answer_was_read(knowledge_sentences):
    known = {w for s in knowledge_sentences for w in K.words(s)}
    missing = {(name, l): unread for name, t in TASKS.items() for l in t.labels if (unread := set(K.words(l)) - known)}
    assert missing == {} and {'yes', 'no'} <= known


# --- what descriptions state

def test_stated_attributes_by_hand():
    said = ('sombre and clear, with no drums, no bass line and a held drone under an accordion, at an unhurried tempo '
            'with a lilting three-four metre, with extended harmony and a dry, close sound; the mood is sad and bleak')
    assert stated_attributes(said) == clip('none none accordion drone extended slow waltz dry')
    said = 'a singing piano melody over one modal harmony that never moves, busy congas and hand drums'
    assert stated_attributes(said) == dict(lead='piano', harmony='modal', drums='hand_drums')
    assert stated_attributes('an alternating bass') == dict(bass='root_fifth')
    assert stated_attributes('straight eighth notes') == dict(feel='straight')
    assert stated_attributes('the sound of rain on a roof') == {} == stated_attributes('')


def test_true_descriptions_state_every_attribute(specs, clips):
    for variant in range(3):
        found = attribute_accuracy([describe_clip(s, variant) for s in specs], clips)
        assert list(found.index) == list(ATTRIBUTES) and (found.n == len(specs)).all()
        assert (found.stated == 1).all() and (found.right == 1).all()


def test_what_is_wrong_or_left_out_counts_against_a_description():
    clips = pd.DataFrame([SITAR, CHOIR, TRUMPET])
    found = attribute_accuracy(['a sitar, at a slow tempo', 'a sitar', 'a trumpet, at a fast tempo'], clips)
    assert found.stated.to_dict() == pytest.approx(dict(dict.fromkeys(ATTRIBUTES, 0.), lead=1., tempo=2/3))
    assert found.right.to_dict() == pytest.approx(dict(dict.fromkeys(ATTRIBUTES, 0.), lead=2/3, tempo=1/3))
