"Noisy facts, and a captioner that goes on from a summary: what is read, what is predicted, the same in any company."
import random
import numpy as np, pandas as pd, pytest, torch
from logocentric.captioner.describe import describe, describe_files
from logocentric.captioner.model import MOST_PROMPT, prompt_tokens
from logocentric.captioner.prompted import MISMATCHED, PromptedPairs
from logocentric.captioner.training_data import Pairs, tokenise
from logocentric.data.corpus import clip_row
from logocentric.data.noisy_facts import HEARD_AS, WRONG_SHARES, clip_facts, noisy_facts, sample_genre_tags
from logocentric.data.styles import corpus_clip
from logocentric.data.summaries import SUMMARY_WORDS, summarise
from test_captioner import build, logmels, model, tokenizer # noqa: F401
from test_describe import clips, tone # noqa: F401

TEN = dict(max_new_tokens=10)
ROWS = [clip_row(corpus_clip(seed, 0)) for seed in range(12)]


# --- noisy facts

def test_facts_of_a_clip_are_those_of_its_attributes():
    row = dict(ROWS[0], drums='none', lead='piano', accompaniment='strum', bass='none', tempo='lively', gtzan='rock')
    assert clip_facts(row) == dict(kind='music', voice='none', tempo='fast', drums='no',
                                   instruments=['piano', 'guitar'], genre='rock')
    assert clip_facts(row | dict(lead='voices', gtzan=float('nan'), fma='Hip-Hop'))['genre'] == 'hip-hop'
    assert clip_facts(row | dict(lead='voices'))['voice'] == 'sung'


def test_whatever_is_drawn_can_be_said():
    for seed in range(300):
        facts = noisy_facts(clip_facts(ROWS[seed % len(ROWS)]), random.Random(seed))
        assert summarise(facts, random.Random(seed)) and {*facts.get('instruments', ())} <= {*HEARD_AS}
        assert {facts.get(q) for q in ('drums',)} <= {None, *SUMMARY_WORDS['drums']}


def test_mistakes_are_as_frequent_as_stated():
    facts = clip_facts(ROWS[0] | dict(drums='backbeat'))
    said = [noisy_facts(facts, random.Random(seed)).get('drums') for seed in range(3000)]
    wrong, stated = said.count('no'), sum(a is not None for a in said)
    assert abs(wrong/stated - WRONG_SHARES['drums']) < .015
    assert noisy_facts(facts, random.Random(1)) == noisy_facts(facts, random.Random(1))


def test_what_is_no_music_is_called_what_it_is():
    for kind in ('speech', 'other', 'silence'): assert noisy_facts(dict(kind=kind), random.Random(0)) == dict(kind=kind)


def test_tags_of_a_genre_are_mostly_its_own():
    tags = [tag for seed in range(500) for tag in sample_genre_tags('metal', random.Random(seed))]
    of = pd.Series(tags).value_counts()
    assert 'metal' in of.index[:2] and of['metal'] > 3*of.get('classical', 0)


# --- training

def test_a_prompt_is_read_and_not_predicted(tokenizer):
    plain = tokenise(tokenizer, ['a calm hum', 'quick clicks and noise'])
    prompted = tokenise(tokenizer, ['a calm hum', 'quick clicks and noise'], prompts=['bright', 'deep soft'])
    for labels, text in zip(prompted['labels'], ('a calm hum', 'quick clicks and noise')):
        assert tokenizer.decode(labels[labels >= 0], skip_special_tokens=True) == text
    assert prompted['input_ids'].shape[1] > plain['input_ids'].shape[1]
    assert (prompted['labels'][:, 0] == -100).all() and (plain['labels'][:, 0] != -100).all()


def test_a_long_prompt_is_cut(tokenizer): assert len(prompt_tokens(tokenizer, 'calm '*200)) == MOST_PROMPT


def pairs(tokenizer, n=64):
    x = np.arange(n, dtype=np.float32)[:, None, None]*np.ones((1, 16, 80), np.float32)
    return Pairs(x, ['a calm hum']*n, tokenizer, frames=[16 - i % 2 for i in range(n)])


def test_in_some_steps_there_are_prompts_and_some_sounds_of_others(tokenizer):
    plain, facts = pairs(tokenizer), [clip_facts(ROWS[i % 12]) for i in range(64)]
    never, always = (PromptedPairs(plain, facts, share) for share in (0., 1.))
    assert 'prompted' not in never.batch([1, 2], np.random.default_rng(0))
    batch = always.batch(range(64), np.random.default_rng(0))
    assert batch['prompted'] and batch['input_ids'].shape[0] == len(batch['logmel']) == 64
    own = batch['logmel'][:, 0, 0] == torch.arange(64.)
    assert abs(own.float().mean() - (1 - MISMATCHED)) < .2
    sound = batch['logmel'][:, 0, 0].long()
    assert torch.equal(batch['frame_mask'].sum(1), 16 - sound % 2) # a mask goes with its sound
    with pytest.raises(ValueError, match='facts of 3'): PromptedPairs(plain, facts[:3], .5)


def test_prompted_words_have_no_evidence_and_no_loss_of_their_own(tokenizer):
    model, batch = build(tokenizer), tokenise(tokenizer, ['a calm hum'], prompts=['deep'])
    model.words.weight.data.normal_()
    free = model(**batch, logmel=logmels(1)).logits
    told = model(**batch, logmel=logmels(1), prompted=True).logits
    model.words.weight.data.normal_()
    assert torch.equal(told, model(**batch, logmel=logmels(1), prompted=True).logits)
    assert not torch.equal(free, model(**batch, logmel=logmels(1)).logits)
    model.train()
    model(**batch, logmel=logmels(1), prompted=True).loss.backward()
    assert model.words.weight.grad is None


# --- writing

PROMPTS = ['deep', 'bright high noise with clicks', 'soft and quick', 'calm']

def test_prompted_captions_are_the_same_in_any_company(model):
    features = model.encode(logmels(4))
    together = model.caption(features, prompts=PROMPTS, **TEN)
    assert together == [model.caption(features[i:i + 1], prompts=[p], **TEN)[0] for i, p in enumerate(PROMPTS)]
    assert together != model.caption(features, **TEN)


def test_a_prompt_is_no_part_of_the_caption(model, tokenizer):
    ids = tokenise(tokenizer, [''], prompts=['deep'])['input_ids'][:, :-1]
    features = model.encode(logmels(1))
    whole = model.generate(audio=model.prefix(features), input_ids=ids, prompted=True, **TEN)
    assert model.caption(features, prompts=['deep'], **TEN) == [
        tokenizer.decode(whole[0, ids.shape[1]:], skip_special_tokens=True).strip()]


def test_each_sample_has_the_prompt_of_its_sound(model, monkeypatch):
    seen = []
    monkeypatch.setattr(model, 'caption', lambda f, prompts=None, **_: seen.extend(prompts) or ['']*len(f))
    model.sample(model.encode(logmels(2)), 3, prompts=['deep', 'calm'])
    assert seen == ['deep']*3 + ['calm']*3


@pytest.fixture
def prompted(tokenizer): return build(tokenizer, prompt_share=.5)


def test_a_recording_is_described_from_its_summary(prompted, clips, monkeypatch):
    alone = {f: describe(f, prompted, max_new_tokens=6) for f in sorted(clips.iterdir())}
    assert dict(describe_files(alone, prompted, max_new_tokens=6)) == alone
    seen = []
    write = prompted.caption
    kept = lambda f, prompts=None, **k: seen.append(prompts) or write(f, prompts, **k)
    monkeypatch.setattr(prompted, 'caption', kept)
    found = describe(tone(5.), prompted, max_new_tokens=6)
    assert seen[0] == [found.summary]*4 # three windows and the whole


def test_one_that_has_not_learned_to_read_summaries_gets_none(model, monkeypatch):
    write = model.caption
    monkeypatch.setattr(model, 'caption', lambda f, prompts=None, **k: write(f, **k) if prompts is None else 1/0)
    assert describe(tone(2.), model, max_new_tokens=4).text


def test_nobody_guesses_about_silence(prompted):
    found = describe(np.zeros(80_000, np.float32), prompted)
    assert {found.text, *(w.text for w in found.windows)} == {'silence'}
    assert describe(tone(.03), prompted).text == 'too short to say'
