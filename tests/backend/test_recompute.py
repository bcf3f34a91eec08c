"""Recomputed layers: the same losses, gradients, statistics and random draws, and less memory."""

import keras
import numpy as np
import pytest
from batches import padded_batch, random_targets

import tfdetr_keras as td
from tfdetr_keras.backend.recompute import called


class Layer(keras.layers.Layer):
    """Has a state of each kind: weights, statistics, a generator of dropout."""

    recompute = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(4)
        self.norm = keras.layers.BatchNormalization()
        self.dropout = keras.layers.Dropout(0.5, seed=3)

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.norm.build((*input_shape[:-1], 4))

    def call(self, x, mask, training=False):
        x = self.dropout(self.norm(self.dense(x), training=training), training=training)
        return keras.ops.where(mask, x, 0.0)


def trained(recompute, dtype=None):
    """A model of such layers after three steps."""
    keras.utils.set_random_seed(0)
    layers = [Layer(dtype=dtype, name=f"layer{index}") for index in range(2)]
    for layer in layers:
        layer.recompute = recompute

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.stack = layers

        def build(self, input_shape):
            for layer in self.stack:
                layer.build(input_shape)

        def call(self, x, training=False):
            mask = keras.ops.ones((1, 6, 1), "bool")
            for layer in self.stack:
                x = called(layer, x, mask, training=training)
            return x

    model = Model()
    model.build((None, 6, 4))
    model.compile("sgd", "mse", jit_compile=False)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 5, 6, 4)).astype(np.float32)
    losses = [model.train_on_batch(one, other) for one, other in zip(x, y, strict=True)]
    return losses, {
        f"{place}/{variable.path.split('/')[-1]}": array_of(variable) for place, variable in enumerate(model.variables)
    }


def array_of(value):
    return np.asarray(keras.ops.convert_to_numpy(value), np.float64)


@pytest.mark.parametrize("dtype", [None, pytest.param("mixed_bfloat16", marks=pytest.mark.slow)])
def test_statistics_move_once_and_dropout_draws_the_same(dtype):
    losses, state = trained(False, dtype)
    again, recomputed = trained(True, dtype)
    np.testing.assert_allclose(again, losses, rtol=1e-5)
    assert any("seed" in path for path in state)
    for path, value in state.items():
        np.testing.assert_allclose(recomputed[path], value, rtol=2e-5, atol=1e-6, err_msg=path)


@pytest.mark.slow
def test_a_detector_trains_the_same():
    def run(recompute):
        keras.utils.set_random_seed(0)
        trained = td.DETR.from_pretrained("detr-tiny")
        model = td.from_preset("detr-tiny", id2label=trained.id2label, dropout=0.1)
        model.set_weights(trained.get_weights())
        model.recompute = recompute
        assert model.recompute is recompute
        model.compile(td.AdamW(), jit_compile=False)
        losses = []
        for step in range(3):
            inputs, targets = padded_batch((48, 64), (40, 50), seed=step), random_targets((2, 3), 3, rows=4, seed=step)
            losses.append(model.train_on_batch(inputs, targets, return_dict=True)["loss"])
        return losses, [array_of(variable) for variable in model.variables]

    (losses, weights), (again, recomputed) = run(False), run(True)
    np.testing.assert_allclose(again, losses, rtol=1e-5)
    for one, other in zip(weights, recomputed, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=2e-5)


def test_in_inference_nothing_is_recomputed():
    layer = Layer()
    layer.build((None, 6, 4))
    x = np.zeros((1, 6, 4), np.float32)
    np.testing.assert_array_equal(
        array_of(called(layer, x, np.ones((1, 6, 1), bool), training=False)),
        array_of(layer(x, np.ones((1, 6, 1), bool), training=False)),
    )
