"""Training: the recipe's optimizer, AP while it runs, checkpoints to go on from, and a whole run in one call."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tfdetr_keras.training.averages import averaged_weights
from tfdetr_keras.training.checkpoint import Checkpoint
from tfdetr_keras.training.optimizer import AdamW
from tfdetr_keras.training.settings import Settings

if TYPE_CHECKING:
    from tfdetr_keras.training.average_precision import AveragePrecision
    from tfdetr_keras.training.fitting import fit_detector
    from tfdetr_keras.training.non_finite import StopAtNonFiniteLoss
    from tfdetr_keras.training.run_folder import RunFolder

__all__ = [
    "AdamW",
    "AveragePrecision",
    "Checkpoint",
    "RunFolder",
    "Settings",
    "StopAtNonFiniteLoss",
    "averaged_weights",
    "fit_detector",
]

# These read tf.data or draw, and so need TensorFlow or matplotlib, which the others do not.
_LAZY = {
    "AveragePrecision": "average_precision",
    "RunFolder": "run_folder",
    "StopAtNonFiniteLoss": "non_finite",
    "fit_detector": "fitting",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
