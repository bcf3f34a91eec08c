import keras
import numpy as np
import pytest

import tfdetr_keras as td
from tfdetr_keras.training.schedules import WarmUp, learning_rate
from tfdetr_keras.training.settings import Settings


def rates(steps, **settings):
    chosen = Settings(learning_rate=2.0, epochs=10, **settings).resolved(None)
    schedule = learning_rate(chosen, batches_per_epoch=4)
    return [float(schedule(step)) for step in steps]


def test_cosine():
    expected = [1 + np.cos(np.pi * step / 40) for step in (0, 10, 20, 40)]
    np.testing.assert_allclose(rates([0, 10, 20, 40], schedule="cosine"), expected, atol=1e-6)


def test_step():
    np.testing.assert_allclose(rates([0, 29, 31, 40], schedule="step"), [2, 2, 0.2, 0.2], rtol=1e-6)


def test_constant():
    assert rates([0, 20, 39, 50], schedule="constant") == [2, 2, 2, 2]


def test_warm_up():
    np.testing.assert_allclose(
        rates([0, 1, 4, 5, 31], schedule="step", warmup_steps=5), [0.4, 0.8, 2, 2, 0.2], rtol=1e-6
    )


def test_accumulated_batches_count_as_batches():
    """Keras asks a schedule for each batch, not for each step of the optimizer."""
    assert rates([20], gradient_accumulation_steps=4) == rates([20])


def test_a_schedule_is_saved():
    schedule = WarmUp(keras.optimizers.schedules.CosineDecay(1e-3, 50), 10)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert [float(again(step)) for step in (0, 5, 30)] == [float(schedule(step)) for step in (0, 5, 30)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"learning_rate": -1.0}, "learning_rate must be a finite number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number above 0"),
        ({"max_boxes": 0}, "max_boxes must be at least 1"),
        ({"schedule": "linear"}, "schedule must be one of cosine, step, constant, not 'linear'"),
        ({"batch_norm": "none"}, "batch_norm must be one of frozen, trainable"),
        ({"ema_momentum": 1.0}, "ema_momentum must be in"),
        ({"dropout": 1.5}, "dropout must be in"),
        ({"pad_to": 64}, "pad_to must be None, .height, width. of at least 1 pixel, or .buckets., not 64"),
        ({"pad_to": [[64, 64], [32, 64]]}, "pad_to must be None, .height, width. .*, or .buckets., not"),
        ({"lr": 1e-4, "epoch": 3}, "epoch, lr: not a setting of a training run; the settings are epochs, batch_size"),
    ],
)
def test_settings_that_cannot_work(values, message):
    with pytest.raises(ValueError, match=message):
        Settings.of(values)


def test_steps_may_be_compiled_where_all_shapes_are_the_same():
    own, on_canvas = td.Preprocessing(), td.Preprocessing((64, 64), pad_to=(64, 64))
    assert Settings().compilation(own) is False
    assert Settings().compilation(on_canvas) is False
    assert Settings(pad_to="buckets", max_boxes=8).compilation(own) is False
    assert Settings(max_boxes=8).compilation(on_canvas) == "auto"
    assert Settings(max_boxes=8, jit_compile=False).compilation(on_canvas) is False
    assert Settings(jit_compile=True).compilation(own) is True


def test_on_jax_steps_are_compiled_whatever_their_shapes(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert Settings().compilation(td.Preprocessing()) == "auto"


def test_lists_are_tuples():
    """As JSON gives them back."""
    settings = Settings(size=[64, 96], pad_to=[96, 96], freeze=["stem", "encoder"])
    assert settings == Settings(size=(64, 96), pad_to=(96, 96), freeze=("stem", "encoder"))
