"What a reasoner reads about summaries follows from them, and holds no question that is asked later."
import random, re
import pytest
from logocentric.core import load_asset
from logocentric.data import noisy_facts as N
from logocentric.data.summaries import summarise
from logocentric.pipeline.questions import QUESTIONS
from logocentric.reasoner import facts as F, knowledge as K, summary_knowledge as S
from logocentric.reasoner.model import PROMPTS
from logocentric.reasoner.tasks import TASKS


@pytest.fixture(scope='module')
def page(): return S.summary_knowledge(6000, seed=0)


def test_tables_speak_of_what_there_is():
    "Genres of the facts, tags that taggers say, instruments that heads know, moods of the facts."
    tags, heads = load_asset('style_tags.toml')['words'], load_asset('heads.toml')
    assert set(N.VOICES) == set(N.GENRE_TAGS) == set(F.genres())
    assert {t for of in N.GENRE_TAGS.values() for how in of.values() for t in how} <= set(tags)
    assert {how for of in N.GENRE_TAGS.values() for how in of} <= set(N.TAG_WEIGHTS)
    assert set(S.INSTRUMENTS_ASKED) <= set(heads['instruments']['answers'])
    assert {name for i in S.INSTRUMENTS_ASKED.values() for name in i['of']} <= set(F.load_facts()['presence'])
    assert set(S.TAG_MOODS) <= set(tags) and set(S.TAG_MOODS.values()) <= set(F.load_facts()['mood'])
    assert all(sum(shares.values()) == pytest.approx(1) and set(shares) <= set(heads['voice']['answers'])
               for shares in N.VOICES.values())


@pytest.mark.parametrize('facts, yes, unknown', [
    (dict(kind='music', voice='sung', drums='yes', instruments=['piano']), {'singing', 'voice', 'drums', 'piano'},
     set()),
    (dict(kind='music', voice='spoken', drums='no', instruments=['bass']), {'voice', 'speech', 'bass'}, set()),
    (dict(kind='music', voice='none', instruments=['organ']), {'organ'}, {'drums'}),
    (dict(kind='music', drums='no', voice='none'), set(), set(S.INSTRUMENTS_ASKED)),
    (dict(kind='music', drums='no', instruments=['banjo']), {'banjo'}, {'singing', 'voice', 'speech'}),
    (dict(kind='speech', voice='spoken'), {'voice', 'speech'}, set()),
    (dict(kind='other'), set(), set()),
])
def test_whether(facts, yes, unknown):
    found = S.whether(facts)
    assert {t for t, a in found.items() if a == 'yes'} == yes
    assert {t for t, a in found.items() if a == S.NOT_TOLD} == unknown


def test_what_is_said_is_all_that_is_answered_from():
    rng = random.Random(0)
    for _ in range(300):
        facts = S.sample_music(rng.choice(F.genres()), rng)
        text, found = summarise(facts), S.whether(facts)
        if facts['kind'] is None: continue
        assert (found['drums'] == 'yes') == ('with drums' in text)
        assert (found['singing'] == 'yes') == ('with singing voices' in text)
        assert all((found[i] == 'yes') == bool(re.search(rf'\b{i}\b', text.partition(';')[0]))
                   for i in S.INSTRUMENTS_ASKED if i != 'strings')


def test_facts_of_a_genre_are_like_it():
    rng = random.Random(0)
    many = {g: [S.sample_music(g, rng) for _ in range(300)] for g in ('metal', 'classical', 'jazz')}
    share = lambda g, has: sum(map(has, many[g]))/300
    drums, jazz = lambda f: f.get('drums') == 'yes', lambda f: 'jazz' in f.get('tags', ())
    assert share('metal', drums) > .6 > share('classical', drums)
    assert share('jazz', jazz) > .3 > 3*share('metal', jazz)
    assert share('metal', lambda f: f.get('voice') == 'sung') > .5 > share('jazz', lambda f: f.get('voice') == 'sung')


def test_answers_stand_where_they_are_said_to(page):
    topics = F.load_facts()['topic'].values()
    words = {*F.genres(), 'yes', 'no', S.NOT_TOLD, 'no drums',
             *'music speech noise silence sung spoken instrumental drums'.split(),
             *(n for t in topics for names in t.get('answers', {}).values() for n in names),
             *(a for t in topics for a in [*t.get('sides', {}).values(), t.get('middle')] if a)}
    answers = [s.text[a:b] for s in page for a, b in s.answers]
    assert not {*answers} - words
    assert .7 < answers.count('yes')/answers.count('no') < 1.3
    assert .05 < answers.count(S.NOT_TOLD)/len(answers) < .2


def test_genres_come_equally_often(page):
    counts = {g: sum(s.text[a:b] == g for s in page for a, b in s.answers) for g in F.genres()
              if g != 'instrumental'}  # which also answers whether music is sung
    assert max(counts.values()) < 1.7*min(counts.values())


def test_what_is_no_music_has_no_genre():
    speech, rng = dict(kind='speech', voice='spoken', drums='no'), random.Random(1)
    assert {S._question('genre', None, speech, rng)[2] for _ in range(5)} == {S.NOT_TOLD}
    assert S._question('kind', None, speech, rng)[2] == 'speech'


def spans():
    "The fixed words of every prompt that a table, a study of recordings or a task asks by."
    of_recordings = [p for q in QUESTIONS.values() for p in q.prompts]
    prompts = [*PROMPTS.values(), *(t.prompt for t in TASKS.values()), *of_recordings]
    for prompt in prompts:
        yield from (w for part in re.split(r'\{description\}|\{label\}', prompt) if len(w := K.words(part)) > 3)


def test_no_prompt_is_among_the_sentences(page):
    known = {n: {g for s in page for g in K.ngrams(s.text, n)} for n in (3, 4)}
    for span in spans():
        n = min(4, len(span))
        assert not {g for g in zip(*(span[i:] for i in range(n)))} & known[n], span


def test_sentences_are_one_row_and_seeded(page):
    assert not any(re.search(r'[\n{}|\x01\x02]', s.text) for s in page)
    assert S.summary_knowledge(20, seed=3) == S.summary_knowledge(20, seed=3) != S.summary_knowledge(20, seed=4)
