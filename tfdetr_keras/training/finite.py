"""Checks that weights and the optimizer's arrays are finite: other values must never overwrite a good checkpoint."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

SHOWN = 3  # names in a message


def non_finite_arrays(model: keras.Model) -> tuple[list[str], int]:
    """Find NaN and infinity in a model's weights and in its optimizer's moments and averages.

    Returns:
        The paths of the arrays that hold one, and the number of all arrays.
    """
    variables = [*model.weights, *(model.optimizer.variables if getattr(model, "optimizer", None) else ())]
    return [variable.path for variable in variables if not _is_finite(variable)], len(variables)


def refuse_non_finite(model: keras.Model, epoch: int) -> None:
    """Raise unless all weights of a model and all arrays of its optimizer are finite.

    Args:
        model: compiled.
        epoch: the number of the epoch that has just ended, from 0.

    Raises:
        ValueError: some are not finite; names the first of them.
    """
    found, count = non_finite_arrays(model)
    if not found:
        return
    named = ", ".join(found[:SHOWN]) + (" …" if len(found) > SHOWN else "")
    raise ValueError(
        f"at the end of epoch {epoch + 1}, {len(found)} of {count} arrays of weights and optimizer hold NaN or "
        f"infinity ({named}): lower the learning rate, or limit the gradients (global_clipnorm); nothing of this epoch "
        "was saved, the last checkpoint is unchanged"
    )


def _is_finite(variable: Any) -> bool:
    values = np.asarray(ops.convert_to_numpy(variable))
    return values.dtype.kind in "biu" or bool(np.isfinite(values).all())
