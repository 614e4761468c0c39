"One thread a worker, and no network."
import gc, os

import pytest

os.environ.update(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false')
os.environ.pop('IN_TEST', None)  # nbdev's marker: left over, it turns an export into a silent no-op


@pytest.fixture(scope='session', autouse=True)
def one_thread():
    "Workers that run side by side each keep to one core."
    import torch
    torch.set_num_threads(1)


DRAWN = 'test_viz', 'test_browser', 'test_cli', 'test_pipeline'


@pytest.fixture(autouse=True)
def pictures(request, monkeypatch):
    "A browser takes seconds to start: PNGs are drawn where they are looked at; elsewhere figures are pages and data, as on a machine without one."
    if request.module.__name__ not in DRAWN: return monkeypatch.setenv('BROWSER_PATH', '/nowhere')
    from interlat.figures import look
    if look._painter().failed: look._painter.cache_clear()


def pytest_collection_finish():
    "What the tests import stays to the end: half a million objects that no collection needs to look through again."
    gc.collect()
    gc.freeze()
