"""RT-DETR's architectures: what describes one, the published sizes, and how their authors train them.

Source:
    Zhao et al. 2023, "DETRs Beat YOLOs on Real-time Object Detection", arXiv:2304.08069.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Self

from tfdetr_keras.backbones.config import share, whole_number
from tfdetr_keras.backbones.resnet import RESNETS, ResNetConfig
from tfdetr_keras.layers.batch_norm import BatchNorm
from tfdetr_keras.layers.proposals import check_positions
from tfdetr_keras.losses.denoising import BOX_NOISE_SCALE, LABEL_NOISE_RATIO
from tfdetr_keras.matching.classification import Classification
from tfdetr_keras.models.config import DetectorConfig
from tfdetr_keras.preprocessing import Preprocessing

_WHOLE_NUMBERS = (
    *("d_model", "encoder_dim", "encoder_ffn_dim", "encoder_layers", "encoder_attention_heads", "fusion_blocks"),
    *("decoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "num_feature_levels"),
)
_SHARES = ("dropout", "attention_dropout", "activation_dropout", "label_noise_ratio")
STRIDE = 32  # of the coarsest published map
PUBLISHED_IMAGES = Preprocessing((640, 640), "stretch", mean=(0, 0, 0), std=(1, 1, 1), multiple_of=STRIDE)


@dataclasses.dataclass(frozen=True)
class RTDETRConfig(DetectorConfig):
    """The architecture of an `RTDETR`; beside these the fields of every detector, see `DetectorConfig`.

    Args:
        d_model: width of the decoder.
        encoder_dim: width of the hybrid encoder.
        encoder_ffn_dim: hidden width of the feed-forward networks of its attention.
        encoder_layers: layers of its attention.
        encoder_attention_heads: heads of its attention.
        attended_levels: numbers of the maps whose pixels attend to each other, 0 = the finest.
        encoder_activation: activation of its feed-forward networks, by its Keras name.
        activation_function: activation of its convolutions.
        expansion: channels inside its fusion blocks, as a share of `encoder_dim`.
        fusion_blocks: RepVGG blocks in each fusion block.
        encoder_batch_norm: `"trainable"`, `"frozen"` or `"folded"`, see `ResNetConfig`; of all batch normalisation
            outside the backbone.
        num_feature_levels: how many of the backbone's maps are used, the coarsest.
        decoder_layers: decoder depth.
        decoder_attention_heads: heads of the decoder's attentions.
        decoder_ffn_dim: hidden width of the decoder's feed-forward networks.
        decoder_activation: activation of these.
        decoder_points: points of each level that a head of the decoder looks at.
        inference_layers: layers of the decoder that are used in inference; all by default. Each layer has heads, so
            that any number gives boxes: the fewer, the faster.
        dropout: dropout of every residual branch.
        attention_dropout: dropout of the attention weights.
        activation_dropout: dropout inside the feed-forward networks.
        num_denoising: objects that all groups of denoising queries together hold, see `td.losses.denoising_queries`; 0
            trains without.
        label_noise_ratio: twice the share of denoising queries whose class is drawn anew.
        box_noise_scale: how far their boxes are moved.
        learned_content: whether queries begin with learned vectors instead of the tokens they were chosen for.

    Source:
        RT-DETR, section 4 and appendix, and the configurations of the authors' code.
    """

    sampling: ClassVar[str] = "bilinear"  # how the decoder reads the maps, see `td.deformable_attention`
    is_xavier: ClassVar[bool] = (
        False  # whether projections and feed-forward networks of the decoder start Xavier-uniform
    )
    offset_scale: ClassVar[float] = 0.5  # how far an offset of the decoder leads, see `DeformableAttention`
    mlp_activation: ClassVar[str] = "relu"  # of what makes the queries' positions
    absolute_sizes: ClassVar[bool] = False  # of denoising boxes whose corners have crossed

    backbone: Any = dataclasses.field(default_factory=lambda: _vd("resnet-50", "frozen"))
    num_classes: int = 80
    num_queries: int = 300
    preprocessing: Preprocessing = PUBLISHED_IMAGES
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=lambda: dict(RECIPE))
    d_model: int = 256
    encoder_dim: int = 256
    encoder_ffn_dim: int = 1024
    encoder_layers: int = 1
    encoder_attention_heads: int = 8
    attended_levels: Sequence[int] = (2,)
    encoder_activation: str = "gelu"
    activation_function: str = "silu"
    expansion: float = 1.0
    fusion_blocks: int = 3
    encoder_batch_norm: BatchNorm = "trainable"
    num_feature_levels: int = 3
    decoder_layers: int = 6
    decoder_attention_heads: int = 8
    decoder_ffn_dim: int = 1024
    decoder_activation: str = "relu"
    decoder_points: int = 4
    inference_layers: int | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    num_denoising: int = 100
    label_noise_ratio: float = LABEL_NOISE_RATIO
    box_noise_scale: float = BOX_NOISE_SCALE
    learned_content: bool = False

    def _check(self) -> None:
        for name in _WHOLE_NUMBERS:
            whole_number(name, getattr(self, name))
        self._check_points()
        for name in _SHARES:
            share(name, getattr(self, name))
        if any(side % self.stride for side in self.preprocessing.size):
            raise ValueError(
                f"preprocessing.size must be in multiples of {self.stride} pixels, not {self.preprocessing.size}"
            )
        for name in ("box_noise_scale", "expansion"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= float(value) < float("inf"):
                raise ValueError(f"{name} must be a finite number of at least 0, not {value!r}")
        if int(self.encoder_dim * self.expansion) < 1:
            raise ValueError(f"expansion={self.expansion} leaves no channels of encoder_dim={self.encoder_dim}")
        if (
            isinstance(self.num_denoising, bool)
            or not isinstance(self.num_denoising, Integral)
            or self.num_denoising < 0
        ):
            raise ValueError(f"num_denoising must be a whole number of at least 0, not {self.num_denoising!r}")
        for width, heads in (("encoder_dim", "encoder_attention_heads"), ("d_model", "decoder_attention_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(f"{width}={getattr(self, width)} is not divisible by {heads}={getattr(self, heads)}")
        if self.encoder_dim % 4:  # sine and cosine, for x and for y
            raise ValueError(f"encoder_dim={self.encoder_dim} must be divisible by 4")
        maps = len(self.backbone.channels)
        if self.num_feature_levels > maps:
            raise ValueError(f"num_feature_levels={self.num_feature_levels}, but the backbone has {maps} maps")
        attended = self.attended_levels
        if not isinstance(attended, list | tuple) or not all(
            isinstance(level, Integral) and 0 <= level < self.num_feature_levels for level in attended
        ):
            raise ValueError(
                f"attended_levels must be numbers of levels, from 0 to {self.num_feature_levels - 1}, not {attended!r}"
            )
        object.__setattr__(self, "attended_levels", tuple(int(level) for level in attended))
        if self.inference_layers is not None:
            whole_number("inference_layers", self.inference_layers)
            if self.inference_layers > self.decoder_layers:
                raise ValueError(
                    f"inference_layers={self.inference_layers}, but the decoder has {self.decoder_layers} layers"
                )

    def _check_points(self) -> None:
        whole_number("decoder_points", self.decoder_points)

    def check_canvas(self, height: int, width: int) -> None:
        """Raise a `ValueError` for images that have fewer positions than there are queries."""
        strides = [self.stride // 2**level for level in range(self.num_feature_levels)]
        check_positions(sum((height // stride) * (width // stride) for stride in strides), self.num_queries)

    @property
    def classification(self) -> str | Classification:
        """How a query is classified."""
        return "varifocal"

    @property
    def knows_padding(self) -> bool:
        """Whether images may be padded."""
        return False

    @property
    def map_channels(self) -> tuple[int, ...]:
        """Channels of the backbone's maps that are used."""
        return tuple(self.backbone.channels[-self.num_feature_levels :])

    @property
    def stride(self) -> int:
        """Pixels of the image, in each direction, to one of the coarsest map."""
        return int(2 ** (len(self.backbone.channels) + 1))

    @property
    def projects_encoded(self) -> bool:
        """Whether the encoder's maps are projected to the decoder's width."""
        return True

    @property
    def own_parts(self) -> tuple[str, ...]:
        """Names of the parts beside the backbone's that can be frozen."""
        return (
            *("input_projection", "encoder"),
            *(("decoder_projection",) if self.projects_encoded else ()),
            "proposals",
            *(("content_embedding",) if self.learned_content else ()),
            *(("denoising_embedding",) if self.num_denoising else ()),
            *("query_position", "decoder", "class_head", "box_head", "encoder_class_head", "encoder_box_head"),
        )

    @property
    def encoder_options(self) -> dict[str, Any]:
        """The arguments of the hybrid encoder."""
        return {
            "levels": self.num_feature_levels,
            "channels": self.encoder_dim,
            "attended": self.attended_levels,
            "depth": self.encoder_layers,
            "heads": self.encoder_attention_heads,
            "hidden": self.encoder_ffn_dim,
            "expansion": self.expansion,
            "blocks": self.fusion_blocks,
            "activation": self.activation_function,
            "encoder_activation": self.encoder_activation,
            "batch_norm": self.encoder_batch_norm,
            **self._dropouts,
        }

    @property
    def decoder_options(self) -> dict[str, Any]:
        """The arguments of the decoder."""
        return {
            "depth": self.decoder_layers,
            "d_model": self.d_model,
            "heads": self.decoder_attention_heads,
            "hidden": self.decoder_ffn_dim,
            "activation": self.decoder_activation,
            "levels": self.num_feature_levels,
            "points": self.decoder_points,
            "offset_scale": self.offset_scale,
            "sampling": self.sampling,
            "refine": True,
            "look_forward_twice": True,
            "xavier_output": False,
            "xavier_feed_forward": self.is_xavier,
            **self._dropouts,
        }

    @property
    def _dropouts(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("dropout", "attention_dropout", "activation_dropout")}

    @property
    def network(self) -> str:
        """The network in words: what stands behind "an RT-DETR over"."""
        layers_ = f"{self.decoder_layers} decoder layers"
        if self.inference_layers is not None:
            layers_ += f" ({self.inference_layers} in inference)"
        return f"{self.backbone.title}, {self.num_feature_levels} levels, {layers_}, {self.num_queries} queries"

    @property
    def is_foldable(self) -> bool:
        """Whether the model has batch normalisation that can be folded into convolutions."""
        return super().is_foldable or self.encoder_batch_norm != "folded"

    def folded(self) -> Self:
        """Return the architecture of the same model with all batch normalisation folded."""
        return dataclasses.replace(super().folded(), encoder_batch_norm="folded")


def _vd(name: str, batch_norm: BatchNorm) -> ResNetConfig:
    return dataclasses.replace(RESNETS[name], variant="vd", batch_norm=batch_norm)


# Their authors train the batch normalisation of the smaller ones, and that of the larger ones, with the stem, not.
BACKBONES = {
    "r18": _vd("resnet-18", "trainable"),
    "r34": _vd("resnet-34", "trainable"),
    "r50": _vd("resnet-50", "frozen"),
    "r101": _vd("resnet-101", "frozen"),
}
# Decoder depth, and where it differs from `RTDETRConfig` the encoder, of the published sizes.
_SMALL, _LARGE = {"expansion": 0.5}, {"encoder_dim": 384, "encoder_ffn_dim": 2048}
SIZES: Mapping[str, Mapping[str, Any]] = {
    "r18": {"backbone": BACKBONES["r18"], "decoder_layers": 3, **_SMALL},
    "r34": {"backbone": BACKBONES["r34"], "decoder_layers": 4, **_SMALL},
    "r50-m": {"backbone": BACKBONES["r50"], "frozen": "stem", "inference_layers": 3, **_SMALL},
    "r50": {"backbone": BACKBONES["r50"], "frozen": "stem"},
    "r101": {"backbone": BACKBONES["r101"], "frozen": "stem", **_LARGE},
}
RECIPE: Mapping[str, Any] = {
    "learning_rate": 1e-4,
    "backbone_multiplier": 0.1,
    "schedule": "constant",
    "weight_decay_exclude": ["norms", "biases"],
    "ema_momentum": 0.9999,
    "ema_ramp_steps": 2000,
    "augmentation": "strong",
    "multiscale": True,
}
RECIPES: Mapping[str, Mapping[str, Any]] = {
    **{size: RECIPE for size in SIZES},
    "r101": {**RECIPE, "backbone_multiplier": 0.01},
}
# Small enough to train from scratch on a CPU; beside these a backbone.
SMALL: Mapping[str, Any] = {
    "num_queries": 50,
    "d_model": 128,
    "encoder_dim": 128,
    "encoder_ffn_dim": 256,
    "encoder_attention_heads": 4,
    "expansion": 0.5,
    "decoder_layers": 3,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 256,
    "num_denoising": 25,
    "preprocessing": Preprocessing((64, 64), "stretch", mean=(0, 0, 0), std=(1, 1, 1), multiple_of=STRIDE),
    "recipe": {
        "learning_rate": 4e-4,
        "backbone_multiplier": 0.5,
        "augmentation": "flip",
        "ema_momentum": 0.999,
        "ema_ramp_steps": 500,
        "freeze": "",
    },
}
TINY = RTDETRConfig(
    # And to be part of the package.
    backbone=ResNetConfig("basic", (1, 1, 1, 1), (32, 64, 128, 192), 32, variant="vd", batch_norm="trainable"),
    **SMALL,
)
