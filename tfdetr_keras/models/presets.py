"""Architectures by name: those of the published checkpoints, and a small one."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfdetr_keras.models.config import DetectorConfig
from tfdetr_keras.models.registry import members, presets

PRESETS: dict[str, DetectorConfig] = presets()

# The checkpoints on the hub, and the architecture of each.
PUBLISHED: dict[str, str] = {hub_id: name for kind in members().values() for hub_id, name in kind.published.items()}

# What a user may change of an architecture without leaving it, or of which a checkpoint says nothing.
_OF_A_TASK = {
    *("num_classes", "num_queries", "id2label", "frozen", "preprocessing", "recipe", "auxiliary_outputs"),
    *("dropout", "attention_dropout", "activation_dropout", "activation_function", "position_embedding"),
    *("num_denoising", "label_noise_ratio", "box_noise_scale", "inference_layers"),
    *("decoder_points", "offset_scale", "sampling"),
}


def nearest_preset(config: DetectorConfig) -> DetectorConfig | None:
    """Return the preset of the same architecture; None if there is none.

    It says what a checkpoint itself may not: how its authors prepare images, and with which settings they train.
    Classes and queries may be others; of several presets the one with as many queries is taken.
    """

    def architecture(of: DetectorConfig) -> tuple[type, dict[str, Any]]:
        own = {field.name: getattr(of, field.name) for field in dataclasses.fields(of) if field.name not in _OF_A_TASK}
        return type(of), own | {"backbone": of.backbone.folded()}

    wanted = architecture(config)
    alike = [preset for preset in PRESETS.values() if architecture(preset) == wanted]
    return next((preset for preset in alike if preset.num_queries == config.num_queries), next(iter(alike), None))
