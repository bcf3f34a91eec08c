"""What an export leaves alone, what it refuses, and the command line."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from photograph_sizes import CANVAS, SIZE

import tfdetr_keras as td
from tfdetr_keras import export
from tfdetr_keras.cli import main
from tfdetr_keras.data.image_files import records_of
from tfdetr_keras.export.exportable import exportable

WRITERS = {"saved-model": export.saved_model, "onnx": export.onnx, "litert": export.litert}
NAMES = {"saved-model": "served", "onnx": "detector.onnx", "litert": "detector.tflite"}


@pytest.fixture(scope="module")
def smallest():
    """A model that is exported in moments, with random weights."""
    config = td.DETRConfig(
        backbone=td.ResNetConfig(block="basic", depths=(1,), channels=(8,), stem_channels=8, batch_norm="trainable"),
        num_classes=2,
        id2label={0: "cat", 1: "dög"},
        num_queries=5,
        d_model=8,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
    )
    return td.DETR(config)


def test_the_model_stays_as_it_was(smallest):
    before = [np.array(weight) for weight in smallest.weights]
    folded = smallest.fold()
    for model in (smallest, folded):
        served = exportable(model)
        assert model.auxiliary_outputs
        assert not served.auxiliary_outputs
        assert served.config.backbone.batch_norm == "folded"
    for weight, value in zip(smallest.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_a_model_in_bfloat16_is_exported_in_float32(smallest):
    model = td.DETR(smallest.config, dtype="mixed_bfloat16")
    model.set_weights(smallest.get_weights())
    pixels = np.random.default_rng(0).normal(size=(1, 32, 40, 3)).astype("f")
    served = exportable(model)
    assert served.dtype_policy.name == "float32"
    expected = smallest(pixels)["logits"]
    np.testing.assert_allclose(served(pixels)["logits"], expected, rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["saved-model", "onnx", "litert"])
def test_what_is_there_is_not_overwritten_unasked(smallest, tmp_path, kind):
    write, path = WRITERS[kind], tmp_path / NAMES[kind]
    write(smallest, path, (32, 64))
    with pytest.raises(ValueError, match=f"{NAMES[kind]} (exists|holds an export) already"):
        write(smallest, path, (32, 64))
    write(smallest, path, (32, 64), overwrite=True)
    assert {entry.name for entry in tmp_path.iterdir()} == {NAMES[kind]}  # nothing half written is left
    with pytest.raises(ValueError, match="does not exist"):
        write(smallest, tmp_path / "nowhere" / NAMES[kind])
    with pytest.raises(ValueError, match="pad_to must be"):
        write(smallest, tmp_path / f"other-{NAMES[kind]}", pad_to=3)


def test_a_folder_of_other_things_is_not_replaced(smallest, tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match=r"holds other files \(thesis\.txt\)"):
        export.saved_model(smallest, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").is_file()


@pytest.mark.parametrize("kind", ["onnx", "litert"])
def test_another_ending(smallest, tmp_path, kind):
    with pytest.raises(ValueError, match=r"the name must end in \.(onnx|tflite)"):
        WRITERS[kind](smallest, tmp_path / "detector.bin")


@pytest.mark.slow
def test_a_saved_model_names_its_classes(smallest, tmp_path):
    folder = export.saved_model(smallest, tmp_path / "served", (32, 64))
    assert (folder / "assets" / "class_names.txt").read_text(encoding="utf-8") == "cat\ndög\n"


@pytest.mark.slow
def test_the_command_line(tmp_path, capsys):
    for kind, name in {**NAMES, "keras": "folded.keras"}.items():
        path = tmp_path / name
        arguments = ["export", "--model", "detr-tiny", "--format", kind, "--out", str(path)]
        assert main([*arguments, "--size", *map(str, SIZE), "--pad-to", *map(str, CANVAS)]) == 0
        assert f"{path}: {kind}, " in capsys.readouterr().out
        assert main(arguments) == 2
        assert "already: set overwrite" in capsys.readouterr().err
    served = tf.saved_model.load(str(tmp_path / "served")).signatures["serving_default"]
    image = np.random.default_rng(0).integers(0, 256, (1, 90, 120, 3), np.uint8)
    model = keras.saving.load_model(tmp_path / "folded.keras")
    assert model.config.backbone.batch_norm == "folded"
    [expected] = td.detect(model, records_of(image), SIZE, pad_to=CANVAS, threshold=-1)
    found = served(images=tf.constant(image))["scores"][0]
    np.testing.assert_allclose(found, np.sort(expected["scores"])[::-1], rtol=0, atol=1e-6)
    assert main(["export", "--model", "detr-tiny", "--format", "onnx", "--out", "a.onnx", "--precision", "int8"]) == 2
    assert "--precision int8 is for --format litert" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_exported_as_it_was_trained(tmp_path, capsys):
    records, names = td.data.load_shapes(4, seed=1, size=(48, 64))
    td.fit_detector(
        records, names, tmp_path / "run", None, "detr-tiny", epochs=1, batch_size=2, size=(64, 96), pad_to=(96, 96)
    )
    arguments = ["export", "--model", str(tmp_path / "run"), "--format", "litert", "--out", str(tmp_path / "a.tflite")]
    assert main(arguments) == 0
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(tmp_path / "a.tflite"))
    interpreter.allocate_tensors()
    shapes = {tuple(detail["shape"]) for detail in interpreter.get_tensor_details()}
    assert (1, 96, 96, 3) in shapes


def test_other_backends_are_told_what_to_do(smallest, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="KERAS_BACKEND=tensorflow"):
        exportable(smallest)


def test_fields_of_the_configuration_are_kept(smallest):
    served = exportable(smallest)
    kept = dataclasses.replace(served.config, backbone=smallest.config.backbone, auxiliary_outputs=True)
    assert kept == smallest.config
