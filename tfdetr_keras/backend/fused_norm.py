"""Batch normalisation in training as one operation, where there is one that is as exact: in TensorFlow's plain graphs.

Written out in `keras.ops`, it takes some six passes over its input and twice as many back, which TensorFlow joins only
where XLA compiles them. XLA's own operation is no match: its variance is the mean of the squares less the square of the
mean, which is off in the fourth digit where a mean is ten deviations, and useless where it is a thousand.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import keras

_in_plain_graph = contextvars.ContextVar("in_plain_graph", default=False)


@contextlib.contextmanager
def plain_graph(is_plain: bool = True) -> Iterator[None]:
    """Say that what is traced or called within is not a part of what XLA compiles, which no function can see itself."""
    token = _in_plain_graph.set(is_plain and keras.backend.backend() == "tensorflow")
    try:
        yield
    finally:
        _in_plain_graph.reset(token)


def is_fused(x: Any) -> bool:
    """Return whether `fused_norm` can normalise these activations here."""
    return _in_plain_graph.get() and len(x.shape) == 4 and keras.backend.standardize_dtype(x.dtype) == "float32"


def fused_norm(x: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Normalise by the batch's own statistics, as `torch.nn.BatchNorm2d` does in training.

    Args:
        x: `(batch, height, width, channels)` float32.
        gamma: scales, `(channels,)`.
        beta: shifts, `(channels,)`.
        epsilon: added to the variance.

    Returns:
        The normalised activations; mean and unbiased variance of each channel, `(channels,)`, which have no gradient.
    """
    import tensorflow as tf

    none = tf.zeros((0,), tf.float32)
    found = tf.raw_ops.FusedBatchNormV3(x=x, scale=gamma, offset=beta, mean=none, variance=none, epsilon=epsilon)
    return found.y, tf.stop_gradient(found.batch_mean), tf.stop_gradient(found.batch_variance)
