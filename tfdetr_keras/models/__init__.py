"""The network: configuration, backbone, position embeddings, transformer and the DETR that joins them."""

from tfdetr_keras.models.config import PRESETS, DETRConfig, ResNetConfig
from tfdetr_keras.models.detr import DETR

__all__ = ["DETR", "PRESETS", "DETRConfig", "ResNetConfig"]
