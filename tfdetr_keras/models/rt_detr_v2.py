"""RT-DETRv2: RT-DETR whose decoder may look at another number of points on each level, and read whole pixels.

Source:
    Lv et al. 2024, "RT-DETRv2: Improved Baseline with Bag-of-Freebies for Real-Time Detection Transformer",
    arXiv:2407.17140.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar

import keras

from tfdetr_keras.backbones.config import BackboneConfig, one_of, whole_number
from tfdetr_keras.backbones.hgnet_v2 import HGNETS, HGNetV2Config
from tfdetr_keras.models.rt_detr import RTDETR
from tfdetr_keras.models.rt_detr_config import RECIPE, SIZES, RTDETRConfig


@dataclasses.dataclass(frozen=True)
class RTDETRV2Config(RTDETRConfig):
    """The architecture of an `RTDETRV2`: the fields of an RT-DETR's, and how the decoder looks at the maps.

    Args:
        decoder_points: points of each level that a head of the decoder looks at: a number, or one for each level.
        offset_scale: how far an offset of 1 leads, times width or height of the reference and divided by the points.
        sampling: `"bilinear"`, between pixels; or `"discrete"`, which takes the pixel a point lies in: operators that
            every runtime has, and no gradient to the points.

    Source:
        RT-DETRv2, section 2.
    """

    is_xavier: ClassVar[bool] = True
    other_backbones: ClassVar[tuple[type[BackboneConfig], ...]] = (HGNetV2Config,)

    recipe: Mapping[str, Any] = dataclasses.field(default_factory=lambda: dict(_WARM))
    decoder_points: int | Sequence[int] = 4  # type: ignore[assignment]
    offset_scale: float = 0.5  # type: ignore[misc]
    sampling: str = "bilinear"  # type: ignore[misc]

    def _check_points(self) -> None:
        if isinstance(self.decoder_points, list | tuple):
            if len(self.decoder_points) != self.num_feature_levels:
                raise ValueError(
                    f"decoder_points must be a number, or one for each of the {self.num_feature_levels} levels, not "
                    f"{self.decoder_points!r}"
                )
            for points in self.decoder_points:
                whole_number("decoder_points", points)
            object.__setattr__(self, "decoder_points", tuple(self.decoder_points))
        else:
            whole_number("decoder_points", self.decoder_points)
        one_of("sampling", self.sampling, ("bilinear", "discrete"))
        if not isinstance(self.offset_scale, Real) or not 0 < float(self.offset_scale) < float("inf"):
            raise ValueError(f"offset_scale must be a finite number above 0, not {self.offset_scale!r}")


_WARM: Mapping[str, Any] = {**RECIPE, "weight_decay_exclude": ["norms"], "warmup_steps": 2000}
# The last epochs of 120, 84 or 72 are without strong augmentation and several sizes.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "r18": {**_WARM, "backbone_multiplier": 1.0, "plain_epochs": 3, "multiscale": False},
    "r34": {**_WARM, "backbone_multiplier": 0.5, "plain_epochs": 3, "weight_decay_exclude": ["norms", "biases"]},
    "r50-m": {**_WARM, "plain_epochs": 3},
    "r50": {**_WARM, "plain_epochs": 1},
    "r101": {**_WARM, "backbone_multiplier": 0.01, "plain_epochs": 1},
    "hgnet-v2-l": {**_WARM, "backbone_multiplier": 0.05, "plain_epochs": 1},
    "hgnet-v2-x": {**_WARM, "backbone_multiplier": 0.01, "plain_epochs": 1},
    "hgnet-v2-h": {**_WARM, "backbone_multiplier": 0.05, "plain_epochs": 1},
}


def _hgnet(name: str, **fields: Any) -> dict[str, Any]:
    return {"backbone": dataclasses.replace(HGNETS[name], batch_norm="frozen"), "frozen": "stem", **fields}


_SIZES: Mapping[str, Mapping[str, Any]] = {
    **SIZES,
    "hgnet-v2-l": _hgnet("hgnet-v2-b4"),
    "hgnet-v2-x": _hgnet("hgnet-v2-b5", encoder_dim=384, encoder_ffn_dim=2048),
    "hgnet-v2-h": _hgnet("hgnet-v2-b6", encoder_dim=512, encoder_ffn_dim=2048, encoder_layers=2),
}


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class RTDETRV2(RTDETR):
    """RT-DETR with points by level and discrete sampling; inputs, outputs, training and stages are those of `RTDETR`.

    Args:
        config: the architecture.
        criterion: the training loss; the authors' by default.

    Source:
        Lv et al. 2024, "RT-DETRv2", arXiv:2407.17140.
    """

    config_class: ClassVar[type[RTDETRV2Config]] = RTDETRV2Config
    presets: ClassVar[Mapping[str, RTDETRV2Config]] = {
        f"rt-detr-v2-{size}": RTDETRV2Config(**fields, recipe=RECIPES[size]) for size, fields in _SIZES.items()
    }
    published: ClassVar[Mapping[str, str]] = {
        f"PekingU/rtdetr_v2_{size}vd": f"rt-detr-v2-{size}" for size in ("r18", "r34", "r50", "r101")
    }
    title = "RT-DETRv2"
    config: RTDETRV2Config
