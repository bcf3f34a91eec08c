"""No process of ours that holds TensorFlow imports triton, which would end it by a segmentation fault.

Quick tests put a stand-in on the search path that ends any process in which TensorFlow was first; slow ones the real
triton, fetched by pip.
"""

import os
import signal
import subprocess
import sys

import pytest

# Where TensorFlow is not, it is as if triton were not installed.
STAND_IN = """
import os, sys
if "tensorflow" in sys.modules:
    os.write(2, b"triton was imported after TensorFlow")
    os.abort()
raise ImportError("a stand-in")
"""
PORTING = """
import sys
import tensorflow
import port_weights
from port_weights.checkpoints import open_checkpoint
from port_weights.compare import compare

rows, _ = compare("detr-tiny", 64, 96)
assert all(row.agrees for row in rows)
model = port_weights.export_pth("detr-tiny", "detr.pth")
rows, _ = compare("detr.pth", 64, 96)
assert all(row.agrees for row in rows)
again = port_weights.load_model("detr.pth")
assert [weight.shape for weight in again.weights] == [weight.shape for weight in model.weights]
assert not {"torch", "transformers"} & set(sys.modules)

import torch  # as a program does that has a state dict in memory

state = torch.load("detr.pth", weights_only=False)["model"]
state = {name: torch.nn.Parameter(tensor.bfloat16()) for name, tensor in state.items()}
port_weights.load_model(state)
assert "transformers" not in sys.modules
"""
DEMO = """
import json, pathlib
from tfdetr_keras import demo

demo.HELD_OUT_IMAGES, demo.TRAINING_IMAGES, demo.BATCH_SIZE = 4, 4, 2
demo.RECIPE["batch_size"] = 2
assert demo.run_demo(pathlib.Path("out"), steps=1)
assert json.loads(pathlib.Path("out/report.json").read_text())["parity"]["logits"] < 1e-4
"""


def run_python(code, folder, path, **environment):
    """Runs code in a new process, in a folder and with another one first on its search path."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(path), *sys.path]), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stand-in")
    (folder / "triton").mkdir()
    (folder / "triton" / "__init__.py").write_text(STAND_IN)
    return folder


@pytest.fixture(scope="session", params=["3.7.1", "3.8.0"])
def real(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*pip, f"triton=={request.param}"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot fetch triton {request.param}: {done.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.mark.slow
def test_the_stand_in_is_a_trap(stand_in, tmp_path):
    done = run_python("import tensorflow, torch; torch.optim.SGD([torch.ones(1)], 0.1)", tmp_path, stand_in)
    assert done.returncode == -signal.SIGABRT
    assert done.stderr.endswith("triton was imported after TensorFlow")


@pytest.mark.slow
@pytest.mark.parametrize("code", [PORTING, DEMO], ids=["porting", "demo"])
def test_our_processes_do_not_import_triton(stand_in, tmp_path, code):
    done = run_python(code, tmp_path, stand_in)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("first", ["td.data.load_shapes(1)", "td.evaluation", "td.DETR", "td.export"])
def test_with_kerass_torch_backend_keras_comes_before_tensorflow(stand_in, tmp_path, first):
    """Keras imports triton with that backend, so that whatever of ours is touched first has to import Keras first."""
    code = f"import tfdetr_keras as td; {first}; td.data.load_shapes(1); td.DETR"
    done = run_python(code, tmp_path, stand_in, KERAS_BACKEND="torch")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_hazard_is_real(real, tmp_path):
    done = run_python("import tensorflow, triton", tmp_path, real)
    if done.returncode == 0:
        pytest.skip("this machine's TensorFlow and this triton get along in any order")
    assert done.returncode == -signal.SIGSEGV
    assert run_python("import triton, tensorflow", tmp_path, real).returncode == 0  # the remedy in docs/port.md


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["-m", "port_weights", "compare", "detr-tiny"],
        ["-m", "tfdetr_keras", "demo", "--steps", "1"],
        ["-c", PORTING],
        ["-c", "import tensorflow, tfdetr_keras, torch; tfdetr_keras.DETR; torch.ones(1)"],
        ["-c", "import torch, tfdetr_keras, tensorflow; tfdetr_keras.DETR; torch.ones(1)"],
        ["-c", "import tfdetr_keras, torch, tensorflow; tfdetr_keras.data; torch.ones(1)"],
        ["-c", "from transformers import DetrForObjectDetection; import tfdetr_keras; tfdetr_keras.DETR"],
    ],
    ids=["compare", "demo", "porting", "tensorflow first", "torch first", "ours first", "transformers first"],
)
def test_with_the_real_triton(real, tmp_path, command):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(real), *sys.path])}
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
