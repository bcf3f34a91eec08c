"""Losses that training alone has are logged there, and are no zeros in evaluation."""

import numpy as np
import pytest
import tensorflow as tf

import tfdetr_keras as td


class Telling(td.RTDETR):
    """Logs a loss of the encoder's proposals, which inference does not hand out."""

    logged = (*td.RTDETR.logged, "loss_ce_encoder_0")
    logged_in_training = ("loss_ce_encoder_0",)


@pytest.mark.slow
def test_logs_of_training_and_of_validation():
    model = Telling(td.RTDETR.presets["rt-detr-tiny"])
    pixels = np.random.default_rng(0).random((2, 64, 64, 3)).astype("float32")
    targets = {"labels": np.array([[1], [0]]), "boxes": np.full((2, 1, 4), 0.4, "float32")}
    data = tf.data.Dataset.from_tensors(({"pixel_values": pixels}, targets))
    model.compile(optimizer=td.AdamW(1e-4), run_eagerly=True)
    history = model.fit(data, validation_data=data, epochs=2, verbose=0).history
    usual = {"loss", *td.RTDETR.logged}
    assert set(history) == {*usual, *(f"val_{name}" for name in usual), "loss_ce_encoder_0"}
    assert min(history["loss_ce_encoder_0"]) > 0
    assert set(model.evaluate(data, verbose=0, return_dict=True)) == usual
