"""D-FINE: an RT-DETR that tells each side of a box by a distribution, which its layers sharpen one after the other.

Source:
    Peng et al. 2024, "D-FINE: Redefine Regression Task in DETRs as Fine-grained Distribution Refinement",
    arXiv:2410.13842. With other activations it is the network of Huang et al. 2024, "DEIM: DETR with Improved Matching
    for Fast Convergence", arXiv:2412.04234.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import keras
from keras import ops

from tfdetr_keras.backbones.config import BackboneConfig
from tfdetr_keras.backbones.hgnet_v2 import HGNETS, HGNetV2Config
from tfdetr_keras.layers.distance_bins import SIDES
from tfdetr_keras.layers.fine_grained_decoder import MOST_PROBABLE, FineGrainedDecoded, FineGrainedDecoder, QualityHead
from tfdetr_keras.layers.fusion import channels_inside
from tfdetr_keras.layers.heads import BoxHead, HeadOfEachLayer
from tfdetr_keras.layers.mlp import MLP
from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.losses.denoising import DenoisingQueries
from tfdetr_keras.losses.fine_grained_criterion import FineGrainedCriterion
from tfdetr_keras.models.dfine_recipes import RECIPES
from tfdetr_keras.models.rt_detr import RTDETR
from tfdetr_keras.models.rt_detr_config import SMALL
from tfdetr_keras.models.rt_detr_v2 import RTDETRV2Config


@dataclasses.dataclass(frozen=True)
class DFINEConfig(RTDETRV2Config):
    """The architecture of a `DFINE`: the fields of an RT-DETRv2's, and those of its distributions.

    Args:
        expansion: twice the channels inside the fusion blocks, as a share of `encoder_dim`.
        mlp_activation: activation of the heads for boxes and qualities, and of the queries' positions; `"silu"`, with
            `decoder_activation="silu"`, makes it the network of DEIM.
        bins: steps between the distances that a side may be moved by; an even number.
        reg_scale: the larger, the more alike the distances between bins; the distance that is a whole side.
        up: half of the greatest distance, as a share of a side. With `reg_scale` it is a weight of the decoder that
            nothing trains, and is ported.
        quality_dim: channels inside the heads for qualities.

    Source:
        D-FINE, section 4.1, and the configurations of the authors' code.
    """

    backbone_class: ClassVar[type[BackboneConfig]] = HGNetV2Config
    other_backbones: ClassVar[tuple[type[BackboneConfig], ...]] = ()
    absolute_sizes: ClassVar[bool] = True

    backbone: Any = dataclasses.field(default_factory=lambda: _frozen("hgnet-v2-b4"))
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=lambda: dict(RECIPES["large"]))
    decoder_points: int | Sequence[int] = (3, 6, 3)
    mlp_activation: str = "relu"  # type: ignore[misc]
    bins: int = 32
    reg_scale: float = 4.0
    up: float = 0.5
    quality_dim: int = 64

    def _check(self) -> None:
        super()._check()
        for name, least in (("bins", MOST_PROBABLE), ("quality_dim", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
        if self.bins % 2:
            raise ValueError(f"bins={self.bins} must be even, as many on either side of 0")
        for name in ("reg_scale", "up"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 < float(value) < float("inf"):
                raise ValueError(f"{name} must be a finite number above 0, not {value!r}")
        if channels_inside(self.encoder_dim, self.expansion) < 1:
            raise ValueError(f"expansion={self.expansion} leaves no channels of encoder_dim={self.encoder_dim}")

    @property
    def projects_encoded(self) -> bool:
        """Whether the encoder's maps are projected to the decoder's width: where they have another one."""
        return self.encoder_dim != self.d_model

    @property
    def own_parts(self) -> tuple[str, ...]:
        """Names of the parts beside the backbone's that can be frozen."""
        return (*super().own_parts, "pre_box_head", "quality_head")

    @property
    def encoder_options(self) -> dict[str, Any]:
        """The arguments of the hybrid encoder."""
        return super().encoder_options | {"fusion": "aggregation"}

    @property
    def decoder_options(self) -> dict[str, Any]:
        """The arguments of the decoder."""
        left_out = ("refine", "look_forward_twice")
        own = {name: value for name, value in super().decoder_options.items() if name not in left_out}
        return own | {"up": self.up, "reg_scale": self.reg_scale, "bins": self.bins}


def _affine(name: str) -> HGNetV2Config:
    return dataclasses.replace(HGNETS[name], learnable_affine=True)


def _frozen(name: str) -> HGNetV2Config:
    return dataclasses.replace(HGNETS[name], batch_norm="frozen")


# Their authors train the batch normalisation of the smaller ones, and that of the larger ones, with the stem, not.
BACKBONES = {
    "nano": _affine("hgnet-v2-b0"),
    "small": _affine("hgnet-v2-b0"),
    "medium": _affine("hgnet-v2-b2"),
    "large": _frozen("hgnet-v2-b4"),
    "xlarge": _frozen("hgnet-v2-b5"),
}
SIZES: Mapping[str, Mapping[str, Any]] = {
    "nano": {
        "d_model": 128,
        "encoder_dim": 128,
        "encoder_ffn_dim": 512,
        "attended_levels": (1,),
        "expansion": 0.34,
        "fusion_blocks": 2,
        "num_feature_levels": 2,
        "decoder_layers": 3,
        "decoder_ffn_dim": 512,
        "decoder_points": 6,
    },
    "small": {"expansion": 0.5, "fusion_blocks": 1, "decoder_layers": 3},
    "medium": {"fusion_blocks": 2, "decoder_layers": 4},
    "large": {"frozen": "stem"},
    "xlarge": {"encoder_dim": 384, "encoder_ffn_dim": 2048, "reg_scale": 8.0, "frozen": "stem"},
}
CLASSES_OF_OBJECTS365 = 366  # ids from 1, so that the first row is no class
# Of what they were trained, by the ends of the presets' names.
_DATA: Mapping[str, Mapping[str, Any]] = {"": {}, "-obj365": {"num_classes": CLASSES_OF_OBJECTS365}, "-obj2coco": {}}
TINY = DFINEConfig(
    HGNetV2Config((16, 32), (32, 48, 48, 64), (64, 128, 192, 256), (1, 1, 1, 1), 2), fusion_blocks=1, **SMALL
)


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class DFINE(RTDETR):
    """An RT-DETR over HGNetV2 whose boxes are means of distributions, refined layer by layer.

    Inputs are those of `RTDETR`, outputs likewise, but that boxes may reach beyond the image.

    Targets and methods are those of `DETR`. In training, beside the prediction sets of `RTDETR`: `pre` and
    `denoising_pre`, the boxes that the first layer gives without distributions, `(batch, 1, queries, …)`; and for the
    losses of distributions `corners` `(batch, layers, queries, 4 · (bins + 1))`, `references` `(batch, queries, 4)`,
    `bin_values` `(bins + 1,)` and `reg_scale`, a scalar, of which the set `denoising` has the first two, too.

    Stages: those of `RTDETR`, where the memory is the fused maps themselves if encoder and decoder are as wide; and
    `corners` `(batch, layers, queries, …)`, and `pre.logits` and `pre.boxes` `(batch, queries, …)`, the latter two with
    denoising queries first.

    Args:
        config: the architecture.
        criterion: the training loss; the authors' by default, see `default_criterion`.

    Source:
        Peng et al. 2024, "D-FINE", arXiv:2410.13842.
    """

    config_class: ClassVar[type[DFINEConfig]] = DFINEConfig
    presets: ClassVar[Mapping[str, DFINEConfig]] = {
        **{
            f"d-fine-{size}{data}": DFINEConfig(
                **{"backbone": BACKBONES[size], **fields, **of_data, "recipe": RECIPES[f"{size}{data}"]}
            )
            for data, of_data in _DATA.items()
            for size, fields in SIZES.items()
        },
        "d-fine-tiny": TINY,
    }
    published: ClassVar[Mapping[str, str]] = {
        **{f"ustc-community/dfine-{size}-coco": f"d-fine-{size}" for size in SIZES},
        **{f"ustc-community/dfine-{size}-obj365": f"d-fine-{size}-obj365" for size in SIZES if size != "nano"},
        **{
            f"ustc-community/dfine-{size}-obj2coco{end}": f"d-fine-{size}-obj2coco"
            for size, end in (("small", ""), ("medium", ""), ("large", "-e25"), ("xlarge", ""))
        },
    }
    logged = (*RTDETR.logged, "loss_fgl", "loss_ddf_0")
    logged_in_training: ClassVar[tuple[str, ...]] = ("loss_fgl", "loss_ddf_0")
    title = "D-FINE"
    config: DFINEConfig

    @staticmethod
    def default_criterion() -> SetCriterion:
        """Return the authors' loss: RT-DETR's with one matching for all boxes, and those of the distributions."""
        return FineGrainedCriterion()

    def _make_heads(self) -> None:
        config, width = self.config, self.config.d_model
        names = [f"layer{index}" for index in range(config.decoder_layers)]
        own: dict[str, Any] = {"activation": config.mlp_activation, "dtype": "float32"}
        corners = (width, width, SIDES * (config.bins + 1))
        self.decoder = FineGrainedDecoder(**config.decoder_options, name="decoder", dtype=self.dtype_policy)
        self.class_head = HeadOfEachLayer([self._class_head(name) for name in names], width, name="class_head")
        self.box_head = HeadOfEachLayer(
            [MLP(width, corners, zero_output=True, name=name, **own) for name in names], width, name="box_head"
        )
        self.pre_box_head = self._box_head("pre_box_head")
        self.quality_head = HeadOfEachLayer(
            [QualityHead(config.quality_dim, name=name, **own) for name in names], width, name="quality_head"
        )

    def _box_head(self, name: str) -> BoxHead:
        config = self.config
        return BoxHead(config.d_model, zero_output=True, activation=config.mlp_activation, name=name, dtype="float32")

    def _decode(self, content: Any, **options: Any) -> FineGrainedDecoded:
        decoded: FineGrainedDecoded = self.decoder(
            content, first_box_head=self.pre_box_head, quality_head=self.quality_head, **options
        )
        return decoded

    def _stages_of(self, decoded: Any) -> dict[str, Any]:
        own = {"corners": decoded.corners, "pre.logits": decoded.first_logits, "pre.boxes": decoded.first_boxes}
        return super()._stages_of(decoded) | own

    def _add_sets(self, outputs: dict[str, Any], decoded: Any, denoising: DenoisingQueries | None, slots: Any) -> None:
        super()._add_sets(outputs, decoded, denoising, slots)
        references = ops.stop_gradient(decoded.first_boxes)
        outputs.update(corners=decoded.corners[:, :, slots:], references=references[:, slots:])
        outputs.update(bin_values=decoded.bin_values, reg_scale=decoded.reg_scale)
        first = {"logits": decoded.first_logits[:, None], "pred_boxes": decoded.first_boxes[:, None]}
        sets = outputs["prediction_sets"]
        sets["pre"] = {name: x[:, :, slots:] for name, x in first.items()}
        if denoising is None:
            return
        of_denoising = sets["denoising"]
        of_denoising.update(corners=decoded.corners[:, :, :slots], references=references[:, :slots])
        pairs = {"queries": of_denoising["queries"][:, :1]}
        pairs.update({name: of_denoising[name] for name in ("objects", "query_mask")})
        sets["denoising_pre"] = {**{name: x[:, :, :slots] for name, x in first.items()}, **pairs}
