"""RF-DETR: LW-DETR's decoder over a windowed DINOv2, found by a search over sizes.

Source:
    Robinson et al. 2025, "RF-DETR: Neural Architecture Search for Real-Time Detection Transformers", arXiv:2511.09554.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import keras

from tfdetr_keras.backbones.config import BackboneConfig
from tfdetr_keras.backbones.dinov2 import DINOv2Config
from tfdetr_keras.layers.c2f import Norm
from tfdetr_keras.models.lw_detr import LWDETR, LWDETRConfig
from tfdetr_keras.preprocessing import Preprocessing


def images_of(backbone: DINOv2Config) -> Preprocessing:
    """Return how images are prepared: stretched to a square, and not smoothed where they become smaller.

    The square has as many patches as the table has positions, or so many more that windows are alike.
    """
    side = backbone.table_side * backbone.patch_size
    side += -side % backbone.multiple_of
    return Preprocessing((side, side), "stretch", antialias=False, multiple_of=backbone.multiple_of)


def recipe_of(backbone: DINOv2Config) -> dict[str, Any]:
    """Return the authors' recipe, of the images that a backbone has by default.

    The backbone's learning rate falls from block to block, counted from behind the last tap; its last normalisation has
    the whole one. Each batch has one of eleven sizes, up to five windows' patches smaller or larger.

    Source:
        RF-DETR's code (`rfdetr`), config.py, training/param_groups.py and models/backbone/backbone.py.
    """
    decay, whole = 0.8, 1.5 * 0.7**2
    behind = backbone.depth - backbone.taps[-1]  # blocks that are not used, which the authors do not count
    units = images_of(backbone).size[0] // backbone.multiple_of
    return {
        "learning_rate": 1e-4,
        "backbone_multiplier": whole / decay**behind,
        "layer_decay": decay,
        "learning_rate_multipliers": {"backbone/norm": whole, "decoder": 0.7},
        "schedule": "constant",
        "weight_decay_exclude": [
            *("backbone/norms", "backbone/biases"),
            *("embeddings/projection", "embeddings/positions", "embeddings/class_token"),
        ],
        "ema_momentum": 0.993,
        "ema_ramp_steps": 100,
        "augmentation": "paper",
        "multiscale": [(units + more) / units for more in range(-5, 6) if units + more >= 2],
    }


@dataclasses.dataclass(frozen=True)
class RFDETRConfig(LWDETRConfig):
    """The architecture of an `RFDETR`: the fields of an LW-DETR's, over a DINOv2.

    Source:
        RF-DETR's code (`rfdetr`), config.py.
    """

    backbone_class: ClassVar[type[BackboneConfig]] = DINOv2Config

    norms: ClassVar[tuple[Norm, ...]] = ("layer",)

    backbone: Any = dataclasses.field(default_factory=DINOv2Config)
    projector_norm: Norm = "layer"
    decoder_layers: int = 2

    @classmethod
    def defaults_of(cls, backbone: Any) -> dict[str, Any]:
        """Return the preprocessing and the recipe of a backbone, where nothing else is said."""
        return {"preprocessing": images_of(backbone), "recipe": recipe_of(backbone)}

    def _check(self) -> None:
        super()._check()
        if self.projector_scales != (1.0,):
            raise ValueError(
                f"projector_scales={self.projector_scales}, but an RF-DETR looks at one map, of the backbone's size: "
                "(1.0,)"
            )

    @property
    def knows_padding(self) -> bool:
        """Whether images may be padded."""
        return False


def _size(side: int, decoder_layers: int, **fields: Any) -> RFDETRConfig:
    backbone = DINOv2Config(table_side=side // 16)
    return RFDETRConfig(backbone, decoder_layers=decoder_layers, **fields)


# Small enough to train from random weights on a CPU.
_SMALL_BACKBONE = DINOv2Config(
    patch_size=8, windows=2, width=144, depth=6, heads=4, taps=(2, 4, 6), table_side=8, drop_path=0.0
)
SMALL: Mapping[str, Any] = {
    "backbone": _SMALL_BACKBONE,
    "num_queries": 25,
    "d_model": 128,
    "decoder_layers": 3,
    "self_attention_heads": 4,
    "cross_attention_heads": 8,
    "decoder_ffn_dim": 256,
    "groups": 4,
}
_BASE = DINOv2Config(patch_size=14, windows=4, taps=(2, 5, 8, 11), table_side=37)


@keras.saving.register_keras_serializable(package="tfdetr_keras")
class RFDETR(LWDETR):
    """A DETR over DINOv2 that newcomers compare everything with: queries, training and stages are those of `LWDETR`.

    Images are stretched to a square whose side is a multiple of the patches times the windows (32; 56 of the older
    base), other rectangles are possible, padding is not: a `pixel_mask` with padding in it is refused.

    Args:
        config: the architecture.
        criterion: the training loss; the authors' by default.

    Source:
        Robinson et al. 2025, "RF-DETR", arXiv:2511.09554.
    """

    config_class: ClassVar[type[RFDETRConfig]] = RFDETRConfig
    presets: ClassVar[Mapping[str, RFDETRConfig]] = {
        "rf-detr-nano": _size(384, 2),
        "rf-detr-small": _size(512, 3),
        "rf-detr-medium": _size(576, 4),
        "rf-detr-large": _size(704, 4),
        "rf-detr-base": RFDETRConfig(_BASE, decoder_layers=3),
        "rf-detr-tiny": RFDETRConfig(**SMALL),
    }
    published: ClassVar[Mapping[str, str]] = {
        f"Roboflow/rf-detr-{size}": f"rf-detr-{size}" for size in ("nano", "small", "medium", "large", "base")
    }
    title = "RF-DETR"
    config: RFDETRConfig
