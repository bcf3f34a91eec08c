"""Batch normalisation in training as one operation, where there is one that is as exact: in TensorFlow without XLA.

Written out in `keras.ops`, it takes some six passes over its input and twice as many back, which TensorFlow joins only
where XLA compiles them. XLA's own operation is no match: its variance is the mean of the squares less the square of the
mean, which is off in the fourth digit where a mean is ten deviations, and useless where it is a thousand.
"""

from __future__ import annotations

from typing import Any

import keras

from tfdetr_keras.backend.compiler import is_for_xla


def is_fused(x: Any) -> bool:
    """Return whether `fused_norm` can normalise these activations: TensorFlow computes it, and not by way of XLA."""
    is_there = keras.backend.backend() == "tensorflow" and not is_for_xla()
    return is_there and len(x.shape) == 4 and keras.backend.standardize_dtype(x.dtype) == "float32"


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
