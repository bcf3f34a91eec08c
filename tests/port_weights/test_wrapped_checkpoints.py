"""Checkpoints as training programs leave them: inside other things, under longer names, or with parts deleted."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file
from some_slow import some_slow

from port_weights import load_model
from port_weights.checkpoints import Checkpoint, open_checkpoint
from port_weights.schemes import detect_scheme
from port_weights.wrappers import unwrapped


def named(names):
    return Checkpoint("file.pth", dict.fromkeys(names, (1,)), lambda name: np.array([names.index(name)]))


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model._orig_mod.", "net.a."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("names", ["state", "facebook_state", "timm_state"])
def test_what_wraps_a_model(prefix, names, request, ported):
    state = request.getfixturevalue(names)
    checkpoint = unwrapped(named([prefix + name for name in state]))
    assert list(checkpoint.shapes) == list(state)
    for index, name in enumerate(state):
        assert checkpoint.read(name) == [index]
    detect_scheme(checkpoint.shapes)


@pytest.mark.parametrize("names", ["state", "facebook_state", "timm_state", "torchvision_state"])
def test_a_models_own_names_stay(names, request):
    state = request.getfixturevalue(names)
    for prefix in ("", "detr."):
        checkpoint = named([prefix + name for name in state])
        assert list(unwrapped(checkpoint).shapes) == list(checkpoint.shapes)


def test_what_stands_beside_the_model_is_told(facebook_state, caplog):
    checkpoint = unwrapped(named([*(f"model.{name}" for name in facebook_state), "criterion.empty_weight"]))
    assert list(checkpoint.shapes) == list(facebook_state)
    assert "left out what stands beside the model model: criterion.empty_weight" in caplog.text


def test_a_submodule_alone_that_was_compiled(facebook_state):
    names = [name.replace("backbone.", "backbone._orig_mod.") for name in facebook_state]
    assert list(unwrapped(named(names)).shapes) == list(facebook_state)


def test_several_models_are_named(facebook_state, caplog):
    names = [*(f"one.{name}" for name in facebook_state), *(f"two.{name}" for name in facebook_state)]
    with pytest.raises(ValueError, match=r"file\.pth holds several models, under 'one\.', 'two\.'"):
        unwrapped(named(names))
    with_average = [name.replace("two.", "model_ema.") for name in names]
    assert list(unwrapped(named(with_average)).shapes) == list(facebook_state)
    assert "an average of the weights" in caplog.text
    with pytest.raises(ValueError, match=r"holds both .* which are one tensor of a model"):
        unwrapped(named([*facebook_state, *(f"module.{name}" for name in facebook_state)]))


KEPT = {
    "lightning": (
        lambda state: {"state_dict": {f"model.{n}": t for n, t in state.items()}, "epoch": 1, "loops": {}},
        None,
    ),
    "module": (lambda state: {"model": {f"module.{n}": t for n, t in state.items()}}, None),
    "average beside": (lambda state: {"model": state, "model_ema": {n: t + 1 for n, t in state.items()}}, "model_ema"),
    "average nested": (lambda state: {"model": state, "ema": {"module": {"a": np.ones(1, "float32")}}}, "ema.module"),
    "average alone": (lambda state: {"ema": {"module": state, "updates": 3}}, None),
    "unusual name": (lambda state: {"network": state, "optimizer": {"state": {}}}, None),
}


@pytest.mark.parametrize("kind", some_slow(KEPT, "average beside", "average alone", "unusual name"))
def test_what_programs_keep(kind, facebook_state, pytorch, tmp_path, caplog):
    make, note = KEPT[kind]
    pytorch.call("pickles:write", tmp_path / "model.ckpt", make(facebook_state))
    checkpoint = unwrapped(open_checkpoint(tmp_path / "model.ckpt"))
    assert set(checkpoint.shapes) == set(facebook_state)
    for name in facebook_state:
        np.testing.assert_array_equal(checkpoint.read(name), facebook_state[name])
    assert (note or "") in caplog.text
    assert bool(caplog.text) == (note is not None)


def test_several_state_dicts_are_named(facebook_state, pytorch, tmp_path):
    pytorch.call("pickles:write", tmp_path / "gan.pth", {"first": facebook_state, "second": facebook_state})
    with pytest.raises(ValueError, match=r"gan\.pth holds several state dicts \(first, second\)"):
        open_checkpoint(tmp_path / "gan.pth")


def test_hyperparameters_of_lightning_are_arguments(facebook_state, pytorch, tmp_path):
    content = {"state_dict": facebook_state, "hyper_parameters": {"nheads": 2, "lr": 1e-4, "classes": ["a"]}}
    pytorch.call("pickles:write", tmp_path / "model.ckpt", content)
    assert open_checkpoint(tmp_path / "model.ckpt").arguments == {"nheads": 2, "lr": 1e-4, "classes": ["a"]}


def without(state, *parts):
    return {name: tensor for name, tensor in state.items() if not name.startswith(parts)}


def test_a_class_head_that_was_deleted(facebook_state, ported, weights_of, caplog):
    """As facebookresearch/detr's issues say to fine-tune: the classes have to be said then."""
    state = without(facebook_state, "class_embed")
    for classes in ({"id2label": ["balloon"]}, {"num_classes": 1}):
        model = load_model(state, heads=2, **classes)
        assert model.class_head.kernel.shape == (16, 2)
        got = weights_of(model)
        for path, array in weights_of(ported).items():
            if "class_head" not in path:
                np.testing.assert_array_equal(got[path], array, err_msg=path)
        assert "not in the checkpoint, so started from random weights: class_head" in caplog.text
    with pytest.raises(ValueError, match=r"holds no class head, .* say with id2label or num_classes"):
        load_model(state, heads=2)
    with pytest.raises(ValueError, match="holds no class head that keep_head=True could keep"):
        load_model(state, heads=2, num_classes=1, keep_head=True)
    half = {name: tensor for name, tensor in facebook_state.items() if name != "class_embed.bias"}
    with pytest.raises(ValueError, match=r"1 missing: class_embed\.bias"):
        load_model(half, heads=2, num_classes=1)


def test_queries_that_were_deleted(facebook_state, caplog):
    state = without(facebook_state, "query_embed", "class_embed")
    model = load_model(state, heads=2, num_classes=2, num_queries=9)
    assert model.query_embedding.embeddings.shape == (9, 16)
    assert "random weights: class_head, query_embedding" in caplog.text
    with pytest.raises(ValueError, match=r"holds no query embeddings, .* say with num_queries"):
        load_model(state, heads=2, num_classes=2)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            {"1": "a", "2": "b", "3": "c"},
            r"each of the ids 0 … 2, but it names \[1, 2, 3\]; with id2label or num_classes",
        ),
        ({"0": "a", "1": "b"}, r"id2label names 2 classes, but class_labels_classifier\.weight is \(4, 16\)"),
        ({str(i): "a" for i in range(5)}, "id2label names 5 classes, but class_labels"),
        ({"x": "a"}, "has the id 'x'"),
        ({"0": None, "1": "b", "2": "c"}, "names the id 0 None"),
        (3, "must not be an int"),
    ],
)
def test_names_that_do_not_fit_the_head(names, told, state, write_folder, ported, caplog):
    """The caller's own come first: as many as the head has rows name them in order."""
    folder = write_folder(state, id2label=names)
    with pytest.raises(ValueError, match=told):
        load_model(folder)
    model = load_model(folder, id2label=["x", "y", "z"])
    np.testing.assert_array_equal(model.class_head.kernel, ported.class_head.kernel)
    assert "no names for its 3 classes, so their rows were kept in order, now called x, y, z" in caplog.text
    two = load_model(folder, id2label={0: "x", 1: "y"})
    assert two.id2label == {0: "x", 1: "y"}


def test_a_list_of_names_in_config_json(state, write_folder):
    assert load_model(write_folder(state, id2label=["a", "b", "c"])).id2label == {0: "a", 1: "b", 2: "c"}


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 166618694\n"
FILES = ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "config.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_git_lfs_pointer_in_a_folder(name, hf_folder, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(hf_folder, folder)
    if name != "config.json":
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(POINTER)
    with pytest.raises(ValueError, match=rf"{re.escape(name)} is a Git LFS pointer, .*git lfs pull"):
        load_model(folder)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.ckpt", "a.keras", "a.bin"])
def test_a_git_lfs_pointer_or_a_web_page(name, tmp_path):
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(ValueError, match=rf"{name} is a Git LFS pointer, .*git lfs pull"):
        load_model(tmp_path / name)
    (tmp_path / name).write_bytes(b"\n<!DOCTYPE html><html>Sign in</html>")
    with pytest.raises(ValueError, match=f"{name} is a web page, not the file"):
        load_model(tmp_path / name)


def test_a_file_is_what_its_content_says(state, pytorch, tmp_path):
    pytorch.call("pickles:write", tmp_path / "model.safetensors", state)
    save_file(state, tmp_path / "model.pth")
    pytorch.call("pickles:write", tmp_path / "checkpoint.pth.tar", state)
    for name in ("model.safetensors", "model.pth", "checkpoint.pth.tar"):
        assert set(open_checkpoint(tmp_path / name).shapes) == set(state)


def test_shards_of_pickles(state, hf_folder, pytorch, tmp_path):
    names = sorted(state)
    files = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
    for file, part in files.items():
        pytorch.call("pickles:write", tmp_path / file, {name: state[name] for name in part})
    weight_map = {name: file for file, part in files.items() for name in part}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    shutil.copy(hf_folder / "config.json", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config["model_type"] == "detr"
    for name in state:
        np.testing.assert_array_equal(checkpoint.read(name), state[name])
