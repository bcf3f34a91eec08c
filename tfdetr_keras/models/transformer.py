"""The transformer encoder and decoder, with positions added in every attention (DETR, section 3.2, appendix A.3).

Queries and keys carry positions, values never do; padded positions are masked out as keys. Layer normalisation follows
each branch ("post-norm") or precedes it (`pre_norm`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from keras import initializers, layers, ops

from tfdetr_keras.models.attention import AttentionInitializer, MultiHeadAttention
from tfdetr_keras.models.config import DETRConfig

NORM_EPSILON = 1e-5  # PyTorch's default; Keras' own is 1e-3


def linear_initializers(inputs: int, kernel: Any = None) -> dict[str, Any]:
    """Initialisers of a dense layer or 1×1 convolution as PyTorch has them: U(±1/√inputs) for kernel and bias."""
    limit = 1 / math.sqrt(inputs)
    return {
        "kernel_initializer": kernel or initializers.RandomUniform(-limit, limit),
        "bias_initializer": initializers.RandomUniform(-limit, limit),
    }


class FeedForward(layers.Layer):
    """Two dense layers with an activation between them, on each position alone."""

    def __init__(self, config: DETRConfig, hidden: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.d_model, self.width = config.d_model, hidden
        self.hidden = layers.Dense(
            hidden,
            activation=config.activation_function,
            name="hidden",
            dtype=self.dtype_policy,
            **linear_initializers(config.d_model, kernel="glorot_uniform"),
        )
        self.dropout = layers.Dropout(config.activation_dropout, dtype=self.dtype_policy)
        self.outputs = layers.Dense(
            config.d_model,
            name="output",
            dtype=self.dtype_policy,
            **linear_initializers(hidden, kernel="glorot_uniform"),
        )

    def build(self, input_shape: Any) -> None:
        """Builds for `(batch, positions, d_model)`."""
        self.hidden.build((None, None, self.d_model))
        self.dropout.build((None, None, self.width))
        self.outputs.build((None, None, self.width))

    def call(self, inputs: Any, training: bool = False) -> Any:
        """`(batch, positions, d_model)` → the same shape."""
        return self.outputs(self.dropout(self.hidden(inputs), training=training))


class TransformerLayer(layers.Layer):
    """What encoder and decoder layers share: residual branches, each with its own normalisation."""

    def __init__(self, config: DETRConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.d_model, self.pre_norm = config.d_model, config.pre_norm
        self.dropout = layers.Dropout(config.dropout, dtype=self.dtype_policy)

    def _attention(self, config: DETRConfig, heads: int, name: str) -> MultiHeadAttention:
        return MultiHeadAttention(**self._attention_options(config, heads, name))

    def _attention_options(self, config: DETRConfig, heads: int, name: str) -> dict[str, Any]:
        return {
            "num_heads": heads,
            "key_dim": config.d_model // heads,
            "dropout": config.attention_dropout,
            "kernel_initializer": AttentionInitializer(config.d_model),
            "name": name,
            "dtype": self.dtype_policy,
        }

    def _norm(self, name: str) -> layers.LayerNormalization:
        return layers.LayerNormalization(epsilon=NORM_EPSILON, name=name, dtype=self.dtype_policy)

    def _residual(self, x: Any, norm: Any, branch: Callable[[Any], Any], training: bool) -> Any:
        if self.pre_norm:
            return x + self.dropout(branch(norm(x)), training=training)
        return norm(x + self.dropout(branch(x), training=training))

    def build(self, input_shape: Any) -> None:
        """Builds every part for `(batch, positions, d_model)`."""
        shape = (None, None, self.d_model)
        for part in self._layers:
            if isinstance(part, MultiHeadAttention):
                part.build(shape, shape, shape)
            else:
                part.build(shape)


class EncoderLayer(TransformerLayer):
    """Self-attention over the image's positions, then a feed-forward network."""

    def __init__(self, config: DETRConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.self_attention = self._attention(config, config.encoder_attention_heads, "self_attention")
        self.self_attention_norm = self._norm("self_attention_norm")
        self.feed_forward = FeedForward(config, config.encoder_ffn_dim, name="feed_forward", dtype=self.dtype_policy)
        self.feed_forward_norm = self._norm("feed_forward_norm")

    def call(self, x: Any, position: Any, mask: Any, training: bool = False) -> Any:
        """`x`, `position`: `(batch, positions, d_model)`; `mask`: `(batch, 1, positions)` bool, True = image."""

        def attend(x: Any) -> Any:
            located = x + position
            return self.self_attention(located, x, key=located, attention_mask=mask, training=training)

        x = self._residual(x, self.self_attention_norm, attend, training)
        return self._residual(x, self.feed_forward_norm, lambda x: self.feed_forward(x, training=training), training)


class DecoderLayer(TransformerLayer):
    """Self-attention among the queries, attention to the image, then a feed-forward network."""

    def __init__(self, config: DETRConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.self_attention = self._attention(config, config.decoder_attention_heads, "self_attention")
        self.self_attention_norm = self._norm("self_attention_norm")
        self.cross_attention = self._attention(config, config.decoder_attention_heads, "cross_attention")
        self.cross_attention_norm = self._norm("cross_attention_norm")
        self.feed_forward = FeedForward(config, config.decoder_ffn_dim, name="feed_forward", dtype=self.dtype_policy)
        self.feed_forward_norm = self._norm("feed_forward_norm")

    def call(
        self,
        x: Any,
        query_position: Any,
        memory: Any,
        memory_position: Any,
        mask: Any,
        training: bool = False,
        return_attention_scores: bool = False,
    ) -> Any:
        """`x`: `(batch, queries, d_model)`; `memory`: `(batch, positions, d_model)`; `mask` as in the encoder.

        With `return_attention_scores` a pair: the output, and how much each query attends to each position of the
        image, `(batch, heads, queries, positions)`.
        """
        scores = None

        def attend_to_queries(x: Any) -> Any:
            return self._attend_to_queries(x, query_position, training)

        def attend_to_image(x: Any) -> Any:
            nonlocal scores
            attended = self._attend_to_image(
                x,
                query_position,
                memory,
                memory_position,
                attention_mask=mask,
                training=training,
                return_attention_scores=return_attention_scores,
            )
            if return_attention_scores:
                attended, scores = attended
            return attended

        x = self._residual(x, self.self_attention_norm, attend_to_queries, training)
        x = self._residual(x, self.cross_attention_norm, attend_to_image, training)
        x = self._residual(x, self.feed_forward_norm, lambda x: self.feed_forward(x, training=training), training)
        return (x, scores) if return_attention_scores else x

    def _attend_to_queries(self, x: Any, query_position: Any, training: bool) -> Any:
        located = x + query_position
        return self.self_attention(located, x, key=located, training=training)

    def _attend_to_image(self, x: Any, query_position: Any, memory: Any, memory_position: Any, **options: Any) -> Any:
        return self.cross_attention(x + query_position, memory, key=memory + memory_position, **options)


class Encoder(layers.Layer):
    """A stack of encoder layers; with pre-norm one more normalisation closes it."""

    def __init__(self, config: DETRConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.d_model = config.d_model
        self.stack = [
            EncoderLayer(config, name=f"layer{index}", dtype=self.dtype_policy)
            for index in range(config.encoder_layers)
        ]
        self.norm = (
            layers.LayerNormalization(epsilon=NORM_EPSILON, name="norm", dtype=self.dtype_policy)
            if config.pre_norm
            else None
        )

    def build(self, input_shape: Any) -> None:
        """Builds for `(batch, positions, d_model)`."""
        for layer in self.stack:
            layer.build((None, None, self.d_model))
        if self.norm is not None:
            self.norm.build((None, None, self.d_model))

    def call(self, x: Any, position: Any, mask: Any, training: bool = False) -> list[Any]:
        """Returns the output of each layer, `(batch, positions, d_model)`; the last is the memory."""
        outputs = []
        for layer in self.stack:
            x = layer(x, position, mask, training=training)
            outputs.append(x)
        if self.norm is not None:
            outputs[-1] = self.norm(outputs[-1])
        return outputs


class Decoder(layers.Layer):
    """A stack of decoder layers that turn the learned queries into object embeddings, all in parallel.

    One normalisation, shared by all layers, stands between a layer's output and the heads. It is applied to what the
    heads see only: the next layer takes the output as it was.
    """

    def __init__(self, config: DETRConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.d_model = config.d_model
        self.stack = [self._layer(config, index) for index in range(config.decoder_layers)]
        self.norm = layers.LayerNormalization(epsilon=NORM_EPSILON, name="norm", dtype=self.dtype_policy)

    def _layer(self, config: DETRConfig, index: int) -> DecoderLayer:
        return DecoderLayer(config, name=f"layer{index}", dtype=self.dtype_policy)

    def _positions(self, query_position: Any) -> Callable[[int, Any], Any]:
        """What a layer is told of the queries' positions: a function of its place in the stack and of its input."""
        return lambda index, x: query_position

    def build(self, input_shape: Any) -> None:
        """Builds for `(batch, queries, d_model)`."""
        for layer in self.stack:
            layer.build((None, None, self.d_model))
        self.norm.build((None, None, self.d_model))

    def call(
        self,
        query_position: Any,
        memory: Any,
        memory_position: Any,
        mask: Any,
        training: bool = False,
        return_attention_scores: bool = False,
    ) -> Any:
        """Returns the normalised output of each layer, `(batch, queries, d_model)`.

        With `return_attention_scores` a pair: these, and each layer's attention to the image, see `DecoderLayer`.
        """
        x = ops.zeros_like(query_position)
        outputs, attention = [], []
        position_of = self._positions(query_position)
        for index, layer in enumerate(self.stack):
            x = layer(
                x,
                position_of(index, x),
                memory,
                memory_position,
                mask,
                training=training,
                return_attention_scores=return_attention_scores,
            )
            if return_attention_scores:
                x, scores = x
                attention.append(scores)
            outputs.append(self.norm(x))
        return (outputs, attention) if return_attention_scores else outputs
