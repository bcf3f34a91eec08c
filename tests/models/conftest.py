"""A DETR small enough that a test of it takes moments, and batches for it."""

import dataclasses

import keras
import numpy as np
import pytest

from tfdetr_keras.models import DETR, DETRConfig, ResNetConfig

CONFIG = DETRConfig(
    backbone=ResNetConfig(block="basic", depths=(1, 1), channels=(8, 16), stem_channels=8),
    num_classes=3,
    num_queries=5,
    d_model=16,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=4,
    encoder_ffn_dim=24,
    decoder_ffn_dim=20,
    dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
)


@pytest.fixture(scope="session")
def make_model():
    """Makes the small model with changed fields of its backbone and of itself; the same weights each time."""

    def make(backbone=None, dtype=None, **changes):
        keras.utils.set_random_seed(0)
        changes["backbone"] = dataclasses.replace(CONFIG.backbone, **(backbone or {}))
        return DETR(dataclasses.replace(CONFIG, **changes), dtype=dtype)

    return make


@pytest.fixture(scope="session")
def make_batch():
    """Makes (inputs, targets) of random images, the last of which is padded."""

    def make(batch=2, height=32, width=48, seed=0):
        rng = np.random.default_rng(seed)
        mask = np.ones((batch, height, width), np.int32)
        mask[-1, height // 2 :] = mask[-1, :, -width // 4 :] = 0
        pixels = rng.normal(size=(batch, height, width, 3)).astype(np.float32) * mask[..., None]
        labels = rng.integers(0, CONFIG.num_classes, (batch, 3)).astype(np.int32)
        labels[-1, 1:] = -1
        boxes = rng.uniform(0.2, 0.8, (batch, 3, 4)).astype(np.float32)
        return {"pixel_values": pixels, "pixel_mask": mask}, {"labels": labels, "boxes": boxes}

    return make
