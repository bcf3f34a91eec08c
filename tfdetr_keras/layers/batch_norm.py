"""Batch normalisation as PyTorch's networks have it: trained, with statistics of the whole batch, or frozen.

Keras' own differs from PyTorch's in two ways that show when both train the same weights: epsilon is 1e-3, not 1e-5, and
the running variance is fed by the biased variance of a batch (a mean over N values), not by the unbiased one (N − 1).

Source:
    Ioffe and Szegedy 2015, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
    Shift", arXiv:1502.03167, algorithms 1 and 2: training takes the biased variance, inference the unbiased one.
"""

from __future__ import annotations

from typing import Any, Literal

import keras
from keras import layers, ops

from tfdetr_keras.backend.fused_norm import fused_norm, is_fused
from tfdetr_keras.backend.replicas import add_over_replicas, number_of_replicas

EPSILON = 1e-5
MOMENTUM = 0.9  # of the running statistics: PyTorch's 0.1 is the share of the new ones
BatchNorm = Literal["frozen", "trainable", "folded"]


class FrozenBatchNormalization(layers.Layer):
    """Batch normalisation whose statistics and affine parameters never change, even when the layer is made trainable.

    Its weights carry the names of `keras.layers.BatchNormalization`, so that either can take the other's place. It is
    not called: the convolution before it takes its scale and shift, which saves four passes over its results, forward
    and back.
    """

    def build(self, input_shape: Any) -> None:
        """Create the four vectors of length `channels`, kept in float32 under any policy."""

        def vector(name: str, initializer: str) -> Any:
            return self.add_weight(
                shape=(input_shape[-1],), initializer=initializer, name=name, trainable=False, autocast=False
            )

        self.gamma = vector("gamma", "ones")
        self.beta = vector("beta", "zeros")
        self.moving_mean = vector("moving_mean", "zeros")
        self.moving_variance = vector("moving_variance", "ones")

    def affine(self) -> tuple[Any, Any]:
        """Return the scale and the shift of each channel that the normalisation comes to, `(channels,)`, float32."""
        scale = self.gamma * ops.rsqrt(self.moving_variance + EPSILON)
        return scale, self.beta - self.moving_mean * scale


class BatchNormalization(layers.BatchNormalization):
    """Batch normalisation over the last axis that trains as PyTorch's `SyncBatchNorm`.

    In training each channel is normalised by mean and variance of the whole batch: over all replicas of a
    `tf.distribute` strategy, and over all devices and processes of JAX, whose sharded batch is one array. In inference,
    and where the layer is not trainable, it is normalised by the running statistics.

    Args:
        **kwargs: `name` and `dtype`, as for `keras.layers.Layer`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"momentum": MOMENTUM, "epsilon": EPSILON, **kwargs})

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise `(batch, …, channels)`; in training, move the running statistics by a tenth.

        Args:
            inputs: of any float dtype; computed in float32 at least.
            training: whether the batch's own statistics are used.
            mask: not used.
        """
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        x = ops.cast(inputs, dtype)
        moving_mean, moving_variance = (ops.cast(one, dtype) for one in (self.moving_mean, self.moving_variance))
        gamma, beta = ops.cast(self.gamma, dtype), ops.cast(self.beta, dtype)
        by_batch = training and self.trainable
        if by_batch and number_of_replicas() == 1 and is_fused(x):
            outputs, mean, unbiased = fused_norm(x, gamma, beta, self.epsilon)
        else:
            mean, variance = moving_mean, moving_variance
            if by_batch:
                mean, variance, count = _moments_of_batch(x)
                unbiased = variance * (count / ops.maximum(count - 1, 1))
            outputs = ops.batch_normalization(x, mean, variance, -1, offset=beta, scale=gamma, epsilon=self.epsilon)
        if by_batch:
            self.moving_mean.assign(moving_mean + (mean - moving_mean) * (1 - self.momentum))
            self.moving_variance.assign(moving_variance + (unbiased - moving_variance) * (1 - self.momentum))
        return ops.cast(outputs, self.compute_dtype)


def _moments_of_batch(x: Any) -> tuple[Any, Any, Any]:
    """Return mean and biased variance of each channel over all replicas, `(channels,)`, and of how many values.

    Variances of the replicas are put together with the distances of their means: that stays exact where a mean is much
    larger than a deviation, for which the mean of the squares less the square of the mean does not.
    """
    axes = tuple(range(len(x.shape) - 1))
    mean = ops.mean(x, axes)
    # Not by `ops.moments`, which on PyTorch takes the mean of the squares less the square of the mean.
    variance = ops.mean(ops.square(x - mean), axes)
    count = ops.cast(ops.prod(ops.shape(x)[:-1]), x.dtype)
    if number_of_replicas() == 1:
        return mean, variance, count
    whole = add_over_replicas(count)
    of_all = add_over_replicas(mean * count) / whole
    return of_all, add_over_replicas((variance + ops.square(mean - of_all)) * count) / whole, whole
