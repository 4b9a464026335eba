"Published encoders in ours: against a plain forward pass that knows nothing of our classes."
import ast, json, math, re
from argparse import Namespace
from pathlib import Path
import numpy as np, pytest, torch
import torch.nn.functional as F
from logocentric.core import LogocentricError, set_seed, shipped_path
from logocentric.audio.frontend import FrontendConfig, LogMel
from logocentric.encoder.audio_encoder import load_encoder, save_encoder
from logocentric.encoder.mae import MAEConfig, MAEEncoder, MAEModel
from logocentric.encoder.features import embed, embed_frames
from logocentric.encoder.published import (PublishedEncoder, build_encoder, encoder_weights, fitting_policy,
                                           load_published, published_frontend, published_kind, read_checkpoint)

@pytest.fixture(autouse=True)
def seeded(): set_seed(0)

def checkpoint(kind, cls, dim=128, depth=3, cols=13, patch=(16, 16), device=None):
    "Random weights under the names and in the shapes of the published files."
    make = lambda *shape, mean=0., std=.08: mean + std*torch.randn(*shape, device=device)
    norm = lambda n: {f'{n}.weight': make(dim, mean=1.), f'{n}.bias': make(dim)}
    linear = lambda n, out, into: {f'{n}.weight': make(out, into), f'{n}.bias': make(out)}
    state = {'cls_token': make(1, 1, dim, std=1.)} if cls else {}
    state |= {'pos_embed': make(1, 80//patch[0]*cols + cls, dim, std=.7), 'mask_token': make(1, 1, 64)}
    state |= {'patch_embed.proj.weight': make(dim, 1, *patch), 'patch_embed.proj.bias': make(dim)}
    for i in range(depth):
        b = f'blocks.{i}.'
        state |= norm(b + 'norm1') | norm(b + 'norm2') | linear(b + 'attn.proj', dim, dim)
        state |= {b + 'attn.qkv.weight': make(3*dim, dim)}
        state |= linear(b + 'mlp.fc1', 4*dim, dim) | linear(b + 'mlp.fc2', dim, 4*dim)
        if kind == 'm2d': state |= {b + 'attn.qkv.bias': make(3*dim)}
        else: state |= {b + 'attn.q_bias': make(dim), b + 'attn.v_bias': make(dim)}
    state |= norm('norm') | linear('decoder_embed', 64, dim)
    state |= {'decoder_pos_embed': make(1, 66, 64), 'decoder_blocks.0.attn.qkv.weight': make(192, 64)}
    if kind == 'm2d': state |= {'target_blocks.0.norm1.weight': make(dim), 'norm_stats': torch.tensor([-7.1, 4.2])}
    return state

def reference(state, kind, x):
    "What their encoder makes of (b, frames, mels): plain torch, one head at a time."
    dim, _, pm, pf = state['patch_embed.proj.weight'].shape
    conv = torch.nn.Conv2d(1, dim, (pm, pf), stride=(pm, pf))
    conv.load_state_dict({n: state[f'patch_embed.proj.{n}'] for n in ('weight', 'bias')})
    image = conv(x.transpose(1, 2).unsqueeze(1))                          # (b, dim, h, w)
    (h, w), cls = image.shape[2:], 'cls_token' in state
    table = state['pos_embed'][0, int(cls):].reshape(h, -1, dim)[:, :w].reshape(h*w, dim)
    tokens = image.flatten(2).transpose(1, 2) + table
    if cls: tokens = torch.cat([(state['cls_token'] + state['pos_embed'][:, :1]).expand(len(x), 1, dim), tokens], 1)
    i = 0
    while f'blocks.{i}.norm1.weight' in state:
        get = lambda n: state[f'blocks.{i}.{n}']
        y = F.layer_norm(tokens, (dim,), get('norm1.weight'), get('norm1.bias'), 1e-6)
        q, k, v = get('attn.qkv.weight').split(dim)
        bias = get('attn.qkv.bias').split(dim) if kind == 'm2d' else (get('attn.q_bias'), None, get('attn.v_bias'))
        q, k, v = (F.linear(y, m, b) for m, b in zip((q, k, v), bias))
        heads = [F.scaled_dot_product_attention(q[..., s:s + 64], k[..., s:s + 64], v[..., s:s + 64])
                 for s in range(0, dim, 64)]
        tokens = tokens + F.linear(torch.cat(heads, -1), get('attn.proj.weight'), get('attn.proj.bias'))
        y = F.layer_norm(tokens, (dim,), get('norm2.weight'), get('norm2.bias'), 1e-6)
        y = F.gelu(F.linear(y, get('mlp.fc1.weight'), get('mlp.fc1.bias')))
        tokens, i = tokens + F.linear(y, get('mlp.fc2.weight'), get('mlp.fc2.bias')), i + 1
    return F.layer_norm(tokens, (dim,), state['norm.weight'], state['norm.bias'], 1e-6)[:, int(cls):]

GIVEN = dict(mean=-6., std=5.)

# --- what published encoders have and ours has not: a class token, a table of positions

def tiny(**changes): return build_encoder(MAEConfig.preset('tiny', **changes)).eval()
def frames_of(*lengths): return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]

@pytest.mark.parametrize('bad',
                         [dict(position_grid=[4, 13]), dict(position_grid=[5]),
                          dict(position_grid=[5, 13], positions='time')])
def test_impossible_tables_are_refused(bad):
    with pytest.raises(ValueError): tiny(**bad)

def test_the_core_has_neither():
    for extra in (dict(cls_token=True), dict(position_grid=[5, 13])):
        for make in (MAEEncoder, MAEModel):
            with pytest.raises(ValueError, match='published encoder'): make(MAEConfig.preset('tiny', **extra))

def test_they_do_not_exist_by_default():
    assert [n for n in tiny().state_dict() if '.' not in n] == []
    assert {n.split('.')[0] for n in tiny().state_dict()} == {'patch_embed', 'blocks', 'norm'}

def test_a_table_of_the_sinusoids_changes_nothing():
    plain, x, mask = tiny(), torch.randn(2, 160, 80), frames_of(160, 70)
    tabled = tiny(position_grid=[5, 13])
    assert tabled.load_state_dict(plain.state_dict(), strict=False).missing_keys == ['position_table']
    assert torch.equal(tabled(x, mask).last_hidden_state, plain(x, mask).last_hidden_state)
    keep = torch.tensor([[3, 7], [40, -1]])
    assert torch.equal(tabled(x, mask, keep).last_hidden_state, plain(x, mask, keep).last_hidden_state)

def test_a_table_is_read_row_by_row():
    encoder = tiny(position_grid=[5, 13], cls_token=True)
    encoder.position_table.copy_(torch.randn(66, 64))
    positions = encoder.positions(4)
    assert torch.equal(positions.view(5, 4, 64), encoder.position_table[1:].view(5, 13, 64)[:, :4])

def test_a_logmel_longer_than_the_table_is_refused():
    encoder = tiny(position_grid=[5, 13])
    assert encoder(torch.randn(1, 208, 80)).last_hidden_state.shape == (1, 65, 64)
    with pytest.raises(ValueError, match=r'13 columns of patches \(208 frames\); the log-mel has 14'):
        encoder(torch.randn(1, 209, 80))

def test_class_token_takes_part_but_is_not_returned():
    encoder, x, mask = tiny(cls_token=True), torch.randn(2, 160, 80), frames_of(160, 70)
    before = encoder(x, mask).last_hidden_state
    assert before.shape == (2, 50, 64) and not before[1].view(5, 10, 64)[:, 5:].any()
    before.square().sum().backward()
    assert encoder.cls_token.grad.abs().max() > 0
    with torch.no_grad(): encoder.cls_token.normal_()
    assert (encoder(x, mask).last_hidden_state - before).abs().max() > 1e-3
    torch.testing.assert_close(embed(encoder, x, mask)[1:], embed(encoder, x[1:, :70]), atol=1e-5, rtol=0)

def test_they_are_saved_and_loaded(tmp_path):
    encoder = tiny(cls_token=True, position_grid=[5, 13])
    with torch.no_grad(): encoder.position_table.normal_(); encoder.cls_token.normal_()
    save_encoder(encoder, FrontendConfig(), tmp_path)
    for again in (PublishedEncoder.from_pretrained(tmp_path), load_encoder(tmp_path).encoder):
        assert torch.equal(again.position_table, encoder.position_table)
        assert torch.equal(again.cls_token, encoder.cls_token)
        assert again.config.position_grid == [5, 13] and again.longest == 13

# --- the arithmetic

@pytest.mark.parametrize('frames', [208, 96, 16])
@pytest.mark.parametrize('kind, cls', [('msm-mae', False), ('msm-mae', True), ('m2d', True), ('m2d', False)])
@torch.no_grad()
def test_features_equal_a_plain_forward(kind, cls, frames):
    state, x = checkpoint(kind, cls), torch.randn(2, frames, 80)
    encoder, _ = load_published(state, **GIVEN)
    torch.testing.assert_close(encoder(x).last_hidden_state, reference(state, kind, x), atol=1e-5, rtol=1e-5)

@torch.no_grad()
def test_strips_of_full_height():
    state, x = checkpoint('m2d', True, patch=(80, 4), cols=50), torch.randn(2, 100, 80)
    encoder, _ = load_published(state)
    assert encoder.config.position_grid == [1, 50] and encoder.config.n_rows == 1
    torch.testing.assert_close(encoder(x).last_hidden_state, reference(state, 'm2d', x), atol=1e-5, rtol=1e-5)

@torch.no_grad()
def test_contract_holds_for_published_weights():
    encoder, _ = load_published(checkpoint('m2d', True))
    x, real = torch.randn(2, 200, 80), torch.arange(200)[None] < torch.tensor([[90], [200]])
    together, alone = embed(encoder, x, real), torch.cat([embed(encoder, x[:1, :90]), embed(encoder, x[1:])])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert embed_frames(encoder, x)[0].shape == (2, 13, 5*128)

# --- the configuration

def test_configuration_is_read_off_the_shapes():
    encoder, frontend = load_published(checkpoint('m2d', True, dim=192, cols=38))
    c = encoder.config
    assert (c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.mlp_ratio) == (192, 3, 3, 4)
    assert c.position_grid == [5, 38] and c.cls_token and c.layer_norm_eps == 1e-6 and not encoder.training
    assert frontend.mean == pytest.approx(-7.1) and frontend.std == pytest.approx(4.2)
    assert c.pad_value == pytest.approx((math.log(np.finfo(np.float32).eps) - frontend.mean)/frontend.std)

@pytest.mark.parametrize('kind, cls, cols', [('msm-mae', False, 13), ('msm-mae', True, 32), ('m2d', True, 38)])
def test_vit_b_fits(kind, cls, cols):
    state = checkpoint(kind, cls, dim=768, depth=12, cols=cols, device='meta')
    encoder, _ = load_published(state, **GIVEN)
    assert encoder.device.type == 'meta' and 85e6 < encoder.num_parameters() < 87e6
    assert (encoder.config.num_attention_heads, encoder.config.position_grid) == (12, [5, cols])

def test_kind_and_what_is_ignored():
    assert [published_kind(checkpoint(k, True)) for k in ('msm-mae', 'm2d')] == ['msm-mae', 'm2d']
    encoder, _ = load_published(checkpoint('m2d', True) | {'head.weight': torch.zeros(2, 2)})
    assert encoder.ignored == ['decoder_blocks.0.attn.qkv.weight', 'decoder_embed.bias', 'decoder_embed.weight',
                               'decoder_pos_embed', 'head.weight',
                               'mask_token', 'target_blocks.0.norm1.weight']

def test_weights_that_are_no_numbers_are_refused():
    state = checkpoint('m2d', True)
    state['blocks.1.mlp.fc1.weight'][3, 5] = torch.nan
    with pytest.raises(LogocentricError, match='weights in the checkpoint are damaged'): load_published(state)


# --- normalisation

def test_msm_mae_needs_mean_and_deviation():
    state = checkpoint('msm-mae', False)
    with pytest.raises(LogocentricError, match='calibrate'): load_published(state)
    with pytest.raises(LogocentricError, match='both'): load_published(state, mean=-7.)
    assert load_published(state, **GIVEN)[1] == FrontendConfig(**GIVEN)

def test_m2d_brings_its_own():
    state = checkpoint('m2d', True)
    stats = state.pop('norm_stats')
    assert load_published(dict(model=state, norm_stats=stats.tolist()))[1].std == pytest.approx(4.2)
    assert load_published(state | dict(norm_stats=stats), **GIVEN)[1].mean == -6.
    with pytest.raises(LogocentricError, match='does not say'): load_published(state)
    with pytest.raises(LogocentricError, match='3 values'): published_frontend('m2d', torch.zeros(3))

# --- files

@pytest.mark.parametrize('wrap', [lambda s: s, lambda s: dict(model=s, epoch=300)])
def test_a_file_is_as_good_as_its_dict(tmp_path, wrap):
    state, x = checkpoint('m2d', True), torch.randn(1, 64, 80)
    torch.save(wrap(state), tmp_path/'m2d.pth')
    for found in (tmp_path/'m2d.pth', str(tmp_path/'m2d.pth'), wrap(state)):
        with torch.no_grad():
            assert torch.equal(load_published(found)[0](x).last_hidden_state,
                               load_published(state)[0](x).last_hidden_state)

def test_a_file_with_more_than_weights_is_refused(tmp_path):
    path = tmp_path/'training.pth'
    torch.save(dict(model=checkpoint('m2d', True), args=Namespace(lr=1e-4)), path)
    with pytest.raises(LogocentricError, match=r'training.pth: holds more than weights \(argparse.Namespace\)'):
        load_published(path)
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(LogocentricError, match='torch.nn.modules.linear.Linear'): load_published(path)

def test_foreign_code_does_not_run(tmp_path):
    class Bomb:
        def __reduce__(self): return (open, (str(tmp_path/'crater'), 'w'))
    torch.save(dict(model=Bomb()), tmp_path/'bomb.pth')
    with pytest.raises(LogocentricError, match='more than weights'): load_published(tmp_path/'bomb.pth')
    assert not (tmp_path/'crater').exists()

def test_broken_files_are_refused(tmp_path):
    path = tmp_path/'x.pth'
    with pytest.raises(LogocentricError, match='no such file'): load_published(path)
    torch.save(checkpoint('m2d', True), path)
    whole = path.read_bytes()
    for broken in (b'', whole[:1000], whole[:-1000], b'not a checkpoint at all', b'<html>404</html>'):
        path.write_bytes(broken)
        with pytest.raises(LogocentricError, match=r'x\.pth: '): load_published(path)

@pytest.mark.parametrize('what, message',
                         [([1, 2], 'list'), (dict(model=3), 'int'), (dict(epoch=3), 'no tensors'),
                          (dict(a=torch.zeros(2)), 'found a'), (None, 'NoneType')])
def test_things_that_are_no_checkpoint(what, message):
    with pytest.raises(LogocentricError, match=message): load_published(what)

# --- names and shapes

@pytest.mark.parametrize('gone',
                         ['pos_embed', 'norm.bias', 'blocks.1.attn.q_bias', 'blocks.2.mlp.fc2.weight',
                          'patch_embed.proj.weight'])
def test_a_missing_name_is_named(gone):
    state = checkpoint('msm-mae', False)
    del state[gone]
    with pytest.raises(LogocentricError, match=f'{gone} missing'): load_published(state, **GIVEN)

def test_a_truncated_dict_is_refused():
    state = checkpoint('m2d', True)
    for n in range(1, list(state).index('norm.bias') + 1):
        with pytest.raises(LogocentricError): load_published(dict(list(state.items())[:n]), **GIVEN)

def test_an_unknown_name_is_named():
    state = checkpoint('m2d', True)
    with pytest.raises(LogocentricError, match='dist_token unknown'):
        load_published(state | {'dist_token': torch.zeros(1)})
    with pytest.raises(LogocentricError, match='and 2 more missing'):
        encoder_weights(checkpoint('msm-mae', True, depth=8), 'm2d')
    with pytest.raises(LogocentricError, match='msm-mae, m2d'): load_published(state, kind='audiomae')

@pytest.mark.parametrize('name, shape, message', [
    ('pos_embed', (1, 68, 128), '67 positions'), ('pos_embed', (66, 128), '3 dimensions'),
    ('norm.bias', (64,), r'norm.bias \(64,\) instead of \(128,\)'),
    ('patch_embed.proj.weight', (128, 3, 16, 16), '64 x heads, 1'),
    ('patch_embed.proj.weight', (100, 1, 16, 16), '64 x heads, 1'),
    ('patch_embed.proj.weight', (128, 256), '4 dimensions'),
    ('blocks.2.mlp.fc1.weight', (256, 128), 'blocks.2.mlp.fc1.weight'),
    ('cls_token', (1, 2, 128), 'cls_token'), ('blocks.0.mlp.fc1.weight', (500, 128), 'wrong shapes')])
def test_a_wrong_shape_is_named(name, shape, message):
    with pytest.raises(LogocentricError, match=message):
        load_published(checkpoint('m2d', True) | {name: torch.zeros(shape)})

# --- what can be done with it

def test_a_logmel_longer_than_the_grid_is_refused():
    encoder, _ = load_published(checkpoint('m2d', True))
    with pytest.raises(ValueError, match='13 columns'): encoder(torch.randn(1, 209, 80))

@pytest.mark.parametrize('frames', [208, 512, 608])
def test_windows_fill_the_grid_and_never_exceed_it(frames):
    encoder, frontend = load_published(checkpoint('m2d', True, depth=1, cols=frames//16))
    policy = fitting_policy(encoder, frontend)
    windows = policy.windows(30.)
    lengths = [round(w.stop*16_000) - round(w.start*16_000) for w in windows]
    assert [LogMel(frontend)(torch.zeros(n)).shape[0] for n in lengths][:-1] == [frames]*(len(windows) - 1)
    assert windows[-1].stop > 30 - policy.min_seconds and LogMel(frontend)(torch.zeros(lengths[-1])).shape[0] <= frames

def test_training_leaves_the_dict_alone():
    state = checkpoint('m2d', True)
    before = {n: w.clone() for n, w in state.items()}
    encoder, _ = load_published(state)
    encoder(torch.randn(1, 64, 80)).last_hidden_state.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    with torch.no_grad(): [p.zero_() for p in encoder.parameters()]
    assert all(torch.equal(state[n], before[n]) for n in state)

def test_half_precision_weights_become_float32():
    encoder, _ = load_published({n: w.half() for n, w in checkpoint('m2d', True).items()})
    assert {p.dtype for p in encoder.state_dict().values()} == {torch.float32}

def test_saved_and_loaded_as_ours(tmp_path):
    encoder, _ = load_published(checkpoint('msm-mae', True), **GIVEN)
    encoder.save_pretrained(tmp_path)
    again, x = PublishedEncoder.from_pretrained(tmp_path).eval(), torch.randn(1, 100, 80)
    with torch.no_grad(): assert torch.equal(again(x).last_hidden_state, encoder(x).last_hidden_state)
    assert again.config.pad_value == encoder.config.pad_value

def test_read_checkpoint_tells_weights_from_the_rest():
    state = checkpoint('m2d', True)
    weights, stats = read_checkpoint(dict(model=state, epoch=3))
    assert set(weights) == set(state) - {'norm_stats'} and torch.equal(stats, state['norm_stats'])


# --- what others wrote is data: it runs no code, and ours tells nobody where it was made

ROOT = Path(__file__).resolve().parents[1]

def code_of(path):
    text = path.read_text(encoding='utf-8')
    if 'from_pretrained' not in text: return ''
    if path.suffix == '.py': return text
    cells = [''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type'] == 'code']
    return '\n'.join(re.sub(r'(?m)^(\s*)[%!].*', r'\1pass', cell) for cell in cells)

def loads_of_transformers(tree):
    "Calls of `from_pretrained` on a class of transformers, or on what may be one."
    theirs = {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)
              and (n.module or '').partition('.')[0] == 'transformers' for a in n.names} | {'auto', 'cls'}
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, 'attr', '') == 'from_pretrained']
    return [c for c in calls if ast.unparse(c.func.value) in theirs or ast.unparse(c.func.value).startswith('super(')]

def test_no_model_of_others_brings_code():
    files = [*ROOT.glob('logocentric/**/*.py'), *ROOT.glob('tools/*.py'), *ROOT.glob('nbs/**/*.ipynb')]
    calls = [(path.name, call) for path in files if '.ipynb_checkpoints' not in path.parts
             for call in loads_of_transformers(ast.parse(code_of(path)))]
    trusted = [(name, ast.unparse(call)) for name, call in calls
               if 'trust_remote_code=False' not in map(ast.unparse, call.keywords)]
    assert len(calls) > 20 and not trusted


def test_a_tokenizer_or_model_that_asks_for_its_own_code_is_refused(tmp_path):
    from logocentric.reasoner.model import Reasoner
    Reasoner.from_pretrained(shipped_path('reasoner')).save_pretrained(tmp_path)
    (tmp_path/'own.py').write_text(f"open({str(tmp_path/'it_ran')!r}, 'w')\nclass Own: pass\n")
    for name, auto in dict(config=dict(AutoConfig='own.Own', AutoModelForCausalLM='own.Own'),
                           tokenizer_config=dict(AutoTokenizer=['own.Own', None])).items():
        file = tmp_path/f'{name}.json'
        file.write_text(json.dumps(json.loads(file.read_text()) | dict(auto_map=auto, model_type='own',
                                                                       tokenizer_class='Own')))
    with pytest.raises(LogocentricError, match=str(tmp_path)): Reasoner.from_pretrained(tmp_path)
    assert not (tmp_path/'it_ran').exists()


def test_what_is_saved_does_not_say_where_it_was_made(tmp_path):
    from logocentric.captioner.adapt import adapt, save_adapter
    from logocentric.captioner.model import Captioner
    from logocentric.encoder.audio_encoder import save_encoder
    place = tmp_path/'somebodys-own-folder'
    shipped = Captioner.from_pretrained(shipped_path('captioner'))
    shipped.decoder.save_pretrained(place/'gpt2'); shipped.tokenizer.save_pretrained(place/'gpt2')
    encoder = load_encoder(save_encoder(*load_encoder(), place/'ear'))
    captioner = Captioner.from_parts(encoder.encoder.requires_grad_(False), place/'gpt2', frontend=encoder.frontend)
    captioner.save_pretrained(tmp_path/'captioner'); save_encoder(*encoder, tmp_path/'encoder')
    save_adapter(adapt(captioner, 'lora'), tmp_path/'adapter'); captioner.save_pretrained(tmp_path/'merged')
    written = [p for p in tmp_path.rglob('*') if p.is_file() and place not in p.parents]
    assert len(written) > 12 and not [p for p in written if place.name.encode() in p.read_bytes()]
    configs = [p for p in (ROOT/'logocentric'/'assets').rglob('*.json')]
    assert configs and not [p for p in configs if re.search(r'"(/|[A-Z]:|~)[^"\s]', p.read_text(encoding='utf-8'))]


def test_names_are_text_in_the_report():
    from logocentric.pipeline.report import _page
    body = ('# <script>alert(1)</script>\n\n| system | N |\n|---|---|\n| <img src=x onerror=alert(2)> & "co" | 3 |\n\n'
            '<iframe src="x">\n\n[click](javascript:alert(3)) ![fig](figures/a.png)\n')
    html = _page(body)
    for tag in ('<script', '<img src=x', '<iframe', 'href="javascript:'): assert tag not in html.lower(), tag
    assert '&lt;script&gt;' in html and '&lt;img src=x onerror=alert(2)&gt; &amp; &quot;co&quot;' in html
    assert '<table>' in html and 'src="figures/a.png"' in html
