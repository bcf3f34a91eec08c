"""A DETR small enough that a test of it takes moments, and batches for it."""

import dataclasses

import keras
import numpy as np
import pytest
from small_model import CONFIG

from tfdetr_keras.models import DETR


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
