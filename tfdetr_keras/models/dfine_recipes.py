"""How D-FINE's authors train each size: on COCO, on Objects365, and on COCO from the weights of Objects365.

Their last epochs are without strong augmentation and several sizes; as they begin, the average of the weights starts
anew. What does not decay is what their configurations mean: the patterns there miss the backbone's normalisation.

Source:
    Peterande/D-FINE, configs/dfine, at 4a1f73a8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ALL = {"schedule": "constant", "ema_momentum": 0.9999, "augmentation": "strong"}
_COCO = {**_ALL, "warmup_steps": 500, "ema_ramp_steps": 1000}
_OBJECTS365 = {**_COCO, "plain_epochs": 0}  # they stop before the last epochs would begin
_FINE_TUNED = {**_ALL, "warmup_steps": 0, "ema_ramp_steps": 0}
_SMALLER = {"weight_decay_exclude": ["norms", "biases"]}
_LARGER = {"weight_decay_exclude": ["norms"], "weight_decay": 1.25e-4, "learning_rate": 2.5e-4}
_FASTER = {"learning_rate": 2.5e-4, "weight_decay": 1.25e-4}


def _sizes(repeated: int) -> list[float]:
    """Return factors for sides 480 … 800 of 640 in steps of 32, with 640 so many times as often as another."""
    others = [side / 640 for side in range(480, 801, 32) if side != 640]
    return others + [1.0] * repeated


def _last(plain: int, epochs: int) -> dict[str, int]:
    return {"plain_epochs": plain, "ema_restart_after": epochs - plain}


_NANO = {**_SMALLER, "learning_rate": 8e-4, "backbone_multiplier": 0.5, "multiscale": False}
_SMALL = {**_SMALLER, "backbone_multiplier": 0.5, "multiscale": _sizes(20)}
_MEDIUM = {**_SMALLER, "backbone_multiplier": 0.1, "multiscale": _sizes(6)}
_LARGE = {**_LARGER, "backbone_multiplier": 0.05, "multiscale": _sizes(4)}
_XLARGE = {**_LARGER, "backbone_multiplier": 0.01, "multiscale": _sizes(3)}
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "nano": {**_COCO, **_NANO, **_last(12, 160)},
    "small": {**_COCO, **_SMALL, "learning_rate": 2e-4, **_last(12, 132)},
    "medium": {**_COCO, **_MEDIUM, "learning_rate": 2e-4, **_last(12, 132)},
    "large": {**_COCO, **_LARGE, **_last(8, 80)},
    "xlarge": {**_COCO, **_XLARGE, "ema_momentum": 0.9999, **_last(8, 80)},
    "nano-obj365": {**_OBJECTS365, **_NANO},
    "small-obj365": {**_OBJECTS365, **_SMALL, **_FASTER},
    "medium-obj365": {**_OBJECTS365, **_MEDIUM, **_FASTER},
    "large-obj365": {**_OBJECTS365, **_LARGE},
    "xlarge-obj365": {**_OBJECTS365, **_XLARGE},
    "nano-obj2coco": {**_FINE_TUNED, **_NANO, **_last(8, 64)},
    "small-obj2coco": {**_FINE_TUNED, **_SMALL, **_FASTER, "multiscale": _sizes(10), **_last(8, 64)},
    "medium-obj2coco": {**_FINE_TUNED, **_MEDIUM, **_FASTER, **_last(8, 56)},
    "large-obj2coco": {**_FINE_TUNED, **_LARGE, **_last(6, 36)},
    "xlarge-obj2coco": {**_FINE_TUNED, **_XLARGE, **_last(6, 36)},
}
