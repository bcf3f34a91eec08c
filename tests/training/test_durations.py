"""Durations in steps and epochs, and recipes of long runs that are scaled to short ones."""

import numpy as np
import pytest

from tfdetr_keras.training.durations import AVERAGED_SHARE, SHARES, UNITS, scaled
from tfdetr_keras.training.settings import Settings

# RT-DETRv2's, over 72 epochs of 7,393 steps.
LONG = {"warmup_steps": 2000, "ema_ramp_steps": 2000, "ema_momentum": 0.9999, "plain_epochs": 1}


def resolved(given, recipe, steps_per_epoch):
    """What a run takes, if the user sets `given` and the model's recipe says the rest."""

    class Model:
        pass

    Model.recipe = recipe
    return scaled(given.resolved(Model), given, steps_per_epoch)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3), (np.int64(3), 3), ("2 epochs", "2 epochs"), (" 1 epoch", "1 epochs"), ("300steps", "300 steps"), (0, 0)],
)
@pytest.mark.parametrize("name", UNITS)
def test_what_a_duration_may_be(name, value, expected):
    assert getattr(Settings(**{name: value}), name) == expected


@pytest.mark.parametrize("value", [-1, 2.5, "soon", "2", "-1 epochs", "2 years", True, [2]])
@pytest.mark.parametrize("name", UNITS)
def test_what_is_no_duration(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be (at least 0|a whole number)"):
        Settings(**{name: value})


def test_epochs_and_steps_become_the_unit_of_the_setting():
    given = Settings(
        epochs=20,
        gradient_accumulation_steps=2,
        warmup_steps="0.5 epochs",
        ema_ramp_steps="2 epochs",
        plain_epochs="25 steps",
        ema_restart_after="18 epochs",
        ema_momentum=0.9999,
    )
    settings, told = resolved(given, {}, steps_per_epoch=10)
    assert (settings.warmup_steps, settings.ema_ramp_steps) == (5, 10)  # the ramp is of the optimizer's steps
    assert (settings.plain_epochs, settings.ema_restart_after) == (3, 18)
    assert settings.ema_momentum == 0.9999  # as it was set
    assert told == {}


def test_a_long_run_gets_the_recipe_as_it_is():
    settings, told = resolved(Settings(epochs=72), LONG, steps_per_epoch=7393)
    assert {name: getattr(settings, name) for name in LONG} == LONG
    assert told == {}


def test_a_short_run_gets_shares_and_is_told():
    """160 images in batches of 4 for 10 epochs: the recipe's warm-up is five times the run."""
    settings, told = resolved(Settings(epochs=10), LONG | {"plain_epochs": 8}, steps_per_epoch=40)
    assert settings.warmup_steps == SHARES["warmup_steps"] * 400
    assert settings.ema_ramp_steps == SHARES["ema_ramp_steps"] * 400
    assert settings.plain_epochs == SHARES["plain_epochs"] * 10
    assert 1 / (1 - settings.ema_momentum) == pytest.approx(AVERAGED_SHARE * 400)
    assert set(told) == set(LONG)
    assert told["warmup_steps"] == "2000 in the recipe; at most 10% of the run's 400 steps"


def test_the_shortest_run_works():
    settings, _ = resolved(Settings(epochs=1), LONG, steps_per_epoch=1)
    assert (settings.warmup_steps, settings.ema_ramp_steps, settings.plain_epochs) == (0, 0, 0)
    assert settings.ema_momentum == 0.0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"epochs": 132}, (12, 120)),  # as D-FINE-S is published
        ({"epochs": 200}, (12, 188)),
        ({"epochs": 10}, (2, 8)),
        ({"epochs": 10, "plain_epochs": 4}, (4, 6)),
        ({"epochs": 4}, (0, 0)),
        ({"epochs": 10, "ema_restart_after": 5}, (2, 5)),
        ({"epochs": 10, "ema_restart_after": 0}, (2, 0)),
    ],
    ids=str,
)
def test_averages_that_start_anew_do_so_as_the_plain_epochs_begin(given, expected):
    two_stages = {"plain_epochs": 12, "ema_restart_after": 120}
    settings, told = resolved(Settings(**given), two_stages, steps_per_epoch=100)
    assert (settings.plain_epochs, settings.ema_restart_after) == expected
    assert ("ema_restart_after" in told) == (expected[1] != 120 and "ema_restart_after" not in given)


def test_a_recipe_without_a_restart_has_none():
    assert resolved(Settings(epochs=72), LONG, steps_per_epoch=7393)[0].ema_restart_after == 0
