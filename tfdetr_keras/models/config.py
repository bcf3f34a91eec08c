"""What a DETR is made of, and its relatives: one dataclass each, which says what differs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal

from tfdetr_keras.matching.classification import Classification, classification_named
from tfdetr_keras.models.class_names import ClassNames, names_by_id
from tfdetr_keras.models.spelling import did_you_mean
from tfdetr_keras.preprocessing import Preprocessing

NORM_GROUPS = 8  # of the mask head's group normalisation
_WHOLE_NUMBERS = (
    *("num_classes", "num_queries", "d_model", "encoder_layers", "decoder_layers"),
    *("encoder_attention_heads", "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim"),
)
MASK_HEAD_MAPS = 3  # of the backbone, finer than the last, that the mask head looks at


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """A ResNet v1.5 backbone: a stem of stride 4, then stages that halve the resolution from the second on.

    Args:
        block: `"basic"` (two 3×3 convolutions) or `"bottleneck"` (1×1, 3×3, 1×1 with a quarter of the channels).
        depths: residual blocks per stage.
        channels: output channels per stage.
        stem_channels: output channels of the stem.
        dilation: DETR's DC5: the last stage keeps the resolution and dilates its 3×3 convolutions instead.
        batch_norm: `"frozen"` uses fixed statistics and affine parameters, as DETR does from pretrained weights;
            `"trainable"` is ordinary batch normalisation, for training from scratch; `"folded"` is none, with biases
            in the convolutions that do its work, for inference (`DETR.fold`).
    """

    block: Literal["basic", "bottleneck"] = "bottleneck"
    depths: tuple[int, ...] = (3, 4, 6, 3)
    channels: tuple[int, ...] = (256, 512, 1024, 2048)
    stem_channels: int = 64
    dilation: bool = False
    batch_norm: Literal["frozen", "trainable", "folded"] = "frozen"

    def __post_init__(self) -> None:
        for name in ("depths", "channels"):
            if not isinstance(getattr(self, name), list | tuple):
                raise ValueError(f"{name} must be whole numbers, one for each stage, not {getattr(self, name)!r}")
            object.__setattr__(self, name, tuple(getattr(self, name)))
            for value in getattr(self, name):
                _whole_number(name, value)
        _whole_number("stem_channels", self.stem_channels)
        _one_of("block", self.block, ("basic", "bottleneck"))
        _one_of("batch_norm", self.batch_norm, ("frozen", "trainable", "folded"))
        if len(self.depths) != len(self.channels) or not self.depths:
            raise ValueError(f"depths {self.depths} and channels {self.channels} must name the same stages")

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the backbone's parts, in the order of computation: `"stem"`, `"stage1"`, …"""
        return ("stem", *(f"stage{index + 1}" for index in range(len(self.depths))))


@dataclasses.dataclass(frozen=True)
class DETRConfig:
    """The architecture of a DETR and the names of its classes.

    Args:
        backbone: the convolutional backbone.
        num_classes: real classes; the class head has one more output, the last, for "no object".
        num_queries: object queries, the most objects that one image can yield.
        d_model: width of the transformer.
        encoder_layers: encoder depth.
        decoder_layers: decoder depth.
        encoder_attention_heads: heads of the encoder's attention.
        decoder_attention_heads: heads of the decoder's attentions.
        encoder_ffn_dim: hidden width of the encoder's feed-forward networks.
        decoder_ffn_dim: hidden width of the decoder's feed-forward networks.
        activation_function: activation of the feed-forward networks, by its Keras name.
        dropout: dropout of every residual branch.
        attention_dropout: dropout of the attention weights.
        activation_dropout: dropout inside the feed-forward networks.
        pre_norm: normalise before each branch instead of after it (Table Transformer).
        position_embedding: `"sine"` (fixed, normalised to the unpadded image) or `"learned"` (50 rows × 50 columns).
        auxiliary_outputs: whether the outputs of all decoder layers are returned, and so trained, or the last only.
        id2label: class id → name, for each of the `num_classes` ids, or a list of the names; `class_0`, `class_1`, …
            where left out. It is kept as a mapping.
        frozen: parts of the model that are not trained, as names or as a text like `"stem+stage1"`, which DETR froze in
            its experiments: any of `parts`. PyTorch calls the stages `layer1`, …; that is understood, too.
        preprocessing: how images become the model's input.
        recipe: settings of training in which the model's authors differ from DETR's, by their names in
            `tfdetr_keras.training.Settings`.

    Source:
        DETR, section 3.2 and appendix A.4; the defaults are those of its experiments.
    """

    backbone: ResNetConfig = dataclasses.field(default_factory=ResNetConfig)
    num_classes: int = 91
    num_queries: int = 100
    d_model: int = 256
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_attention_heads: int = 8
    decoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048
    decoder_ffn_dim: int = 2048
    activation_function: str = "relu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    pre_norm: bool = False
    position_embedding: Literal["sine", "learned"] = "sine"
    auxiliary_outputs: bool = True
    id2label: ClassNames | None = None
    frozen: str | Sequence[str] = ()
    preprocessing: Preprocessing = dataclasses.field(default_factory=Preprocessing)
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.backbone, Mapping):
            object.__setattr__(self, "backbone", ResNetConfig(**self.backbone))
        if not isinstance(self.backbone, ResNetConfig):
            raise ValueError(f"backbone must be a ResNetConfig, or the mapping of one, not {self.backbone!r}")
        object.__setattr__(self, "preprocessing", Preprocessing.of(self.preprocessing))
        if not isinstance(self.recipe, Mapping) or not all(isinstance(name, str) for name in self.recipe):
            raise ValueError(f"recipe must be settings of a training run by their names, not {self.recipe!r}")
        object.__setattr__(self, "recipe", dict(self.recipe))
        _one_of("position_embedding", self.position_embedding, ("sine", "learned"))
        for name in _WHOLE_NUMBERS:
            _whole_number(name, getattr(self, name))
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= float(value) <= 1:
                raise ValueError(f"{name} must be a number from 0 to 1, not {value!r}")
        if not isinstance(self.activation_function, str):
            raise ValueError(f"activation_function must be the name of one, not {self.activation_function!r}")
        if self.d_model % 4:  # sine and cosine, for x and for y
            raise ValueError(f"d_model={self.d_model} must be divisible by 4")
        for name in ("encoder_attention_heads", "decoder_attention_heads"):
            if self.d_model % getattr(self, name):
                raise ValueError(f"d_model={self.d_model} is not divisible by {name}={getattr(self, name)}")

        if self.id2label is None:
            names = {index: f"class_{index}" for index in range(self.num_classes)}
        else:
            names = names_by_id(self.id2label)
        if list(names) != list(range(self.num_classes)):
            raise ValueError(
                f"id2label must name each of the ids 0 … {self.num_classes - 1} (num_classes={self.num_classes}), "
                f"but it names {_summary(list(names))}: give a mapping that counts from 0, or a list of the names"
            )
        object.__setattr__(self, "id2label", names)

        frozen = self.frozen.split("+") if isinstance(self.frozen, str) else self.frozen
        if not isinstance(frozen, list | tuple) or not all(isinstance(name, str) for name in frozen):
            raise ValueError(f"frozen must be names of parts, as a list or as a text like stem+stage1, not {frozen!r}")
        frozen = tuple(re.sub(r"^layer(?=\d)", "stage", name.strip()) for name in frozen if name.strip())
        for name in frozen:
            if name not in self.parts:
                raise ValueError(
                    f"frozen: {name!r} is no part of this model; there are {', '.join(self.parts)}"
                    f"{did_you_mean(name, self.parts)}"
                )
        object.__setattr__(self, "frozen", frozen)

    @property
    def classification(self) -> str | Classification:
        """How a query is classified: by a softmax over the classes and "no object", or a sigmoid for each class."""
        return "softmax"

    @property
    def names(self) -> dict[int, str]:
        """Class id → class name, in the order of the ids."""
        return names_by_id(self.id2label)

    @property
    def num_logits(self) -> int:
        """Outputs of the class head."""
        return classification_named(self.classification).num_logits(self.num_classes)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the model's parts that can be frozen."""
        return (
            "backbone",
            *self.backbone.parts,
            *("input_projection", "position_embedding", "query_embedding"),
            *("encoder", "decoder", "class_head", "box_head"),
        )

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values, which its class takes back: `DETRConfig(**…)`."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class SegmentationConfig(DETRConfig):
    """The architecture of a `DETRForSegmentation`: a DETR's, whose parts also are `mask_attention` and `mask_head`.

    Source:
        DETR, section 5 ("DETR for panoptic segmentation").
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        channels = self.d_model + self.encoder_attention_heads
        if channels % NORM_GROUPS:
            raise ValueError(
                f"d_model={self.d_model} and encoder_attention_heads={self.encoder_attention_heads} must add up to a "
                f"multiple of {NORM_GROUPS}, the groups of the mask head's normalisation"
            )
        if len(self.backbone.depths) < 2:
            raise ValueError("masks are made finer step by step: the backbone needs at least two stages")
        if any(width < 1 or width % min(NORM_GROUPS, width) for width in self.mask_head_widths):
            raise ValueError(
                f"d_model={self.d_model} gives the mask head's convolutions the channels {self.mask_head_widths}; "
                f"each must be a multiple of {NORM_GROUPS}, or less than that and not 0"
            )

    @property
    def mask_head_widths(self) -> tuple[int, ...]:
        """Channels after each of the mask head's convolutions but the first: halved with each finer map."""
        maps = min(len(self.backbone.depths) - 1, MASK_HEAD_MAPS)
        return tuple(self.d_model >> halvings for halvings in range(1, maps + 2))

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the model's parts that can be frozen."""
        return (*super().parts, "mask_attention", "mask_head")


@dataclasses.dataclass(frozen=True)
class ConditionalDETRConfig(DETRConfig):
    """The architecture of a `ConditionalDETR`: a DETR's with 300 queries, and no "no object" among its classes.

    Source:
        Meng et al. 2021, "Conditional DETR for Fast Training Convergence", section 4.1.
    """

    num_queries: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pre_norm:
            raise ValueError("pre_norm: Conditional DETR normalises after each branch only")

    @property
    def classification(self) -> str | Classification:
        """How a query is classified."""
        return "focal"


def _whole_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}")


def _summary(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"{values[:4]} … {values[-2:]} ({len(values)} ids)"
