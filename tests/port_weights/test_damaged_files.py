"""Damaged checkpoints of every kind end in a `ValueError` or in the right weights: some thousand, by fixed seeds.

Only the functions that parse are called, so that each takes moments; few build a model.
"""

import copy
import json
import os
import random
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file
from smallest import SMALLEST
from some_slow import some_slow

import tfdetr_keras as td
from port_weights import load_model
from port_weights.architecture import classes_of_head, doubt_of_names
from port_weights.checkpoints import open_checkpoint
from port_weights.schemes import detect_scheme
from port_weights.wrappers import unwrapped
from tfdetr_keras.backend.serialized import refuse_foreign
from tfdetr_keras.models.keras_file import _check_class, _described, load_keras_file
from tfdetr_keras.models.pretrained import config_and_loss

JUNK = (None, [], {}, "", "x", -1, 0, 3, 2.5, True, 10**30, 1e300, [1, "a", None], {"0": []}, [[]], {"class_name": "x"})


def harmed(content, rng):
    """Bytes with a few changed, cut off, zeroed, put in or taken out."""
    harmed, place = bytearray(content), rng.randrange(len(content))
    kind = rng.choice(["flip", "flips", "cut", "zeros", "insert", "remove"])
    if kind == "cut":
        return bytes(harmed[:place])
    if kind == "zeros":
        harmed[place : place + 16] = bytes(len(harmed[place : place + 16]))
    elif kind == "insert":
        harmed[place:place] = rng.randbytes(5)
    elif kind == "remove":
        del harmed[place : place + 5]
    else:
        for _ in range(8 if kind == "flips" else 1):
            harmed[rng.randrange(len(harmed))] ^= 1 << rng.randrange(8)
    return bytes(harmed)


def mutated(value, rng):
    """JSON values in which one, at some depth, is replaced by another kind or taken out."""
    value = copy.deepcopy(value)
    holder = value
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return rng.choice(JUNK)
        key = rng.choice(keys)
        if isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.7:
            holder = holder[key]
            continue
        if rng.random() < 0.15:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(rng.choice(JUNK))
        return value


def outcome(function, *arguments):
    try:
        function(*arguments)
    except ValueError:
        return "ValueError"
    return "right"


def parse(source):
    """All of porting but the building of the model."""
    checkpoint = unwrapped(open_checkpoint(source))
    scheme = detect_scheme(checkpoint.shapes)
    doubt_of_names(checkpoint, scheme)
    classes_of_head(checkpoint, scheme)
    config_and_loss(checkpoint, scheme)
    return checkpoint


def read_all(source):
    checkpoint = parse(source)
    for name in checkpoint.shapes:
        checkpoint.read(name)


def test_safetensors(hf_folder, state, tmp_path):
    """The header, which says what there is; of a changed number in the data nothing can tell, unless it is none."""
    small = {name: tensor for name, tensor in state.items() if tensor.size < 300}
    save_file(small, tmp_path / "whole.safetensors")
    whole, rng = (tmp_path / "whole.safetensors").read_bytes(), random.Random(1)
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    path = tmp_path / "detr.safetensors"
    outcomes = Counter()
    for _ in range(400):
        path.write_bytes(harmed(whole[:header], rng) + whole[header:])
        outcomes[outcome(read_all, path)] += 1
    assert outcomes["ValueError"] > 300


def test_config_json_of_a_folder(hf_folder, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((hf_folder / "model.safetensors").read_bytes())
    text, rng = (hf_folder / "config.json").read_text(), random.Random(2)
    config, outcomes = json.loads(text), Counter()
    parse(hf_folder)
    for index in range(600):
        content = json.dumps(mutated(config, rng)).encode() if index % 2 else harmed(text.encode(), rng)
        (tmp_path / "config.json").write_bytes(content)
        outcomes[outcome(parse, tmp_path)] += 1
    assert min(outcomes["ValueError"], outcomes["right"]) > 50  # much of it does not matter to the architecture
    for deep in (b"[" * 100_000, b'{"d_model": ' + b"[" * 100_000):
        (tmp_path / "config.json").write_bytes(deep)
        with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
            load_model(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder_layers": 10**9},
        {"d_model": 10**9},
        {"num_queries": 10**12},
        {"decoder_ffn_dim": 2**40},
        {"backbone_config": {"model_type": "resnet", "depths": [10**9, 1], "hidden_sizes": [16, 32]}},
    ],
)
def test_sizes_of_which_building_would_not_end(changes, state, write_folder):
    with pytest.raises(ValueError, match="is described, but"):
        load_model(write_folder(state, **changes))


def test_names_of_which_building_would_not_end(facebook_state):
    state = {name.replace("decoder.layers.1.", "decoder.layers.999999999."): t for name, t in facebook_state.items()}
    with pytest.raises(ValueError, match=r"of the decoder's layers only \[0, 999999999\] are there"):
        load_model(state, heads=2)


@pytest.mark.parametrize("form", some_slow(["zip", "legacy"], "legacy"))
def test_pickles(form, request, tmp_path):
    program = Path(__file__).with_name("damaged_pickles.py")
    done = subprocess.run(
        [sys.executable, program, tmp_path / "detr.pth", "3", "500", form],
        env={**os.environ, "PYTHONPATH": str(request.config.rootpath)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = Counter(json.loads(done.stdout.splitlines()[-1]))
    assert set(outcomes) == {"right", "ValueError"}
    assert outcomes["ValueError"] > 250


ODD = ("sparse rows", "quantised", "meta", "complex", "text", "module")


@pytest.mark.parametrize("kind", some_slow(["sparse", "nested", *ODD], *ODD))
def test_pickles_of_what_no_array_is(kind, pytorch, tmp_path):
    pytorch.call("pickles:write_odd", tmp_path / "odd.pth", kind)
    with pytest.raises(
        ValueError, match=r"odd\.pth: odd is no ordinary tensor|odd\.pth is (not a state dict|damaged, or)"
    ):
        open_checkpoint(tmp_path / "odd.pth")


@pytest.mark.parametrize("kind", ["text", "objects", "complex", "number", "numbered"])
def test_state_dicts_of_what_no_array_is(kind, facebook_state):
    odd = {
        "text": np.array(["a"] * 16),
        "objects": np.array([None] * 16),
        "complex": np.ones(16, np.complex64),
        "number": 3,
        "numbered": np.ones(16),
    }[kind]
    name = 7 if kind == "numbered" else "input_proj.bias"
    with pytest.raises(ValueError, match=r"does not hold real numbers|not finite|is not a state dict of named tensors"):
        load_model({**facebook_state, name: odd}, heads=2)


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("keras") / "detector.keras"
    model = td.DETR(SMALLEST)
    model.compile(optimizer=td.AdamW(1e-3))
    model.save(path)
    return path


def rewritten(source, target, **members):
    """A copy of an archive with other members, and right checksums; None leaves one out."""
    with zipfile.ZipFile(source) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in {**content, **members}.items():
            if data is not None:
                archive.writestr(name, data)
    return target


def described(path):
    """What is done of loading before anything is built."""
    content = _described(path)
    _check_class(path, content)
    refuse_foreign(content["config"], str(path))
    return content


def test_keras_files(keras_file, tmp_path):
    """Every byte of a member has a checksum, so what passes is what was written."""
    whole, rng, outcomes = keras_file.read_bytes(), random.Random(4), Counter()
    expected, path = described(keras_file), tmp_path / "detector.keras"
    for _ in range(300):
        path.write_bytes(harmed(whole, rng))
        try:
            content = described(path)
        except ValueError:
            outcomes["ValueError"] += 1
            continue
        assert content == expected
        outcomes["right"] += 1
    assert outcomes["ValueError"] > 150


def test_flipped_bits_of_weights_are_noticed(keras_file, tmp_path):
    content, rng = bytearray(keras_file.read_bytes()), random.Random(5)
    with zipfile.ZipFile(keras_file) as archive:
        member = archive.getinfo("model.weights.h5")
    start = member.header_offset + 30 + len(member.filename)
    for _ in range(40):
        place = start + rng.randrange(member.file_size)
        content[place] ^= 1
        (tmp_path / "detector.keras").write_bytes(content)
        with pytest.raises(ValueError, match=r"detector\.keras is not a complete \.keras file .*damaged"):
            td.load_model(tmp_path / "detector.keras")
        content[place] ^= 1


def test_descriptions_in_keras_files(keras_file, tmp_path):
    """With right checksums; few of them, since what passes is built."""
    rng = random.Random(6)
    with zipfile.ZipFile(keras_file) as archive:
        content = json.loads(archive.read("config.json"))
    for _ in range(16):
        path = rewritten(keras_file, tmp_path / "detector.keras", **{"config.json": json.dumps(mutated(content, rng))})
        outcome(td.load_model, path)
    for members in ({"config.json": None}, {"model.weights.h5": None}, {"config.json": b"["}, {"config.json": b"null"}):
        path = rewritten(keras_file, tmp_path / "detector.keras", **members)
        with pytest.raises(ValueError, match=r"detector\.keras is not a complete \.keras file"):
            td.load_model(path)
    for weights in (b"", b"no HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100)):
        path = rewritten(keras_file, tmp_path / "detector.keras", **{"model.weights.h5": weights})
        with pytest.raises(ValueError, match=r"detector\.keras is not a complete \.keras file"):
            td.load_model(path)


@pytest.mark.parametrize("load", [td.load_model, td.from_pretrained])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_keras_files_of_weights_that_are_not_finite(load, value, keras_file, tmp_path):
    model = td.load_model(keras_file)
    model.class_head.bias.assign([0, value, 0])
    model.save(tmp_path / "diverged.keras")
    with pytest.raises(ValueError, match=r"diverged\.keras: 1 of its weights hold values that are not finite.*class_h"):
        load(tmp_path / "diverged.keras")


def described_as(keras_file, target, place, **description):
    """A copy in which one object is described otherwise."""
    with zipfile.ZipFile(keras_file) as archive:
        content = json.loads(archive.read("config.json"))
    holder = content
    for key in place:
        holder = holder[key]
    holder.update(description)
    return rewritten(keras_file, target, **{"config.json": json.dumps(content)})


@pytest.mark.parametrize("place", [(), ("config", "criterion"), ("config", "dtype"), ("compile_config", "optimizer")])
def test_a_module_that_a_file_names_is_not_imported(place, keras_file, tmp_path, monkeypatch):
    """Some versions of Keras would import it, and so run what stands in it."""
    (tmp_path / "intruder.py").write_text(f"open({str(tmp_path / 'harm-was-done')!r}, 'w')\nclass Net: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = {"module": "intruder", "class_name": "Net", "registered_name": "Net"}
    path = described_as(keras_file, tmp_path / "detector.keras", place, **names)
    with pytest.raises(
        ValueError, match=r"detector\.keras (holds a Net, no model|names a Net of 'intruder', which is not)"
    ):
        td.load_model(path)
    assert not (tmp_path / "harm-was-done").exists()


def test_a_foreign_file_is_refused_before_anything_is_built(keras_file, tmp_path, monkeypatch):
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(tmp_path / "other.keras")
    monkeypatch.setattr(keras.saving, "load_model", None)
    with pytest.raises(ValueError, match="holds a Sequential, not a detector"):
        load_keras_file(tmp_path / "other.keras", compile=False)
    path = described_as(
        keras_file, tmp_path / "a.keras", ("config", "criterion"), module="keras.layers", class_name="Lambda"
    )
    with pytest.raises(ValueError, match=r"names a (Lambda|SetCriterion) of 'keras\.layers'"):
        load_keras_file(path, compile=False)


class Mine(td.DETR):
    """A class of the user's own, which is not registered with Keras."""


def test_a_class_that_is_derived_from_ours(tmp_path):
    Mine(SMALLEST).save(tmp_path / "mine.keras")
    assert type(td.load_model(tmp_path / "mine.keras")) is Mine
