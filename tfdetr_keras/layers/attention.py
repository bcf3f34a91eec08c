"""Multi-head attention (DETR, appendix A.1), laid out for TensorFlow on CPUs.

Keras' own layer multiplies, on TensorFlow, arrays whose heads stand next to last, and masks the scores in a pass of its
own. Here heads stand before positions, so that both products are plain batches of matrices, a mask of keys is one more
channel of queries and keys, so that it costs no pass over the scores, and the gradient needs few arrays of their size:
all in all half of the time. On JAX the backend's fused attention is called.
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
        xavier_output: whether the output is drawn so, too; otherwise as PyTorch leaves it, U(±1/√d).
    """

    def __init__(self, d_model: int, packed: bool = True, xavier_output: bool = True) -> None:
        self.d_model, self.packed, self.xavier_output = d_model, packed, xavier_output

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Draw a kernel: the output projection's is the one whose last axis is d_model."""
        is_output = len(shape) == 3 and shape[-1] == self.d_model and shape[0] != self.d_model
        limit = math.sqrt(6.0 / ((4 if self.packed and not is_output else 2) * self.d_model))
        if is_output and not self.xavier_output:
            limit = 1 / math.sqrt(self.d_model)
        return keras.random.uniform(shape, -limit, limit, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"d_model": self.d_model, "packed": self.packed, "xavier_output": self.xavier_output}


class ProjectedAttention(layers.Layer):
    """The parts of attention, head by head: projections and what comes between them; what is projected is left open.

    Args:
        num_heads: heads.
        key_dim: channels of a head.
        dropout: share of the weights that are dropped in training.
        use_bias: whether the projections have biases.
        key_bias: whether that of the keys has one, too; it changes no result.
        kernel_initializer: of all projections.
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        dropout: float = 0.0,
        use_bias: bool = True,
        key_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads, self.key_dim, self.dropout, self.use_bias = num_heads, key_dim, dropout, use_bias
        self.key_bias = key_bias
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.scale = 1 / math.sqrt(key_dim)

    def projection(self, name: str, units: int | None = None, bias: bool = True) -> layers.EinsumDense:
        """Make a projection: `(batch, positions, d)` → `(batch, positions, heads, key_dim)`, or back to `units`.

        Args:
            name: of the layer.
            units: channels that the heads are brought back to; None for a projection into heads.
            bias: whether it has a bias, if any has.
        """
        into_heads = units is None
        return layers.EinsumDense(
            "abc,cde->abde" if into_heads else "abcd,cde->abe",
            (None, self.num_heads, self.key_dim) if into_heads else (None, units),
            bias_axes=("de" if into_heads else "e") if self.use_bias and bias else None,
            kernel_initializer=self.kernel_initializer.clone(),
            name=name,
            dtype=self.dtype_policy,
        )

    def build(self, query_shape: Any, value_shape: Any = None, key_shape: Any = None) -> None:
        """Build for `(batch, queries, d)` and `(batch, keys, d)`; the same where left out."""
        value_shape = value_shape or query_shape
        # Named as in Keras' layer, whose files are read.
        self.query_dense = self.projection("query")
        self.key_dense = self.projection("key", bias=self.key_bias)
        self.value_dense = self.projection("value")
        if self.dropout:
            self._dropout_layer = layers.Dropout(self.dropout, dtype=self.dtype_policy)
        self.output_dense = self.projection("attention_output", query_shape[-1])
        self.query_dense.build(query_shape)
        self.key_dense.build(key_shape or value_shape)
        self.value_dense.build(value_shape)
        self.output_dense.build((None, None, self.num_heads, self.key_dim))

    def attend(
        self,
        query: Any,
        key: Any,
        value: Any,
        mask: Any = None,
        training: bool = False,
        return_attention_scores: bool = False,
    ) -> tuple[Any, Any]:
        """Sum values, weighted by a softmax of queries times keys.

        Args:
            query: `(batch, queries, heads, c)`, projected.
            key: `(batch, keys, heads, c)`, projected.
            value: `(batch, keys, heads, v)`, projected.
            mask: as `attention_mask` of `call`. A query without anything to attend to attends to all alike.
            training: whether weights are dropped.
            return_attention_scores: whether the weights are wanted, too.

        Returns:
            `(batch, queries, heads, v)`, and the weights `(batch, heads, queries, keys)` or None.
        """
        if mask is not None:
            # Where there is nothing to attend to all scores become 0, so that all keys have the same part.
            attends = ops.any(mask, axis=-1, keepdims=True)
            query = query * ops.cast(attends, query.dtype)[..., None]
            mask = ops.logical_or(mask, ops.logical_not(attends))
        is_plain = not (self.dropout and training) and not return_attention_scores
        # JAX's fused attention is as exact, but does not take Conditional DETR's queries, twice as wide as its values.
        if is_plain and keras.backend.backend() == "jax" and query.shape[-1] == value.shape[-1]:
            mask = None if mask is None else mask[:, None]
            return ops.dot_product_attention(query, key, value, mask=mask, scale=self.scale), None
        query = ops.transpose(query * self.scale, (0, 2, 1, 3))
        key, value = ops.transpose(key, (0, 2, 3, 1)), ops.transpose(value, (0, 2, 1, 3))
        if is_plain and (mask is None or mask.shape[1] == 1):
            if mask is not None:
                query, key = _masked_keys(query, key, mask)
            return ops.transpose(_attend(query, key, value), (0, 2, 1, 3)), None
        scores = ops.matmul(query, key)
        if mask is not None:
            scores = ops.where(mask[:, None], scores, -LARGEST[keras.backend.standardize_dtype(scores.dtype)])
        weights = ops.softmax(scores)
        dropped = self._dropout_layer(weights, training=training) if self.dropout else weights
        return ops.transpose(ops.matmul(dropped, value), (0, 2, 1, 3)), weights


class MultiHeadAttention(ProjectedAttention):
    """Attention of queries to keys; weights, their names and most arguments are those of Keras' layer."""

    def call(
        self,
        query: Any,
        value: Any,
        key: Any = None,
        attention_mask: Any = None,
        training: bool = False,
        return_attention_scores: bool = False,
    ) -> Any:
        """Attend.

        Args:
            query: `(batch, queries, d)`.
            value: `(batch, keys, d)`.
            key: `(batch, keys, d)`; the values where left out.
            attention_mask: `(batch, queries, keys)` bool, True = attend; 1 in place of batch or queries stands for all.
            training: whether weights are dropped.
            return_attention_scores: whether the weights are wanted, too.

        Returns:
            `(batch, queries, d)`; or a pair of that and `(batch, heads, queries, keys)`.
        """
        attended, weights = self.attend(
            self.query_dense(query),
            self.key_dense(value if key is None else key),
            self.value_dense(value),
            attention_mask,
            training,
            return_attention_scores,
        )
        outputs = self.output_dense(attended)
        return (outputs, weights) if return_attention_scores else outputs


def _masked_keys(query: Any, key: Any, mask: Any) -> tuple[Any, Any]:
    """Return queries with a channel of ones, keys with one of zeros for image and a very low number for padding."""
    # Half of the lowest number, which a score of the other half is added to without overflow.
    padding = -LARGEST[keras.backend.standardize_dtype(key.dtype)] / 2
    channel = ops.cast(ops.where(mask, 0.0, padding), key.dtype)[:, None]  # (batch, 1, 1, keys)
    channel = ops.broadcast_to(channel, (*ops.shape(key)[:2], 1, ops.shape(key)[-1]))
    return ops.concatenate([query, ops.ones_like(query[..., :1])], -1), ops.concatenate([key, channel], -2)


@ops.custom_gradient
def _attend(query: Any, key: Any, value: Any) -> tuple[Any, Any]:
    """Compute the softmax of products, times values: `(batch, heads, queries, channels)`; keys are transposed.

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
