"""ResNets: how torchvision and Hugging Face name their tensors, and what a checkpoint tells of the architecture."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Literal

from port_weights.families.rows import conv_norm
from port_weights.tables import Row
from tfdetr_keras.backbones.resnet import RESNETS, ResNetConfig

# Whose ResNet a `config.json` names: transformers' own, or that of the package timm.
Backbone = Literal["hugging-face", "timm"]

TORCHVISION_BACKBONE: list[Row] = [
    *conv_norm("conv1", "bn1", "backbone/stem"),
    *conv_norm("layer{s}.{b}.conv{k}", "layer{s}.{b}.bn{k}", "backbone/stage{s}/block{b}/conv{k}"),
    *conv_norm("layer{s}.{b}.downsample.0", "layer{s}.{b}.downsample.1", "backbone/stage{s}/block{b}/shortcut"),
]

_BLOCK = "encoder.stages.{s-1}.layers.{b}"
HUGGING_FACE_BACKBONE: list[Row] = [
    *conv_norm("embedder.embedder.convolution", "embedder.embedder.normalization", "backbone/stem"),
    *conv_norm(
        f"{_BLOCK}.layer.{{k-1}}.convolution",
        f"{_BLOCK}.layer.{{k-1}}.normalization",
        "backbone/stage{s}/block{b}/conv{k}",
    ),
    *conv_norm(
        f"{_BLOCK}.shortcut.convolution", f"{_BLOCK}.shortcut.normalization", "backbone/stage{s}/block{b}/shortcut"
    ),
]

BACKBONES = {"hugging-face": HUGGING_FACE_BACKBONE, "torchvision": TORCHVISION_BACKBONE}


def find_backbone(names: AbstractSet[str]) -> tuple[str, str]:
    """Return whose names a ResNet's tensors have, and what stands before them; two empty texts where there is none."""
    for name in names:
        if name.endswith("embedder.embedder.convolution.weight"):
            return "hugging-face", name.removesuffix("embedder.embedder.convolution.weight")
        if name.endswith("layer1.0.conv1.weight"):
            return "torchvision", name.removesuffix("layer1.0.conv1.weight")
    return "", ""


def timm_name(backbone: ResNetConfig) -> str | None:
    """Return the name of a ResNet, dilated or not, in timm and torchvision; None for one that they do not have."""
    plain = dataclasses.replace(backbone, dilation=False, batch_norm="frozen")
    return next((name.replace("-", "") for name, known in RESNETS.items() if known == plain), None)


def resnet_json(backbone: ResNetConfig) -> dict[str, Any]:
    """Return what `config.json` says of a ResNet of transformers' own."""
    return {
        "model_type": "resnet",
        "embedding_size": backbone.stem_channels,
        "hidden_sizes": list(backbone.channels),
        "depths": list(backbone.depths),
        "layer_type": backbone.block,
        "out_features": [f"stage{index + 1}" for index in range(len(backbone.depths))],
    }


def backbone_from_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> ResNetConfig:
    """Return the ResNet that a `config.json` describes; where it names none, what the shapes of its tensors tell.

    Raises:
        ValueError: another backbone, or a ResNet that the package does not have.
    """
    described = config.get("backbone_config") or {}
    options = {**(config.get("backbone_kwargs") or {}), **described}
    dilation = bool(config.get("dilation")) or options.get("output_stride") == 16
    if described.get("model_type") == "resnet":
        if described.get("downsample_in_bottleneck") or described.get("downsample_in_first_stage"):
            raise ValueError("a ResNet that halves the resolution in a 1×1 convolution or in its first stage")
        return ResNetConfig(
            block=described.get("layer_type", "bottleneck"),
            depths=tuple(described.get("depths", ResNetConfig.depths)),
            channels=tuple(described.get("hidden_sizes", ResNetConfig.channels)),
            stem_channels=described.get("embedding_size", ResNetConfig.stem_channels),
            dilation=dilation,
        )
    name = described.get("backbone") or config.get("backbone")
    if name is None:
        return dataclasses.replace(backbone_from_tensors(shapes), dilation=dilation)
    match = re.fullmatch(r"(?:\w+/)?resnet-?(\d+)", name)
    if match is None or f"resnet-{match[1]}" not in RESNETS:
        raise ValueError(f"backbone {name!r} is none of {', '.join(RESNETS)}")
    return dataclasses.replace(RESNETS[f"resnet-{match[1]}"], dilation=dilation)


def backbone_from_tensors(shapes: Mapping[str, tuple[int, ...]]) -> ResNetConfig:
    """Return the ResNet that has tensors of these shapes, by Keras path.

    Raises:
        ValueError: tensors are missing that would tell it.
    """
    blocks = {
        tuple(map(int, match)) for path in shapes for match in re.findall(r"backbone/stage(\d+)/block(\d+)/", path)
    }
    stages = sorted({stage for stage, _ in blocks})
    bottleneck = "backbone/stage1/block0/conv3/convolution/kernel" in shapes
    is_vd = "backbone/stem/conv1/convolution/kernel" in shapes
    last, stem = "conv3" if bottleneck else "conv2", "stem/conv3" if is_vd else "stem"
    try:
        return ResNetConfig(
            variant="vd" if is_vd else "v1.5",
            block="bottleneck" if bottleneck else "basic",
            depths=tuple(_count_of_blocks(stage, {block for of, block in blocks if of == stage}) for stage in stages),
            channels=tuple(shapes[f"backbone/stage{stage}/block0/{last}/convolution/kernel"][0] for stage in stages),
            stem_channels=shapes[f"backbone/{stem}/convolution/kernel"][0],
        )
    except KeyError as error:
        raise ValueError(f"the tensor for {error} is missing: the backbone's architecture cannot be told") from error


def _count_of_blocks(stage: int, blocks: set[int]) -> int:
    if blocks != set(range(len(blocks))):
        raise ValueError(f"of the blocks of the backbone's stage {stage} only {sorted(blocks)[:8]} are there")
    return len(blocks)
