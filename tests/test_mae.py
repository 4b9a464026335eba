"The masked autoencoder, against implementations that are not ours."
import numpy as np, pytest, torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding
from logocentric.core import set_seed
from logocentric.mae import (MASKING, MAEConfig, MAEEncoder, MAEModel, choose_patches, clip_noise, embed, embed_frames,
                             interpolate_hidden, masked_mse, patchify, per_patch_normalise, sincos_positions, unpatchify)

@pytest.fixture(autouse=True)
def seeded(): set_seed(0)

def tiny(**changes): return MAEModel(MAEConfig.preset('tiny', **changes)).eval()
def frames_of(*lengths): return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]

# --- equivalence with transformers' ViTMAE, which also has a class token: block by block, target, masks, positions

def vit_mae(**changes):
    return ViTMAEForPreTraining(ViTMAEConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, decoder_hidden_size=64,
        decoder_num_hidden_layers=1, decoder_num_attention_heads=4, decoder_intermediate_size=256, image_size=80, patch_size=16,
        num_channels=1, layer_norm_eps=1e-6, **changes)).eval()

def their_layer_weights(block):
    q, k, v = block.attn.qkv.weight.chunk(3)
    bq, bk, bv = block.attn.qkv.bias.chunk(3)
    rows = {'attention.q_proj': (q, bq), 'attention.k_proj': (k, bk), 'attention.v_proj': (v, bv)}
    for theirs, ours in {'attention.o_proj': block.attn.proj, 'layernorm_before': block.norm1, 'layernorm_after': block.norm2,
                         'mlp.fc1': block.mlp.fc1, 'mlp.fc2': block.mlp.fc2}.items(): rows[theirs] = ours.weight, ours.bias
    return {f'{k}.{kind}': w for k, pair in rows.items() for kind, w in zip(('weight', 'bias'), pair)}

def test_encoder_equals_vit_mae_layers():
    ours, theirs, x = tiny().encoder, vit_mae().vit, torch.randn(2, 80, 80)
    layers = next(m for m in theirs.modules() if isinstance(m, torch.nn.ModuleList))
    for block, layer in zip(ours.blocks, layers): layer.load_state_dict(their_layer_weights(block))
    hidden = ours.patch_embed(patchify(x)) + sincos_positions(5, 5, 64)
    for layer in layers: hidden = layer(hidden)
    torch.testing.assert_close(ours(x).last_hidden_state, ours.norm(hidden), atol=1e-5, rtol=1e-5)

def test_patch_embedding_equals_a_convolution():
    encoder, x = tiny().encoder, torch.randn(2, 96, 80)
    image = x.transpose(1, 2)[:, None]                                    # (b, 1, mels, frames)
    kernel = encoder.patch_embed.weight.view(64, 1, 16, 16)
    theirs = torch.nn.functional.conv2d(image, kernel, encoder.patch_embed.bias, stride=16).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.patch_embed(patchify(x)), theirs, atol=1e-5, rtol=1e-5)

@pytest.mark.parametrize('target', ['plain', 'per_patch'])
def test_loss_equals_vit_mae(target):
    model, theirs, x = tiny(target=target), vit_mae(norm_pix_loss=target == 'per_patch'), torch.randn(3, 80, 80)*2 + 1
    out = theirs(x.transpose(1, 2)[:, None])
    torch.testing.assert_close(masked_mse(out.logits, model.target(x), model.scored(out.mask.bool(), None)), out.loss)

def test_masks_equal_vit_mae():
    theirs, noise = vit_mae(mask_ratio=.75), torch.rand(2, 40)
    _, mask, restore = theirs.vit.embeddings.random_masking(torch.zeros(2, 40, 8), noise)
    keep, hidden, rank = choose_patches(noise, .75)
    assert torch.equal(hidden, mask.bool()) and torch.equal(rank, restore) and keep.shape == (2, 10)

@pytest.mark.parametrize('grid', [(5, 63), (5, 1), (1, 7)])
def test_positions_equal_transformers(grid):
    torch.testing.assert_close(sincos_positions(*grid, 64), build_2d_sinusoidal_position_embedding(*grid, 64))

# --- shapes, counts, gradients

@pytest.mark.parametrize('pm, pf', [(16, 16), (16, 32), (80, 4), (8, 16)])
def test_patchify_roundtrip(pm, pf):
    x = torch.randn(2, 96, 80)
    assert torch.equal(unpatchify(patchify(x, pm, pf), 80, pm, pf), x)

@pytest.mark.parametrize('ratio', MASKING.values())
def test_counts_of_unequal_clips(ratio):
    n = torch.tensor([315, 100, 5, 1])
    real = torch.arange(315)[None] < n[:, None]
    keep, hidden, _ = choose_patches(torch.rand(4, 315), ratio, real)
    assert hidden.sum(1).tolist() == [min(round(i*ratio), i - 1) for i in n.tolist()]
    for k, h, r in zip(keep, hidden, real):                               # visible and hidden part the real patches
        assert sorted(k[k >= 0].tolist() + h.nonzero()[:, 0].tolist()) == r.nonzero()[:, 0].tolist()

@pytest.mark.parametrize('loss_on', ['masked', 'all'])
def test_gradients_stay_where_they_belong(loss_on):
    model, mask = tiny(mask_ratio=.75, loss_on=loss_on), frames_of(96, 40)
    x = torch.randn(2, 96, 80, requires_grad=True)
    out = model(x, mask)
    felt = torch.autograd.grad(out.prediction.square().sum(), x, retain_graph=True)[0]
    visible = out.patch_mask & ~out.hidden
    assert torch.equal(patchify(felt).abs().amax(-1) > 0, visible)
    scored = torch.autograd.grad(out.loss, x)[0]
    assert not scored[~mask].any()                                        # padding is neither seen nor scored

@pytest.mark.parametrize('frames', [1, 15, 16, 17, 500, 1001, 3000])
def test_any_length(frames):
    out = tiny()(torch.randn(1, frames, 80))
    assert out.prediction.shape == (1, 5*-(-frames//16), 256) and out.loss.isfinite()

def test_mask_ratio_zero_with_loss_on_all_is_a_plain_autoencoder():
    out = tiny(mask_ratio=0., loss_on='all')(torch.randn(2, 64, 80))
    assert not out.hidden.any() and out.loss > 0

@pytest.mark.parametrize('bad', [dict(loss_on='visible'), dict(target='pixels'), dict(mask_ratio=1.), dict(n_mels=81), dict(hidden_size=66)])
def test_impossible_configurations_are_refused(bad):
    with pytest.raises(ValueError): MAEConfig.preset('tiny', **bad)

def test_base_is_vit_b():
    model = MAEModel(MAEConfig.preset('base'))
    assert (model.config.hidden_size, len(model.encoder.blocks), model.config.num_attention_heads) == (768, 12, 12)
    assert (model.config.decoder_hidden_size, len(model.decoder_blocks), model.config.decoder_num_attention_heads) == (384, 4, 6)
    assert 85e6 < model.encoder.num_parameters() < 86e6

# --- the contract: a clip's embedding depends on the clip alone

def alone_and_together(size, dtype=torch.float32, lengths=(1001, 333, 16, 700, 1)):
    encoder = MAEEncoder(MAEConfig.preset(size)).eval()
    batch, mask = torch.randn(len(lengths), max(lengths) + 77, 80), frames_of(*lengths, max(lengths) + 77)[:-1]
    with torch.no_grad(), torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
        together = embed(encoder, batch, mask).float()
        alone = torch.cat([embed(encoder, x[None, :n]) for x, n in zip(batch, lengths)]).float()
    return alone, together

@pytest.mark.parametrize('size', ['tiny', 'mini'])
def test_contract_in_float32(size):
    alone, together = alone_and_together(size)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)

@pytest.mark.parametrize('size', ['tiny', 'mini'])
def test_contract_in_bfloat16(size):
    assert torch.cosine_similarity(*alone_and_together(size, torch.bfloat16)).min() > .999

def test_content_of_padding_does_not_matter():
    model, mask = tiny(), frames_of(100, 160)
    x, noise = torch.randn(2, 160, 80), clip_noise(['a', 'b'], 5, 10)
    y = x.clone(); y[0, 100:] = torch.nan                                 # even this
    a, b = model(x, mask, noise), model(y, mask, noise)
    assert torch.equal(a.loss, b.loss) and torch.equal(embed(model.encoder, x, mask), embed(model.encoder, y, mask))

def test_masks_by_clip_do_not_depend_on_the_batch():
    model, x = tiny(mask_ratio=.75), torch.randn(2, 320, 80)
    both = model(x, frames_of(320, 90), clip_noise(['a', 'b'], 5, 20))
    alone = model(x[1:, :90], noise=clip_noise(['b'], 5, 6))
    assert torch.equal(both.hidden[1].view(5, 20)[:, :6], alone.hidden[0].view(5, 6))
    pixels = both.prediction[1].view(5, 20, 256)[:, :6]
    torch.testing.assert_close(pixels, alone.prediction[0].view(5, 6, 256), atol=1e-5, rtol=1e-5)

def test_generator_decides_the_mask():
    model, x = tiny(), torch.randn(2, 64, 80)
    a, b, c = (model(x, generator=torch.Generator().manual_seed(s)).hidden for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)

def test_embeddings_stack_frequency():
    encoder, x = tiny().encoder, torch.randn(2, 64, 80)
    columns, real = embed_frames(encoder, x)
    state = encoder(x).last_hidden_state
    assert columns.shape == (2, 4, 5*64) and real.all()
    assert torch.equal(columns[0, 3, 64:128], state[0, 1*4 + 3])          # second row, fourth column
    torch.testing.assert_close(embed(encoder, x), columns.mean(1))

def test_clip_without_sound_is_refused():
    with pytest.raises(ValueError, match='single real frame'): tiny().encoder(torch.randn(2, 32, 80), frames_of(32, 0))

# --- the two guessers, by hand

def test_interpolation_equals_numpy():
    config, x = MAEConfig.preset('tiny'), torch.randn(1, 96, 80)
    seen = torch.ones(1, 5, 6, dtype=torch.bool); seen[0, 2, [0, 2, 3]] = False; seen[0, 4] = False
    filled = interpolate_hidden(x, seen.flatten(1), config)[0].numpy()
    known = np.flatnonzero(np.repeat(seen[0, 2].numpy(), 16))
    for mel in (32, 47): np.testing.assert_allclose(filled[:, mel], np.interp(np.arange(96), known, x[0, known, mel].numpy()), atol=1e-6)
    assert np.array_equal(filled[:, :32], x[0, :, :32].numpy()) and not filled[:, 64:].any()

def test_guessers_by_hand():
    model = tiny(mask_ratio=.5)
    x = torch.full((1, 32, 80), 2.); x[:, 16:] = 5.                       # two columns: all 2, all 5
    noise = torch.tensor([[0., 1.]*5])                                    # the first column stays visible
    assert model.mean_loss(x, noise=noise) == pytest.approx(9.) == model.interpolation_loss(x, noise=noise)

def test_per_patch_mean_guess_is_one():
    model, x = tiny(target='per_patch', mask_ratio=.1), torch.randn(8, 320, 80)*3 + 1
    assert model.mean_loss(x) == pytest.approx(1 + 1/18, abs=.03)         # the mean of 18 columns is itself uncertain

def test_masked_mse_counts_cells():
    target, weight = torch.zeros(1, 3, 4), torch.tensor([[[1.], [0.], [0.]]])
    assert masked_mse(torch.ones(1, 3, 4)*torch.tensor([2., 9., 9.])[None, :, None], target, weight) == 4.
    assert per_patch_normalise(torch.randn(2, 3, 64)*7 + 3).std(-1).sub(1).abs().max() < 1e-3

def test_reconstruction_pastes_visible_cells():
    model, x, mask = tiny(target='per_patch', mask_ratio=.75), torch.randn(2, 96, 80), frames_of(96, 40)
    pictures = model.reconstruct(x, mask)
    shown = ~pictures.masked.isnan()
    assert torch.equal(pictures.reconstructed[shown], pictures.original[shown]) and pictures.reconstructed.isfinite().all()
    assert not shown[1, 48:].any()

# --- a model of transformers

def test_save_and_load(tmp_path):
    model = tiny(pad_value=-1.5, target='per_patch')
    model.save_pretrained(tmp_path)
    assert (tmp_path/'model.safetensors').exists()
    for again in (MAEModel.from_pretrained(tmp_path), MAEEncoder.from_pretrained(tmp_path)):
        own = again.state_dict()
        reference = model.state_dict() if isinstance(again, MAEModel) else model.encoder.state_dict()
        assert own.keys() == reference.keys() and all(torch.equal(own[k], reference[k]) for k in own)
        assert again.config.pad_value == -1.5 and again.config.target == 'per_patch'

def test_half_precision_and_checkpointing():
    x = torch.randn(2, 100, 80)
    assert tiny().to(torch.bfloat16)(x).loss.isfinite()
    model, noise = tiny().train(), torch.rand(2, 35)
    plain = torch.autograd.grad(model(x, noise=noise).loss, model.mask_token)[0]
    model.activation_checkpointing_enable()
    torch.testing.assert_close(torch.autograd.grad(model(x, noise=noise).loss, model.mask_token)[0], plain)
