"Every test runs quietly, on one thread, without a display and without a network. What several files need is made once."
import multiprocessing, os
os.environ.update(LOGOCENTRIC_QUIET='1', MPLBACKEND='agg', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false',
                  OMP_NUM_THREADS='1') # two workers on two cores; and small models are slower on two threads
from pathlib import Path
import pytest, torch
from logocentric.core import shared_path

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]

LONGEST = [f'test_{n}' for n in ('experiments interruptions distributed reasoner studies tagging_stages sources '
                                 'reasoners full_size').split()]

needs_recordings = pytest.mark.skipif(not (shared_path() and (shared_path()/'data'/'real'/'audio').is_dir()),
                                      reason='the excerpts are not here: `logocentric get recordings` makes them')


def pytest_collection_modifyitems(items):
    "Files that take longest come first, so that no worker ends with one of them alone."
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank))) # stable: the order within a file stays


# --- homes: where runs keep what they make

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "An empty home for what runs make, shared by the tests of a file."
    folder = tmp_path_factory.mktemp('home')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('LOGOCENTRIC_HOME', str(folder))
        yield folder


@pytest.fixture(scope='session')
def session_folder(tmp_path_factory):
    "A folder of this run of the tests, the same one in all workers."
    own = tmp_path_factory.getbasetemp()
    return own.parent if 'PYTEST_XDIST_WORKER' in os.environ else own


@pytest.fixture(scope='session')
def smoke_folder(session_folder):
    folder = session_folder/'smoke'
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope='module')
def smoke_home(smoke_folder):
    "One home for all at scale `smoke`: a stage that one test has made is found by the next, in whichever worker."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('LOGOCENTRIC_HOME', str(smoke_folder))
        yield smoke_folder


# --- processes

@pytest.fixture(scope='session')
def fresh_process():
    "A `Process` that knows nothing of this one, not even its home. What all of them import is imported once."
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['logocentric.pipeline.report'])
    return context.Process


# --- tokenizers, none of which a test may change

END = '<|endoftext|>'

@pytest.fixture(scope='session')
def word_tokenizer():
    "Builds a tokenizer of whole words, the end of the text behind them (so that it is not token 0)."
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    made = {}
    def build(words):
        if (key := tuple(words)) not in made:
            plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*key, END])}, unk_token=END))
            plain.pre_tokenizer = pre_tokenizers.Whitespace()
            made[key] = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token=END, eos_token=END)
        return made[key]
    return build


@pytest.fixture(scope='session')
def knowledge_sentences():
    "Twenty thousand sentences of the text that the reasoner reads."
    from logocentric.reasoner.knowledge import knowledge_text
    return tuple(knowledge_text(20_000, seed=0))


@pytest.fixture(scope='session')
def shared():
    "The path of something beside the checkout that is not part of it; the test is skipped where it is not there."
    from logocentric.core import shared_path
    def find(*parts):
        folder = shared_path() and shared_path()/'data'
        if not folder or not folder.joinpath(*parts).exists(): pytest.skip(f'no {"/".join(parts)} beside the checkout')
        return folder.joinpath(*parts)
    return find


@pytest.fixture(scope='session')
def gpt2_tokenizer(shared):
    "GPT-2's own tokenizer."
    from transformers import GPT2TokenizerFast
    folder = shared('gpt2_tokenizer', 'vocab.bpe').parent
    return GPT2TokenizerFast(vocab=str(folder/'encoder.json'), merges=str(folder/'vocab.bpe'))


@pytest.fixture(scope='module')
def one_thread():
    "All tests run on one thread; files that ask for it may stop asking."
