"""D-FINE's decoder: layer by layer it sharpens distributions over how far the sides of one box are to be moved.

The first layer gives a box as in RT-DETR, which all layers then take for their reference ("pre-box"). Each layer adds
to the logits of the distances of its four sides; their means make its box, which is where the next layer looks. How
sharp the distributions are is evidence of how well a box fits, and raises or lowers its scores.

Source:
    Peng et al. 2024, "D-FINE: Redefine Regression Task in DETRs as Fine-grained Distribution Refinement",
    arXiv:2410.13842, section 4.1 and appendix A, and the authors' code.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import initializers, layers, ops

from tfdetr_keras.backend.recompute import called
from tfdetr_keras.layers.deformable_transformer import DeformableDecoderLayer
from tfdetr_keras.layers.distance_bins import SIDES, bin_values, distances_to_boxes, expected_distances, of_sides
from tfdetr_keras.layers.heads import HeadOfEachLayer, inverse_sigmoid
from tfdetr_keras.layers.mlp import MLP
from tfdetr_keras.layers.transformer import NORM_EPSILON

MOST_PROBABLE = 4  # bins of each side that say how sharp its distribution is
LARGEST = 65504.0  # of float16, beyond which a residual branch is cut off
FARTHEST = 10.0  # beyond which a number of a query's position is cut off


class Gate(layers.Layer):
    """Two inputs, each weighted channel by channel by a sigmoid of both, added and normalised.

    It starts with halves of both.

    Args:
        d_model: channels.

    Source:
        D-FINE, appendix A.1 ("Target gating layer").
    """

    def __init__(self, d_model: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.d_model = d_model
        self.gate = layers.Dense(2 * d_model, kernel_initializer="zeros", name="gate", dtype=self.dtype_policy)
        self.norm = layers.LayerNormalization(epsilon=NORM_EPSILON, name="norm", dtype=self.dtype_policy)

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, queries, d_model)`."""
        self.gate.build((None, None, 2 * self.d_model))
        self.norm.build((None, None, self.d_model))

    def call(self, first: Any, second: Any) -> Any:
        """Map two `(batch, queries, d_model)` → the same shape."""
        gates = ops.sigmoid(self.gate(ops.concatenate([first, second], axis=-1)))
        of_first, of_second = ops.split(gates, 2, axis=-1)
        return self.norm(of_first * first + of_second * second)


class GatedDecoderLayer(DeformableDecoderLayer):
    """A layer of the deformable decoder whose attention to the image is without projections, and gated."""

    def _make_attention(self) -> None:
        self._make_self_attention()
        self.cross_attention = self._deformable_attention("cross_attention", project_value=False, project_output=False)
        self.gate = Gate(self.d_model, name="gate", dtype=self.dtype_policy)

    def _after_image(self, x: Any, attend: Any, training: bool) -> Any:
        return self.gate(x, self.dropout(attend(x), training=training))

    def _after_feed_forward(self, x: Any, training: bool) -> Any:
        x = x + self.dropout(self.feed_forward(x, training=training), training=training)
        return self.feed_forward_norm(ops.clip(x, -LARGEST, LARGEST))


class QualityHead(MLP):
    """How far a query's scores are raised for the sharpness of its sides' distributions ("LQE").

    It starts with 0 for all.

    Args:
        hidden: channels inside.
        activation: by its Keras name.

    Source:
        D-FINE, appendix A.1 ("Location quality estimation"), after Li et al. 2021, "Generalized Focal Loss V2",
        arXiv:2011.12885, section 3.2.
    """

    def __init__(self, hidden: int, activation: str = "relu", **kwargs: Any) -> None:
        super().__init__(SIDES * (MOST_PROBABLE + 1), (hidden, 1), zero_output=True, activation=activation, **kwargs)

    def call(self, inputs: Any) -> Any:
        """Map logits of distances `(batch, queries, 4 · (bins + 1))` → `(batch, queries, 1)`, for all classes alike."""
        highest, _ = ops.top_k(ops.softmax(of_sides(inputs), axis=-1), MOST_PROBABLE)
        told = ops.concatenate([highest, ops.mean(highest, axis=-1, keepdims=True)], axis=-1)
        return super().call(ops.reshape(told, (*ops.shape(inputs)[:-1], SIDES * (MOST_PROBABLE + 1))))


class FineGrainedDecoded(NamedTuple):
    """What the decoder makes of the queries, of each layer that is computed.

    Attributes:
        embeddings: `(batch, queries, d_model)` each, as the heads see them.
        references: `(batch, queries, 4)` each, where the layer looks.
        logits: `(batch, layers, queries, classes)`, of the layers that are wanted, as the rest.
        boxes: `(batch, layers, queries, 4)` cxcywh, which may lie outside the image, or have sides below 0.
        corners: `(batch, layers, queries, 4 · (bins + 1))`, logits of the distances of left, top, right and bottom.
        first_logits: `(batch, queries, classes)`, of the first layer, without its quality.
        first_boxes: `(batch, queries, 4)` cxcywh in [0, 1], of the first layer; all distances are from these.
        bin_values: `(bins + 1,)`, the bins' distances, without a gradient.
        reg_scale: scalar, the distance that is a whole side, without a gradient.
    """

    embeddings: list[Any]
    references: list[Any]
    logits: Any
    boxes: Any
    corners: Any
    first_logits: Any
    first_boxes: Any
    bin_values: Any
    reg_scale: Any


class FineGrainedDecoder(layers.Layer):
    """A stack of such layers.

    Args:
        depth: layers.
        d_model: channels.
        up: half of the greatest distance, as a share of a side.
        reg_scale: the distance that is a whole side: the larger, the more alike the distances between bins. Both are
            weights that nothing trains.
        bins: steps between distances.
        **kwargs: of `GatedDecoderLayer`, and `name` and `dtype`.
    """

    def __init__(
        self, depth: int, d_model: int, up: float = 0.5, reg_scale: float = 4.0, bins: int = 32, **kwargs: Any
    ) -> None:
        own = {name: kwargs.pop(name) for name in ("name", "dtype") if name in kwargs}
        super().__init__(**own, autocast=False)
        self.d_model, self.bins = d_model, bins
        self._numbers = {"up": up, "reg_scale": reg_scale}
        self.stack = [
            GatedDecoderLayer(d_model=d_model, **kwargs, name=f"layer{index}", dtype=self.dtype_policy)
            for index in range(depth)
        ]

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, queries, d_model)`."""
        for layer in self.stack:
            layer.build((None, None, self.d_model))
        # As the heads, in float32 under any policy.
        options: dict[str, Any] = {"shape": (1,), "dtype": "float32", "trainable": False, "autocast": False}
        self.up, self.reg_scale = (
            self.add_weight(name=name, initializer=initializers.Constant(value), **options)
            for name, value in self._numbers.items()
        )

    def call(
        self,
        x: Any,
        query_position: Any,
        references: Any,
        memory: Any,
        query_mask: Any = None,
        *,
        spatial_shapes: Any,
        class_head: HeadOfEachLayer,
        box_head: HeadOfEachLayer,
        first_box_head: Any,
        quality_head: HeadOfEachLayer,
        earlier_layers: bool = True,
        depth: int | None = None,
        training: bool = False,
    ) -> FineGrainedDecoded:
        """Decode.

        Args:
            x: `(batch, queries, d_model)`, what the queries begin with.
            query_position: a function that makes `(batch, queries, d_model)` of each layer's references.
            references: `(batch, queries, 4)` float32, boxes in [0, 1].
            memory: `(batch, tokens, d_model)`, the encoder's output.
            query_mask: which query sees which, `(batch, queries, queries)` bool; all see all where left out.
            spatial_shapes: `(levels, 2)`, height and width of each level.
            class_head: embeddings → logits, of each layer.
            box_head: embeddings → what is added to the logits of distances, of each layer.
            first_box_head: embeddings and an offset → boxes, of the first layer.
            quality_head: logits of distances → what is added to all classes' logits, of each layer.
            earlier_layers: whether predictions of all layers are wanted, or the last layer's alone.
            depth: how many layers are computed, if not all.
            training: whether dropout is on.
        """
        values, scale = bin_values(self.up, self.reg_scale, self.bins), ops.abs(self.reg_scale[0])
        embeddings, given, logits, boxes, corners = [], [], [], [], []
        start: Any = None
        before: Any = None
        distances: Any = None
        stack = self.stack[:depth]
        for index, layer in enumerate(stack):
            given.append(references)
            position = ops.clip(query_position(references), -FARTHEST, FARTHEST)
            x = called(
                layer,
                x,
                position,
                references[:, :, None],
                memory,
                None,
                query_mask,
                spatial_shapes=spatial_shapes,
                training=training,
            )
            embeddings.append(x)
            if start is None:
                first_boxes = first_box_head(x, inverse_sigmoid(references))
                first_logits = class_head.of(0)(x)
                start = ops.stop_gradient(first_boxes)
            change = box_head.of(index)(x if before is None else x + before)
            distances = change if distances is None else distances + change
            box = distances_to_boxes(start, expected_distances(distances, values), scale)
            if earlier_layers or index == len(stack) - 1:
                logits.append(class_head.of(index)(x) + quality_head.of(index)(distances))
                boxes.append(box)
                corners.append(distances)
            references, before = ops.stop_gradient(box), ops.stop_gradient(x)
        return FineGrainedDecoded(
            embeddings,
            given,
            ops.stack(logits, axis=1),
            ops.stack(boxes, axis=1),
            ops.stack(corners, axis=1),
            first_logits,
            first_boxes,
            ops.stop_gradient(values),
            ops.stop_gradient(scale),
        )
