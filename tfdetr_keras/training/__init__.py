"""Training: the optimizer of DETR's recipe, and COCO's AP while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tfdetr_keras.training.optimizer import AdamW

if TYPE_CHECKING:
    from tfdetr_keras.training.average_precision import AveragePrecision

__all__ = ["AdamW", "AveragePrecision"]


def __getattr__(name: str) -> Any:
    if name == "AveragePrecision":  # reads tf.data, and so needs TensorFlow, which the optimizer does not
        from tfdetr_keras.training.average_precision import AveragePrecision

        return AveragePrecision
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
