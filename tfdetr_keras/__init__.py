"""DETR for TensorFlow and Keras 3: exact in-graph matching, ported PyTorch weights, `tf.data` straight into `fit`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tfdetr_keras import training
from tfdetr_keras.assignment import linear_sum_assignment
from tfdetr_keras.detections import Detections
from tfdetr_keras.losses import SetCriterion
from tfdetr_keras.models import (
    DETR,
    PRESETS,
    ConditionalDETR,
    ConditionalDETRConfig,
    DETRConfig,
    DETRForSegmentation,
    ResNetConfig,
    SegmentationConfig,
    from_preset,
    from_pretrained,
)
from tfdetr_keras.postprocess import post_process
from tfdetr_keras.pretraining import BackbonePretraining
from tfdetr_keras.segments import (
    Segments,
    post_process_instance,
    post_process_masks,
    post_process_panoptic,
    post_process_semantic,
)
from tfdetr_keras.training import AdamW

if TYPE_CHECKING:
    from tfdetr_keras import data, evaluation, export, tables, visualize
    from tfdetr_keras.inference import detect
    from tfdetr_keras.loading import load_model
    from tfdetr_keras.training import fit_detector

__version__ = "0.1.0"

__all__ = [
    "DETR",
    "PRESETS",
    "AdamW",
    "BackbonePretraining",
    "ConditionalDETR",
    "ConditionalDETRConfig",
    "DETRConfig",
    "DETRForSegmentation",
    "Detections",
    "ResNetConfig",
    "SegmentationConfig",
    "Segments",
    "SetCriterion",
    "data",
    "detect",
    "evaluation",
    "export",
    "fit_detector",
    "from_preset",
    "from_pretrained",
    "linear_sum_assignment",
    "load_model",
    "post_process",
    "post_process_instance",
    "post_process_masks",
    "post_process_panoptic",
    "post_process_semantic",
    "tables",
    "training",
    "visualize",
]

# These need TensorFlow or matplotlib, or are seldom wanted: imported when first asked for.
_LAZY_MODULES = ("data", "evaluation", "export", "tables", "visualize")
_LAZY_FUNCTIONS = {"detect": "inference", "fit_detector": "training", "load_model": "loading"}


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _LAZY_FUNCTIONS:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
