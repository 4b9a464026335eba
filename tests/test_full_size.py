"""The paper's own sizes with random weights: ViT-B, gpt2-medium, gpt2-large, GPT-Neo 1.3B.
Minutes, and 20 GB of memory and disk: slow tests.

The architectures are those of the published configurations; the weights are not published ones,
so that answers mean nothing and every joint is moved."""
import shutil
from dataclasses import replace
import pytest, torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast, GPTNeoConfig, GPTNeoForCausalLM
from logocentric.captioner.model import Captioner
from logocentric.core import read_json, shared_path
from logocentric.pipeline.captioner_stages import trained_captioner
from logocentric.pipeline.encoder_stages import masked_autoencoder
from logocentric.pipeline.reasoner_stages import reasoner_sizes
from logocentric.pipeline.results import genre_row
from logocentric.pipeline.scales import SCALES, Setup
from logocentric.reasoner.model import Reasoner

pytestmark = pytest.mark.slow
MEDIUM, LARGE = dict(n_embd=1024, n_layer=24, n_head=16), dict(n_embd=1280, n_layer=36, n_head=20)
NEO = dict(hidden_size=2048, num_layers=24, num_heads=16, attention_types=[[['global', 'local'], 12]],
           max_position_embeddings=2048)


@pytest.fixture(scope='module')
def tokenizer():
    place = shared_path() and shared_path()/'data'/'gpt2_tokenizer'
    if not place: pytest.skip("GPT-2's vocabulary is not beside the checkout")
    return GPT2TokenizerFast(vocab=str(place/'encoder.json'), merges=str(place/'vocab.bpe'))


@pytest.fixture(scope='module')
def models(tokenizer, tmp_path_factory):
    "Folders with the published architectures and random weights, in half the bytes."
    folder = tmp_path_factory.mktemp('models')
    made = {'gpt2-medium': lambda: GPT2LMHeadModel(GPT2Config(**MEDIUM)),
            'gpt2-large': lambda: GPT2LMHeadModel(GPT2Config(**LARGE)),
            'gpt-neo-1.3B': lambda: GPTNeoForCausalLM(GPTNeoConfig(**NEO))}
    for name, make in made.items():
        torch.manual_seed(0)
        make().to(torch.bfloat16).save_pretrained(folder/name)
        tokenizer.save_pretrained(folder/name)
    yield folder
    shutil.rmtree(folder)


SOURCES = """[models]
'gpt2-medium' = 'gpt2-medium'
'gpt2-large' = 'gpt2-large'
'EleutherAI/gpt-neo-1.3B' = 'gpt-neo-1.3B'
"""


@pytest.fixture(scope='module')
def setup(models, home):
    "Scale `paper` in its own sizes, with a handful of clips and single steps."
    (models/'sources.toml').write_text(SOURCES)
    whole = Setup.at('paper', sources=str(models/'sources.toml'))
    scale, once = whole.scale, dict(steps=1, batch_size=2, num_workers=0)
    encoder = replace(scale.encoder, mae=replace(scale.encoder.mae, **once))
    captioner = replace(scale.captioner, train=replace(scale.captioner.train, **once), tokens=4, samples=2)
    data = replace(scale.data, pairs=(4, 8), held_out=4, test=10)
    return replace(whole, scale=replace(scale, data=data, encoder=encoder, captioner=captioner))


def test_the_plan_is_the_papers():
    paper = SCALES['paper']
    tags = paper.tagging
    assert (paper.data.pairs[-1], paper.captioner.decoder, paper.encoder.preset['name']) == (25_723, 'gpt2-medium',
                                                                                             'base')
    assert paper.reasoner.names == ('gpt2-large', 'EleutherAI/gpt-neo-1.3B')
    assert tags.decoders == {'gpt2': 'gpt2', 'gpt2-large': 'gpt2-large'} and tags.encoder == 'base'


def test_pretrain_train_describe_and_answer(setup):
    mae = read_json(masked_autoencoder(setup, .15).folder()/'config.json')
    assert (mae['hidden_size'], mae['num_hidden_layers']) == (768, 12)
    model = Captioner.from_pretrained(trained_captioner(setup, 8).folder())
    encoder = sum(p.numel() for p in model.encoder.parameters())
    assert 3.5e8 < model.decoder.num_parameters() < 3.6e8 and 8e7 < encoder < 9e7
    del model
    row = genre_row(setup, 'gtzan', 'EleutherAI/gpt-neo-1.3B', 8)
    assert row['n'] == 10 and row['reasoner'] == 'EleutherAI/gpt-neo-1.3B' and 0 <= row['true']['value'] <= 1
    sizes = reasoner_sizes(setup)
    assert 7.7e8 < sizes['gpt2-large'] < 7.8e8 and 1.31e9 < sizes['EleutherAI/gpt-neo-1.3B'] < 1.32e9


def test_full_reasoners_do_not_mind_their_neighbours(models):
    "A batch of unequal prompts gives what each gives alone: left padding and positions are right."
    for name in ('gpt2-large', 'gpt-neo-1.3B'):
        reasoner = Reasoner.from_pretrained(models/name)
        asked = ['calm', 'a slow and heavy beat under distorted guitars', 'fast']
        labels = ['hip-hop', 'rock', 'drum and bass']
        together = torch.tensor(reasoner.reason(asked, labels, rule='mean').values)
        alone = torch.cat([torch.tensor(reasoner.reason(d, labels, rule='mean').values) for d in asked])
        torch.testing.assert_close(together, alone, atol=2e-3, rtol=1e-4)
