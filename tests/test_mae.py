"The masked autoencoder, against implementations that are not ours."
from itertools import product
import numpy as np, pytest, torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding
from logocentric.core import set_seed
from logocentric.encoder.mae import (MASKING, MAEConfig, MAEEncoder, MAEModel, choose_patches, clip_noise, masked_mse,
                                     patchify, per_patch_normalise, shape_noise, sincos_positions, unpatchify)
from logocentric.encoder.features import embed, embed_frames, random_patches
from logocentric.encoder.published import build_encoder
from logocentric.encoder.reconstruction import interpolate_hidden, interpolation_loss, mean_loss, reconstruct

@pytest.fixture(autouse=True)
def seeded(): set_seed(0)

def tiny(**changes): return MAEModel(MAEConfig.preset('tiny', **changes)).eval()
def frames_of(*lengths): return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]

# --- equivalence with transformers' ViTMAE, which also has a class token: block by block, target, masks, positions

def vit_mae(**changes):
    return ViTMAEForPreTraining(ViTMAEConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, decoder_hidden_size=64,
        decoder_num_hidden_layers=1, decoder_num_attention_heads=4, decoder_intermediate_size=256, image_size=80,
        patch_size=16,
        num_channels=1, layer_norm_eps=1e-6, **changes)).eval()

def their_layer_weights(block):
    q, k, v = block.attn.qkv.weight.chunk(3)
    bq, bk, bv = block.attn.qkv.bias.chunk(3)
    rows = {'attention.q_proj': (q, bq), 'attention.k_proj': (k, bk), 'attention.v_proj': (v, bv)}
    named = {'attention.o_proj': block.attn.proj, 'layernorm_before': block.norm1, 'layernorm_after': block.norm2,
             'mlp.fc1': block.mlp.fc1, 'mlp.fc2': block.mlp.fc2}
    for theirs, ours in named.items(): rows[theirs] = ours.weight, ours.bias
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
    torch.testing.assert_close(masked_mse(out.logits, model.target(x), model.loss_weight(out.mask.bool(), None)),
                               out.loss)

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
    reached = torch.autograd.grad(out.prediction.square().sum(), x, retain_graph=True)[0]
    visible = out.patch_mask & ~out.hidden
    assert torch.equal(patchify(reached).abs().amax(-1) > 0, visible)
    loss_weight = torch.autograd.grad(out.loss, x)[0]
    assert not loss_weight[~mask].any()                                        # padding is neither seen nor scored

@pytest.mark.parametrize('frames', [1, 15, 16, 17, 500, 1001, 3000])
def test_any_length(frames):
    out = tiny()(torch.randn(1, frames, 80))
    assert out.prediction.shape == (1, 5*-(-frames//16), 256) and out.loss.isfinite()

def test_mask_ratio_zero_with_loss_on_all_is_a_plain_autoencoder():
    out = tiny(mask_ratio=0., loss_on='all')(torch.randn(2, 64, 80))
    assert not out.hidden.any() and out.loss > 0

@pytest.mark.parametrize('bad',
                         [dict(loss_on='visible'), dict(target='pixels'), dict(mask_ratio=1.), dict(n_mels=81),
                          dict(hidden_size=66),
                                 dict(positions='1d'), dict(mask_shape='both')])
def test_impossible_configurations_are_refused(bad):
    with pytest.raises(ValueError): MAEConfig.preset('tiny', **bad)

def test_base_is_vit_b():
    model = MAEModel(MAEConfig.preset('base'))
    assert (model.config.hidden_size, len(model.encoder.blocks), model.config.num_attention_heads) == (768, 12, 12)
    assert (model.config.decoder_hidden_size, len(model.decoder_blocks),
            model.config.decoder_num_attention_heads) == (384, 4, 6)
    assert 85e6 < model.encoder.num_parameters() < 86e6

def test_full_height_strips():
    model, mask = tiny(patch_mels=80, patch_frames=4, mask_ratio=.75), frames_of(101, 40)
    x = torch.randn(2, 101, 80)
    out = model(x, mask)
    assert out.prediction.shape == (2, 26, 320) and out.hidden.sum(1).tolist() == [20, 8] and out.loss.isfinite()
    embeddings, real = embed_frames(model.encoder, x, mask)
    assert embeddings.shape == (2, 26, 64) and real.sum(1).tolist() == [26, 10]
    torch.testing.assert_close(embed(model.encoder, x, mask)[1:], embed(model.encoder, x[1:, :40]), atol=1e-5, rtol=0)
    assert reconstruct(model, x, mask).reconstructed.shape == (2, 104, 80)
    assert mean_loss(model, x, mask) > 0 and interpolation_loss(model, x, mask) > 0

@pytest.mark.parametrize('changes', [{}, dict(cls_token=True, position_grid=[5, 20])])
def test_hidden_states(changes):
    encoder = build_encoder(MAEConfig.preset('tiny', **changes)).eval()
    x, mask, seen = torch.randn(2, 96, 80), frames_of(96, 40), []
    for block in encoder.blocks: block.register_forward_hook(lambda m, i, o: seen.append(o))
    out = encoder(x, mask, output_hidden_states=True)
    skip, real = len(changes) > 0, out.patch_mask[..., None]
    assert len(out.hidden_states) == 2 and not out.hidden_states[0][~out.patch_mask].any()
    for state, raw in zip(out.hidden_states, seen): assert torch.equal(state, raw[:, int(skip):]*real)
    assert torch.equal(encoder.norm(out.hidden_states[-1])*real, out.last_hidden_state)
    keep = torch.tensor([[3, 7, 9], [0, 1, -1]])
    assert encoder(x, mask, keep, output_hidden_states=True).hidden_states[1].shape == (2, 3, 64)
    assert encoder(x, mask).hidden_states is None

# --- what the encoder knows of positions

def grid(encoder, x): return encoder(x).last_hidden_state.view(len(x), 5, -1, 64)   # (b, rows, columns, dim)

@torch.no_grad()
def test_without_time_a_shift_in_time_is_not_seen():
    x, y = (lambda x: (x, x.roll(48, 1)))(torch.randn(2, 160, 80))
    rows_only, both = tiny(positions='frequency').encoder, tiny().encoder
    torch.testing.assert_close(grid(rows_only, y), grid(rows_only, x).roll(3, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(embed(rows_only, y), embed(rows_only, x), atol=1e-4, rtol=0)
    assert (embed(both, y) - embed(both, x)).abs().max() > .01
    assert (grid(rows_only, x.roll(16, 2)) - grid(rows_only, x).roll(1, 1)).abs().max() > .1

@torch.no_grad()
def test_without_frequency_a_shift_in_frequency_moves_the_rows():
    encoder, x = tiny(positions='time').encoder, torch.randn(2, 160, 80)
    torch.testing.assert_close(grid(encoder, x.roll(32, 2)), grid(encoder, x).roll(2, 1), atol=1e-4, rtol=0)
    assert (grid(encoder, x.roll(16, 1)) - grid(encoder, x).roll(1, 2)).abs().max() > .1

@pytest.mark.parametrize('axes, position', [('time', lambda r, c: c), ('frequency', lambda r, c: r)])
def test_positions_of_one_axis_by_hand(axes, position):
    table, omega = sincos_positions(3, 4, 8, axes=axes).view(3, 4, 8), 10000.**(-np.arange(4)/4)
    for r, c in np.ndindex(3, 4):
        angle = position(r, c)*omega
        np.testing.assert_allclose(table[r, c].numpy(), np.concatenate([np.sin(angle), np.cos(angle)]), atol=1e-6)

@pytest.mark.parametrize('positions', ['time', 'frequency'])
def test_the_decoder_always_knows_both(positions):
    model, x = tiny(positions=positions, mask_ratio=.75), torch.ones(1, 160, 80)
    out = model(x)
    predicted = out.prediction[0][out.hidden[0]]
    assert torch.pdist(predicted).min() > 1e-3                            # no two holes are filled alike
    logmel, real = torch.randn(2, 160, 80), frames_of(160, 70)
    alone = embed(model.encoder, logmel[1:, :70])
    torch.testing.assert_close(embed(model.encoder, logmel, real)[1:], alone, atol=1e-5, rtol=0)

# --- the shape of a hole

SHAPES = ['patches', 'time', 'frequency', 'block']

@pytest.mark.parametrize('shape', SHAPES)
def test_noise_decides_a_shaped_mask(shape):
    model, x = tiny(mask_ratio=.75, mask_shape=shape), torch.randn(2, 320, 80)
    noise = clip_noise(['a', 'b'], 5, 20)
    out = model(x, noise=noise)
    assert torch.equal(out.hidden, model(x, noise=noise).hidden) and out.hidden.sum(1).tolist() == [75, 75]
    assert out.loss.isfinite()
    assert torch.equal(out.hidden, choose_patches(shape_noise(noise, 5, 20, shape), .75)[1])
    both, alone = model(x, frames_of(320, 90), noise), model(x[1:, :90], noise=clip_noise(['b'], 5, 6))
    assert torch.equal(both.hidden[1].view(5, 20)[:, :6], alone.hidden[0].view(5, 6))

def test_plain_masks_are_the_noise_itself():
    noise = torch.rand(2, 40)
    assert shape_noise(noise, 5, 8) is noise

@pytest.mark.parametrize('shape, axis', [('time', 1), ('frequency', 2)])
@pytest.mark.parametrize('ratio', [.15, .4, .75])
def test_lines_fall_together(shape, axis, ratio):
    hidden = choose_patches(shape_noise(torch.rand(16, 100), 5, 20, shape), ratio)[1].view(16, 5, 20)
    share = hidden.float().mean(axis)
    assert ((0 < share) & (share < 1)).sum(1).max() <= 1                  # at most one line is cut

def test_which_lines_and_patches_hide_is_fair():
    noise = torch.rand(4000, 100)
    for shape, ratio in product(SHAPES, MASKING.values()):
        often = choose_patches(shape_noise(noise, 5, 20, shape), ratio)[1].float().mean(0)
        assert (often - ratio).abs().max() < .035, (shape, ratio)         # every place is hidden as often

def test_blobs_hang_together():
    def together(shape):
        hidden = choose_patches(shape_noise(torch.rand(200, 200), 10, 20, shape), .5)[1].view(200, 10, 20)
        return (hidden[..., 1:] == hidden[..., :-1]).float().mean()
    assert together('patches') < .55 and together('block') > .65

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
    cells = both.prediction[1].view(5, 20, 256)[:, :6]
    torch.testing.assert_close(cells, alone.prediction[0].view(5, 6, 256), atol=1e-5, rtol=1e-5)

def test_generator_decides_the_mask():
    model, x = tiny(), torch.randn(2, 64, 80)
    a, b, c = (model(x, generator=torch.Generator().manual_seed(s)).hidden for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)

def test_embeddings_stack_frequency():
    encoder, x = tiny().encoder, torch.randn(2, 64, 80)
    embeddings, real = embed_frames(encoder, x)
    state = encoder(x).last_hidden_state
    assert embeddings.shape == (2, 4, 5*64) and real.all()
    assert torch.equal(embeddings[0, 3, 64:128], state[0, 1*4 + 3])          # second row, fourth column
    torch.testing.assert_close(embed(encoder, x), embeddings.mean(1))

@pytest.mark.parametrize('frames,share', [(64, .5), (64, .01), (70, .3), (64, 1.)])
def test_random_patches_are_equally_many_in_each_row(frames, share):
    e, x = tiny().encoder, torch.randn(3, frames, 80)
    cols = -(-frames//16)
    keep = random_patches(x, e.config, share).view(3, 5, -1)
    assert keep.shape[-1] == max(1, round(share*cols))
    for k in keep.flatten(0, 1): assert len(set(k.tolist())) == len(k)
    assert (keep//cols == torch.arange(5)[:, None]).all()
    assert share == 1 or not torch.equal(keep, random_patches(x, e.config, share).view(3, 5, -1))

def test_all_random_patches_are_the_whole():
    e, x = tiny().encoder, torch.randn(2, 64, 80)
    whole, real = embed_frames(e, x)
    seen, _ = embed_frames(e, x, keep=random_patches(x, e.config, 1.))
    assert real.all()
    torch.testing.assert_close(seen.mean(1), whole.mean(1)); torch.testing.assert_close(seen.var(1), whole.var(1))

def test_a_row_of_random_patches_is_of_that_row():
    e, x = tiny().encoder, torch.randn(1, 64, 80)
    keep = random_patches(x, e.config, .5)
    embeddings, real = embed_frames(e, x, keep=keep)
    expected = e(x, keep=keep).last_hidden_state.view(1, 5, 2, -1)
    assert embeddings.shape == (1, 2, 320) and real.shape == (1, 2)
    torch.testing.assert_close(embeddings.view(1, 2, 5, 64).transpose(1, 2), expected)

def test_clip_without_sound_is_refused():
    with pytest.raises(ValueError, match='single real frame'): tiny().encoder(torch.randn(2, 32, 80), frames_of(32, 0))

# --- the two baselines, by hand

def test_interpolation_equals_numpy():
    config, x = MAEConfig.preset('tiny'), torch.randn(1, 96, 80)
    seen = torch.ones(1, 5, 6, dtype=torch.bool); seen[0, 2, [0, 2, 3]] = False; seen[0, 4] = False
    filled = interpolate_hidden(x, seen.flatten(1), config)[0].numpy()
    known = np.flatnonzero(np.repeat(seen[0, 2].numpy(), 16))
    for mel in (32, 47):
        np.testing.assert_allclose(filled[:, mel], np.interp(np.arange(96), known, x[0, known, mel].numpy()), atol=1e-6)
    assert np.array_equal(filled[:, :32], x[0, :, :32].numpy()) and not filled[:, 64:].any()

def test_baselines_by_hand():
    model = tiny(mask_ratio=.5)
    x = torch.full((1, 32, 80), 2.); x[:, 16:] = 5.                       # two columns: all 2, all 5
    noise = torch.tensor([[0., 1.]*5])                                    # the first column stays visible
    assert mean_loss(model, x, noise=noise) == pytest.approx(9.) == interpolation_loss(model, x, noise=noise)

def test_the_per_patch_mean_baseline_is_one():
    model, x = tiny(target='per_patch', mask_ratio=.1), torch.randn(8, 320, 80)*3 + 1
    assert mean_loss(model, x) == pytest.approx(1 + 1/18, abs=.03)         # the mean of 18 columns is itself uncertain

def test_masked_mse_counts_cells():
    target, weight = torch.zeros(1, 3, 4), torch.tensor([[[1.], [0.], [0.]]])
    assert masked_mse(torch.ones(1, 3, 4)*torch.tensor([2., 9., 9.])[None, :, None], target, weight) == 4.
    assert per_patch_normalise(torch.randn(2, 3, 64)*7 + 3).std(-1).sub(1).abs().max() < 1e-3

def test_reconstruction_pastes_visible_cells():
    model, x, mask = tiny(target='per_patch', mask_ratio=.75), torch.randn(2, 96, 80), frames_of(96, 40)
    logmels = reconstruct(model, x, mask)
    shown = ~logmels.masked.isnan()
    assert torch.equal(logmels.reconstructed[shown], logmels.original[shown])
    assert logmels.reconstructed.isfinite().all()
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
