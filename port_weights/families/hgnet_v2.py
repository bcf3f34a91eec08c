"""HGNetV2: how D-FINE's authors and Hugging Face name its tensors, and describe it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from port_weights.families.rows import conv_norm
from port_weights.layouts import DEPTHWISE, VECTOR
from port_weights.tables import Row
from tfdetr_keras.backbones.hgnet_v2 import KERNEL, LIGHT, LIGHT_KERNEL, HGNetV2Config

MODEL_TYPE = "hgnet_v2"
_STAGES = 4  # of all that are published: which of their convolutions are depthwise goes by their number
_FIRST = {"authors": "stem.stem1.conv.weight", "hugging-face": "embedder.stem1.convolution.weight"}


def _depthwise(convolution: str, normalization: str, path: str) -> list[Row]:
    """Return rows of a depthwise convolution with batch normalisation."""
    (kernel, to, _), *rest = conv_norm(convolution, normalization, path)
    return [(kernel, to, DEPTHWISE), *rest]


def _rows(stem: str, stages: str, conv: str, norm: str) -> list[Row]:
    """Return the table of a network: the two sides call stem, stages, convolution and normalisation differently."""

    def plain(name: str, path: str) -> list[Row]:
        return conv_norm(f"{name}.{conv}", f"{name}.{norm}", path)

    def depthwise(name: str, path: str) -> list[Row]:
        return _depthwise(f"{name}.{conv}", f"{name}.{norm}", path)

    def layer(name: str, path: str) -> list[Row]:
        return [*plain(name, f"{path}/conv"), *_affine(name, path)]

    rows = []
    for part in ("stem1", "stem2a", "stem2b", "stem3", "stem4"):
        rows += layer(f"{stem}{part}", f"backbone/stem/{part}")
    block, ours = f"{stages}{{s-1}}.blocks.{{b}}", "backbone/stage{s}/block{b}"
    return [
        *rows,
        *depthwise(f"{stages}{{s-1}}.downsample", "backbone/stage{s}/downsample"),
        *plain(f"{block}.layers.{{l}}.conv1", f"{ours}/layer{{l}}/pointwise"),
        # Light layers are those of the later stages: a table cannot tell but by their numbers.
        *(
            row
            for stage in range(LIGHT + 1, _STAGES + 1)
            for light, path in [
                (f"{stages}{stage - 1}.blocks.{{b}}.layers.{{l}}.conv2", f"backbone/stage{stage}/block{{b}}/layer{{l}}")
            ]
            for row in [*depthwise(light, f"{path}/conv"), *_affine(light, path)]
        ),
        *layer(f"{block}.layers.{{l}}", f"{ours}/layer{{l}}"),
        *layer(f"{block}.aggregation.{{l}}", f"{ours}/aggregation{{l}}"),
    ]


def _affine(name: str, path: str) -> list[Row]:
    return [(f"{name}.lab.{part}", f"{path}/affine/{part}", VECTOR) for part in ("scale", "bias")]


BACKBONES = {
    "authors": _rows("stem.", "stages.", "conv", "bn"),
    "hugging-face": _rows("embedder.", "encoder.stages.", "convolution", "normalization"),
}


def find_hgnet(names: AbstractSet[str]) -> tuple[str, str]:
    """Return whose names an HGNetV2's tensors have, and what stands before them; two empty texts if there is none."""
    for name in names:
        for who, first in _FIRST.items():
            if name.endswith(first):
                return who, name.removesuffix(first)
    return "", ""


def hgnet_from_tensors(shapes: Mapping[str, tuple[int, ...]]) -> HGNetV2Config:
    """Return the HGNetV2 that has tensors of these shapes, by Keras path; its batch normalisation is trainable.

    Raises:
        ValueError: tensors are missing that would tell it.
    """

    def count(pattern: str) -> int:
        found = {int(match[1]) for path in shapes if (match := re.match(pattern, path))}
        if not found or found != set(range(min(found), min(found) + len(found))):
            raise ValueError(f"of {pattern} only {sorted(found)[:8]} are there: the backbone cannot be told")
        return len(found)

    def width(path: str) -> int:
        if f"{path}/convolution/kernel" not in shapes:
            raise ValueError(f"the tensor for {path}/convolution/kernel is missing: the backbone cannot be told")
        return shapes[f"{path}/convolution/kernel"][0]

    stages = [f"backbone/stage{number + 1}" for number in range(count(r"backbone/stage(\d+)/block0/"))]
    return HGNetV2Config(
        stem_channels=(width("backbone/stem/stem1/conv"), width("backbone/stem/stem4/conv")),
        hidden_channels=tuple(width(f"{stage}/block0/layer0/conv") for stage in stages),
        channels=tuple(width(f"{stage}/block0/aggregation1/conv") for stage in stages),
        depths=tuple(count(rf"{stage}/block(\d+)/") for stage in stages),
        block_layers=count(r"backbone/stage1/block0/layer(\d+)/"),
        learnable_affine="backbone/stem/stem1/affine/scale" in shapes,
    )


def hgnet_from_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> HGNetV2Config:
    """Return the backbone that a `config.json` describes; where it describes none, what the tensors' shapes tell.

    Raises:
        ValueError: another backbone, or one that is not made here.
    """
    described = config.get("backbone_config")
    if not described:
        if config.get("backbone") or config.get("use_timm_backbone"):
            raise ValueError(f"backbone {config.get('backbone')!r}, but only {MODEL_TYPE} can be read")
        return hgnet_from_tensors(shapes)
    if (kind := described.get("model_type", MODEL_TYPE)) != MODEL_TYPE:
        raise ValueError(f"backbone_config says model_type={kind!r}, but only {MODEL_TYPE} can be read")
    usual = HGNetV2Config()
    channels = tuple(described.get("stage_out_channels", usual.channels))
    stem = tuple(described.get("stem_channels", (3, *usual.stem_channels)))
    layers = tuple(described.get("stage_numb_of_layers", (usual.block_layers,) * len(channels)))
    for name, only in {
        **_fixed(len(channels)),
        "stem_channels": [3, *stem[1:]],
        "stage_in_channels": [stem[-1], *channels[:-1]],
        "stage_numb_of_layers": [layers[0]] * len(channels),
    }.items():
        if _plain(described.get(name, only)) != only:
            raise ValueError(f"backbone_config says {name}={described[name]!r}, but only {only!r} can be read")
    return HGNetV2Config(
        stem_channels=stem[1:],
        hidden_channels=tuple(described.get("stage_mid_channels", usual.hidden_channels)),
        channels=channels,
        depths=tuple(described.get("stage_num_blocks", usual.depths)),
        block_layers=layers[0],
        learnable_affine=bool(described.get("use_learnable_affine_block", False)),
    )


def _fixed(stages: int) -> dict[str, Any]:
    """Return what a `config.json` says of every HGNetV2 of a number of stages."""
    light = [stage >= LIGHT for stage in range(stages)]
    return {
        "hidden_act": "relu",
        "num_channels": 3,
        "stem_strides": [2, 1, 1, 2, 1],
        "stage_downsample": [stage > 0 for stage in range(stages)],
        "stage_downsample_strides": [2] * stages,
        "stage_light_block": light,
        "stage_kernel_size": [LIGHT_KERNEL if is_light else KERNEL for is_light in light],
    }


def hgnet_json(backbone: HGNetV2Config, levels: int) -> dict[str, Any]:
    """Return what `config.json` says of a backbone whose last maps become levels."""
    stages, channels = len(backbone.depths), list(backbone.channels)
    used = range(stages - levels + 1, stages + 1)
    return {
        "model_type": MODEL_TYPE,
        **_fixed(stages),
        "embedding_size": backbone.stem_channels[1],
        "hidden_sizes": channels,
        "depths": list(backbone.depths),
        "stem_channels": [3, *backbone.stem_channels],
        "stage_in_channels": [backbone.stem_channels[1], *channels[:-1]],
        "stage_mid_channels": list(backbone.hidden_channels),
        "stage_out_channels": channels,
        "stage_num_blocks": list(backbone.depths),
        "stage_numb_of_layers": [backbone.block_layers] * stages,
        "use_learnable_affine_block": backbone.learnable_affine,
        "out_features": [f"stage{stage}" for stage in used],
        "out_indices": list(used),
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
