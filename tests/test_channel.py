"The noisy channel: exact likelihoods, labels of several names, shares, and what calibration takes off."
import numpy as np, pandas as pd, pytest, torch
from scipy.special import logsumexp
from transformers import GPT2Config, GPT2LMHeadModel
from logocentric.core import LogocentricError
from logocentric.reasoner.channel import (CHANNEL_PROMPTS, calibrate_batch, fill_channel, reason_by_channel,
                                          reason_by_shares, text_likelihoods, word_evidence)
from logocentric.reasoner.labels import label_tokens
from logocentric.reasoner.model import Reasoner, Scores

WORDS = ('The the genre of music is feels jazz blues rock swing calm loud a very . , songs usually have Genre '
         'Description with : Jazz Blues').split()


@pytest.fixture(scope='module')
def reasoner(word_tokenizer):
    torch.manual_seed(0)
    tokenizer = word_tokenizer(WORDS)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2)
    return Reasoner(GPT2LMHeadModel(config).eval(), tokenizer)


def plain(reasoner, prompt, text): # one row, from end to end
    first, more = reasoner.tokenizer(prompt).input_ids, label_tokens(reasoner.tokenizer, [text])[0]
    with torch.no_grad(): logp = reasoner.model(torch.tensor([first + more])).logits[0].log_softmax(-1)
    return sum(logp[len(first) + i - 1, t].item() for i, t in enumerate(more))


@pytest.mark.parametrize('prompt', CHANNEL_PROMPTS)
def test_likelihoods_equal_brute_force_for_texts_of_any_length(reasoner, prompt):
    texts, labels = ['calm', 'calm , very loud', 'a very loud swing', 'loud'], ['jazz', 'blues']
    found = text_likelihoods(reasoner, texts, labels, prompt)
    true = [[plain(reasoner, fill_channel(prompt, label), t) for t in texts] for label in labels]
    assert np.allclose(found.to_numpy(), true, atol=1e-4) and list(found.columns) == texts


def test_a_text_that_is_given_twice_is_read_once(reasoner):
    assert list(text_likelihoods(reasoner, ['calm', 'loud', 'calm'], ['jazz', 'rock']).columns) == ['calm', 'loud']


def test_a_label_is_as_likely_as_its_names_are_on_average(reasoner):
    one = text_likelihoods(reasoner, ['calm'], ['jazz', 'blues', 'rock'])['calm']
    several = text_likelihoods(reasoner, ['calm'], {'old': ['jazz', 'blues'], 'new': ['rock']})['calm']
    assert several['old'] == pytest.approx(logsumexp(one[['jazz', 'blues']]) - np.log(2))
    assert several['new'] == pytest.approx(one['rock'])


def test_a_description_is_scored_as_a_whole_and_its_full_stop_is_not_read(reasoner):
    labels = ['jazz', 'rock']
    found = reason_by_channel(reasoner, ['calm , loud.', 'swing'], labels)
    likelihoods = text_likelihoods(reasoner, ['calm , loud', 'swing'], labels)
    assert found.predictions == likelihoods.idxmax().tolist()
    assert np.allclose(found.probabilities.sum(axis=1), 1)


def test_shares_weigh_the_words_and_the_evidence_adds_up_to_the_score():
    likelihoods = pd.DataFrame([[-1., -4, -2], [-3, -2, -2]], ['jazz', 'rock'], ['swing', 'loud', 'guitar'])
    shares = pd.DataFrame([[.5, .1, .9], [.1, .5, .9]], columns=['swing', 'loud', 'guitar'])
    found = reason_by_shares(shares, likelihoods)
    assert found.predictions == ['jazz', 'rock']
    assert found.frame.loc[0, 'jazz'] == pytest.approx(.5*1 - .1*1)  # the guitar, alike for both, says nothing
    evidence = word_evidence(shares.loc[0], likelihoods, 'jazz')
    assert evidence.index[0] == 'swing' and evidence.sum() == pytest.approx(found.frame.loc[0, 'jazz'])


def test_batch_calibration_takes_off_what_all_recordings_share():
    leaning = Scores(np.array([[5., 1], [4, 2]]), ['jazz', 'rock'])
    assert leaning.predictions == ['jazz', 'jazz'] and calibrate_batch(leaning).predictions == ['jazz', 'rock']


def test_what_cannot_be_read_is_refused_with_what_to_do(reasoner):
    with pytest.raises(LogocentricError, match='at least two'): text_likelihoods(reasoner, ['calm'], ['jazz'])
    with pytest.raises(LogocentricError, match='has no name'): text_likelihoods(reasoner, ['a'], dict(x=['a'], y=[]))
    with pytest.raises(LogocentricError, match='is empty'): text_likelihoods(reasoner, ['calm', ' '], ['jazz', 'rock'])
    with pytest.raises(LogocentricError, match='contains {label}'):
        text_likelihoods(reasoner, ['calm'], ['jazz', 'rock'], 'The music is')
    with pytest.raises(LogocentricError, match='at least two'): calibrate_batch(Scores(np.zeros((1, 2)), ['a', 'b']))
