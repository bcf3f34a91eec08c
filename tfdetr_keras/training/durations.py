"""How long warm-up, the averages' ramp and the plain epochs last: in steps or epochs, and less in short runs.

The recipes of modern detectors are for runs of 100,000 steps and more. Their 2,000 steps of warm-up are most of a run
on 160 images, and an average over 10,000 steps never leaves the weights that it began with. So what comes from a
recipe, not from the user, takes at most a stated share of the run, and an average that the recipe starts anew starts
with the plain epochs.
"""

from __future__ import annotations

import dataclasses
import math
import re
from numbers import Integral
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfdetr_keras.training.settings import Settings

# Settings that are durations, in the unit that a plain number has.
UNITS = {"warmup_steps": "steps", "ema_ramp_steps": "steps", "plain_epochs": "epochs", "ema_restart_after": "epochs"}
# Of the run, at most, if the recipe says so. RT-DETR's and D-FINE's longest are 0.4 %, 0.4 % and 14 %.
SHARES = {"warmup_steps": 0.1, "ema_ramp_steps": 0.1, "plain_epochs": 0.2}
# An average of momentum m is of about the last 1 / (1 − m) steps, at most this share of the run.
AVERAGED_SHARE = 0.1
SCALED = (*SHARES, "ema_restart_after", "ema_momentum")
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(epoch|step)s?\s*")


def check_duration(name: str, value: Any) -> int | str:
    """Return a duration as a whole number, or as a text like "2 epochs" or "300 steps".

    Args:
        name: of the setting.
        value: that it was given.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str) and (found := _TEXT.fullmatch(value)):
        return f"{float(found[1]):g} {found[2]}s"
    is_bool = isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")
    if not isinstance(value, Integral) or is_bool:
        raise ValueError(
            f'{name} must be a whole number of at least 0, counted in {UNITS[name]}, or a text like "2 epochs" or '
            f'"300 steps", not {value!r}'
        )
    if value < 0:
        raise ValueError(f"{name} must be at least 0, not {value}")
    return int(value)


def scaled(settings: Settings, given: Settings, steps_per_epoch: int) -> tuple[Settings, dict[str, str]]:
    """Return the settings with every duration as a whole number in its unit, those of the recipe scaled to the run.

    Args:
        settings: of the run, with the recipe's values filled in.
        given: as the user set them; what is None there comes from the recipe.
        steps_per_epoch: batches of an epoch.

    Returns:
        The settings, and for each that was made smaller what the recipe has.
    """
    changes: dict[str, Any] = {
        name: _counted(getattr(settings, name), name, steps_per_epoch, settings.gradient_accumulation_steps)
        for name in UNITS
    }
    told: dict[str, str] = {}
    steps = settings.epochs * steps_per_epoch
    updates = steps // settings.gradient_accumulation_steps
    whole = {"warmup_steps": steps, "ema_ramp_steps": updates, "plain_epochs": settings.epochs}
    for name, share in SHARES.items():
        most = int(share * whole[name])
        if getattr(given, name) is None and changes[name] > most:
            told[name] = f"{changes[name]} in the recipe; at most {share:.0%} of the run's {whole[name]} {UNITS[name]}"
            changes[name] = most
    restart = changes["ema_restart_after"]
    if given.ema_restart_after is None and restart:
        changes["ema_restart_after"] = settings.epochs - changes["plain_epochs"] if changes["plain_epochs"] else 0
        if changes["ema_restart_after"] != restart:
            told["ema_restart_after"] = f"{restart} in the recipe; as the plain epochs begin, if there are any"
    momentum = settings.ema_momentum
    if given.ema_momentum is None and momentum:
        horizon = max(1.0, AVERAGED_SHARE * updates)
        if 1 / (1 - momentum) > horizon:
            told["ema_momentum"] = (
                f"{momentum:g} in the recipe; averages at most {AVERAGED_SHARE:.0%} of the run's {updates} steps"
            )
            changes["ema_momentum"] = round(1 - 1 / horizon, 6)
    return dataclasses.replace(settings, **changes), told


def _counted(value: int | str, name: str, steps_per_epoch: int, accumulated: int) -> int:
    """Return a duration in the unit of its setting; epochs are rounded up to whole ones."""
    if not isinstance(value, str):
        return value
    number, unit = value.split()
    if UNITS[name] == "epochs":
        return math.ceil(float(number) / (1 if unit == "epochs" else steps_per_epoch))
    if unit == "steps":
        return round(float(number))
    # The ramp is of steps of the optimizer, the warm-up of batches.
    return round(float(number) * steps_per_epoch / (accumulated if name == "ema_ramp_steps" else 1))
