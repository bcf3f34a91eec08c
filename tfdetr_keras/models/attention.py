"""Multi-head attention (DETR, appendix A.1), laid out for TensorFlow on CPUs.

Keras' own layer does the work but for the core, from projected queries, keys and values to their weighted sums. On
TensorFlow that core multiplies arrays whose heads stand next to last, and masks the scores in a pass of its own. Here
heads stand before positions, so that both products are plain batches of matrices, the padding mask is one more channel
of queries and keys, so that masking costs no pass over the scores, and the gradient needs few arrays of their size: all
in all half of the time. On JAX and PyTorch Keras calls the backend's fused attention, which stays.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import initializers, layers, ops

# Largest finite number of each dtype of the computation; NumPy does not know bfloat16's.
LARGEST = {"float16": 65504.0, "bfloat16": 3.3895314e38, "float32": 3.4028235e38, "float64": 1.7976931348623157e308}


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class AttentionInitializer(initializers.Initializer):
    """Xavier-uniform over the matrices the reference draws: query, key, value as one `(3 d, d)`, output `(d, d)`.

    Keras' own Xavier would misread the three-dimensional kernels `(d, heads, d / heads)` as convolutions.

    Args:
        d_model: d.
        packed: whether query, key and value are one matrix there; otherwise each is `(d, d)`.
    """

    def __init__(self, d_model: int, packed: bool = True) -> None:
        self.d_model, self.packed = d_model, packed

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Draws a kernel: the output projection's is the one whose last axis is d_model."""
        is_output = len(shape) == 3 and shape[-1] == self.d_model and shape[0] != self.d_model
        limit = math.sqrt(6.0 / ((4 if self.packed and not is_output else 2) * self.d_model))
        return keras.random.uniform(shape, -limit, limit, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"d_model": self.d_model, "packed": self.packed}


class MultiHeadAttention(layers.MultiHeadAttention):
    """Keras' layer, weights and arguments; `attention_mask` is of keys alone, `(batch, 1, keys)`, True = attend."""

    def _compute_attention(
        self,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any = None,
        training: Any = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> tuple[Any, Any]:
        """What Keras lets layers override: `(batch, positions, heads, channels)` each → the same, and the weights."""
        if attention_mask is not None:
            # Where there is nothing to attend to all scores become 0, so that all keys have the same part.
            attends = ops.any(attention_mask, axis=-1, keepdims=True)
            query = query * ops.cast(attends, query.dtype)[..., None]
            attention_mask = ops.logical_or(attention_mask, ops.logical_not(attends))
        is_plain = not (self._dropout or return_attention_scores or use_causal_mask)
        # JAX's fused attention is as exact, but does not take Conditional DETR's queries, twice as wide as its values.
        is_fused = keras.backend.backend() == "jax" and query.shape[-1] == value.shape[-1]
        if not is_plain or is_fused:
            return super()._compute_attention(
                query, key, value, attention_mask, training, return_attention_scores, use_causal_mask
            )
        query = ops.transpose(query * self._inverse_sqrt_key_dim, (0, 2, 1, 3))
        key, value = ops.transpose(key, (0, 2, 3, 1)), ops.transpose(value, (0, 2, 1, 3))
        if attention_mask is not None:
            query, key = _masked(query, key, attention_mask)
        return ops.transpose(_attend(query, key, value), (0, 2, 1, 3)), None

    def _masked_softmax(self, attention_scores: Any, attention_mask: Any = None) -> Any:
        """What Keras calls where it makes the scores, to return them or to drop some; its own mask adds −1e9 alone."""
        if attention_mask is not None:
            lowest = -LARGEST[keras.backend.standardize_dtype(attention_scores.dtype)]
            attention_scores = ops.where(attention_mask[:, None], attention_scores, lowest)
        return self._softmax(attention_scores)


def _masked(query: Any, key: Any, mask: Any) -> tuple[Any, Any]:
    """Queries with a channel of ones, keys with one of zeros for image and a very low number for padding."""
    # Half of the lowest number, which a score of the other half is added to without overflow.
    padding = -LARGEST[keras.backend.standardize_dtype(key.dtype)] / 2
    channel = ops.cast(ops.where(mask, 0.0, padding), key.dtype)[:, None]  # (batch, 1, 1, keys)
    channel = ops.broadcast_to(channel, (*ops.shape(key)[:2], 1, ops.shape(key)[-1]))
    return ops.concatenate([query, ops.ones_like(query[..., :1])], -1), ops.concatenate([key, channel], -2)


@ops.custom_gradient
def _attend(query: Any, key: Any, value: Any) -> tuple[Any, Any]:
    """Softmax of products, times values: `(batch, heads, queries, channels)`; keys are transposed.

    The gradient of a softmax takes from each weight's gradient the row's mean, weighted by the weights. That mean is
    the product of the output and its gradient, and is taken off inside a product of matrices, as one more channel: of
    the arrays of queries × keys, by far the largest, only two are made on the way back instead of six.
    """
    weights = ops.softmax(ops.matmul(query, key))
    outputs = ops.matmul(weights, value)

    def gradient(*arguments: Any, upstream: Any = None) -> tuple[Any, Any, Any]:
        # PyTorch's backend gives the arguments of the function and, by name, the gradient; the others that alone.
        d_outputs = arguments[0] if upstream is None else upstream
        mean = ops.sum(d_outputs * outputs, axis=-1, keepdims=True)
        d_outputs_and_mean = ops.concatenate([d_outputs, -mean], axis=-1)
        values_and_one = ops.concatenate([value, ops.ones_like(value[..., :1])], axis=-1)
        d_scores = weights * ops.matmul(d_outputs_and_mean, ops.swapaxes(values_and_one, 2, 3))
        return (
            ops.matmul(d_scores, ops.swapaxes(key, 2, 3)),
            ops.matmul(ops.swapaxes(query, 2, 3), d_scores),
            ops.swapaxes(ops.matmul(ops.swapaxes(d_outputs, 2, 3), weights), 2, 3),
        )

    return outputs, gradient
