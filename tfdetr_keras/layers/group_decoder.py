"""A decoder whose queries come in groups that do not see each other, and whose boxes are told from fixed references.

In training several groups of queries learn from the same image, each matched to the objects on its own; inference has
the first alone. Boxes are a reference's, moved in parts of its sides and stretched by factors, without a sigmoid.

Source:
    Chen et al. 2022, "Group DETR", arXiv:2207.13085; Chen et al. 2024, "LW-DETR", arXiv:2406.03459, section 3.1, and
    the authors' code.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import layers, ops

from tfdetr_keras.backend.recompute import called
from tfdetr_keras.layers.deformable import DeformableAttention
from tfdetr_keras.layers.deformable_transformer import DeformableDecoderLayer
from tfdetr_keras.layers.mlp import MLP, linear_initializers
from tfdetr_keras.layers.position import encode_coordinates
from tfdetr_keras.layers.proposals import check_positions, is_inside, rows_of
from tfdetr_keras.layers.transformer import NORM_EPSILON


def refined(boxes: Any, change: Any) -> Any:
    """Return boxes moved in parts of their sides and stretched by exponentials, `(…, 4)` cxcywh, float32."""
    centre = change[..., :2] * boxes[..., 2:] + boxes[..., :2]
    return ops.concatenate([centre, ops.exp(change[..., 2:]) * boxes[..., 2:]], axis=-1)


class GroupSelected(NamedTuple):
    """The tokens that look most like an object, of all groups, one group after the other.

    Attributes:
        embeddings: `(batch, groups · queries, d_model)`.
        logits: `(batch, groups · queries, classes)`.
        boxes: `(batch, groups · queries, 4)` cxcywh.
    """

    embeddings: Any
    logits: Any
    boxes: Any


class GroupSelection(layers.Layer):
    """The tokens whose likeliest class is likeliest of all, chosen by each group with heads of its own.

    Tokens of the padding, and those whose anchor is not well inside of the image, are all zeros and have no box; they
    are chosen where nothing better is left.

    Args:
        d_model: channels.
        num_queries: how many each group chooses.
        groups: number of groups.

    Raises:
        ValueError: in a call, fewer tokens than queries.
    """

    def __init__(self, d_model: int, num_queries: int, groups: int, **kwargs: Any) -> None:
        super().__init__(**kwargs, autocast=False)  # or anchors would be cast to half precision
        self.d_model, self.num_queries = d_model, num_queries
        policy = self.dtype_policy

        def projection(name: str) -> layers.Dense:
            start = linear_initializers(d_model, kernel="glorot_uniform")
            return layers.Dense(d_model, name=name, dtype=policy, **start)

        self.projections = [projection(f"group{index}_projection") for index in range(groups)]
        self.norms = [
            layers.LayerNormalization(epsilon=NORM_EPSILON, name=f"group{index}_norm", dtype=policy)
            for index in range(groups)
        ]

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, tokens, d_model)`."""
        for layer in (*self.projections, *self.norms):
            layer.build((None, None, self.d_model))

    def call(
        self, memory: Any, anchors: Any, mask: Any = None, *, groups: int, class_head: Any, box_head: Any
    ) -> GroupSelected:
        """Select.

        Args:
            memory: `(batch, tokens, d_model)`.
            anchors: `(batch or 1, tokens, 4)` float32, cxcywh in parts of the image.
            mask: `(batch, tokens)` bool, True = image; all is image where left out.
            groups: how many of them choose, from the first.
            class_head: heads of the groups, embeddings → logits.
            box_head: heads of the groups, embeddings → changes of a box.
        """
        check_positions(memory.shape[1], self.num_queries)
        is_valid = is_inside(anchors)
        if mask is not None:
            is_valid = ops.logical_and(is_valid, mask[..., None])
        memory = ops.where(is_valid, memory, ops.zeros((), memory.dtype))
        anchors = ops.where(is_valid, anchors, 0.0)
        anchors = ops.broadcast_to(anchors, (*ops.shape(memory)[:2], 4))
        embeddings, logits, boxes = [], [], []
        for group in range(groups):
            tokens = self.norms[group](self.projections[group](memory))
            of_tokens = class_head.of(group)(tokens)
            _, chosen = ops.top_k(ops.max(ops.stop_gradient(of_tokens), axis=-1), self.num_queries)
            embeddings.append(rows_of(tokens, chosen))
            logits.append(rows_of(of_tokens, chosen))
            change = box_head.of(group).change(embeddings[-1])
            boxes.append(refined(rows_of(anchors, chosen), change))
        return GroupSelected(*(ops.concatenate(parts, axis=1) for parts in (embeddings, logits, boxes)))


class GroupDecoderLayer(DeformableDecoderLayer):
    """Self-attention within each group of queries, attention to points of the image, then a feed-forward network.

    Args:
        cross_heads: heads of the attention to the image.
        **options: of `DeformableLayer`.
    """

    def __init__(self, cross_heads: int, **options: Any) -> None:
        self.cross_heads = cross_heads
        super().__init__(**options)

    def _deformable_attention(self, name: str, **options: Any) -> DeformableAttention:
        return DeformableAttention(
            self.d_model, self.cross_heads, self.levels, self.points, name=name, dtype=self.dtype_policy, **options
        )

    def call(  # type: ignore[override]
        self,
        x: Any,
        query_position: Any,
        references: Any,
        memory: Any,
        mask: Any = None,
        *,
        groups: int,
        spatial_shapes: Any,
        training: bool = False,
    ) -> Any:
        """Attend; arguments are those of `DeformableDecoderLayer`, with the number of groups the queries are in."""
        shape = ops.shape(x)

        def attend_to_queries(x: Any) -> Any:
            x, position = (ops.reshape(part, (-1, shape[1] // groups, self.d_model)) for part in (x, query_position))
            located = x + position
            return ops.reshape(self.self_attention(located, x, key=located, training=training), shape)

        def attend_to_image(x: Any) -> Any:
            return self.cross_attention(
                x + query_position,
                memory,
                references,
                spatial_shapes=spatial_shapes,
                value_mask=mask,
                training=training,
            )

        x = self._residual(x, self.self_attention_norm, attend_to_queries, training)
        x = self._residual(x, self.cross_attention_norm, attend_to_image, training)
        return self._residual(x, self.feed_forward_norm, lambda x: self.feed_forward(x, training=training), training)


class GroupDecoder(layers.Layer):
    """A stack of such layers, with one normalisation for the outputs of all.

    Args:
        depth: layers.
        d_model: channels.
        **kwargs: of `GroupDecoderLayer`, and `name` and `dtype`.
    """

    def __init__(self, depth: int, d_model: int, **kwargs: Any) -> None:
        own = {name: kwargs.pop(name) for name in ("name", "dtype") if name in kwargs}
        super().__init__(**own, autocast=False)
        self.d_model = d_model
        policy = self.dtype_policy
        self.stack = [
            GroupDecoderLayer(d_model=d_model, **kwargs, name=f"layer{index}", dtype=policy) for index in range(depth)
        ]
        self.norm = layers.LayerNormalization(epsilon=NORM_EPSILON, name="norm", dtype=policy)
        widths = (d_model, d_model)
        self.query_position = MLP(
            2 * d_model, widths, kernel_initializer="glorot_uniform", name="query_position", dtype=policy
        )

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, queries, d_model)`."""
        for layer in (*self.stack, self.norm):
            layer.build((None, None, self.d_model))
        self.query_position.build((None, None, 2 * self.d_model))

    def call(
        self,
        x: Any,
        references: Any,
        memory: Any,
        mask: Any = None,
        valid_ratios: Any = None,
        *,
        groups: int,
        spatial_shapes: Any,
        training: bool = False,
    ) -> list[Any]:
        """Decode.

        Args:
            x: `(batch, queries, d_model)`, what the queries begin with, group after group.
            references: `(batch, queries, 4)` float32, boxes.
            memory: `(batch, tokens, d_model)`.
            mask: `(batch, tokens)` bool, True = image; all is image where left out.
            valid_ratios: `(batch, levels, 2)`, the shares of each level's width and height that are image.
            groups: number of groups.
            spatial_shapes: `(levels, 2)`, height and width of each level.
            training: whether dropout is on.

        Returns:
            The embeddings of each layer, normalised, `(batch, queries, d_model)`.
        """
        of_levels = references[:, :, None]
        if valid_ratios is not None:
            of_levels = of_levels * ops.concatenate([valid_ratios, valid_ratios], axis=-1)[:, None]
        encoded = encode_coordinates(of_levels[:, :, 0], self.d_model // 2)
        position = self.query_position(ops.cast(encoded, self.compute_dtype))
        embeddings = []
        for layer in self.stack:
            x = called(
                layer,
                x,
                position,
                of_levels,
                memory,
                mask,
                groups=groups,
                spatial_shapes=spatial_shapes,
                training=training,
            )
            embeddings.append(self.norm(x))
        return embeddings
