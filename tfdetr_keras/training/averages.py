"""Use of the averages of the weights that a Keras optimizer keeps beside them (`use_ema=True`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from tfdetr_keras.training.optimizer import AdamW


def keeps_averages(model: keras.Model) -> bool:
    """Return whether the model's optimizer has `use_ema`."""
    optimizer = model.optimizer
    return bool(getattr(getattr(optimizer, "inner_optimizer", optimizer), "use_ema", False))


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Give the model the averages of its weights while the context is open; restore its own afterwards, to the bit.

    With `td.AdamW` the running statistics of batch normalisation are averages, too; with another optimizer they are
    the model's own.

    `keras.callbacks.SwapEMAWeights` exchanges the two by adding and subtracting, which does not restore the weights
    exactly, and gives up those of the last epoch.

    Raises:
        ValueError: the optimizer keeps no averages, or none yet.
    """
    if not keeps_averages(model):
        raise ValueError("the model's optimizer keeps no averages: compile it with an optimizer that has use_ema=True")
    pairs = _pairs(model)
    own = [ops.convert_to_numpy(variable) for variable, _ in pairs]
    try:
        for variable, average in pairs:
            variable.assign(average)
        yield
    finally:
        for (variable, _), value in zip(pairs, own, strict=True):
            variable.assign(value)


def _pairs(model: keras.Model) -> list[tuple[Any, Any]]:
    """Return each variable of a model that has an average, and the average."""
    optimizer = model.optimizer
    if isinstance(optimizer, AdamW) and optimizer.built:
        return optimizer.averages()
    averages = [variable for variable in optimizer.variables if variable.name.endswith("_average")]
    if len(averages) != len(model.trainable_variables):
        raise ValueError(
            f"the optimizer keeps {len(averages)} averages for {len(model.trainable_variables)} trainable weights: "
            "call model.freeze before compile, and train or build the optimizer first"
        )
    return list(zip(model.trainable_variables, averages, strict=True))
