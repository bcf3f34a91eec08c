"""What model a checkpoint needs: from its `config.json` where there is one, else from its tensors' names and shapes.

And back: what `config.json` says of a model, by the same tables.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from typing import Any, Literal

from port_weights.checkpoints import Checkpoint
from port_weights.names import HUGGING_FACE_MODEL, Scheme, scheme
from tfdetr_keras.losses import SetCriterion
from tfdetr_keras.models.config import RESNETS, DETRConfig, ResNetConfig

logger = logging.getLogger(__name__)

# facebookresearch/detr and Hugging Face train with a frozen stem and first stage.
FROZEN = ("stem", "stage1")
DEFAULT_HEADS = 8
DEFAULT_CLASSES = 91
# The names that Hugging Face's config.json and DETRConfig share.
_SAME_NAME = (
    "num_queries",
    "d_model",
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "activation_function",
    "dropout",
    "attention_dropout",
    "activation_dropout",
)
# DetrConfig's own defaults, which an older config.json may leave out; DETRConfig's follow the paper instead.
_HUGGING_FACE_DEFAULTS = {"attention_dropout": 0.0, "activation_dropout": 0.0}
_CRITERION_NAMES = {
    "class_cost": "cost_class",
    "bbox_cost": "cost_bbox",
    "giou_cost": "cost_giou",
    "bbox_loss_coefficient": "bbox_loss_coefficient",
    "giou_loss_coefficient": "giou_loss_coefficient",
    "eos_coefficient": "eos_coefficient",
}
_PRE_NORM = {"detr": False, "table-transformer": True}
_DETECTORS = {"detr": "DetrForObjectDetection", "table-transformer": "TableTransformerForObjectDetection"}
# Of the loss, transformers 5 takes whole numbers as coefficients, and this one as a float, and nothing else.
_FLOAT_COEFFICIENT = "eos_coefficient"

# Whose ResNet a `config.json` names: transformers' own, or that of the package timm.
Backbone = Literal["hugging-face", "timm"]


def architecture_of(
    checkpoint: Checkpoint, scheme: Scheme, heads: int | None = None, dilation: bool | None = None
) -> tuple[DETRConfig, SetCriterion]:
    """The configuration that fits a checkpoint, and the loss it was trained with.

    Args:
        checkpoint: the opened checkpoint.
        scheme: how it names its tensors.
        heads: attention heads, which no tensor's shape tells; from the configuration, else 8.
        dilation: whether the last stage is dilated (DC5), which no tensor's shape tells either; from the
            configuration, the training arguments or the file's name, else not.

    Raises:
        ValueError: `config.json` describes something other than a DETR over a ResNet.
    """
    config = checkpoint.config or {}
    if "d_model" in config or config.get("model_type") in _PRE_NORM:
        architecture, criterion = _from_config(config, checkpoint, scheme), criterion_of(config)
    else:
        if config and config.get("model_type") not in (None, "resnet"):
            raise ValueError(
                f"{checkpoint.name}: config.json says model_type={config['model_type']!r}; "
                f"expected one of {', '.join(map(repr, _PRE_NORM))}, or 'resnet' for a backbone alone"
            )
        architecture, criterion = _from_tensors(checkpoint, scheme), SetCriterion()
    if heads is not None:
        architecture = dataclasses.replace(architecture, encoder_attention_heads=heads, decoder_attention_heads=heads)
    if dilation is not None:
        backbone = dataclasses.replace(architecture.backbone, dilation=dilation)
        architecture = dataclasses.replace(architecture, backbone=backbone)
    return architecture, criterion


def hugging_face_config(
    config: DETRConfig, criterion: SetCriterion | None = None, backbone: Backbone = "hugging-face"
) -> dict[str, Any]:
    """What `config.json` says of a model, for versions 4 and 5 of transformers.

    Coefficients of the loss that are not whole numbers are left out, since version 5 refuses them; so are the settings
    that Hugging Face has no name for. `criterion_of` tells what of the loss arrives.

    Args:
        config: the architecture; pre-norm models are Table Transformers there.
        criterion: the loss, the paper's if left out.
        backbone: `"hugging-face"` describes the trunk by its depths and widths, `"timm"` by its name there, which it
            must have (see `timm_name`).
    """
    criterion = criterion or SetCriterion()
    model_type = next(name for name, pre_norm in _PRE_NORM.items() if pre_norm == config.pre_norm)
    names = dict(config.id2label or {})
    coefficients = {name: float(getattr(criterion, ours)) for name, ours in _CRITERION_NAMES.items()}
    return {
        "model_type": model_type,
        "architectures": [_DETECTORS[model_type]],
        **{name: getattr(config, name) for name in _SAME_NAME},
        "position_embedding_type": config.position_embedding,
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
        **{
            name: value if name == _FLOAT_COEFFICIENT else int(value)
            for name, value in coefficients.items()
            if name == _FLOAT_COEFFICIENT or value.is_integer()
        },
        # Hugging Face's auxiliary outputs normalise each layer's input once too often, which changes the last, too.
        "auxiliary_loss": False,
        "dilation": config.backbone.dilation,
        "use_timm_backbone": backbone == "timm",
        "use_pretrained_backbone": False,  # or version 4 fetches ImageNet's weights first
        "backbone": timm_name(config.backbone) if backbone == "timm" else None,
        "backbone_config": None if backbone == "timm" else _resnet_json(config.backbone),
    }


def hugging_face_scheme(config: DETRConfig, backbone: Backbone = "hugging-face") -> Scheme:
    """How transformers names a detector's tensors on disk: version 5; and 4, but for DETR's learned positions.

    Args:
        config: the architecture.
        backbone: whose ResNet it is there.
    """
    # Version 5 moved the learned positions out of DETR's backbone, but not out of Table Transformer's.
    inside = config.pre_norm and config.position_embedding == "learned"
    return scheme(
        "torchvision" if backbone == "timm" else "hugging-face",
        "hugging-face-4" if inside else "hugging-face",
        HUGGING_FACE_MODEL,
        f"{HUGGING_FACE_MODEL}backbone.conv_encoder.model.",
    )


def timm_name(backbone: ResNetConfig) -> str | None:
    """The name of a ResNet, dilated or not, in timm and torchvision; None for one that they do not have."""
    plain = dataclasses.replace(backbone, dilation=False, batch_norm="frozen")
    return next((name.replace("-", "") for name, known in RESNETS.items() if known == plain), None)


def _resnet_json(backbone: ResNetConfig) -> dict[str, Any]:
    return {
        "model_type": "resnet",
        "embedding_size": backbone.stem_channels,
        "hidden_sizes": list(backbone.channels),
        "depths": list(backbone.depths),
        "layer_type": backbone.block,
        "out_features": [f"stage{index + 1}" for index in range(len(backbone.depths))],
    }


def _from_config(config: Mapping[str, Any], checkpoint: Checkpoint, scheme: Scheme) -> DETRConfig:
    model_type = config.get("model_type")
    if model_type not in _PRE_NORM:
        raise ValueError(
            f"{checkpoint.name}: config.json says model_type={model_type!r}; "
            f"expected one of {', '.join(map(repr, _PRE_NORM))}"
        )
    names = config.get("id2label")
    # transformers leaves the key out for its default of two classes.
    num_classes = len(names) if names else int(config.get("num_labels", 2))
    given = {**_HUGGING_FACE_DEFAULTS, **{name: config[name] for name in _SAME_NAME if config.get(name) is not None}}
    try:
        return DETRConfig(
            backbone=_backbone_from_config(config, checkpoint, scheme),
            num_classes=num_classes,
            id2label=names or None,
            pre_norm=_PRE_NORM[model_type],
            position_embedding=config.get("position_embedding_type", "sine"),
            frozen=FROZEN,
            **given,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{checkpoint.name}: config.json does not describe a DETR: {error}") from error


def _backbone_from_config(config: Mapping[str, Any], checkpoint: Checkpoint, scheme: Scheme) -> ResNetConfig:
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
        return dataclasses.replace(_backbone_from_tensors(_keras_shapes(checkpoint, scheme)), dilation=dilation)
    match = re.fullmatch(r"(?:\w+/)?resnet-?(\d+)", name)
    if match is None or f"resnet-{match[1]}" not in RESNETS:
        raise ValueError(f"backbone {name!r} is none of {', '.join(RESNETS)}")
    return dataclasses.replace(RESNETS[f"resnet-{match[1]}"], dilation=dilation)


def criterion_of(config: Mapping[str, Any]) -> SetCriterion:
    """The loss that a `config.json` describes."""
    given: dict[str, Any] = {ours: float(config[name]) for name, ours in _CRITERION_NAMES.items() if name in config}
    return SetCriterion(**given)


def _keras_shapes(checkpoint: Checkpoint, scheme: Scheme) -> dict[str, tuple[int, ...]]:
    """Keras path → shape of the PyTorch tensor that holds it."""
    return {path: shape for name, shape in checkpoint.shapes.items() for path, _ in scheme.keras_paths(name)}


def _backbone_from_tensors(shapes: Mapping[str, tuple[int, ...]]) -> ResNetConfig:
    blocks = {
        tuple(map(int, match)) for path in shapes for match in re.findall(r"backbone/stage(\d+)/block(\d+)/", path)
    }
    stages = sorted({stage for stage, _ in blocks})
    bottleneck = "backbone/stage1/block0/conv3/convolution/kernel" in shapes
    last = "conv3" if bottleneck else "conv2"
    try:
        return ResNetConfig(
            block="bottleneck" if bottleneck else "basic",
            depths=tuple(1 + max(block for of, block in blocks if of == stage) for stage in stages),
            channels=tuple(shapes[f"backbone/stage{stage}/block0/{last}/convolution/kernel"][0] for stage in stages),
            stem_channels=shapes["backbone/stem/convolution/kernel"][0],
        )
    except KeyError as error:
        raise ValueError(f"the tensor for {error} is missing: the backbone's architecture cannot be told") from error


def _from_tensors(checkpoint: Checkpoint, scheme: Scheme) -> DETRConfig:
    shapes = _keras_shapes(checkpoint, scheme)
    backbone = dataclasses.replace(_backbone_from_tensors(shapes), dilation=_dilation_of(checkpoint))
    if "input_projection/kernel" not in shapes:
        return DETRConfig(backbone=backbone, num_classes=DEFAULT_CLASSES, frozen=FROZEN)

    def depth(part: str) -> int:
        found = [int(match[1]) for path in shapes if (match := re.match(rf"{part}/layer(\d+)/", path))]
        return 1 + max(found, default=-1)

    def needed(path: str) -> int:
        if path not in shapes:
            raise ValueError(f"{checkpoint.name}: the tensor for {path} is missing: the architecture cannot be told")
        return shapes[path][0]

    classifier = shapes.get("class_head/kernel")
    heads = int(checkpoint.arguments.get("nheads", DEFAULT_HEADS))
    return DETRConfig(
        backbone=backbone,
        num_classes=classifier[0] - 1 if classifier else DEFAULT_CLASSES,
        num_queries=needed("query_embedding/embeddings"),
        d_model=needed("input_projection/kernel"),
        encoder_layers=depth("encoder"),
        decoder_layers=depth("decoder"),
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=needed("encoder/layer0/feed_forward/hidden/kernel"),
        decoder_ffn_dim=needed("decoder/layer0/feed_forward/hidden/kernel"),
        pre_norm="encoder/norm/gamma" in shapes,
        position_embedding="learned" if "position_embedding/row" in shapes else "sine",
        frozen=FROZEN,
    )


def _dilation_of(checkpoint: Checkpoint) -> bool:
    if "dilation" in checkpoint.arguments:
        return bool(checkpoint.arguments["dilation"])
    if "dc5" in checkpoint.name.lower().rsplit("/", 1)[-1]:
        logger.warning("%s: taken for a dilated (DC5) model because of its name", checkpoint.name)
        return True
    return False
