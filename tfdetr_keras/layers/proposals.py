"""Queries that the encoder proposes: the tokens that look most like an object (Deformable DETR, appendix A.4)."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import layers, ops

from tfdetr_keras.layers.mlp import linear_initializers
from tfdetr_keras.layers.position import SCALE, sine_encoding
from tfdetr_keras.layers.transformer import NORM_EPSILON

# Tokens whose anchor reaches nearer to the image's edge than this, or is larger than all but this, propose nothing.
MARGIN = 0.01


class Proposed(NamedTuple):
    """What the tokens propose, and the queries that are made of the best.

    Attributes:
        logits: `(batch, tokens, logits)`, of all tokens.
        boxes: `(batch, tokens, 4)` cxcywh in [0, 1], of all tokens.
        content: `(batch, queries, d_model)`, what the queries begin with.
        position: `(batch, queries, d_model)`.
        references: `(batch, queries, 4)` cxcywh in [0, 1], without a gradient.
    """

    logits: Any
    boxes: Any
    content: Any
    position: Any
    references: Any


class Proposals(layers.Layer):
    """A guess of each token, a box told from its anchor, of which the best become the decoder's queries.

    The best are those of the highest first logit, which is trained to say whether there is an object at all. Tokens of
    the padding, and those whose anchor is not well inside of the image, all look alike to the heads; they are chosen
    where nothing better is left.

    Args:
        d_model: channels.
        num_queries: how many are chosen.

    Raises:
        ValueError: in a call, fewer tokens than queries.

    Source:
        Deformable DETR, appendix A.4 ("Two-stage Deformable DETR"), and the authors' code.
    """

    def __init__(self, d_model: int, num_queries: int, **kwargs: Any) -> None:
        super().__init__(**kwargs, autocast=False)  # or anchors would be cast to half precision
        self.d_model, self.num_queries = d_model, num_queries

        def dense(units: int, name: str) -> layers.Dense:
            start = linear_initializers(units, kernel="glorot_uniform")
            return layers.Dense(units, name=name, dtype=self.dtype_policy, **start)

        def norm(name: str) -> layers.LayerNormalization:
            return layers.LayerNormalization(epsilon=NORM_EPSILON, name=name, dtype=self.dtype_policy)

        self.projection, self.norm = dense(d_model, "projection"), norm("norm")
        self.position, self.position_norm = dense(2 * d_model, "position"), norm("position_norm")

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, tokens, d_model)`."""
        for layer in (self.projection, self.norm):
            layer.build((None, None, self.d_model))
        for layer in (self.position, self.position_norm):
            layer.build((None, None, 2 * self.d_model))

    def call(self, memory: Any, mask: Any, anchors: Any, *, class_head: Any, box_head: Any) -> Proposed:
        """Propose.

        Args:
            memory: `(batch, tokens, d_model)`, the encoder's output.
            mask: `(batch, tokens)` bool, True = image.
            anchors: `(batch, tokens, 4)` float32, cxcywh in parts of the image.
            class_head: embeddings → logits.
            box_head: embeddings and an offset → boxes.
        """
        check_positions(memory.shape[1], self.num_queries)
        is_valid = ops.logical_and(is_inside(anchors), mask[..., None])
        embeddings = self.norm(self.projection(ops.where(is_valid, memory, ops.zeros((), memory.dtype))))
        logits = class_head(embeddings)
        boxes = box_head(embeddings, _offsets(anchors, is_valid))

        _, chosen = ops.top_k(ops.stop_gradient(logits[..., 0]), self.num_queries)
        references = ops.stop_gradient(rows_of(boxes, chosen))
        encoded = sine_encoding(references * SCALE, self.d_model // 2)  # x, y, width, height
        encoded = ops.reshape(encoded, (*ops.shape(encoded)[:2], 2 * self.d_model))
        queries = self.position_norm(self.position(ops.cast(encoded, self.compute_dtype)))
        position, content = ops.split(queries, 2, axis=-1)
        return Proposed(logits, boxes, content, position, references)


class Selected(NamedTuple):
    """The tokens that look most like an object.

    Attributes:
        all_logits: `(batch, tokens, classes)`, of all tokens.
        embeddings: `(batch, queries, d_model)`, of the chosen tokens, as the rest.
        logits: `(batch, queries, classes)`.
        boxes: `(batch, queries, 4)` cxcywh in [0, 1].
    """

    all_logits: Any
    embeddings: Any
    logits: Any
    boxes: Any


class TokenSelection(layers.Layer):
    """The tokens whose likeliest class is likeliest of all, each with its embedding, classes and box.

    Unlike those of `Proposals`, the tokens' logits are those of the classes, and the queries begin with the embeddings.

    Args:
        d_model: channels.
        num_queries: how many are chosen.

    Raises:
        ValueError: in a call, fewer tokens than queries.

    Source:
        RT-DETR, section 4.3 ("Uncertainty-minimal Query Selection"), and the authors' code.
    """

    def __init__(self, d_model: int, num_queries: int, **kwargs: Any) -> None:
        super().__init__(**kwargs, autocast=False)  # or anchors would be cast to half precision
        self.d_model, self.num_queries = d_model, num_queries
        start = linear_initializers(d_model, kernel="glorot_uniform")
        self.projection = layers.Dense(d_model, name="projection", dtype=self.dtype_policy, **start)
        self.norm = layers.LayerNormalization(epsilon=NORM_EPSILON, name="norm", dtype=self.dtype_policy)

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, tokens, d_model)`."""
        for layer in (self.projection, self.norm):
            layer.build((None, None, self.d_model))

    def call(self, memory: Any, anchors: Any, *, class_head: Any, box_head: Any) -> Selected:
        """Select.

        Args:
            memory: `(batch, tokens, d_model)`, the encoder's output.
            anchors: `(1, tokens, 4)` float32, cxcywh in parts of the image.
            class_head: embeddings → logits.
            box_head: embeddings and an offset → boxes.
        """
        check_positions(memory.shape[1], self.num_queries)
        is_valid = is_inside(anchors)
        embeddings = self.norm(self.projection(ops.where(is_valid, memory, ops.zeros((), memory.dtype))))
        logits = class_head(embeddings)
        _, chosen = ops.top_k(ops.max(ops.stop_gradient(logits), axis=-1), self.num_queries)
        own, own_logits = (rows_of(x, chosen) for x in (embeddings, logits))
        offsets = ops.take(_offsets(anchors, is_valid)[0], chosen, axis=0)
        return Selected(logits, own, own_logits, box_head(own, offsets))


def rows_of(x: Any, chosen: Any) -> Any:
    """Return the chosen rows `(batch, queries, channels)` of `(batch, tokens, channels)`.

    Of one long table: `ops.take_along_axis` would look up number by number.
    """
    (batch, tokens), channels = ops.shape(x)[:2], x.shape[2]
    first = ops.arange(batch, dtype="int32")[:, None] * tokens
    return ops.take(ops.reshape(x, (-1, channels)), ops.cast(chosen, "int32") + first, axis=0)


def check_positions(positions: int | None, num_queries: int) -> None:
    """Raise a `ValueError` for fewer positions than queries; None stands for a number that is not known."""
    if positions is not None and positions < num_queries:
        raise ValueError(
            f"the images have {positions} positions on all levels, of which {num_queries} queries cannot be "
            "chosen: give larger images, or make the model with fewer queries (num_queries)"
        )


def is_inside(anchors: Any) -> Any:
    """Return which anchors are well inside of the image, and not all of it: `(batch, tokens, 1)` bool."""
    return ops.all(ops.logical_and(anchors > MARGIN, anchors < 1 - MARGIN), axis=-1, keepdims=True)


def _offsets(anchors: Any, is_inside: Any) -> Any:
    """Return the anchors' logits, and infinity for those that propose nothing."""
    inner = ops.where(is_inside, anchors, 0.5)
    return ops.where(is_inside, ops.log(inner / (1 - inner)), float("inf"))
