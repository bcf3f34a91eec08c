"""Architectures by name: those of the published checkpoints, and a small one."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.models.config import ConditionalDETRConfig, DETRConfig, ResNetConfig, SegmentationConfig
from tfdetr_keras.preprocessing import Preprocessing

RESNETS: dict[str, ResNetConfig] = {
    "resnet-18": ResNetConfig(block="basic", depths=(2, 2, 2, 2), channels=(64, 128, 256, 512)),
    "resnet-34": ResNetConfig(block="basic", depths=(3, 4, 6, 3), channels=(64, 128, 256, 512)),
    "resnet-50": ResNetConfig(),
    "resnet-101": ResNetConfig(depths=(3, 4, 23, 3)),
}

STRUCTURE = "table-transformer-structure-recognition"
TABLE_LABELS = ("table", "table rotated")
TABLE_STRUCTURE_LABELS = (
    "table",
    "table column",
    "table row",
    "table column header",
    "table projected row header",
    "table spanning cell",
)
# microsoft/table-transformer, `src/*_config.json`. Mirrored pages have mirrored text, so nothing is mirrored.
TABLE_RECIPE = {"learning_rate": 5e-5, "backbone_multiplier": 0.2, "augmentation": "none"}


def _fields(config: DETRConfig, without: str) -> dict[str, Any]:
    """What makes a configuration, but for a field and the names of the classes, which depend on it."""
    names = {field.name for field in dataclasses.fields(config)} - {without, "id2label"}
    return {name: getattr(config, name) for name in names}


PRESETS: dict[str, DETRConfig] = {
    f"detr-{name}{suffix}": DETRConfig(backbone=dataclasses.replace(backbone, dilation=bool(suffix)))
    for name, backbone in RESNETS.items()
    for suffix in ("", "-dc5")
}
PRESETS |= {
    f"{name}-panoptic": SegmentationConfig(num_classes=250, **_fields(PRESETS[name], without="num_classes"))
    for name in ("detr-resnet-50", "detr-resnet-50-dc5", "detr-resnet-101")
}
PRESETS |= {
    name: DETRConfig(
        backbone=RESNETS["resnet-18"],
        num_classes=len(labels),
        num_queries=num_queries,
        pre_norm=True,
        id2label=dict(enumerate(labels)),
        preprocessing=Preprocessing((side, side), "table"),
        recipe=TABLE_RECIPE,
    )
    for name, num_queries, side, labels in (
        ("table-transformer-detection", 15, 800, TABLE_LABELS),
        (STRUCTURE, 125, 1000, TABLE_STRUCTURE_LABELS),
    )
}
PRESETS["conditional-detr-resnet-50"] = ConditionalDETRConfig()
# Small enough to train from scratch on a CPU: two stages, for a stride of 8, so that images of 64 pixels have 64
# positions.
PRESETS["detr-tiny"] = DETRConfig(
    backbone=ResNetConfig(block="basic", depths=(1, 2), channels=(64, 128), stem_channels=32, batch_norm="trainable"),
    num_queries=25,
    d_model=96,
    encoder_layers=2,
    decoder_layers=3,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=256,
    decoder_ffn_dim=256,
    dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
    preprocessing=Preprocessing((64, 64), pad_to=(64, 64)),
    recipe={"learning_rate": 4e-4, "backbone_multiplier": 0.5, "augmentation": "flip", "freeze": ""},
)

# What was trained with another loss than its class's own.
PRESET_CRITERIA = {name: SetCriterion(eos_coefficient=0.4) for name in PRESETS if name.startswith("table-transformer")}

# The checkpoints on the hub, and the architecture of each.
PUBLISHED = {
    **{f"facebook/{name}": name for name in PRESETS if name.startswith(("detr-resnet-50", "detr-resnet-101"))},
    **{f"microsoft/{name}": name for name in PRESETS if name.startswith(("table-transformer", "conditional"))},
    **{
        f"microsoft/{STRUCTURE}-v1.1-{trained_on}": STRUCTURE  # another training set each
        for trained_on in ("pub", "fin", "all")
    },
}


def nearest_preset(config: DETRConfig) -> DETRConfig | None:
    """Return the preset of the same architecture; None if there is none.

    It says what a checkpoint itself may not: how its authors prepare images, and with which settings they train.
    Classes and queries may be others; of several presets the one with as many queries is taken.
    """

    def architecture(of: DETRConfig) -> tuple[Any, ...]:
        backbone = dataclasses.replace(of.backbone, batch_norm="frozen")
        return type(of), of.pre_norm, backbone, of.d_model, of.encoder_layers, of.decoder_layers

    alike = [preset for preset in PRESETS.values() if architecture(preset) == architecture(config)]
    return next((preset for preset in alike if preset.num_queries == config.num_queries), next(iter(alike), None))
