"Every test runs quietly, without a display and without a network."
import os
import pytest, torch

os.environ.update(LOGOCENTRIC_QUIET='1', MPLBACKEND='agg', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false')


@pytest.fixture(scope='module')
def one_thread():
    "Small models are slower on two threads."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "An empty home for what runs make, shared by the tests of a file."
    folder = tmp_path_factory.mktemp('home')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('LOGOCENTRIC_HOME', str(folder))
        yield folder
