"""The transformer with deformable attention to several levels (Deformable DETR, section 4.1 and appendix A.4).

Tokens of the image attend to a few points around themselves, queries to a few points around their reference, which is
a point or, once a box has been predicted, a box. With refinement each layer's box is the next layer's reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from keras import layers, ops

from tfdetr_keras.backend.recompute import called
from tfdetr_keras.layers.attention import MultiHeadAttention
from tfdetr_keras.layers.deformable import DeformableAttention
from tfdetr_keras.layers.heads import HeadOfEachLayer, inverse_sigmoid
from tfdetr_keras.layers.transformer import TransformerLayer


class DeformableLayer(TransformerLayer):
    """What encoder and decoder layers with deformable attention share.

    Args:
        levels: number of feature maps.
        points: points of each level that a head looks at, a number for all or one for each.
        offset_scale: as for `DeformableAttention`.
        sampling: likewise.
        **options: of `TransformerLayer`.
    """

    def __init__(
        self,
        levels: int,
        points: int | Sequence[int],
        offset_scale: float = 0.5,
        sampling: str = "bilinear",
        **options: Any,
    ) -> None:
        self.levels, self.points = levels, points
        self.offset_scale, self.sampling = offset_scale, sampling
        # References would be cast to half precision, in which the pixels of an image cannot be told apart.
        super().__init__(**options, autocast=False)

    def _deformable_attention(self, name: str, **options: Any) -> DeformableAttention:
        return DeformableAttention(
            self.d_model,
            self.heads,
            self.levels,
            self.points,
            offset_scale=self.offset_scale,
            sampling=self.sampling,
            name=name,
            dtype=self.dtype_policy,
            **options,
        )


class DeformableEncoderLayer(DeformableLayer):
    """Attention of each token to points around it on all levels, then a feed-forward network."""

    def _make_attention(self) -> None:
        self.self_attention = self._deformable_attention("self_attention")
        self.self_attention_norm = self._norm("self_attention_norm")

    def call(
        self, x: Any, position: Any, references: Any, mask: Any, *, spatial_shapes: Any, training: bool = False
    ) -> Any:
        """Attend.

        Args:
            x: `(batch, tokens, d_model)`.
            position: `(batch, tokens, d_model)`.
            references: `(batch, tokens, levels, 2)`, x and y of each token on each level's whole map.
            mask: `(batch, tokens)` bool, True = image.
            spatial_shapes: `(levels, 2)`, height and width of each level.
            training: whether dropout is on.

        Returns:
            `(batch, tokens, d_model)`.
        """

        def attend(x: Any) -> Any:
            return self.self_attention(
                x + position, x, references, spatial_shapes=spatial_shapes, value_mask=mask, training=training
            )

        x = self._residual(x, self.self_attention_norm, attend, training)
        return self._residual(x, self.feed_forward_norm, lambda x: self.feed_forward(x, training=training), training)


class DeformableEncoder(layers.Layer):
    """A stack of such layers, without a normalisation at its end.

    Args:
        depth: layers.
        d_model: channels.
        **kwargs: of `DeformableLayer`, and `name` and `dtype`.
    """

    def __init__(self, depth: int, d_model: int, **kwargs: Any) -> None:
        own = {name: kwargs.pop(name) for name in ("name", "dtype") if name in kwargs}
        super().__init__(**own, autocast=False)
        self.d_model = d_model
        self.stack = [
            DeformableEncoderLayer(d_model=d_model, **kwargs, name=f"layer{index}", dtype=self.dtype_policy)
            for index in range(depth)
        ]

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, tokens, d_model)`."""
        for layer in self.stack:
            layer.build((None, None, self.d_model))

    def call(
        self, x: Any, position: Any, references: Any, mask: Any, *, spatial_shapes: Any, training: bool = False
    ) -> list[Any]:
        """Return the output of each layer, `(batch, tokens, d_model)`; arguments are those of a layer."""
        outputs = []
        for layer in self.stack:
            x = called(layer, x, position, references, mask, spatial_shapes=spatial_shapes, training=training)
            outputs.append(x)
        return outputs


class DeformableDecoderLayer(DeformableLayer):
    """Self-attention among the queries, attention to points of the image, then a feed-forward network."""

    def _make_attention(self) -> None:
        self._make_self_attention()
        self.cross_attention = self._deformable_attention("cross_attention")
        self.cross_attention_norm = self._norm("cross_attention_norm")

    def _make_self_attention(self) -> None:
        self.self_attention = MultiHeadAttention(**self._attention_options("self_attention"))
        self.self_attention_norm = self._norm("self_attention_norm")

    def _after_image(self, x: Any, attend: Any, training: bool) -> Any:
        """Add what the queries see of the image."""
        return self._residual(x, self.cross_attention_norm, attend, training)

    def _after_feed_forward(self, x: Any, training: bool) -> Any:
        """Add what the feed-forward network makes of each query."""
        return self._residual(x, self.feed_forward_norm, lambda x: self.feed_forward(x, training=training), training)

    def call(
        self,
        x: Any,
        query_position: Any,
        references: Any,
        memory: Any,
        mask: Any,
        query_mask: Any = None,
        *,
        spatial_shapes: Any,
        training: bool = False,
    ) -> Any:
        """Attend.

        Args:
            x: `(batch, queries, d_model)`.
            query_position: `(batch, queries, d_model)`.
            references: `(batch, queries, levels, 2 or 4)`, points or boxes on each level's whole map.
            memory: `(batch, tokens, d_model)`, the encoder's output.
            mask: `(batch, tokens)` bool, True = image.
            query_mask: which query sees which, `(batch, queries, queries)` bool; all see all where left out.
            spatial_shapes: `(levels, 2)`, height and width of each level.
            training: whether dropout is on.

        Returns:
            `(batch, queries, d_model)`.
        """

        def attend_to_queries(x: Any) -> Any:
            located = x + query_position
            return self.self_attention(located, x, key=located, attention_mask=query_mask, training=training)

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
        x = self._after_image(x, attend_to_image, training)
        return self._after_feed_forward(x, training)


class DeformableDecoded(NamedTuple):
    """What a decoder makes of the queries, of each layer.

    Attributes:
        embeddings: `(batch, queries, d_model)` each, as the heads see them.
        references: `(batch, queries, 2 or 4)` each, from which the layer's boxes are told.
        logits: `(batch, layers, queries, logits)`, of the layers that are wanted.
        boxes: `(batch, layers, queries, 4)` cxcywh in [0, 1], of the layers that are wanted.
    """

    embeddings: list[Any]
    references: list[Any]
    logits: Any
    boxes: Any


class DeformableDecoder(layers.Layer):
    """A stack of decoder layers; without a normalisation between them and the heads.

    Args:
        depth: layers.
        d_model: channels.
        refine: whether each layer's boxes are the next layer's references, without a gradient through them.
        look_forward_twice: whether in training the gradient of a layer's boxes reaches the head of the layer before it,
            too, and no further (Zhang et al. 2022, "DINO", arXiv:2203.03605, section 3.5).
        **kwargs: of `DeformableLayer`, and `name` and `dtype`.
    """

    def __init__(
        self, depth: int, d_model: int, refine: bool = False, look_forward_twice: bool = False, **kwargs: Any
    ) -> None:
        own = {name: kwargs.pop(name) for name in ("name", "dtype") if name in kwargs}
        super().__init__(**own, autocast=False)
        self.d_model, self.refine, self.look_forward_twice = d_model, refine, look_forward_twice
        self.stack = [
            DeformableDecoderLayer(d_model=d_model, **kwargs, name=f"layer{index}", dtype=self.dtype_policy)
            for index in range(depth)
        ]

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, queries, d_model)`."""
        for layer in self.stack:
            layer.build((None, None, self.d_model))

    def call(
        self,
        x: Any,
        query_position: Any,
        references: Any,
        memory: Any,
        mask: Any = None,
        valid_ratios: Any = None,
        query_mask: Any = None,
        *,
        spatial_shapes: Any,
        class_head: HeadOfEachLayer,
        box_head: HeadOfEachLayer,
        earlier_layers: bool = True,
        depth: int | None = None,
        training: bool = False,
    ) -> DeformableDecoded:
        """Decode.

        Args:
            x: `(batch, queries, d_model)`, what the queries begin with.
            query_position: `(batch, queries, d_model)`; or a function that makes it of each layer's references.
            references: `(batch, queries, 2 or 4)` float32, points or boxes in [0, 1] of the unpadded image.
            memory: `(batch, tokens, d_model)`, the encoder's output.
            mask: `(batch, tokens)` bool, True = image; all is image where left out.
            valid_ratios: `(batch, levels, 2)`, the shares of each level's width and height that are image; all of them
                where left out.
            query_mask: which query sees which, `(batch, queries, queries)` bool; all see all where left out.
            spatial_shapes: `(levels, 2)`, height and width of each level.
            class_head: embeddings → logits, of each layer.
            box_head: embeddings and an offset → boxes, of each layer.
            earlier_layers: whether predictions of all layers are wanted, or the last layer's alone.
            depth: how many layers are computed, if not all.
            training: whether dropout is on.
        """
        embeddings, given, logits, boxes = [], [], [], []
        box: Any = None
        stack = self.stack[:depth]
        for index, layer in enumerate(stack):
            given.append(references)
            is_box = references.shape[-1] == 4
            of_levels = references[:, :, None]
            if valid_ratios is not None:
                ratios = ops.concatenate([valid_ratios, valid_ratios], axis=-1) if is_box else valid_ratios
                of_levels = of_levels * ratios[:, None]
            x = called(
                layer,
                x,
                query_position(references) if callable(query_position) else query_position,
                of_levels,
                memory,
                mask,
                query_mask,
                spatial_shapes=spatial_shapes,
                training=training,
            )
            embeddings.append(x)
            is_wanted = earlier_layers or index == len(stack) - 1
            if is_wanted:
                logits.append(class_head.of(index)(x))
            if is_wanted or self.refine:
                offset = inverse_sigmoid(references)
                offset = offset if is_box else ops.concatenate([offset, ops.zeros_like(offset)], axis=-1)
                change = box_head.of(index).change(x)
                before, box = box, ops.sigmoid(change + offset)
                references = ops.stop_gradient(box) if self.refine else references
                if is_wanted and training and self.look_forward_twice and before is not None:
                    boxes.append(ops.sigmoid(change + inverse_sigmoid(before)))  # its value is that of `box`
                elif is_wanted:
                    boxes.append(box)
        return DeformableDecoded(embeddings, given, ops.stack(logits, axis=1), ops.stack(boxes, axis=1))
