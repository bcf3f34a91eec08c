"""Every kind of file that is read, and what is said of each that cannot be."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from port_weights import load_model
from port_weights.checkpoints import open_checkpoint


def assert_reads(checkpoint, state):
    assert dict(checkpoint.shapes) == {name: tensor.shape for name, tensor in state.items()}
    for name, tensor in state.items():
        got = checkpoint.read(name)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, tensor, err_msg=name)


def test_a_folder(hf_folder, state):
    checkpoint = open_checkpoint(hf_folder)
    assert_reads(checkpoint, state)
    assert checkpoint.config["model_type"] == "detr"
    assert open_checkpoint(str(hf_folder / "model.safetensors")).config == checkpoint.config


def test_a_file_of_another_name_does_not_take_its_neighbours_configuration(state, write_folder):
    folder = write_folder(state)
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    assert open_checkpoint(folder / "mine.safetensors").config is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_read_as_float32(state, pytorch, tmp_path, dtype):
    files = [tmp_path / "half.safetensors", tmp_path / "half.pth"]
    rounded = pytorch.call("pickles:write_half", state, dtype, *files)
    assert any((rounded[name] != state[name]).any() for name in state)
    for file in files:
        assert_reads(open_checkpoint(file), rounded)


@pytest.fixture
def sharded(state, tmp_path, hf_folder):
    """A folder whose tensors stand in two files and an index."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    names = sorted(state)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_bytes((hf_folder / "config.json").read_bytes())
    return folder


def test_shards(sharded, state):
    checkpoint = open_checkpoint(sharded)
    assert_reads(checkpoint, state)
    assert checkpoint.config["model_type"] == "detr"


def test_shards_that_lack_something(sharded, state):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name, file = next(iter(content["weight_map"].items()))

    index.write_text(json.dumps({"weight_map": {**content["weight_map"], "ghost": file}}))
    with pytest.raises(ValueError, match="lists the tensor 'ghost', but its file does not hold it"):
        open_checkpoint(sharded)
    index.write_text(json.dumps({"weight_map": {name: "../../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match=r"names '\.\./\.\./elsewhere.safetensors', which is not a file of its own"):
        open_checkpoint(sharded)
    index.write_text(json.dumps({}))
    with pytest.raises(ValueError, match="has no weight_map from tensors to files"):
        open_checkpoint(sharded)
    index.write_text(json.dumps(content))
    (sharded / file).unlink()
    with pytest.raises(ValueError, match=rf"{file} is not a safetensors file"):
        open_checkpoint(sharded)


def test_a_folder_with_a_pickle(state, pytorch, tmp_path, hf_folder):
    pytorch.call("pickles:write", tmp_path / "pytorch_model.bin", state)
    (tmp_path / "config.json").write_bytes((hf_folder / "config.json").read_bytes())
    checkpoint = open_checkpoint(tmp_path)
    assert_reads(checkpoint, state)
    assert checkpoint.config["model_type"] == "detr"


@pytest.mark.parametrize("source", ["missing.pth", "missing.safetensors", "no/such/folder", "detr", "a/b/c.pth"])
def test_a_source_that_is_not_there(source):
    with pytest.raises(ValueError, match=f"^{source}: no such file or folder, nor a hub id of the form owner/name"):
        open_checkpoint(source)


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=r"has no model.safetensors .*it holds nothing"):
        open_checkpoint(tmp_path)
    (tmp_path / "readme.md").write_text("weights elsewhere")
    with pytest.raises(ValueError, match=r"it holds readme\.md"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "header-only"])
def test_damaged_safetensors(hf_folder, tmp_path, kind):
    whole = (hf_folder / "model.safetensors").read_bytes()
    content = {"truncated": whole[:-100], "text": b"not tensors at all", "empty": b"", "header-only": whole[:64]}[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for source in (path, tmp_path):
        with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file, or it is truncated"):
            open_checkpoint(source)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"config.json is not valid JSON"),
        (b"\xff\xfe\x00", r"config.json is not valid JSON"),
        (b"", r"config.json is not valid JSON"),
        (b"[1]", r"config.json must hold a JSON object, not a list"),
    ],
)
def test_a_malformed_config_json(state, write_folder, content, message):
    folder = write_folder(state)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(folder)


def test_tensors_that_are_not_finite(state):
    broken = {**state, "model.input_projection.bias": np.full(16, np.nan, np.float32)}
    with pytest.raises(ValueError, match=r"model.input_projection.bias holds values that are not finite"):
        load_model(broken, heads=2)


@pytest.mark.parametrize("among_weights", [False, True], ids=["alone", "among-weights"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "plain-pickle"])
def test_a_pickle_that_runs_code_is_refused(pytorch, tmp_path, among_weights, legacy):
    trace, path = tmp_path / "harm-was-done", tmp_path / "detr.pth"
    pytorch.call("pickles:write_intruder", path, trace, among_weights, legacy)
    with pytest.raises(ValueError, match=r"detr\.pth is damaged, or holds more than weights and is refused") as refused:
        open_checkpoint(path)
    assert not trace.exists()
    assert "safe_globals" not in str(refused.value)  # torch says how to let it run
    if not legacy:  # the trap works: opened without care, the harm is done
        pytorch.call("pickles:open_without_care", path)
        assert trace.exists()


@pytest.mark.parametrize("kind", ["truncated", "text", "empty"])
def test_a_damaged_pickle(state, pytorch, tmp_path, kind):
    path = tmp_path / "detr.pth"
    pytorch.call("pickles:write", path, state)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"weights", "empty": b""}[kind])
    with pytest.raises(ValueError, match=r"detr\.pth is (damaged|not a PyTorch checkpoint)"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({}, "is not a state dict of named tensors: it is empty"),
        ({"epoch": 3, "lr": 0.1}, "is not a state dict of named tensors: epoch, lr"),
    ],
)
def test_a_pickle_of_something_else(pytorch, tmp_path, content, message):
    pytorch.call("pickles:write", tmp_path / "detr.pth", content)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path / "detr.pth")


WITHOUT_TORCH = """
import sys
sys.modules.update(torch=None, transformers=None)
from tfdetr_keras.models import DETR
model = DETR.from_pretrained(sys.argv[1])
print(float(abs(model.class_head.kernel.numpy()).sum()))
try:
    DETR.from_pretrained(sys.argv[2])
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_safetensors_need_no_torch(hf_folder, ported, pytorch, tmp_path, request):
    pytorch.call("pickles:write", tmp_path / "detr.pth", {"a": np.ones(1, np.float32)})
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(hf_folder), str(tmp_path / "detr.pth")],
        env={**os.environ, "PYTHONPATH": str(request.config.rootpath)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    total, error = done.stdout.splitlines()
    assert float(total) == float(np.abs(np.asarray(ported.class_head.kernel)).sum())
    assert "detr.pth is a pickle, which only torch can open: pip install torch, or use safetensors" in error


def test_a_file_is_called_as_the_caller_did(tmp_path, monkeypatch):
    """torch opens it in a process of its own, by its whole path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.pth").write_bytes(b"no pickle " * 20)
    with pytest.raises(ValueError, match=r"^broken\.pth is not a PyTorch checkpoint|^broken\.pth is damaged"):
        load_model("broken.pth")
