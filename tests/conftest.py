import os
import sys
from pathlib import Path

import pytest
from reference.process import PyTorch


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
    process = PyTorch()
    yield process
    process.close()


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


@pytest.fixture(scope="session")
def coco128() -> Path:
    """The folder of the COCO128 sample: `images/` and `annotations/instances_train2017.json`."""
    return _shared("coco128")


@pytest.fixture(scope="session")
def bccd() -> Path:
    """The folder of the blood cells: `JPEGImages/`, `Annotations/` and `ImageSets/Main/`."""
    return _shared("bccd") / "BCCD"
