"""LW-DETR: a plain vision transformer in windows, a projector, and a shallow decoder of grouped queries.

Source:
    Chen et al. 2024, "LW-DETR: A Transformer Replacement to YOLO for Real-Time Detection", arXiv:2406.03459.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import keras
from keras import initializers, layers, ops

from tfdetr_keras.backbones.config import BackboneConfig, one_of, share, whole_number
from tfdetr_keras.backbones.lw_vit import LWViTConfig
from tfdetr_keras.layers.c2f import Norm, Projector
from tfdetr_keras.layers.group_decoder import GroupDecoder, GroupSelection, refined
from tfdetr_keras.layers.heads import PRIOR_PROBABILITY, BoxHead, HeadOfEachLayer, class_head
from tfdetr_keras.layers.levels import anchors, extents_of, flattened, sizes_of, valid_ratios, whole_extents
from tfdetr_keras.layers.proposals import check_positions
from tfdetr_keras.layers.resize import resize_nearest
from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.matching.classification import Classification
from tfdetr_keras.models.config import DetectorConfig
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.models.inputs import check_multiples, pixels_and_mask, pixels_without_padding
from tfdetr_keras.preprocessing import Preprocessing

_WHOLE_NUMBERS = (
    *("d_model", "decoder_layers", "self_attention_heads", "cross_attention_heads", "decoder_ffn_dim"),
    *("decoder_points", "groups", "projector_blocks"),
)
_SHARES = ("dropout", "attention_dropout", "activation_dropout")
SCALES = (2.0, 1.0, 0.5)
SIDE = 640  # of published models' images, pixels


def recipe_of(layer_decay: float = 0.8, component_decay: float = 0.7, weight_decay: float = 1e-4) -> dict[str, Any]:
    """Return the authors' recipe, on 60 epochs of batches of 16 or 32 images.

    The decoder learns more slowly than the projector and what proposes, the backbone more slowly still, from block to
    block; neither its normalisations, biases, positions nor the factors of its branches decay.

    Args:
        layer_decay: from one block of the backbone to the one before.
        component_decay: of the decoder, and twice of the backbone.
        weight_decay: of all else.

    Source:
        LW-DETR's code, `scripts/lwdetr_*_coco_finetune.sh` and `util/get_param_dicts.py`.
    """
    return {
        "learning_rate": 1e-4,
        "backbone_multiplier": 1.5 * component_decay**2,
        "layer_decay": layer_decay,
        "learning_rate_multipliers": {"decoder": component_decay},
        "schedule": "constant",
        "weight_decay": weight_decay,
        "weight_decay_exclude": [
            *("backbone/norms", "backbone/biases", "embeddings/positions", "attention_scale", "feed_forward_scale"),
        ],
        "ema_momentum": 0.9997,
        "augmentation": "paper",
        "multiscale": [side / SIDE for side in range(448, 897, 64)],
    }


@dataclasses.dataclass(frozen=True)
class LWDETRConfig(DetectorConfig):
    """The architecture of an `LWDETR`; beside these the fields of every detector, see `DetectorConfig`.

    Args:
        d_model: width of the decoder.
        projector_scales: sizes of the maps that the decoder looks at, as factors of the backbone's: 2, 1 or 0.5.
        projector_blocks: pairs of convolutions in each projector.
        projector_norm: `"trainable"`, `"frozen"` or `"folded"` batch normalisation of the projector, see
            `ResNetConfig`.
        expansion: channels of the parts of a projector, as a share of `d_model`.
        decoder_layers: decoder depth.
        self_attention_heads: heads of the attention among queries.
        cross_attention_heads: heads of the attention to the image.
        decoder_ffn_dim: hidden width of the decoder's feed-forward networks.
        decoder_activation: activation of these.
        decoder_points: points of each level that a head of the decoder looks at.
        groups: groups of queries in training; inference has one.
        dropout: dropout of every residual branch.
        attention_dropout: dropout of the attention weights.
        activation_dropout: dropout inside the feed-forward networks.

    Source:
        LW-DETR, section 3 and table 1.
    """

    backbone_class: ClassVar[type[BackboneConfig]] = LWViTConfig
    norms: ClassVar[tuple[Norm, ...]] = ("trainable", "frozen", "folded")  # that the projector may have

    backbone: Any = dataclasses.field(default_factory=LWViTConfig)
    num_classes: int = 91
    num_queries: int = 300
    # Of the backbone where left out, see `defaults_of`.
    preprocessing: Preprocessing = None  # type: ignore[assignment]
    recipe: Mapping[str, Any] = None  # type: ignore[assignment]
    d_model: int = 256
    projector_scales: Sequence[float] = (1.0,)
    projector_blocks: int = 3
    projector_norm: Norm = "trainable"
    expansion: float = 0.5
    decoder_layers: int = 3
    self_attention_heads: int = 8
    cross_attention_heads: int = 16
    decoder_ffn_dim: int = 2048
    decoder_activation: str = "relu"
    decoder_points: int = 2
    groups: int = 13
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0

    def __post_init__(self) -> None:
        kind, backbone = self.backbone_class, self.backbone
        backbone = kind(**backbone) if isinstance(backbone, Mapping) else backbone
        if isinstance(backbone, kind):
            for name, value in self.defaults_of(backbone).items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, value)
        super().__post_init__()

    @classmethod
    def defaults_of(cls, backbone: Any) -> dict[str, Any]:
        """Return the preprocessing and the recipe of a backbone, where nothing else is said."""
        side = SIDE + -SIDE % backbone.multiple_of
        images = Preprocessing((side, side), "stretch", multiple_of=backbone.multiple_of)
        return {"preprocessing": images, "recipe": recipe_of()}

    def _check(self) -> None:
        multiple, preprocessing = self.backbone.multiple_of, self.preprocessing
        if preprocessing.rule == "stretch" or preprocessing.pad_to is not None:
            if any(side % multiple for side in preprocessing.largest):
                raise ValueError(
                    f"preprocessing.size must be in multiples of {multiple} pixels, not {preprocessing.largest}"
                )
        elif preprocessing.multiple_of % multiple:
            raise ValueError(
                f"preprocessing.multiple_of={preprocessing.multiple_of}, but the backbone takes images whose sides are "
                f"multiples of {multiple} pixels"
            )
        for name in _WHOLE_NUMBERS:
            whole_number(name, getattr(self, name))
        for name in (*_SHARES, "expansion"):
            share(name, getattr(self, name))
        for heads in ("self_attention_heads", "cross_attention_heads"):
            if self.d_model % getattr(self, heads):
                raise ValueError(f"d_model={self.d_model} is not divisible by {heads}={getattr(self, heads)}")
        if self.d_model % 4:  # sine and cosine of each coordinate
            raise ValueError(f"d_model={self.d_model} must be divisible by 4")
        one_of("projector_norm", self.projector_norm, self.norms)
        scales = self.projector_scales
        if not isinstance(scales, list | tuple) or not scales or any(scale not in SCALES for scale in scales):
            raise ValueError(f"projector_scales must be some of {SCALES}, not {scales!r}")
        object.__setattr__(self, "projector_scales", tuple(float(scale) for scale in scales))

    @property
    def classification(self) -> str | Classification:
        """How a query is classified."""
        return "iou_aware"

    @property
    def query_groups(self) -> int:
        """How many groups of as many queries there are embeddings for."""
        return self.groups

    @property
    def own_parts(self) -> tuple[str, ...]:
        """Names of the parts beside the backbone's that can be frozen."""
        return (
            *("projector", "proposals", "encoder_class_head", "encoder_box_head", "query_embedding"),
            *("reference_embedding", "decoder", "class_head", "box_head"),
        )

    @property
    def decoder_options(self) -> dict[str, Any]:
        """The arguments of the decoder."""
        return {
            "depth": self.decoder_layers,
            "d_model": self.d_model,
            "heads": self.self_attention_heads,
            "cross_heads": self.cross_attention_heads,
            "hidden": self.decoder_ffn_dim,
            "activation": self.decoder_activation,
            "levels": len(self.projector_scales),
            "points": self.decoder_points,
            **{name: getattr(self, name) for name in _SHARES},
        }

    @property
    def network(self) -> str:
        """The network in words: what stands behind "an LW-DETR over"."""
        levels = f"{len(self.projector_scales)} level{'s' if len(self.projector_scales) > 1 else ''}"
        return f"{self.backbone.title}, {levels}, {self.decoder_layers} decoder layers, {self.num_queries} queries"

    def check_canvas(self, height: int, width: int) -> None:
        """Raise a `ValueError` for images that have fewer positions than there are queries."""
        positions = (height // self.backbone.patch_size) * (width // self.backbone.patch_size)
        check_positions(int(sum(positions * scale**2 for scale in self.projector_scales)), self.num_queries)

    @property
    def is_foldable(self) -> bool:
        """Whether the model has batch normalisation that can be folded into convolutions."""
        return self.projector_norm in ("trainable", "frozen")

    def folded(self) -> Self:
        """Return the architecture of the same model with all batch normalisation folded, and with one group."""
        norm: Norm = "folded" if self.is_foldable else self.projector_norm
        return dataclasses.replace(self, groups=1, projector_norm=norm)


# Width, depth, blocks in windows and taps of the published backbones.
_WINDOWED, _TAPS = (0, 1, 3, 6, 7, 9), (3, 5, 6, 10)
BACKBONES = {
    "tiny": LWViTConfig(width=192, depth=6, windowed=(0, 2, 4), taps=(2, 4, 6)),
    "small": LWViTConfig(width=192, windowed=_WINDOWED, taps=_TAPS),
    "medium": LWViTConfig(width=384, windowed=_WINDOWED, taps=_TAPS),
    "large": LWViTConfig(width=384, windowed=_WINDOWED, taps=_TAPS, drop_path=0.1),
    "xlarge": LWViTConfig(width=768, windowed=_WINDOWED, taps=_TAPS, drop_path=0.1),
}
_WIDE = {
    "d_model": 384,
    "projector_scales": (2.0, 0.5),
    "self_attention_heads": 12,
    "cross_attention_heads": 24,
    "decoder_points": 4,
}
SIZES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"num_queries": 100, "recipe": recipe_of()},
    "small": {"recipe": recipe_of()},
    "medium": {"recipe": recipe_of(layer_decay=0.7)},
    "large": {**_WIDE, "recipe": recipe_of(layer_decay=0.7, component_decay=0.5)},
    "xlarge": {**_WIDE, "recipe": recipe_of(layer_decay=0.75, component_decay=0.5, weight_decay=1e-3)},
}


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class LWDETR(Detector):
    """A light DETR: a vision transformer in windows is the encoder, and groups of queries learn side by side.

    Inputs, targets and methods are those of `DETR`; height and width are multiples of 64, and images are best stretched
    to one square. Outputs: `{"logits": (batch, queries, num_classes), each class an independent sigmoid, "pred_boxes":
    (batch, queries, 4) cxcywh relative to the unpadded image, which a box may reach beyond}`, float32, and
    `"aux_logits"` and `"aux_boxes"` as there. One query may so speak for several classes.

    In training there are 13 groups of queries, one after the other, which `"groups"` among the outputs says, each
    matched to the objects on its own; and the prediction set `encoder`, the tokens that each group has chosen.

    Stages: `backbone.tap1` … and `projector.level0` … (batch, h, w, channels); `proposals.embeddings`,
    `proposals.logits` and `proposals.boxes` (batch, queries, …) of the chosen tokens, and `references`;
    `decoder.layer0` … (batch, queries, d_model).

    Args:
        config: the architecture.
        criterion: the training loss; the authors' by default: IoU-aware, and a matching with the focal loss as its
            cost.

    Source:
        Chen et al. 2024, "LW-DETR: A Transformer Replacement to YOLO for Real-Time Detection", arXiv:2406.03459.
    """

    config_class: ClassVar[type[LWDETRConfig]] = LWDETRConfig
    presets: ClassVar[Mapping[str, LWDETRConfig]] = {
        f"lw-detr-{size}": LWDETRConfig(BACKBONES[size], **fields) for size, fields in SIZES.items()
    }
    published: ClassVar[Mapping[str, str]] = {f"AnnaZhang/lwdetr_{size}_60e_coco": f"lw-detr-{size}" for size in SIZES}
    title = "LW-DETR"
    config: LWDETRConfig

    @staticmethod
    def default_criterion() -> SetCriterion:
        """Return the authors' loss."""
        return SetCriterion(classification="iou_aware", cost_class=2.0)

    def normalized_parts(self, config: LWDETRConfig) -> dict[str, layers.Layer]:
        """Make the parts that have batch normalisation, as a configuration says."""
        return {
            **super().normalized_parts(config),
            "projector": Levels(
                [
                    Projector(
                        config.backbone.channels,
                        config.d_model,
                        scale,
                        int(config.d_model * config.expansion),
                        config.projector_blocks,
                        config.projector_norm,
                        name=f"level{index}",
                        dtype=self.dtype_policy,
                    )
                    for index, scale in enumerate(config.projector_scales)
                ],
                name="projector",
                dtype=self.dtype_policy,
            ),
        }

    def _make_parts(self) -> None:
        config, policy, width = self.config, self.dtype_policy, self.config.d_model
        for name, part in self.normalized_parts(config).items():
            setattr(self, name, part)
        self.proposals = GroupSelection(width, config.num_queries, config.groups, name="proposals", dtype=policy)
        # The heads stay in float32 under mixed precision: boxes need more than bfloat16's three digits.
        groups = [f"group{index}" for index in range(config.groups)]
        self.encoder_class_head = HeadOfEachLayer(
            [self._class_head(name) for name in groups], width, name="encoder_class_head"
        )
        self.encoder_box_head = HeadOfEachLayer(
            [self._box_head(name) for name in groups], width, name="encoder_box_head"
        )
        rows, start = config.groups * config.num_queries, initializers.RandomNormal(stddev=1.0)
        self.query_embedding = layers.Embedding(
            rows,
            width,
            embeddings_initializer=start,
            name="query_embedding",
            dtype=policy,
        )
        self.reference_embedding = layers.Embedding(
            rows, 4, embeddings_initializer="zeros", name="reference_embedding", dtype="float32"
        )
        self.decoder = GroupDecoder(**config.decoder_options, name="decoder", dtype=policy)
        self.class_head = self._class_head("class_head")
        self.box_head = self._box_head("box_head")

    def _class_head(self, name: str) -> layers.Dense:
        return class_head(self.config.d_model, self.config.num_logits, PRIOR_PROBABILITY, name=name, dtype="float32")

    def _box_head(self, name: str) -> BoxHead:
        return BoxHead(self.config.d_model, zero_output=True, name=name, dtype="float32")

    def build(self, input_shape: Any) -> None:
        """Create all weights; their shapes depend on the configuration alone."""
        self.backbone.build((None, None, None, 3))
        for part in self.config.own_parts:
            getattr(self, part).build((None, None, self.config.d_model))

    def _forward(self, inputs: Any, training: bool, attention: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
        config = self.config
        pixels, pixel_mask = self._pixels(inputs)
        features = self.backbone(pixels, training=training)
        levels = self.projector(features, training=training)
        memory, sizes = flattened(levels), sizes_of(levels)
        mask = ratios = None
        if pixel_mask is None:
            extents = whole_extents(levels)
        else:
            masks = [resize_nearest(pixel_mask, *ops.shape(level)[1:3]) for level in levels]
            mask, extents = ops.cast(flattened(masks), "bool"), extents_of(masks)
            ratios = valid_ratios(levels, extents)
        groups = config.groups if training else 1
        selected = self.proposals(
            memory,
            anchors(levels, extents),
            mask,
            groups=groups,
            class_head=self.encoder_class_head,
            box_head=self.encoder_box_head,
        )

        shape = (ops.shape(pixels)[0], groups * config.num_queries)
        rows = ops.arange(groups * config.num_queries)
        content = ops.broadcast_to(self.query_embedding(rows)[None], (*shape, config.d_model))
        references = refined(ops.stop_gradient(selected.boxes), self.reference_embedding(rows)[None])
        embeddings = self.decoder(
            content,
            references,
            memory,
            mask,
            ratios,
            groups=groups,
            spatial_shapes=sizes,
            training=training,
        )
        wanted = embeddings if self.auxiliary_outputs else embeddings[-1:]
        logits = ops.stack([self.class_head(x) for x in wanted], axis=1)
        boxes = ops.stack([refined(references, self.box_head.change(x)) for x in wanted], axis=1)

        stages = {f"backbone.tap{index + 1}": feature for index, feature in enumerate(features)}
        stages.update({f"projector.level{index}": level for index, level in enumerate(levels)})
        stages.update({"proposals.embeddings": selected.embeddings, "proposals.logits": selected.logits})
        stages.update({"proposals.boxes": selected.boxes, "references": references})
        stages.update({f"decoder.layer{index}": x for index, x in enumerate(embeddings)})

        outputs: dict[str, Any] = {"logits": logits[:, -1], "pred_boxes": boxes[:, -1]}
        if self.auxiliary_outputs:
            outputs.update(aux_logits=logits[:, :-1], aux_boxes=boxes[:, :-1])
        if training:
            outputs["groups"] = groups
            if self.auxiliary_outputs:
                encoder = {"logits": selected.logits[:, None], "pred_boxes": selected.boxes[:, None], "groups": groups}
                outputs["prediction_sets"] = {"encoder": encoder}
        return outputs, stages

    def _pixels(self, inputs: Any) -> tuple[Any, Any]:
        """Return the pixels, and the mask of what is image, or None where all is."""
        multiple = self.config.backbone.multiple_of
        if not self.config.knows_padding:
            return pixels_without_padding(inputs, multiple, self.title), None
        pixels, mask = pixels_and_mask(inputs)
        check_multiples(pixels, multiple, self.title)
        is_given = isinstance(inputs, Mapping) and inputs.get("pixel_mask") is not None
        return pixels, mask if is_given else None


class Levels(layers.Layer):
    """The maps that the decoder looks at, each of a projector of its own."""

    def __init__(self, projectors: Sequence[Projector], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.projectors = list(projectors)

    def build(self, input_shape: Any) -> None:
        """Build all projectors."""
        for projector in self.projectors:
            projector.build(None)

    def call(self, maps: Sequence[Any], training: bool = False) -> list[Any]:
        """Map the backbone's feature maps → the levels `(batch, h, w, d_model)`."""
        return [projector(maps, training=training) for projector in self.projectors]
