"""The network: configuration, backbone, position embeddings, transformer and the DETR that joins them."""

from tfdetr_keras.models.conditional import ConditionalDETR
from tfdetr_keras.models.config import ConditionalDETRConfig, DETRConfig, ResNetConfig, SegmentationConfig
from tfdetr_keras.models.detr import DETR
from tfdetr_keras.models.family import from_preset, from_pretrained, model_class
from tfdetr_keras.models.presets import PRESETS
from tfdetr_keras.models.segmentation import DETRForSegmentation

__all__ = [
    "DETR",
    "PRESETS",
    "ConditionalDETR",
    "ConditionalDETRConfig",
    "DETRConfig",
    "DETRForSegmentation",
    "ResNetConfig",
    "SegmentationConfig",
    "from_preset",
    "from_pretrained",
    "model_class",
]
