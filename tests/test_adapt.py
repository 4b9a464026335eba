"Adaptation: what is frozen does not move; what was learned can be taken out, merged, stored and found again."
from copy import deepcopy
import numpy as np, pytest, torch
from peft import PeftModel
from transformers import GPT2LMHeadModel
from logocentric.captioner.adapt import (ADAPTATIONS, adapt, adapter_state, base_weights, footprint, load_adapter,
                                         merge, save_adapter, switched_off)
from logocentric.captioner.forgetting import L2SP, Rehearsal
from logocentric.captioner.model import Captioner, gpt2_config
from logocentric.captioner.training_data import Pairs, tokenise
from logocentric.core import LogocentricError, set_seed
from logocentric.encoder.mae import MAEConfig, MAEEncoder
from logocentric.reasoner.knowledge import train_tokenizer
from logocentric.runs import TrainConfig
from logocentric.steps import evaluate
from logocentric.training import train


OLD = ['the weather of oslo is cold and clear', 'lisbon is warm and windy in spring', 'they say that cairo is hot',
       'bergen is wet'] * 4
NEW = ['a slow piano plays a sad tune', 'fast drums and a loud guitar', 'a soft flute over quiet strings']
TOKENIZER = train_tokenizer(OLD + NEW, 320)


def language(seed=0):
    set_seed(seed)
    model = GPT2LMHeadModel(gpt2_config(TOKENIZER, n_embd=32, n_layer=2, n_head=2, n_positions=40)).eval()
    model.set_attn_implementation('eager')
    return model


def pairs(n=24, seed=0):
    rng = np.random.default_rng(seed)
    kinds = rng.integers(3, size=n)
    embeddings = np.random.default_rng(9).normal(size=(3, 1, 32))[kinds] + rng.normal(0, .3, (n, 4, 32))
    return Pairs(embeddings.astype(np.float32), [NEW[k] for k in kinds], TOKENIZER, what='embeddings')


def captioner(seed=0, base=0, encoder_seed=0, **settings):
    set_seed(100 + encoder_seed)
    encoder = MAEEncoder(MAEConfig(n_mels=8, patch_frames=4, patch_mels=4, hidden_size=16, num_hidden_layers=1,
                                   num_attention_heads=2))
    decoder = language(base)
    set_seed(seed)
    model = Captioner.from_parts(encoder, decoder, TOKENIZER, prefix_length=3, **settings)
    model.encoder.requires_grad_(False)
    data = pairs()
    return model.calibrate([model.features_of(torch.from_numpy(data.logmels))], data.texts)


def teach(model, data=None, loss_fn=None, steps=6, **changes):
    config = TrainConfig(**(dict(steps=steps, batch_size=8, lr=1e-2) | changes))
    history = train(model, data or pairs(), config, pairs(8, 1), loss_fn,
                    param_groups=model.param_groups(config, decoder_rate=1.), progress=False)
    return model, history


@torch.no_grad()
def logits(model):
    data = pairs(5, 3)
    return model.eval()(embeddings=torch.from_numpy(data.logmels), **tokenise(TOKENIZER, data.texts)).logits


@torch.no_grad()
def read(model):
    ids = tokenise(TOKENIZER, OLD[:4])['input_ids']
    return model.eval()(ids, attention_mask=torch.ones_like(ids)).logits


@pytest.fixture(scope='module')
def taught(): return {way: teach(adapt(captioner(), way))[0] for way in ADAPTATIONS}


def test_each_way_begins_as_the_untouched_captioner_and_learns():
    for way in ADAPTATIONS:
        model = adapt(captioner(), way)
        assert torch.equal(logits(model), logits(captioner()))
        before = evaluate(model, pairs(8, 1))
        assert teach(model, steps=20)[1].best_loss < before - .1, way


def test_what_is_frozen_does_not_move_by_a_bit(taught):
    weights, encoder = dict(language().named_parameters()), captioner().encoder.state_dict()
    for way, model in taught.items():
        assert all(torch.equal(p, encoder[k]) for k, p in model.encoder.state_dict().items())
        assert set(base_weights(model)) == set(weights)
        assert all(torch.equal(p, weights[k]) for k, p in base_weights(model).items()) == (way != 'full')
        assert not torch.equal(logits(model), logits(captioner()))
    assert not torch.equal(read(taught['lora'].decoder), read(language()))


def test_switched_off_is_the_old_model_to_the_bit(taught):
    was = {n: p.requires_grad for n, p in taught['lora'].named_parameters()}
    said = logits(taught['lora'])
    with switched_off(taught['lora']) as decoder: assert torch.equal(read(decoder), read(language()))
    assert torch.equal(logits(taught['lora']), said)
    assert was == {n: p.requires_grad for n, p in taught['lora'].named_parameters()}
    with switched_off(taught['prefix']) as decoder: assert torch.equal(read(decoder), read(language()))
    with pytest.raises(RuntimeError), switched_off(taught['lora']): raise RuntimeError
    assert torch.equal(logits(taught['lora']), said)
    with pytest.raises(LogocentricError, match='gone'), switched_off(taught['full']): pass


def test_merged_is_the_same_function_without_foreign_layers(taught):
    merged = merge(deepcopy(taught['lora']))
    torch.testing.assert_close(logits(merged), logits(taught['lora']), rtol=1e-4, atol=1e-4)
    assert [n for n, _ in merged.named_parameters()] == [n for n, _ in captioner().named_parameters()]
    assert torch.equal(merge(deepcopy(taught['prefix'])).prefix.project.weight, taught['prefix'].prefix.project.weight)
    adapt(merged, 'lora')  # and may be adapted again
    torch.testing.assert_close(logits(merged), logits(taught['lora']), rtol=1e-4, atol=1e-4)


def test_a_saved_captioner_says_the_same_in_each_way(taught, tmp_path):
    features = captioner().features_of(torch.from_numpy(pairs(4, 5).logmels))
    for way, model in taught.items():
        model.save_pretrained(tmp_path/way)
        again = Captioner.from_pretrained(tmp_path/way)
        torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-4)
        assert again.caption(features, max_new_tokens=8) == model.caption(features, max_new_tokens=8)
    assert any('lora_' in n for n, _ in taught['lora'].named_parameters())  # saving merged a copy


@pytest.mark.parametrize('way', ['lora', 'prefix'])
def test_an_adapter_loads_onto_its_base(taught, tmp_path, way):
    folder = save_adapter(taught[way], tmp_path/way)
    again = load_adapter(captioner(seed=7), folder)
    assert torch.equal(logits(again), logits(taught[way]))
    assert all(torch.equal(v, adapter_state(taught[way])[k]) for k, v in adapter_state(again).items())
    assert not any(k.startswith(('encoder.', 'decoder.')) for k in adapter_state(again))
    files = sum(p.stat().st_size for p in folder.rglob('*.safetensors'))
    assert footprint(taught[way])['stored'] < files < footprint(taught[way])['stored'] + 10_000


def test_the_novelty_of_a_calibrated_captioner_goes_along(tmp_path):
    model = adapt(captioner(), 'prefix')
    model.novelty_levels.copy_(torch.linspace(0, 1, 101)); model.novelty_mean.fill_(2)
    again = load_adapter(captioner(), save_adapter(model, tmp_path))
    assert torch.equal(again.novelty_levels, model.novelty_levels)
    assert torch.equal(again.novelty_mean, model.novelty_mean)
    assert captioner().novelty_levels.isnan().all()
    assert 'novelty_whiten' not in adapter_state(adapt(captioner(), 'prefix'))


def test_peft_reads_the_adapter_without_a_captioner(taught, tmp_path):
    save_adapter(taught['lora'], tmp_path)
    assert torch.equal(read(PeftModel.from_pretrained(language(), tmp_path/'lora')), read(taught['lora'].decoder))


def test_a_wrong_base_is_refused(taught, tmp_path):
    folder = save_adapter(taught['lora'], tmp_path/'lora')
    for other, what in ((captioner(base=1), 'GPT-2'), (captioner(encoder_seed=1), 'encoder'),
                        (captioner(word_weight=0.), 'word_weight'), (merge(deepcopy(taught['lora'])), 'GPT-2')):
        with pytest.raises(LogocentricError, match=rf'other parts \({what}\)'): load_adapter(other, folder)
    with pytest.raises(LogocentricError, match='no adapter in'): load_adapter(captioner(), tmp_path)
    with pytest.raises(LogocentricError, match='has an adapter'): load_adapter(adapt(captioner(), 'lora'), folder)
    with pytest.raises(LogocentricError, match='no small adapter'): save_adapter(taught['full'], tmp_path/'full')
    loose = adapt(captioner(), 'prefix')
    loose.encoder.requires_grad_(True)
    with pytest.raises(LogocentricError, match='encoder learns too'): save_adapter(loose, tmp_path/'loose')


def test_wrong_wishes_are_refused():
    for wish, why in ((dict(way='half'), 'choose from'), (dict(way='full', r=2), 'belong to lora'),
                      (dict(way='lora', colour='red'), 'peft refuses'), (dict(way='lora', r=0), 'refuses|fits'),
                      (dict(way='lora', target_modules=['q_proj']), 'no adapter fits')):
        with pytest.raises(LogocentricError, match=why): adapt(captioner(), **wish)
    with pytest.raises(LogocentricError, match='has an adapter'): adapt(adapt(captioner(), 'lora'), 'prefix')
    with pytest.raises(LogocentricError, match='are frozen'): L2SP(adapt(captioner(), 'lora'), 1.)
    with pytest.raises(LogocentricError, match='no old texts'): Rehearsal(pairs(), [])


def test_settings_of_lora_reach_peft():
    few, many = (footprint(adapt(captioner(), 'lora', r=r, target_modules=['c_attn']))['language'] for r in (2, 4))
    assert few == 2*2*(32 + 96) and many == 2*few
    full, prefix = (footprint(adapt(captioner(), way)) for way in ('full', 'prefix'))
    assert full['language'] == language().num_parameters() and prefix['language'] == 0
    assert full['bridge'] == prefix['bridge'] > 0
    assert full['optimiser'] - prefix['optimiser'] == 8*full['language']
    assert full['stored'] - prefix['stored'] == 4*full['language']


@pytest.mark.parametrize('way', ADAPTATIONS)
def test_mixed_precision_and_an_interrupted_run(way, tmp_path):
    config = dict(batch_size=8, lr=1e-2, mixed_precision='bf16', eval_every=2, keep='last')
    run = lambda model, folder, data: train(model, data, TrainConfig(steps=6, **config), pairs(8, 1), folder=folder,
                                            progress=False)
    whole = adapt(captioner(), way); run(whole, tmp_path/'whole', pairs())

    class Broken(Pairs):
        def batch(self, indices, rng):
            self.left -= 1
            if not self.left: raise KeyboardInterrupt
            return super().batch(indices, rng)
    source = pairs()
    broken = Broken(source.logmels, source.texts, TOKENIZER, what='embeddings'); broken.left = 5
    with pytest.raises(KeyboardInterrupt): run(adapt(captioner(), way), tmp_path/'parts', broken)
    second = adapt(captioner(), way); run(second, tmp_path/'parts', pairs())
    assert torch.equal(logits(second), logits(whole))
    assert all(p.dtype == torch.float32 for p in second.parameters())


