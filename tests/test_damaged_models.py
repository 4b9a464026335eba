"A model, or a file that says where things are, that was cut short or edited: one error, and the file's name is in it."
import shutil
import pytest
from transformers import BertConfig, BertModel
from logocentric.captioner.model import Captioner, load_gpt2
from logocentric.core import LogocentricError, loading_model, read_json, read_toml, shipped_path
from logocentric.encoder.audio_encoder import load_encoder
from logocentric.pipeline.sources import read_sources
from logocentric.reasoner.model import Reasoner
from logocentric.reasoner.sentences import SentenceReasoner

LOADERS = dict(captioner=Captioner.from_pretrained, reasoner=Reasoner.from_pretrained, ear=load_encoder, gpt2=load_gpt2,
               sentences=SentenceReasoner.from_pretrained)
HARM = dict(cut=lambda b: b[:len(b)//2], empty=lambda b: b'', noise=lambda b: bytes(range(128, 256))*4,
            list=lambda b: b'[]', other=lambda b: b'{"version": 3, "model": "x"}')


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "A folder of small models, as each loader wants them."
    folder = tmp_path_factory.mktemp('models')
    shipped = Reasoner.from_pretrained(shipped_path('reasoner'))
    for kind in ('captioner', 'ear'): shutil.copytree(shipped_path(kind), folder/kind)
    shipped.save_pretrained(folder/'reasoner')
    captioner = Captioner.from_pretrained(shipped_path('captioner'))
    captioner.decoder.save_pretrained(folder/'gpt2'); captioner.tokenizer.save_pretrained(folder/'gpt2')
    BertModel(BertConfig(vocab_size=len(shipped.tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=16)).save_pretrained(folder/'sentences')
    shipped.tokenizer.save_pretrained(folder/'sentences')
    return folder


FILES = [(kind, name) for kind in LOADERS for name in (
    'model.safetensors', 'config.json', 'frontend.json' if kind == 'ear' else 'tokenizer.json')]

@pytest.mark.parametrize('harm', HARM)
@pytest.mark.parametrize('kind, name', FILES)
def test_a_damaged_file_of_a_model_is_named(models, tmp_path, kind, name, harm):
    if (name, harm) == ('config.json', 'other'): return # a whole model of default sizes, which the weights do not fit
    shutil.copytree(models/kind, folder := tmp_path/kind)
    (folder/name).write_bytes(HARM[harm]((folder/name).read_bytes()))
    with pytest.raises(LogocentricError) as error: LOADERS[kind](folder)
    assert str(folder/name) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('kind', LOADERS)
def test_what_is_whole_is_loaded_and_what_is_no_model_is_named(models, tmp_path, kind):
    LOADERS[kind](models/kind)
    for place in (tmp_path, tmp_path/'nowhere'):
        with pytest.raises(LogocentricError, match=str(place)): LOADERS[kind](place)


def test_a_lack_of_memory_is_no_damage(tmp_path):
    for error in (MemoryError, KeyboardInterrupt, LogocentricError):
        with pytest.raises(error), loading_model('model', tmp_path, 'give another'): raise error('no room')


@pytest.mark.parametrize('content', [b'{"a": ', b'', b'\xff\xfe{\x00}\x00', b'{"a": "\xe9"}', b'['*100_000])
def test_a_json_file_that_is_none_is_named(tmp_path, content):
    (tmp_path/'x.json').write_bytes(content)
    with pytest.raises(LogocentricError, match=r'x\.json is not JSON'): read_json(tmp_path/'x.json')


@pytest.mark.parametrize('content, said', [
    ('[gtzan]\nfolder = "é"\n'.encode('latin-1'), 'mine.toml is not TOML'),
    ('[gtzan]\nfolder = "x"\n'.encode('utf-16'), 'mine.toml is not TOML'),
    (b'[gtzan]\nfolder =', 'mine.toml is not TOML'),
    (b'[gtzan]\nfolder = 7\n', r"mine.toml, \[gtzan\]: folder is a text in quotation marks, not 7"),
    (b"[captions]\ndataset = 'clotho'\nfolder = ['a']\n", r"folder is a text in quotation marks, not \['a'\]"),
    (b'[models]\ngpt2-large = true\n', r"\[models\]: gpt2-large is a text in quotation marks, not True")])
def test_a_file_of_sources_that_is_wrong_is_named(tmp_path, content, said):
    (tmp_path/'mine.toml').write_bytes(content)
    with pytest.raises(LogocentricError, match=said): read_sources(tmp_path/'mine.toml')
    if 'not TOML' in said:
        with pytest.raises(LogocentricError, match=said): read_toml(tmp_path/'mine.toml')
