"""What DETR was trained with, which other members' recipes are told against."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# By their names in `tfdetr_keras.training.Settings`; DETR, section 4 and appendix A.4, but for the schedule, which
# suits fine-tuning. An average of momentum 0 is none.
RECIPE: Mapping[str, Any] = MappingProxyType(
    {
        "augmentation": "paper",
        "multiscale": False,
        "plain_epochs": 0,
        "learning_rate": 1e-4,
        "backbone_multiplier": 0.1,
        "layer_decay": 1.0,
        "learning_rate_multipliers": {},
        "schedule": "cosine",
        "warmup_steps": 0,
        "weight_decay": 1e-4,
        "weight_decay_exclude": (),
        "global_clipnorm": 0.1,
        "ema_momentum": 0.0,
        "ema_ramp_steps": 0,
        "ema_restart_after": 0,
    }
)
