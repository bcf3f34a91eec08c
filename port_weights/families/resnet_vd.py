"""ResNets of the variant "vd": how RT-DETR's authors and Hugging Face name their tensors, and describe them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from port_weights.families.resnet import backbone_from_tensors
from port_weights.families.rows import conv_norm
from port_weights.tables import Row
from tfdetr_keras.backbones.resnet import ResNetConfig

MODEL_TYPE = "rt_detr_resnet"
_BLOCK, _PATH = "res_layers.{s-1}.blocks.{b}", "backbone/stage{s}/block{b}"
_FIRST_OF_AUTHORS, _FIRST_OF_HUGGING_FACE = "conv1.conv1_1.conv.weight", "embedder.embedder.0.convolution.weight"


def _conv_norm(name: str, path: str) -> list[Row]:
    return conv_norm(f"{name}.conv", f"{name}.norm", path)


def _convolution(name: str, path: str) -> list[Row]:
    return conv_norm(f"{name}.convolution", f"{name}.normalization", path)


# The first stage keeps the resolution, so that nothing is averaged before its shortcut; its row comes first.
OF_AUTHORS: list[Row] = [
    *_conv_norm("conv1.conv1_{k}", "backbone/stem/conv{k}"),
    *(row for k, branch in enumerate("abc", 1) for row in _conv_norm(f"{_BLOCK}.branch2{branch}", f"{_PATH}/conv{k}")),
    *_conv_norm("res_layers.0.blocks.{b}.short", "backbone/stage1/block{b}/shortcut"),
    *_conv_norm(f"{_BLOCK}.short.conv", f"{_PATH}/shortcut"),
]
_LAYER = "encoder.stages.{s-1}.layers.{b}"
OF_HUGGING_FACE: list[Row] = [
    *_convolution("embedder.embedder.{k-1}", "backbone/stem/conv{k}"),
    *_convolution(f"{_LAYER}.layer.{{k-1}}", f"{_PATH}/conv{{k}}"),
    *_convolution("encoder.stages.0.layers.{b}.shortcut", "backbone/stage1/block{b}/shortcut"),
    *_convolution(f"{_LAYER}.shortcut.1", f"{_PATH}/shortcut"),
]
BACKBONES = {"authors": OF_AUTHORS, "hugging-face": OF_HUGGING_FACE}


def find_backbone_vd(names: AbstractSet[str]) -> tuple[str, str]:
    """Return whose names a "vd"'s tensors have, and what stands before them; two empty texts where there is none."""
    for name in names:
        for who, first in (("authors", _FIRST_OF_AUTHORS), ("hugging-face", _FIRST_OF_HUGGING_FACE)):
            if name.endswith(first):
                return who, name.removesuffix(first)
    return "", ""


def as_authors_train(backbone: ResNetConfig, is_trainable: bool = False) -> tuple[ResNetConfig, tuple[str, ...]]:
    """Return a backbone with the batch normalisation, and the frozen parts, that RT-DETR's authors train it with.

    They train that of ResNet-18 and -34, whose blocks are basic, and freeze that of the larger ones, and their stem.

    Args:
        backbone: read from a checkpoint.
        is_trainable: whether the checkpoint says that batch normalisation is to be trained.
    """
    if backbone.block == "basic" or is_trainable:
        return dataclasses.replace(backbone, batch_norm="trainable"), ()
    return dataclasses.replace(backbone, batch_norm="frozen"), ("stem",)


def backbone_vd_from_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> ResNetConfig:
    """Return the backbone that a `config.json` describes; where it describes none, what the tensors' shapes tell.

    Raises:
        ValueError: another backbone.
    """
    described = config.get("backbone_config")
    if not described:
        if config.get("backbone") or config.get("use_timm_backbone"):
            raise ValueError(f"backbone {config.get('backbone')!r}, but only {MODEL_TYPE} can be read")
        return backbone_from_tensors(shapes)
    kind = described.get("model_type", MODEL_TYPE)
    if kind != MODEL_TYPE:
        raise ValueError(f"backbone_config says model_type={kind!r}, but only {MODEL_TYPE} can be read")
    for name, only in (
        ("downsample_in_bottleneck", False),
        ("downsample_in_first_stage", False),
        ("hidden_act", "relu"),
        ("num_channels", 3),
    ):
        if described.get(name, only) != only:
            raise ValueError(f"backbone_config says {name}={described[name]!r}, but only {only!r} can be read")
    backbone = ResNetConfig(
        block=described.get("layer_type", "bottleneck"),
        depths=tuple(described.get("depths", ResNetConfig.depths)),
        channels=tuple(described.get("hidden_sizes", ResNetConfig.channels)),
        stem_channels=described.get("embedding_size", ResNetConfig.stem_channels),
        variant="vd",
    )
    refuse_other_shortcuts(backbone)
    return backbone


def refuse_other_shortcuts(backbone: ResNetConfig) -> None:
    """Raise a `ValueError` where transformers' shortcuts are others: it averages where the width of a stage changes."""
    widths = (backbone.stem_channels, *backbone.channels)
    changes = [one != other for one, other in itertools.pairwise(widths)]
    if backbone.block == "basic" and changes != [False, *[True] * (len(changes) - 1)]:
        raise ValueError(
            f"channels of stem and stages {widths}: with basic blocks transformers halves the resolution in another "
            "way unless the first stage keeps the width of the stem and each other one changes it"
        )


def backbone_vd_json(backbone: ResNetConfig, levels: int) -> dict[str, Any]:
    """Return what `config.json` says of a backbone whose last maps become levels."""
    stages = range(len(backbone.depths) - levels + 1, len(backbone.depths) + 1)
    return {
        "model_type": MODEL_TYPE,
        "embedding_size": backbone.stem_channels,
        "hidden_sizes": list(backbone.channels),
        "depths": list(backbone.depths),
        "layer_type": backbone.block,
        "out_features": [f"stage{stage}" for stage in stages],
        "out_indices": list(stages),
    }
