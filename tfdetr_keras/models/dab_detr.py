"""DAB-DETR: queries are anchor boxes, which each decoder layer moves.

It differs from Conditional DETR in five things. A query's place is a box instead of a point, learned as such, and
refined layer by layer (section 4, "Learning anchor boxes directly" and "Anchor update"). The sine encoding of its
centre, by which it looks at the image, is divided by the box's width and height, and multiplied by those that its
content wants ("Width & height-modulated Gaussian kernel"). The image's positions have a low temperature ("Temperature
tuning"). And, in the authors' code: the encoder's positions are scaled by content, too, and the feed-forward networks
have a PReLU.

Source:
    Liu et al. 2022, "DAB-DETR: Dynamic Anchor Boxes are Better Queries for DETR", arXiv:2201.12329.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, ClassVar

import keras
from keras import initializers, layers, ops

from tfdetr_keras.backbones.resnet import ResNetConfig
from tfdetr_keras.layers.heads import inverse_sigmoid
from tfdetr_keras.layers.mlp import MLP
from tfdetr_keras.layers.position import encode_coordinates
from tfdetr_keras.layers.transformer import Decoder, DecoderLayer, Encoder
from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.models.conditional_detr import (
    ConditionalDecoder,
    ConditionalDecoderLayer,
    ConditionalDETR,
    ConditionalDETRConfig,
)
from tfdetr_keras.models.detr import DETRConfig
from tfdetr_keras.models.recipe import RECIPE


@dataclasses.dataclass(frozen=True)
class DABDETRConfig(ConditionalDETRConfig):
    """The architecture of a `DABDETR`: a Conditional DETR's, and what its anchors are.

    Args:
        num_patterns: how many queries look at each anchor, each with a content of its own that is learned, so that an
            image has `num_patterns · num_queries` predictions; with 0 there is one, whose content is zeros.
        random_refpoints_xy: whether the anchors' centres are drawn evenly over the image and stay where they are, while
            width and height are learned.
        keep_query_pos: whether all decoder layers add positions to the content in the attention to the image, not the
            first alone.
        normalize_before: whether one more normalisation closes the encoder. The layers are normalised after each branch
            all the same, as in the authors' code.
        temperature_height: temperature of the image's sine positions along y.
        temperature_width: along x.

    Source:
        Liu et al. 2022, "DAB-DETR", section 5 and appendices; its authors' `main.py`.
    """

    activation_function: str = "prelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    num_patterns: int = 0
    random_refpoints_xy: bool = False
    keep_query_pos: bool = False
    normalize_before: bool = False
    temperature_height: float = 20.0
    temperature_width: float = 20.0

    def _check(self) -> None:
        super()._check()
        patterns = self.num_patterns
        if isinstance(patterns, bool) or not isinstance(patterns, Integral) or patterns < 0:
            raise ValueError(f"num_patterns must be a whole number of at least 0, not {patterns!r}")
        for name in ("random_refpoints_xy", "keep_query_pos", "normalize_before"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}")
        for name, value in zip(("temperature_height", "temperature_width"), self.temperatures, strict=True):
            if isinstance(value, bool) or not isinstance(value, Real) or not float(value) > 0:
                raise ValueError(f"{name} must be a number above 0, not {value!r}")

    @property
    def num_predictions(self) -> int:
        """Rows of the outputs for each image: one for each pattern of each query, pattern by pattern."""
        return self.num_queries * max(1, self.num_patterns)

    @property
    def own_parts(self) -> tuple[str, ...]:
        """Names of the parts beside the backbone's that can be frozen."""
        return (*super().own_parts, *(["pattern_embedding"] if self.num_patterns else []))

    @property
    def temperatures(self) -> tuple[float, float]:
        """Temperatures of the sine positions, of y and of x."""
        return self.temperature_height, self.temperature_width

    @property
    def encoder_options(self) -> dict[str, Any]:
        """The arguments of the encoder."""
        return {**super().encoder_options, "final_norm": self.normalize_before}

    @property
    def decoder_options(self) -> dict[str, Any]:
        """The arguments of the decoder."""
        return {**super().decoder_options, "keep_query_pos": self.keep_query_pos}

    @property
    def network(self) -> str:
        """The network in words: what stands behind "a DAB-DETR over"."""
        return super().network + (f" of {self.num_patterns} patterns" if self.num_patterns else "")


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class AnchorInitializer(initializers.Initializer):
    """Draws the logits of boxes `(queries, 4)`: N(0, 1), or such that centres are even over the image.

    Args:
        even_centres: whether x and y of a box are uniform in [0, 1].
    """

    def __init__(self, even_centres: bool = False) -> None:
        self.even_centres = even_centres

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Draw the logits."""
        logits = keras.random.normal(shape, dtype=dtype)
        if not self.even_centres:
            return logits
        centres = inverse_sigmoid(keras.random.uniform((shape[0], 2), dtype=dtype))
        return ops.concatenate([centres, logits[:, 2:]], axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"even_centres": self.even_centres}


class Anchors(layers.Layer):
    """The learned boxes, as logits in float32 under every policy, as the boxes that are offsets from them.

    Args:
        count: how many.
        fixed_centres: whether x and y are drawn once and get no gradient.
    """

    def __init__(self, count: int, fixed_centres: bool = False, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.count, self.fixed_centres = count, fixed_centres

    def build(self, input_shape: Any) -> None:
        """Create the logits, `(count, 4)` cxcywh."""
        start = AnchorInitializer(self.fixed_centres)
        self.embeddings = self.add_weight(shape=(self.count, 4), initializer=start, name="embeddings")

    def call(self, inputs: Any) -> Any:
        """Return the rows of some indices `(…)`, `(…, 4)`."""
        rows = ops.take(self.embeddings, inputs, axis=0)
        if not self.fixed_centres:
            return rows
        return ops.concatenate([ops.stop_gradient(rows[..., :2]), rows[..., 2:]], axis=-1)


class DABEncoder(Encoder):
    """An encoder whose layers get positions scaled by what each pixel holds."""

    def __init__(self, depth: int, d_model: int, **kwargs: Any) -> None:
        super().__init__(depth, d_model, **kwargs)
        self.query_scale = MLP(
            d_model,
            (d_model, d_model),
            kernel_initializer="glorot_uniform",
            name="query_scale",
            dtype=self.dtype_policy,
        )

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, positions, d_model)`."""
        super().build(input_shape)
        self.query_scale.build(input_shape)

    def _position(self, x: Any, position: Any) -> Any:
        return position * self.query_scale(x)


class DABDecoder(ConditionalDecoder):
    """A decoder whose queries stand at boxes, which move from layer to layer.

    Args:
        depth: layers.
        d_model: channels.
        keep_query_pos: see `DABDETRConfig`.
        **kwargs: of `Decoder`.
    """

    kernel_initializer: ClassVar[str | None] = "glorot_uniform"

    def __init__(self, depth: int, d_model: int, keep_query_pos: bool = False, **kwargs: Any) -> None:
        self.keep_query_pos = keep_query_pos
        super().__init__(depth, d_model, **kwargs)
        self.autocast = False  # or boxes among the inputs would be rounded to the policy's dtype
        # In float32 under mixed precision, as what it is divided by.
        self.reference_anchor_head = self._perceptron("reference_anchor_head", (d_model, d_model, 2), dtype="float32")

    def _layer(self, index: int, **options: Any) -> DecoderLayer:
        return ConditionalDecoderLayer(index == 0 or self.keep_query_pos, **options)

    def _reference_point_head(self) -> MLP:
        return self._perceptron("reference_point_head", (2 * self.d_model, self.d_model, self.d_model))

    def build(self, input_shape: Any) -> None:
        """Build for `(batch, queries, d_model)`."""
        super().build(input_shape)
        self.reference_anchor_head.build(input_shape)

    def _points(self, query_position: Any) -> dict[str, Any]:
        """Return the anchors `(batch, queries, 4)` float32, cxcywh in [0, 1] of the image.

        `boxes` are what the layer's boxes are offsets from, `seen` are those by which it looks at the image. They are
        the same numbers, but gradients flow from a layer's boxes through the former into the layer before, and not
        through the latter.
        """
        anchors = ops.sigmoid(query_position)
        return {"boxes": anchors, "seen": anchors}

    def _moved(self, points: Any, x: Any, box_head: Any) -> dict[str, Any]:
        boxes = box_head(x, inverse_sigmoid(points["seen"]))
        return {"boxes": boxes, "seen": ops.stop_gradient(boxes)}

    def _position(self, index: int, x: Any, query_position: Any, points: Any) -> dict[str, Any]:
        """Return the queries' positional encoding, and the part of it that meets the image's."""
        anchors, half = points["seen"], self.d_model // 2
        encoded = encode_coordinates(anchors, half)
        sine = encoded[..., : self.d_model]
        if index:  # the first layer's queries have no content yet
            sine = sine * ops.cast(self.query_scale(x), sine.dtype)
        size = ops.sigmoid(self.reference_anchor_head(x)) / anchors[..., 2:]  # width and height that the content wants
        by_height, by_width = sine[..., :half] * size[..., 1:], sine[..., half:] * size[..., :1]  # y comes first
        return {
            "embedding": self.reference_point_head(ops.cast(encoded, self.compute_dtype)),
            "sine": ops.cast(ops.concatenate([by_height, by_width], axis=-1), self.compute_dtype),
        }

    def _boxes(self, box_head: Any, embeddings: Any, points: list[Any]) -> Any:
        """Return boxes that are offsets from the anchors of their layers."""
        return box_head(embeddings, inverse_sigmoid(ops.stack([place["boxes"] for place in points], axis=1)))


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class DABDETR(ConditionalDETR):
    """DETR whose queries are anchor boxes, refined from layer to layer.

    Inputs, targets and outputs are those of `ConditionalDETR`: classes are independent sigmoids. With patterns an image
    has `config.num_predictions` rows of outputs, those of the first pattern first.

    The logits of the anchors are `query_embedding.embeddings`, `(queries, 4)`. With `random_refpoints_xy` their centres
    get no gradient, and a run by the model's recipe leaves them out of weight decay; with an optimizer of your own say
    `td.AdamW(weight_decay_exclude=["query_embedding"])`, or they shrink a little. The authors' code means to fix them,
    but freezes a copy.

    Args:
        config: the architecture.
        criterion: the training loss; the authors' by default: focal, matched with a class cost of 2, trained with 1.

    Source:
        Liu et al. 2022, "DAB-DETR: Dynamic Anchor Boxes are Better Queries for DETR", arXiv:2201.12329.
    """

    config_class: ClassVar[type[DETRConfig]] = DABDETRConfig
    presets: ClassVar[Mapping[str, DETRConfig]] = {
        "dab-detr-resnet-50": DABDETRConfig(),
        "dab-detr-resnet-50-pat3": DABDETRConfig(num_patterns=3),
        "dab-detr-resnet-50-dc5": DABDETRConfig(backbone=ResNetConfig(dilation=True)),
        "dab-detr-resnet-50-dc5-fixxy": DABDETRConfig(backbone=ResNetConfig(dilation=True), random_refpoints_xy=True),
        "dab-detr-resnet-50-dc5-pat3": DABDETRConfig(backbone=ResNetConfig(dilation=True), num_patterns=3),
    }
    published: ClassVar[Mapping[str, str]] = {f"IDEA-Research/{name}": name for name in presets}
    encoder_class: ClassVar[type[Encoder]] = DABEncoder
    decoder_class: ClassVar[type[Decoder]] = DABDecoder
    title = "DAB-DETR"
    config: DABDETRConfig

    @staticmethod
    def default_criterion() -> SetCriterion:
        """Return the loss of the authors' `main.py`."""
        return SetCriterion(classification="focal", cost_class=2.0, class_loss_coefficient=1.0)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The settings that the model's authors train with; centres that are fixed do not decay either."""
        fixed = {"weight_decay_exclude": ("query_embedding",)} if self.config.random_refpoints_xy else {}
        return MappingProxyType({**RECIPE, **fixed, **self.config.recipe})

    def _new_query_embedding(self) -> Any:
        return Anchors(self.config.num_queries, self.config.random_refpoints_xy, name="query_embedding")

    def _add_parts(self) -> None:
        super()._add_parts()
        if self.config.num_patterns:
            self.pattern_embedding = layers.Embedding(
                self.config.num_patterns,
                self.config.d_model,
                embeddings_initializer=initializers.RandomNormal(stddev=1.0),
                name="pattern_embedding",
                dtype=self.dtype_policy,
            )

    def build(self, input_shape: Any) -> None:
        """Create all weights; their shapes depend on the configuration alone."""
        super().build(input_shape)
        if self.config.num_patterns:
            self.pattern_embedding.build((None, self.config.num_patterns))

    def _queries(self, batch: Any) -> tuple[Any, Any]:
        """Return the anchors' logits `(batch, predictions, 4)`, and the content `(batch, predictions, d_model)`."""
        config = self.config
        count, patterns = config.num_queries, config.num_patterns
        anchors = self.query_embedding(ops.arange(config.num_predictions) % count)
        content = ops.zeros((count, config.d_model), dtype=self.compute_dtype)
        if patterns:
            content = self.pattern_embedding(ops.arange(config.num_predictions) // count)
        return (
            ops.broadcast_to(anchors[None], (batch, *anchors.shape)),
            ops.broadcast_to(content[None], (batch, *content.shape)),
        )
