"""LW-DETR and RF-DETR as small as they can be, with batches for them."""

import keras
import numpy as np

import tfdetr_keras as td
from tfdetr_keras.backbones.dinov2 import DINOv2Config
from tfdetr_keras.backbones.lw_vit import LWViTConfig

SIDES = (64, 96)
_VIT = {"patch_size": 8, "windows": 2, "width": 12, "depth": 3, "heads": 3, "table_side": 5}
FIELDS = {
    "num_classes": 4,
    "num_queries": 12,
    "d_model": 16,
    "projector_blocks": 1,
    "decoder_layers": 2,
    "self_attention_heads": 2,
    "cross_attention_heads": 4,
    "decoder_ffn_dim": 24,
    "groups": 3,
    "preprocessing": td.Preprocessing((64, 64), "stretch", multiple_of=16),
}
BACKBONES = {"LWDETR": LWViTConfig(**_VIT, windowed=(0,), taps=(1, 3)), "RFDETR": DINOv2Config(**_VIT, taps=(1, 3))}
KINDS = ("LWDETR", "RFDETR")


def small(kind, seed=0, **changes):
    """Return a small model with fresh weights."""
    keras.utils.set_random_seed(seed)
    kind, backbone = getattr(td, kind), BACKBONES[kind.removesuffix("ForSegmentation")]
    return kind(kind.config_class(**{"backbone": backbone, **FIELDS, **changes}))


def pixels_of(batch=2, sides=SIDES):
    """Return random images."""
    return np.random.default_rng(0).normal(size=(batch, *sides, 3)).astype("float32")


def targets_of(*counts, rows=None):
    """Return targets with so many objects in each image."""
    rng = np.random.default_rng(1)
    shape = len(counts), rows or max(*counts, 1)
    labels = np.where(np.arange(shape[1]) < np.array(counts)[:, None], rng.integers(0, 4, shape), -1)
    boxes = np.concatenate([rng.uniform(0.3, 0.7, (*shape, 2)), rng.uniform(0.1, 0.4, (*shape, 2))], -1)
    return {"labels": labels.astype("int32"), "boxes": boxes.astype("float32")}
