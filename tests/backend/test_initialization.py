"""Variables that start with given values: what is drawn, what is not, and what comes of errors."""

import keras
import numpy as np
import pytest
from smallest import SMALLEST

import tfdetr_keras as td
from tfdetr_keras.backend.initialization import first_values


def test_given_values_are_taken_and_others_drawn():
    drawn = []

    class Noted(keras.initializers.RandomUniform):
        def __call__(self, shape, dtype=None):
            drawn.append(tuple(shape))
            return super().__call__(shape, dtype)

    with first_values() as values:
        layer = keras.layers.Dense(3, kernel_initializer=Noted(1.0, 2.0), bias_initializer=Noted(1.0, 2.0))
        layer.build((None, 2))
        values.give(layer.kernel, lambda fresh: np.arange(6.0).reshape(3, 2).T)
    np.testing.assert_array_equal(layer.kernel, np.arange(6.0).reshape(3, 2).T)
    assert drawn == [(3,)]
    assert (np.asarray(layer.bias) >= 1).all()


def test_a_value_may_be_made_of_what_would_be_drawn():
    with first_values() as values:
        layer = keras.layers.Dense(3, kernel_initializer="ones")
        layer.build((None, 2))
        values.give(layer.kernel, lambda fresh: fresh() * 5)
    np.testing.assert_array_equal(layer.kernel, np.full((2, 3), 5))


def test_an_error_is_raised_and_harms_nobody_after():
    def fail(fresh):
        raise ValueError("not finite")

    def make():
        with first_values() as values:
            layer = keras.layers.Dense(3)
            layer.build((None, 2))
            values.give(layer.kernel, fail)

    with pytest.raises(ValueError, match="not finite"):
        make()
    with first_values():
        other = keras.layers.Dense(3)
        other.build((None, 2))
    assert np.isfinite(other.kernel).all()


def test_what_was_frozen_in_the_checkpoint_is_trained_when_it_is_thawed(tmp_path):
    """TensorFlow and PyTorch decide when a variable is made whether it has a gradient."""
    frozen = td.DETR(SMALLEST)
    frozen.freeze("stem")
    frozen.save(tmp_path / "frozen.keras")
    model = td.from_pretrained(tmp_path / "frozen.keras")
    assert model.config.frozen == ("stem",)
    kernel = model.backbone.stem.convolution.kernel
    assert not any(variable is kernel for variable in model.trainable_variables)
    model.freeze("")
    model.compile(optimizer=keras.optimizers.SGD(0.1), jit_compile=False)
    before = np.array(kernel)
    pixels = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    targets = {"labels": np.array([[0]], np.int32), "boxes": np.full((1, 1, 4), 0.5, np.float32)}
    model.train_on_batch(pixels, targets)
    assert (np.asarray(kernel) != before).any()
