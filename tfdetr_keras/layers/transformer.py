"""The transformer encoder and decoder, with positions added in every attention (DETR, section 3.2, appendix A.3).

Queries and keys carry positions, values never do; padded positions are masked out as keys. Layer normalisation follows
each branch ("post-norm") or precedes it (`pre_norm`).
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

from keras import layers, ops

from tfdetr_keras.backend.recompute import called
from tfdetr_keras.layers.activations import activation_named
from tfdetr_keras.layers.attention import AttentionInitializer, MultiHeadAttention
from tfdetr_keras.layers.mlp import linear_initializers
from tfdetr_keras.layers.prelu import PReLU

NORM_EPSILON = 1e-5  # PyTorch's default; Keras' own is 1e-3
PRELU = "prelu"  # the activation that has a weight


class FeedForward(layers.Layer):
    """Two dense layers with an activation between them, on each position alone.

    Args:
        d_model: channels of inputs and outputs.
        hidden: channels between them.
        activation: by its Keras name; or `"prelu"`, whose slope is learned, one for all channels.
        dropout: after the activation.
        xavier: whether kernels start Xavier-uniform, as DETR's; otherwise as PyTorch's.
        kernel_initializer: makes the kernels' initialisers instead, and biases then start as 0.
    """

    def __init__(
        self,
        d_model: int,
        hidden: int,
        activation: str = "relu",
        dropout: float = 0.0,
        xavier: bool = True,
        kernel_initializer: Callable[[], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        kernel = "glorot_uniform" if xavier else None

        def start(inputs: int) -> dict[str, Any]:
            if kernel_initializer is not None:
                return {"kernel_initializer": kernel_initializer()}
            return linear_initializers(inputs, kernel=kernel)

        self.d_model, self.width = d_model, hidden
        self.hidden = layers.Dense(
            hidden,
            activation=None if activation == PRELU else activation_named(activation),
            name="hidden",
            dtype=self.dtype_policy,
            **start(d_model),
        )
        self.activation = PReLU(name="activation", dtype=self.dtype_policy) if activation == PRELU else None
        self.dropout = layers.Dropout(dropout, dtype=self.dtype_policy)
        self.outputs = layers.Dense(
            d_model,
            name="output",
            dtype=self.dtype_policy,
            **start(hidden),
        )

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, positions, d_model)`."""
        self.hidden.build((None, None, self.d_model))
        if self.activation is not None:
            self.activation.build((None, None, self.width))
        self.dropout.build((None, None, self.width))
        self.outputs.build((None, None, self.width))

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Map `(batch, positions, d_model)` → the same shape."""
        x = self.hidden(inputs)
        if self.activation is not None:
            x = self.activation(x)
        return self.outputs(self.dropout(x, training=training))


class TransformerLayer(layers.Layer):
    """What encoder and decoder layers share: residual branches, each with its own normalisation.

    Args:
        d_model: channels.
        heads: of each attention.
        hidden: channels inside the feed-forward network.
        activation: of the feed-forward network, see `FeedForward`.
        dropout: of every residual branch.
        attention_dropout: of the attention weights.
        activation_dropout: inside the feed-forward network.
        pre_norm: whether a branch is normalised before it rather than after.
        xavier_output: whether the outputs of attention start Xavier-uniform, as DETR's; otherwise as PyTorch's.
        xavier_feed_forward: likewise of the feed-forward network.
    """

    recompute = False  # see `Detector.recompute`

    def __init__(
        self,
        d_model: int,
        heads: int,
        hidden: int,
        activation: str = "relu",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        pre_norm: bool = False,
        xavier_output: bool = True,
        xavier_feed_forward: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.d_model, self.heads, self.attention_dropout = d_model, heads, attention_dropout
        self.pre_norm, self.xavier_output = pre_norm, xavier_output
        self.dropout = layers.Dropout(dropout, dtype=self.dtype_policy)
        self._make_attention()
        self.feed_forward = FeedForward(
            d_model,
            hidden,
            activation,
            activation_dropout,
            xavier_feed_forward,
            name="feed_forward",
            dtype=self.dtype_policy,
        )
        self.feed_forward_norm = self._norm("feed_forward_norm")

    @abc.abstractmethod
    def _make_attention(self) -> None:
        """Make the attentions and their normalisations."""

    def _attention_options(self, name: str, packed: bool = True) -> dict[str, Any]:
        return {
            "num_heads": self.heads,
            "key_dim": self.d_model // self.heads,
            "dropout": self.attention_dropout,
            "kernel_initializer": AttentionInitializer(self.d_model, packed, self.xavier_output),
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
        """Build every part for `(batch, positions, d_model)`."""
        for part in self._layers:
            part.build((None, None, self.d_model))


class EncoderLayer(TransformerLayer):
    """Self-attention over the image's positions, then a feed-forward network."""

    def _make_attention(self) -> None:
        self.self_attention = MultiHeadAttention(**self._attention_options("self_attention"))
        self.self_attention_norm = self._norm("self_attention_norm")

    def call(self, x: Any, position: Any, mask: Any, training: bool = False) -> Any:
        """Attend.

        Args:
            x: `(batch, positions, d_model)`.
            position: `(batch, positions, d_model)`, or 1 in place of the batch.
            mask: as `attention_mask` of `MultiHeadAttention`; None where nothing is padding.
            training: whether dropout is on.

        Returns:
            `(batch, positions, d_model)`.
        """

        def attend(x: Any) -> Any:
            located = x + position
            return self.self_attention(located, x, key=located, attention_mask=mask, training=training)

        x = self._residual(x, self.self_attention_norm, attend, training)
        return self._residual(x, self.feed_forward_norm, lambda x: self.feed_forward(x, training=training), training)


class DecoderLayer(TransformerLayer):
    """Self-attention among the queries, attention to the image, then a feed-forward network."""

    def _make_attention(self) -> None:
        self.self_attention = self._self_attention()
        self.self_attention_norm = self._norm("self_attention_norm")
        self.cross_attention = self._cross_attention()
        self.cross_attention_norm = self._norm("cross_attention_norm")

    def _self_attention(self) -> layers.Layer:
        return MultiHeadAttention(**self._attention_options("self_attention"))

    def _cross_attention(self) -> layers.Layer:
        return MultiHeadAttention(**self._attention_options("cross_attention"))

    def call(
        self,
        x: Any,
        query_position: Any,
        memory: Any,
        memory_position: Any,
        mask: Any,
        query_mask: Any = None,
        training: bool = False,
        return_attention_scores: bool = False,
    ) -> Any:
        """Attend.

        Args:
            x: `(batch, queries, d_model)`.
            query_position: what `Decoder` gives its layers of the queries' positions.
            memory: `(batch, positions, d_model)`.
            memory_position: `(batch, positions, d_model)`.
            mask: of the image's positions, `(batch, 1, positions)` bool, True = image; None where nothing is padding.
            query_mask: which query sees which, `(batch, queries, queries)` bool; all see all where left out.
            training: whether dropout is on.
            return_attention_scores: whether the attention to the image is wanted, too.

        Returns:
            `(batch, queries, d_model)`; or a pair of that and `(batch, heads, queries, positions)`.
        """
        scores = None

        def attend_to_queries(x: Any) -> Any:
            return self._attend_to_queries(x, query_position, attention_mask=query_mask, training=training)

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

    def _attend_to_queries(self, x: Any, query_position: Any, **options: Any) -> Any:
        located = x + query_position
        return self.self_attention(located, x, key=located, **options)

    def _attend_to_image(self, x: Any, query_position: Any, memory: Any, memory_position: Any, **options: Any) -> Any:
        return self.cross_attention(x + query_position, memory, key=memory + memory_position, **options)


class Encoder(layers.Layer):
    """A stack of encoder layers.

    Args:
        depth: layers.
        d_model: channels.
        final_norm: whether one more normalisation closes the stack, as pre-norm needs it.
        **kwargs: of `TransformerLayer`, and `name` and `dtype`.
    """

    def __init__(self, depth: int, d_model: int, *, final_norm: bool = False, **kwargs: Any) -> None:
        own = {name: kwargs.pop(name) for name in ("name", "dtype") if name in kwargs}
        super().__init__(**own)
        self.d_model = d_model
        self.stack = [
            EncoderLayer(d_model, **kwargs, name=f"layer{index}", dtype=self.dtype_policy) for index in range(depth)
        ]
        self.norm = (
            layers.LayerNormalization(epsilon=NORM_EPSILON, name="norm", dtype=self.dtype_policy)
            if final_norm
            else None
        )

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, positions, d_model)`."""
        for layer in self.stack:
            layer.build((None, None, self.d_model))
        if self.norm is not None:
            self.norm.build((None, None, self.d_model))

    def call(self, x: Any, position: Any, mask: Any, training: bool = False) -> list[Any]:
        """Return the output of each layer, `(batch, positions, d_model)`; the last is the memory."""
        outputs = []
        for layer in self.stack:
            x = called(layer, x, self._position(x, position), mask, training=training)
            outputs.append(x)
        if self.norm is not None:
            outputs[-1] = self.norm(outputs[-1])
        return outputs

    def _position(self, x: Any, position: Any) -> Any:
        """Return the positions that a layer is given beside its input."""
        return position


class Decoded(NamedTuple):
    """What a decoder makes of the queries, of each layer.

    Attributes:
        embeddings: `(batch, queries, d_model)` each, as the heads see them.
        logits: `(batch, layers, queries, logits)`, of the layers that are wanted.
        boxes: `(batch, layers, queries, 4)` cxcywh in [0, 1], of the layers that are wanted.
        attention: to the image, `(batch, heads, queries, positions)` each; empty where it is not wanted.
    """

    embeddings: list[Any]
    logits: Any
    boxes: Any
    attention: list[Any]


class Decoder(layers.Layer):
    """A stack of decoder layers that turn the learned queries into objects, all in parallel.

    One normalisation, shared by all layers, stands between a layer's output and the heads. It is applied to what the
    heads see only: the next layer takes the output as it was.

    Args:
        depth: layers.
        d_model: channels.
        **kwargs: of `TransformerLayer`, and `name` and `dtype`.
    """

    def __init__(self, depth: int, d_model: int, **kwargs: Any) -> None:
        own = {name: kwargs.pop(name) for name in ("name", "dtype") if name in kwargs}
        super().__init__(**own)
        self.d_model = d_model
        self.stack = [
            self._layer(index, d_model=d_model, **kwargs, name=f"layer{index}", dtype=self.dtype_policy)
            for index in range(depth)
        ]
        self.norm = layers.LayerNormalization(epsilon=NORM_EPSILON, name="norm", dtype=self.dtype_policy)

    def _layer(self, index: int, **options: Any) -> DecoderLayer:
        return DecoderLayer(**options)

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, queries, d_model)`."""
        for layer in self.stack:
            layer.build((None, None, self.d_model))
        self.norm.build((None, None, self.d_model))

    def call(
        self,
        query_position: Any,
        memory: Any,
        memory_position: Any,
        mask: Any,
        class_head: Any,
        box_head: Any,
        content: Any = None,
        query_mask: Any = None,
        earlier_layers: bool = True,
        training: bool = False,
        return_attention_scores: bool = False,
    ) -> Decoded:
        """Decode.

        Args:
            query_position: the learned queries, `(batch, queries, d_model)` or what else a member learns of a place.
            memory: `(batch, positions, d_model)`, the encoder's output.
            memory_position: `(batch, positions, d_model)`.
            mask: of the image's positions, `(batch, 1, positions)` bool, True = image; None where nothing is padding.
            class_head: embeddings → logits, shared by all layers.
            box_head: embeddings, and an offset or nothing → boxes, shared by all layers.
            content: what the queries are before the first layer, `(batch, queries, d_model)`; zeros where left out.
            query_mask: which query sees which, `(batch, queries, queries)` bool; all see all where left out.
            earlier_layers: whether the heads look at all layers, or at the last alone.
            training: whether dropout is on.
            return_attention_scores: whether the attention to the image is wanted, too.
        """
        x = ops.zeros_like(query_position) if content is None else content
        embeddings, attention = [], []
        points: list[Any] = []  # of each layer
        for index, layer in enumerate(self.stack):
            points.append(self._moved(points[-1], x, box_head) if points else self._points(query_position))
            x = called(
                layer,
                x,
                self._position(index, x, query_position, points[-1]),
                memory,
                memory_position,
                mask,
                query_mask,
                training=training,
                return_attention_scores=return_attention_scores,
            )
            if return_attention_scores:
                x, scores = x
                attention.append(scores)
            embeddings.append(self.norm(x))
        wanted = slice(None) if earlier_layers else slice(-1, None)
        seen = ops.stack(embeddings[wanted], axis=1)
        return Decoded(embeddings, class_head(seen), self._boxes(box_head, seen, points[wanted]), attention)

    def _points(self, query_position: Any) -> Any:
        """Return the queries' places in the image before the first layer; DETR's have none."""

    def _moved(self, points: Any, x: Any, box_head: Any) -> Any:
        """Return the places for the next layer; `x` is the output of the one before. In DETR they stay."""
        return points

    def _position(self, index: int, x: Any, query_position: Any, points: Any) -> Any:
        """Return what a layer is given of the queries' positions."""
        return query_position

    def _boxes(self, box_head: Any, embeddings: Any, points: list[Any]) -> Any:
        """Return the boxes of some layers, `(batch, layers, queries, 4)`; `points` are the places of each of them."""
        return box_head(embeddings)
