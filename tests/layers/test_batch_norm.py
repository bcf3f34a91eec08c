"""Batch normalisation is PyTorch's: outputs, gradients and running statistics, in training and in inference."""

import dataclasses
import functools

import keras
import numpy as np
import pytest

import tfdetr_keras as td
from tfdetr_keras.backbones.batch_norm import by_part
from tfdetr_keras.backbones.resnet import RESNETS
from tfdetr_keras.backend.fused_norm import is_fused
from tfdetr_keras.layers.batch_norm import BatchNormalization
from tfdetr_keras.models.own_loss import OwnLossModel

array_of = keras.ops.convert_to_numpy


def layer_of(channels):
    layer = BatchNormalization()
    layer.build((None, None, None, channels))
    rng = np.random.default_rng(5)
    layer.set_weights([rng.normal(1, 0.2, channels), rng.normal(size=channels), np.zeros(channels), np.ones(channels)])
    return layer


def in_a_way(by_xla, function):
    """A function of tensors, compiled by XLA or called as it is; on other backends the latter in any case."""
    if not by_xla or keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.function(function, jit_compile=True, autograph=False)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 2, 3), (4, 7, 9, 2)])
@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("by_xla", [True, False])
def test_three_steps_and_inference_are_pytorchs(shape, offset, by_xla, pytorch):
    """With an offset a hundred times the deviation, the mean of squares less the square of the mean would lose all.

    Without XLA, TensorFlow has one operation for it. Measured: 1e-6, and 9e-5 with the offset.
    """
    close = {"rtol": 0, "atol": 2e-4 if offset else 5e-6}
    rng = np.random.default_rng(1)
    batches = [(offset + 3 * rng.normal(size=shape)).astype(np.float32) for _ in range(3)]
    layer = layer_of(shape[-1])
    normalise = in_a_way(by_xla, functools.partial(layer, training=True))
    gamma, beta, *_ = layer.get_weights()
    expected = pytorch.call("layers:batch_norm", gamma, beta, batches)
    for batch, output in zip(batches, expected["outputs"], strict=True):
        np.testing.assert_allclose(array_of(normalise(batch)), output, **close)
    np.testing.assert_allclose(array_of(layer.moving_mean), expected["mean"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(array_of(layer.moving_variance), expected["variance"], rtol=1e-5, atol=1e-6)
    evaluated = array_of(layer(batches[0], training=False))
    np.testing.assert_allclose(evaluated, expected["evaluated"], **close)


def test_one_value_of_a_channel_has_no_deviation():
    layer = layer_of(3)
    layer(np.full((1, 1, 1, 3), 7.0, np.float32), training=True)
    assert np.isfinite(layer.get_weights()).all()
    np.testing.assert_allclose(array_of(layer.moving_variance), 0.9)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's own operation")
def test_one_operation_has_the_gradients_of_what_is_written_out():
    """Measured: 2e-6 of the largest."""
    import tensorflow as tf

    layer = layer_of(5)
    rng = np.random.default_rng(2)
    x, upstream = (tf.constant(rng.normal(size=(2, 6, 7, 5)), tf.float32) for _ in range(2))

    seen = []

    def gradients():
        seen.append(is_fused(x))
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=True) * upstream)
        return tape.gradient(loss, [x, *(variable.value for variable in layer.trainable_variables)])

    written, fused = (in_a_way(by_xla, gradients)() for by_xla in (True, False))
    assert seen == [False, True]
    for one, other in zip(fused, written, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's own operation")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_steps_use_it_unless_xla_compiles_them(jit_compile):
    seen = []

    class Asks(OwnLossModel):
        def call(self, inputs, training=False):
            seen.append(is_fused(inputs))
            return inputs

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.sum(y_pred)

    model = Asks()
    model.compile("sgd", jit_compile=jit_compile)
    model(np.zeros((1, 2, 2, 3), np.float32))
    model.train_on_batch(np.zeros((1, 2, 2, 3), np.float32), np.zeros(1))
    assert seen[0] is True
    assert set(seen[1:]) == {not jit_compile}


def test_a_frozen_one_computes_with_what_it_knows():
    layer = layer_of(3)
    layer.trainable = False
    batch = np.random.default_rng(0).normal(3, 2, (2, 4, 4, 3)).astype(np.float32)
    before = layer.get_weights()
    np.testing.assert_array_equal(array_of(layer(batch, training=True)), array_of(layer(batch, training=False)))
    for one, other in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_lower_precision_keeps_statistics_in_float32():
    layer = BatchNormalization(dtype="mixed_bfloat16")
    batch = np.random.default_rng(0).normal(100, 1, (8, 16, 16, 2)).astype(np.float32)
    output = layer(keras.ops.cast(batch, "bfloat16"), training=True)
    assert keras.backend.standardize_dtype(output.dtype) == "bfloat16"
    rounded = np.asarray(keras.ops.cast(keras.ops.cast(batch, "bfloat16"), "float32"))
    np.testing.assert_allclose(array_of(layer.moving_mean), 0.1 * rounded.mean((0, 1, 2)), rtol=1e-5)


PARTS = ("stem", "stage1", "stage2", "stage3", "stage4")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("frozen", "frozen"),
        ({}, "trainable"),
        (dict.fromkeys(PARTS, "frozen"), "frozen"),
        ({"stem": "frozen"}, {"stem": "frozen", **dict.fromkeys(PARTS[1:], "trainable")}),
    ],
)
def test_a_word_or_one_for_each_part(given, expected):
    assert by_part(given, PARTS) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("thawed", "batch_norm='thawed' must be one of 'frozen', 'trainable', 'folded', or a mapping"),
        ({"stage5": "frozen"}, "batch_norm: 'stage5' is no part of this backbone; there are stem, stage1"),
        ({"stem": "folded"}, "batch_norm\\['stem'\\]='folded' must be one of 'frozen', 'trainable'"),
    ],
)
def test_what_is_neither(given, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RESNETS["resnet-18"], batch_norm=given)


def test_a_model_with_both_is_saved_trained_and_folded(tmp_path):
    backbone = dataclasses.replace(td.PRESETS["detr-tiny"].backbone, batch_norm={"stem": "frozen"})
    model = td.from_preset("detr-tiny", backbone=backbone)
    names = [type(layer).__name__ for layer in model._flatten_layers() if "BatchNorm" in type(layer).__name__]
    assert names.count("FrozenBatchNormalization") == 1
    assert names.count("BatchNormalization") > 3
    model.save(tmp_path / "both.keras")
    again = td.load_model(tmp_path / "both.keras")
    assert again.config == model.config
    pixels = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    folded = again.fold()
    assert folded.config.backbone.batch_norm == "folded"
    expected = array_of(model(pixels)["logits"])
    np.testing.assert_allclose(array_of(folded(pixels)["logits"]), expected, atol=1e-4)
