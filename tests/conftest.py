import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from reference.process import PyTorch

from port_weights.pytorch import process

pytest_plugins = ["seconds_of_members"]
PORTS = 32  # models are kept: the tiny ones of all members and a few others


def _shared(name: str) -> Path:
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TFDETR_DATA", default)) / name
    if not folder.is_dir():
        pytest.skip(f"the images are missing: set TFDETR_DATA to the folder that holds {name}/")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory):
    """Tests neither read nor write the user's conversions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDETR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def pytorch():
    """The process in which PyTorch and transformers run: `pytorch.call("module:function", …)` of `tests/reference`."""
    kept = PyTorch()
    yield kept
    kept.close()


class _KeptProcess:
    """Stands for `subprocess` where `port_weights` starts PyTorch: one process, kept, answers."""

    PIPE, STDOUT = subprocess.PIPE, subprocess.STDOUT

    def __init__(self, pool):
        self._pool = pool

    def run(self, command, input, **_):
        request = json.loads(input)
        del request["path"]
        self._pool.submit(process.answer, **request).result()
        return subprocess.CompletedProcess(command, 0, b"")


@pytest.fixture(autouse=True, scope="session")
def _porting_by_a_kept_process():
    """Reads and writes pickles without starting PyTorch for each of them, which takes 1.5 seconds."""
    spawned = multiprocessing.get_context("spawn")  # a fork would hold TensorFlow
    with ProcessPoolExecutor(1, spawned) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "subprocess", _KeptProcess(pool))
        yield


@pytest.fixture
def porting_as_users_do(monkeypatch):
    """Starts a process of PyTorch for each pickle, as `port_weights` does outside these tests."""
    monkeypatch.setattr(process, "subprocess", subprocess)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A folder that all processes of this test run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def answers(pytorch, pytestconfig, run_folder):
    """What the reference computes of a case of `members`: `answers(case)`."""
    from answers import answers_of

    kept = getattr(pytestconfig, "cache", None)
    folder, found = kept.mkdir("reference") if kept else run_folder / "reference", {}

    def of(case):
        if case.name not in found:
            found[case.name] = answers_of(case, pytorch, folder)
        return found[case.name]

    return of


@pytest.fixture(scope="session")
def port(answers):
    """The Keras model of a case, with the reference's weights: `port(case)`; no test may change it."""
    from ports import port_of

    found = {}

    def of(case):
        if case.name not in found:
            while len(found) >= PORTS:
                found.pop(next(iter(found)))
            found[case.name] = port_of(case, answers(case))
        return found[case.name]

    return of


@pytest.fixture(autouse=True, scope="session")
def _no_triton_beside_tensorflow():
    """transformers imports triton, and triton 3.7 after TensorFlow ends the process by a segmentation fault."""
    yield
    beside = {"transformers", "triton"} & set(sys.modules)
    assert not beside, f"a test imported {beside} into the process of TensorFlow; see tests/reference"


@pytest.fixture(scope="module")
def without_tracing():
    """Runs TensorFlow's functions eagerly: tracing takes most of the time of so short a training."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def plain_parts():
    """Leaves functions plain that would be compiled on their own, which takes most of the time of a step or two."""
    from tfdetr_keras.backend.compiler import left_plain

    with left_plain():
        yield


@pytest.fixture(scope="session")
def coco128() -> Path:
    """The folder of the COCO128 sample: `images/` and `annotations/instances_train2017.json`."""
    return _shared("coco128")


@pytest.fixture(scope="session")
def bccd() -> Path:
    """The folder of the blood cells: `JPEGImages/`, `Annotations/` and `ImageSets/Main/`."""
    return _shared("bccd") / "BCCD"
