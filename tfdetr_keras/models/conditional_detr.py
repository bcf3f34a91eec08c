"""Conditional DETR: where it differs from DETR, which is in the decoder's attention and in the heads.

A query's embedding is turned into a reference point. Its sine encoding, scaled by what the layer before has decoded, is
the spatial half of the query in the attention to the image; content is the other half, and the two meet the halves of
the keys apart (section 3, figure 3). Boxes are offsets from the reference points, and classes independent sigmoids
without one for "no object".

Source:
    Meng et al. 2021, "Conditional DETR for Fast Training Convergence", arXiv:2108.06152.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import keras
from keras import layers, ops

from tfdetr_keras.layers.attention import ProjectedAttention
from tfdetr_keras.layers.heads import PRIOR_PROBABILITY, BoxHead, class_head, inverse_sigmoid
from tfdetr_keras.layers.mlp import MLP
from tfdetr_keras.layers.position import encode_coordinates
from tfdetr_keras.layers.transformer import Decoder, DecoderLayer
from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.matching.classification import Classification
from tfdetr_keras.models.detr import DETR, DETRConfig


@dataclasses.dataclass(frozen=True)
class ConditionalDETRConfig(DETRConfig):
    """The architecture of a `ConditionalDETR`: a DETR's with 300 queries, and no "no object" among its classes.

    Source:
        Meng et al. 2021, "Conditional DETR for Fast Training Convergence", section 4.1.
    """

    num_queries: int = 300

    @property
    def classification(self) -> str | Classification:
        """How a query is classified."""
        return "focal"


class _SplitAttention(ProjectedAttention):
    """Attention whose queries and keys have content and position, each with a projection of its own."""

    def __init__(self, positions: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in positions:
            setattr(self, name, self.projection(name))
        self.positions = positions

    def build(self, query_shape: Any, value_shape: Any = None, key_shape: Any = None) -> None:
        """Build all projections for `(batch, …, d_model)`."""
        super().build(query_shape, value_shape, key_shape)
        for name in self.positions:
            getattr(self, name).build(query_shape)


class ConditionalSelfAttention(_SplitAttention):
    """Self-attention of the queries: content and position are projected apart and then added."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(("query_position", "key_position"), **kwargs)

    def call(self, x: Any, position: Any, attention_mask: Any = None, training: bool = False) -> Any:
        """Attend: `x` and `position` are `(batch, queries, d_model)`; `attention_mask` says which query sees which."""
        query = self.query_dense(x) + self.query_position(position)
        key = self.key_dense(x) + self.key_position(position)
        attended, _ = self.attend(query, key, self.value_dense(x), attention_mask, training)
        return self.output_dense(attended)


class ConditionalCrossAttention(_SplitAttention):
    """Attention to the image: content and position stand side by side in each head, and only like meets like.

    Args:
        adds_position: whether positions are added to the content, too, as in the first layer, whose queries have no
            content yet.
    """

    def __init__(self, adds_position: bool, **kwargs: Any) -> None:
        super().__init__(("query_sine", "key_position", *(["query_position"] if adds_position else [])), **kwargs)
        self.adds_position = adds_position
        self.scale = 1 / math.sqrt(2 * self.key_dim)  # of both halves

    def call(
        self,
        x: Any,
        position: Any,
        sine: Any,
        memory: Any,
        memory_position: Any,
        attention_mask: Any = None,
        training: bool = False,
        return_attention_scores: bool = False,
    ) -> Any:
        """Attend: `x`, `position`, `sine` are `(batch, queries, d_model)`, `memory…` `(batch, positions, d_model)`."""
        query, key = self.query_dense(x), self.key_dense(memory)
        key_position = self.key_position(memory_position)
        if self.adds_position:
            query, key = query + self.query_position(position), key + key_position
        query = ops.concatenate([query, self.query_sine(sine)], axis=-1)
        key = ops.concatenate([key, key_position], axis=-1)
        attended, scores = self.attend(
            query, key, self.value_dense(memory), attention_mask, training, return_attention_scores
        )
        attended = self.output_dense(attended)
        return (attended, scores) if return_attention_scores else attended


class ConditionalDecoderLayer(DecoderLayer):
    """A decoder layer whose attentions keep content and position apart.

    Args:
        adds_position: see `ConditionalCrossAttention`.
        **options: of `DecoderLayer`.
    """

    def __init__(self, adds_position: bool, **options: Any) -> None:
        self.adds_position = adds_position
        super().__init__(**options)

    def _self_attention(self) -> layers.Layer:
        return ConditionalSelfAttention(**self._attention_options("self_attention", packed=False))

    def _cross_attention(self) -> layers.Layer:
        options = self._attention_options("cross_attention", packed=False)
        return ConditionalCrossAttention(self.adds_position, **options)

    def _attend_to_queries(self, x: Any, query_position: Any, **options: Any) -> Any:
        return self.self_attention(x, query_position["embedding"], **options)

    def _attend_to_image(self, x: Any, query_position: Any, memory: Any, memory_position: Any, **options: Any) -> Any:
        position, sine = query_position["embedding"], query_position["sine"]
        return self.cross_attention(x, position, sine, memory, memory_position, **options)


class ConditionalDecoder(Decoder):
    """A stack of such layers, with the reference points and their transformation (equations 4 and 5)."""

    kernel_initializer: ClassVar[str | None] = None  # of the perceptrons; None for PyTorch's

    def __init__(self, depth: int, d_model: int, **kwargs: Any) -> None:
        super().__init__(depth, d_model, **kwargs)
        self.reference_point_head = self._reference_point_head()
        self.query_scale = self._perceptron("query_scale", (d_model, d_model, d_model))

    def _perceptron(self, name: str, widths: tuple[int, ...], dtype: Any = None) -> MLP:
        """Make a perceptron; `widths` begin with that of its input."""
        inputs, *others = widths
        start = self.kernel_initializer
        return MLP(inputs, others, kernel_initializer=start, name=name, dtype=dtype or self.dtype_policy)

    def _reference_point_head(self) -> MLP:
        # In float32 under mixed precision, as the boxes that are offsets from these points.
        return self._perceptron("reference_point_head", (self.d_model, self.d_model, 2), dtype="float32")

    def _layer(self, index: int, **options: Any) -> DecoderLayer:
        return ConditionalDecoderLayer(index == 0, **options)

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, queries, d_model)`."""
        super().build(input_shape)
        self.reference_point_head.build(input_shape)
        self.query_scale.build(input_shape)

    def _points(self, query_position: Any) -> dict[str, Any]:
        """Return the reference points `(…, 2)` float32, x and y in [0, 1] of the image, and their sine encoding."""
        points = ops.sigmoid(self.reference_point_head(query_position))
        encoded = encode_coordinates(points, self.d_model // 2)
        return {"points": points, "sine": ops.cast(encoded, self.compute_dtype)}

    def _position(self, index: int, x: Any, query_position: Any, points: Any) -> dict[str, Any]:
        sine = points["sine"]
        return {"embedding": query_position, "sine": sine * self.query_scale(x) if index else sine}

    def _boxes(self, box_head: Any, embeddings: Any, points: list[Any]) -> Any:
        """Return boxes whose centres are offsets from the queries' reference points."""
        centres = points[-1]["points"][:, None]  # the same for all layers
        logit = inverse_sigmoid(centres)
        return box_head(embeddings, ops.concatenate([logit, ops.zeros_like(logit)], axis=-1))


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class ConditionalDETR(DETR):
    """DETR with conditional cross-attention, which trains several times faster.

    Inputs, targets and methods are those of `DETR`. Outputs: `{"logits": (batch, queries, num_classes), each class an
    independent sigmoid, "pred_boxes": (batch, queries, 4) cxcywh in [0, 1] of the unpadded image}`, float32, and
    `"aux_logits"` and `"aux_boxes"` as there. One query may so speak for several classes: `post_process(…,
    classification="focal")` gives the 100 most likely pairs of query and class.

    Args:
        config: the architecture.
        criterion: the training loss; the paper's by default: a focal loss of weight 2, and a matching with its cost.

    Source:
        Meng et al. 2021, "Conditional DETR for Fast Training Convergence", arXiv:2108.06152.
    """

    config_class: ClassVar[type[DETRConfig]] = ConditionalDETRConfig
    presets: ClassVar[Mapping[str, DETRConfig]] = {"conditional-detr-resnet-50": ConditionalDETRConfig()}
    published: ClassVar[Mapping[str, str]] = {"microsoft/conditional-detr-resnet-50": "conditional-detr-resnet-50"}
    decoder_class: ClassVar[type[Decoder]] = ConditionalDecoder
    title = "Conditional DETR"

    @staticmethod
    def default_criterion() -> SetCriterion:
        """Return the paper's loss (section 3.4)."""
        return SetCriterion(classification="focal", cost_class=2.0, class_loss_coefficient=2.0)

    def _new_heads(self) -> tuple[Any, Any]:
        width = self.config.d_model
        classes = class_head(width, self.config.num_logits, PRIOR_PROBABILITY, name="class_head", dtype="float32")
        # Every box starts at its reference point.
        return classes, BoxHead(width, zero_output=True, name="box_head", dtype="float32")
