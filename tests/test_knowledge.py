"The knowledge keeps its promises: own words, no task prompt, every genre, many shapes."
import ast, inspect, random, re
import pytest
from logocentric.reasoner import knowledge as K
from logocentric.reasoner.model import PROMPTS

GTZAN = 'blues classical country disco hip-hop jazz metal pop reggae rock'.split()
FMA = 'electronic experimental folk hip-hop instrumental international pop rock'.split()


@pytest.fixture(scope='module')
def sentences(): return K.knowledge_text(20000, seed=0)


def imports(module):
    nodes = [n for n in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(n, (ast.Import, ast.ImportFrom))]
    return {name for n in nodes for name in (getattr(n, 'module', None) or '', *(alias.name for alias in n.names))}


def tables(module): return {name: v for name, v in vars(module).items() if isinstance(v, (dict, list, tuple, set)) and len(v) and not name.startswith('__')}


def test_shares_no_import_with_the_corpus():
    assert not any('corpus' in name for name in imports(K))
    assert not any('knowledge' in name for name in imports(pytest.importorskip('logocentric.data.corpus')))


def test_shares_no_table_with_the_corpus():
    "Neither an object, nor a phrase of four words or more."
    corpus = pytest.importorskip('logocentric.data.corpus')
    assert not any(a is b for a in tables(corpus).values() for b in tables(K).values())
    written = {n.value.lower() for n in ast.walk(ast.parse(inspect.getsource(corpus))) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    facts = {p.lower() for d in K.DIMENSIONS for entry in K.load_facts()[d].values() for form in entry.values() for p in form}
    assert not {p for p in written & facts if len(p.split()) >= 4}


def test_genres_cover_both_label_sets(): assert set(K.genres()) == set(GTZAN) | set(FMA)


def test_every_genre_is_told_equally_often(sentences):
    read = {g: sum(g in K.words(s) for s in sentences) for g in K.genres()}
    assert max(read.values()) < 1.25*min(read.values())


def test_lexicon_holds_no_genre_word():
    lexicon = ' '.join(p for d in K.DIMENSIONS for entry in K.load_facts()[d].values() for form in entry.values() for p in form)
    assert not set(K.words(lexicon)) & set(K.genres())


def fixed_spans():
    for template in PROMPTS.values():
        yield from (K.words(part) for part in template.split('{description}') if K.words(part))


def test_no_task_prompt_in_the_knowledge(sentences):
    "No 4-gram of a prompt's fixed words, and no whole span where it is shorter."
    frames = [f for shapes, _ in K.FRAME_SHARES for f in shapes]
    texts = sentences + [f.replace('(', ' ').replace(')', ' ') for f in frames + K.THINGS + K.STATEMENTS]
    known = {n: {g for t in texts for g in K.ngrams(t, n)} for n in (3, 4)}
    for span in fixed_spans():
        n = min(4, len(span))
        assert not {g for g in zip(*(span[i:] for i in range(n)))} & known[n], span


def test_shapes_and_direction():
    "Most answers come after what they follow from, for that is the direction in which a causal model reads."
    assert sum(len(shapes) for shapes, _ in K.FRAME_SHARES) >= 25 and len(K.TOPIC_FRAMES) >= 15 and len(K.PRESENCE_FRAMES) >= 10
    read = K.knowledge(5000, seed=0)
    assert sum(s.answers[0][0] > len(s.text)/3 for s in read) > .85*len(read)
    assert all(s.text[b:b + 1] in '.:? ,' for s in read for _, b in s.answers)


def test_answers_stand_where_they_are_said_to():
    read = K.knowledge(3000, seed=1)
    words = {*K.genres(), 'yes', 'no', *(n for t in K.load_facts()['topic'].values() for names in t.get('answers', {}).values() for n in names),
             *(a for t in K.load_facts()['topic'].values() for a in [*t.get('sides', {}).values(), t.get('middle')] if a)}
    gists = [a for s in read for a in [s.text[a:b] for a, b in s.answers] if a not in words]
    assert .02 < len(gists)/len(read) < .1 and all(len(g.split()) > 1 and re.search(r'\b(music|songs|tunes|pieces|sounds|dances|riffs|beats)\b', g) for g in gists)
    assert .4 < sum(s.text[a:b] in K.genres() for s in read for a, b in s.answers)/len(read) < .8
    answers = [s.text[a:b] for s in read for a, b in s.answers]
    assert .8 < answers.count('yes')/answers.count('no') < 1.25


def test_a_question_is_only_asked_where_the_features_tell():
    rng = random.Random(0)
    assert K.answer_of('tempo', [('drums', 'none')], rng) is None and K.answer_of('lead', [('lead', 'sax')], rng) == 'saxophone'
    assert K.answer_of('energy', [('tempo', 'fast'), ('feel', 'waltz')], rng) is None and K.answer_of('energy', [('tempo', 'fast'), ('drums', 'double')], rng) == 'high' and K.answer_of('energy', [('tempo', 'fast'), ('drums', 'none')], rng) == 'medium'
    assert K.sample_presence([('mood', 'sad')], rng) is None and K.sample_question('presence', [('mood', 'sad')], rng) is None
    for seed in range(50):
        thing, answer = K.sample_presence([('lead', 'sax'), ('bass', 'none')], random.Random(seed))
        assert (answer == 'yes') == (thing == 'a saxophone') and thing not in ('a guitar', 'drums')  # backing and drums were not told


def test_sentences_are_one_row_and_seeded(sentences):
    assert not any('\n' in s or '{' in s or '|' in s or '(' in s for s in sentences)
    assert K.knowledge_text(50, seed=3) == K.knowledge_text(50, seed=3) != K.knowledge_text(50, seed=4)
    assert len(set(sentences)) > .98*len(sentences)


def test_articles(sentences):
    for s in sentences[:5000]: assert not re.search(r'\ba (?!uni|one|euph)[aeiou]|\ban [^aeiouAEIOU\W]', s), s


def test_tokenizer(tmp_path, sentences):
    tokenizer = K.train_tokenizer(sentences[:4000], 1500)
    assert len(tokenizer) <= 1500 and tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    pieces = {g: tokenizer(' ' + g).input_ids for g in K.genres()}
    assert sum(len(p) > 1 for p in pieces.values()) >= 3
    assert len({p[0] for p in pieces.values()}) == len(pieces), 'the paper\'s rule could not tell all labels apart'
    odd = 'naïve — 音楽 🎵 "quoted", hip-hop'
    assert tokenizer.decode(tokenizer(odd).input_ids) == odd
    tokenizer.save_pretrained(tmp_path)
    assert type(tokenizer).from_pretrained(tmp_path)(odd).input_ids == tokenizer(odd).input_ids


def test_coverage():
    c = K.phrase_coverage(['a slow and weary tune'], ['Slow and weary', 'a tune'])
    assert c == dict(words=1., fourgrams=0.)
    assert K.phrase_coverage([], ['x']) == dict(words=0., fourgrams=0.)
    assert K.phrase_coverage(['one two three four five'], ['one two three four'])['fourgrams'] == .5


def test_expand_and_count():
    rng = random.Random(0)
    assert {K.expand('(a |)b(c|d)', rng) for _ in range(50)} == {'a bc', 'a bd', 'bc', 'bd'}
    assert K.n_phrases(dict(as_=['(a |)b(c|d)', 'e'])) == 5


def test_things_come_as_often_with_yes_as_with_no():
    rng, asked = random.Random(2), []
    for _ in range(6000): asked.append(K.sample_presence(K.sample_features(K.sample_strand(rng.choice(K.genres()), rng), rng.choice(K.FEATURE_COUNTS), rng), rng))
    for thing in ('drums', 'a saxophone', 'a piano', 'a choir'):
        yes, no = asked.count((thing, 'yes')), asked.count((thing, 'no'))
        assert min(yes, no) > 25 and .4 < yes/no < 2.5, thing


def test_scales():
    assert K.scale_sum('energy', [('tempo', 'fast'), ('drums', 'none')]) == 0 < K.scale_sum('light', [('harmony', 'major')])
    rng = random.Random(0)
    wild = [('tempo', 'fast'), ('drums', 'double')]
    assert K.answer_of('mood', wild + [('harmony', 'minor')], rng) == 'angry' and K.answer_of('mood', wild + [('harmony', 'major'), ('mood', 'happy')], rng) == 'happy'
    assert K.answer_of('mood', [('tempo', 'fast'), ('drums', 'none')], rng) is None


def test_many_ways_to_ask(sentences):
    "A question for the genre is seldom asked twice in the same words."
    rng = random.Random(0)
    assert len({K.fill_slots(rng.choice(K.COMPOSED_FRAMES), rng) for _ in range(1000)}) > 600 and not re.search(r'\{(noun|who|says|place|when)\}', ' '.join(sentences))
