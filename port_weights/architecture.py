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
from port_weights.names import DETECTOR_OF_SEGMENTATION, HUGGING_FACE_MODEL
from port_weights.schemes import Scheme, scheme
from tfdetr_keras.backbones.resnet import RESNETS, ResNetConfig
from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.models.class_names import names_by_id
from tfdetr_keras.models.conditional_detr import ConditionalDETRConfig
from tfdetr_keras.models.detr import DETRConfig
from tfdetr_keras.models.detr_segmentation import SegmentationConfig
from tfdetr_keras.models.registry import model_class
from tfdetr_keras.models.table_transformer import TableTransformerConfig

logger = logging.getLogger(__name__)

# facebookresearch/detr and Hugging Face train with a frozen stem and first stage.
FROZEN = ("stem", "stage1")
DEFAULT_HEADS = 8
DEFAULT_CLASSES = 91
# A size is absurd that is so many times the largest side of a tensor, and beyond that of any published model.
_ABSURD, _USUAL_SIZE = 64, 4096
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
_HUGGING_FACE_LOSS = {"eos_coefficient": 0.1}  # of all classes there
_CRITERION_NAMES = {
    "class_cost": "cost_class",
    "bbox_cost": "cost_bbox",
    "giou_cost": "cost_giou",
    "bbox_loss_coefficient": "bbox_loss_coefficient",
    "giou_loss_coefficient": "giou_loss_coefficient",
    "mask_loss_coefficient": "mask_loss_coefficient",
    "dice_loss_coefficient": "dice_loss_coefficient",
    # Of one classification each: cross-entropy with "no object", focal loss without.
    "eos_coefficient": "eos_coefficient",
    "cls_loss_coefficient": "class_loss_coefficient",
    "focal_alpha": "focal_alpha",
}
# The same in the training scripts of facebookresearch/detr and Atten4Vis/ConditionalDETR.
_ARGUMENT_NAMES = {
    "set_cost_class": "cost_class",
    "set_cost_bbox": "cost_bbox",
    "set_cost_giou": "cost_giou",
    "bbox_loss_coef": "bbox_loss_coefficient",
    "giou_loss_coef": "giou_loss_coefficient",
    "mask_loss_coef": "mask_loss_coefficient",
    "dice_loss_coef": "dice_loss_coefficient",
    "eos_coef": "eos_coefficient",
    "cls_loss_coef": "class_loss_coefficient",
    "focal_alpha": "focal_alpha",
}
_OF_CLASSIFICATION = {"eos_coefficient": "softmax", "class_loss_coefficient": "focal", "focal_alpha": "focal"}
# Of the loss, transformers 5 takes whole numbers as coefficients, and these as floats, and nothing else.
_FLOAT_COEFFICIENTS = ("eos_coefficient", "focal_alpha")


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What Hugging Face calls a model: `config.json`'s model_type, and the class."""

    model_type: str
    class_name: str


def _kind(config: DETRConfig) -> _Kind:
    if isinstance(config, ConditionalDETRConfig):
        return _Kind("conditional_detr", "ConditionalDetrForObjectDetection")
    if isinstance(config, SegmentationConfig):
        return _Kind("detr", "DetrForSegmentation")
    if isinstance(config, TableTransformerConfig):
        return _Kind("table-transformer", "TableTransformerForObjectDetection")
    return _Kind("detr", "DetrForObjectDetection")


_MODEL_TYPES = ("detr", "table-transformer", "conditional_detr")

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
    try:
        architecture, criterion = _described(checkpoint, scheme)
        if heads is not None:
            architecture = dataclasses.replace(
                architecture, encoder_attention_heads=heads, decoder_attention_heads=heads
            )
        if dilation is not None:
            backbone = dataclasses.replace(architecture.backbone, dilation=bool(dilation))
            architecture = dataclasses.replace(architecture, backbone=backbone)
    except ValueError as error:
        raise ValueError(str(error) if checkpoint.name in str(error) else f"{checkpoint.name}: {error}") from error
    except Exception as error:  # for each value that is not of the kind that it should be
        raise ValueError(f"{checkpoint.name} does not describe a DETR: {error}") from error
    _refuse_absurd(architecture, checkpoint, scheme)
    return architecture, criterion


def _described(checkpoint: Checkpoint, scheme: Scheme) -> tuple[DETRConfig, SetCriterion]:
    config = checkpoint.config or {}
    if "d_model" in config or config.get("model_type") in _MODEL_TYPES:
        architecture = _from_config(config, checkpoint, scheme)
        criterion = criterion_of(config, architecture)
    else:
        if config and config.get("model_type") not in (None, "resnet"):
            raise ValueError(
                f"{checkpoint.name}: config.json says model_type={config['model_type']!r}; "
                f"expected one of {', '.join(map(repr, _MODEL_TYPES))}, or 'resnet' for a backbone alone"
            )
        architecture = _from_tensors(checkpoint, scheme)
        criterion = _criterion(checkpoint.arguments, _ARGUMENT_NAMES, architecture)
    return architecture, criterion


def _refuse_absurd(config: DETRConfig, checkpoint: Checkpoint, scheme: Scheme) -> None:
    """Raise a `ValueError` for sizes that no tensor of the checkpoint comes near: building such a model would not end.

    Of sizes that merely do not fit, the names of the tensors say more, see `port_weights.pairing`.
    """
    paths = _keras_shapes(checkpoint, scheme)
    blocks = sum(config.backbone.depths) + (config.encoder_layers + config.decoder_layers) * ("encoder" in str(paths))
    if blocks > len(checkpoint.shapes):
        raise ValueError(
            f"{checkpoint.name}: an architecture of {blocks} blocks and layers is described, but there are only "
            f"{len(checkpoint.shapes)} tensors"
        )
    largest = max((side for shape in checkpoint.shapes.values() for side in shape), default=1)
    sizes = {name: getattr(config, name) for name in ("d_model", "encoder_ffn_dim", "decoder_ffn_dim", "num_queries")}
    sizes.update({f"channels of stage {index + 1}": width for index, width in enumerate(config.backbone.channels)})
    sizes["channels of the stem"] = config.backbone.stem_channels
    for name, size in sizes.items():
        if size > max(_USUAL_SIZE, _ABSURD * largest):
            raise ValueError(
                f"{checkpoint.name}: {name}={size} is described, but no tensor has a side of more than {largest}"
            )


def hugging_face_config(
    config: DETRConfig, criterion: SetCriterion | None = None, backbone: Backbone = "hugging-face"
) -> dict[str, Any]:
    """What `config.json` says of a model, for versions 4 and 5 of transformers.

    Coefficients of the loss that are not whole numbers are left out, since version 5 refuses them; so are the settings
    that Hugging Face has no name for. `criterion_of` tells what of the loss arrives.

    Args:
        config: the architecture; pre-norm models are Table Transformers there.
        criterion: the loss, that of the class if left out.
        backbone: `"hugging-face"` describes the backbone by its depths and widths, `"timm"` by its name there, which it
            must have (see `timm_name`).
    """
    criterion = criterion or model_class(config).default_criterion()
    kind = _kind(config)
    names = config.names
    coefficients = _coefficients(criterion, _CRITERION_NAMES)
    return {
        "model_type": kind.model_type,
        "architectures": [kind.class_name],
        **{name: getattr(config, name) for name in _SAME_NAME},
        "position_embedding_type": config.position_embedding,
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
        **{
            name: value if name in _FLOAT_COEFFICIENTS else int(value)
            for name, value in coefficients.items()
            if name in _FLOAT_COEFFICIENTS or value.is_integer()
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
    transformer = "hugging-face-4" if inside else "hugging-face"
    if isinstance(config, ConditionalDETRConfig):
        transformer = "conditional-hugging-face"
    prefix = model_prefix(config)
    return scheme(
        "torchvision" if backbone == "timm" else "hugging-face",
        transformer,
        prefix,
        f"{prefix}backbone.conv_encoder.model.",
    )


def facebook_scheme(config: DETRConfig) -> Scheme:
    """How the authors' code names a model's tensors: facebookresearch/detr, or Atten4Vis/ConditionalDETR."""
    transformer = "conditional-detr" if isinstance(config, ConditionalDETRConfig) else "facebookresearch"
    prefix = DETECTOR_OF_SEGMENTATION * isinstance(config, SegmentationConfig)
    return scheme("torchvision", transformer, prefix, f"{prefix}backbone.0.body.")


def model_prefix(config: DETRConfig) -> str:
    """What Hugging Face puts before the names of a model's transformer and backbone."""
    return DETECTOR_OF_SEGMENTATION * isinstance(config, SegmentationConfig) + HUGGING_FACE_MODEL


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
    if model_type not in _MODEL_TYPES:
        raise ValueError(
            f"{checkpoint.name}: config.json says model_type={model_type!r}; "
            f"expected one of {', '.join(map(repr, _MODEL_TYPES))}"
        )
    names = None if doubt_of_names(checkpoint, scheme) else config.get("id2label") or None
    num_classes = classes_of_head(checkpoint, scheme)
    if num_classes is None:
        # transformers leaves the key out for its default of two classes.
        num_classes = len(config.get("id2label") or ()) or int(config.get("num_labels", 2))
    given = {**_HUGGING_FACE_DEFAULTS, **{name: config[name] for name in _SAME_NAME if config.get(name) is not None}}
    try:
        return _config_class(_keras_shapes(checkpoint, scheme), model_type)(
            backbone=_backbone_from_config(config, checkpoint, scheme),
            num_classes=num_classes,
            id2label=names,
            position_embedding=config.get("position_embedding_type", "sine"),
            frozen=FROZEN,
            **given,
        )
    except Exception as error:  # for each value that is not of the kind that it should be
        raise ValueError(f"{checkpoint.name}: config.json does not describe a DETR: {error}") from error


def doubt_of_names(checkpoint: Checkpoint, scheme: Scheme) -> str | None:
    """Say why the names of classes in a `config.json` cannot be those of the checkpoint's head; None if they can.

    Such names are none: `architecture_of` leaves them out, and the caller has to say what the classes are.
    """
    described = (checkpoint.config or {}).get("id2label")
    if not described:
        return None
    way_on = "with id2label or num_classes you can say yourself what its classes are"
    try:
        names = names_by_id(described)
    except ValueError as error:
        return f"{error}; {way_on}"
    count = classes_of_head(checkpoint, scheme)
    if list(names) == list(range(len(names) if count is None else count)):
        return None
    if list(names) != list(range(len(names))):
        last = (count or len(names)) - 1
        return f"id2label must name each of the ids 0 … {last}, but it names {list(names)}; {way_on}"
    name, shape = next((n, s) for n, s in checkpoint.shapes.items() if _is_class_kernel(scheme, n))
    expected = (shape[0] + len(names) - (count or 0), *shape[1:])
    return f"id2label names {len(names)} classes, but {name} is {shape}, expected {expected}; {way_on}"


def _is_class_kernel(scheme: Scheme, name: str) -> bool:
    return any(path == "class_head/kernel" for path, _ in scheme.keras_paths(name))


def classes_of_head(checkpoint: Checkpoint, scheme: Scheme) -> int | None:
    """The number of classes that a checkpoint's class head has rows for; None where it has no such head."""
    shapes = _keras_shapes(checkpoint, scheme)
    shape = shapes.get("class_head/kernel")
    return shape[0] - _outputs_beside_classes(shapes) if shape else None


def _outputs_beside_classes(shapes: Mapping[str, Any]) -> int:
    """Outputs of the class head that stand for no class: 1, for "no object", or 0."""
    config = _config_class(shapes)()
    return config.num_logits - config.num_classes


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


def criterion_of(config: Mapping[str, Any], architecture: DETRConfig) -> SetCriterion:
    """The loss that a `config.json` describes."""
    return _criterion({**_HUGGING_FACE_LOSS, **config}, _CRITERION_NAMES, architecture)


def loss_arguments(criterion: SetCriterion) -> dict[str, float]:
    """The loss as the arguments of the authors' training scripts, which `load_model` finds in a `.pth`."""
    return _coefficients(criterion, _ARGUMENT_NAMES)


def _criterion(told: Mapping[str, Any], names: Mapping[str, str], architecture: DETRConfig) -> SetCriterion:
    """The loss of the architecture's class, with the coefficients that are told under some names."""
    criterion = model_class(architecture).default_criterion()
    given: dict[str, Any] = {
        ours: float(told[name]) for name, ours in names.items() if name in told and _is_used(ours, criterion)
    }
    return dataclasses.replace(criterion, **given)


def _coefficients(criterion: SetCriterion, names: Mapping[str, str]) -> dict[str, float]:
    return {name: float(getattr(criterion, ours)) for name, ours in names.items() if _is_used(ours, criterion)}


def _is_used(coefficient: str, criterion: SetCriterion) -> bool:
    return _OF_CLASSIFICATION.get(coefficient, criterion.classification) == criterion.classification


def _config_class(shapes: Mapping[str, Any], model_type: str | None = None) -> type[DETRConfig]:
    """The class of the family, by what it is called or by parts that only it has."""
    if any(path.startswith("mask_head/") for path in shapes):
        return SegmentationConfig
    if any(path.startswith("decoder/reference_point_head/") for path in shapes):
        return ConditionalDETRConfig
    if model_type == "table-transformer" or (model_type is None and "encoder/norm/gamma" in shapes):
        return TableTransformerConfig
    return DETRConfig


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
            depths=tuple(_count_of_blocks(stage, {block for of, block in blocks if of == stage}) for stage in stages),
            channels=tuple(shapes[f"backbone/stage{stage}/block0/{last}/convolution/kernel"][0] for stage in stages),
            stem_channels=shapes["backbone/stem/convolution/kernel"][0],
        )
    except KeyError as error:
        raise ValueError(f"the tensor for {error} is missing: the backbone's architecture cannot be told") from error


def _count_of_blocks(stage: int, blocks: set[int]) -> int:
    if blocks != set(range(len(blocks))):
        raise ValueError(f"of the blocks of the backbone's stage {stage} only {sorted(blocks)[:8]} are there")
    return len(blocks)


def _from_tensors(checkpoint: Checkpoint, scheme: Scheme) -> DETRConfig:
    shapes = _keras_shapes(checkpoint, scheme)
    backbone = dataclasses.replace(_backbone_from_tensors(shapes), dilation=_dilation_of(checkpoint))
    if "input_projection/kernel" not in shapes:
        return DETRConfig(backbone=backbone, num_classes=DEFAULT_CLASSES, frozen=FROZEN)

    def depth(part: str) -> int:
        found = {int(match[1]) for path in shapes if (match := re.match(rf"{part}/layer(\d+)/", path))}
        if found != set(range(len(found))):
            raise ValueError(f"{checkpoint.name}: of the {part}'s layers only {sorted(found)[:8]} are there")
        return len(found)

    def needed(path: str) -> int:
        if not shapes.get(path):
            raise ValueError(f"{checkpoint.name}: the tensor for {path} is missing: the architecture cannot be told")
        return shapes[path][0]

    heads = int(checkpoint.arguments.get("nheads", DEFAULT_HEADS))
    config_class = _config_class(shapes)
    queries = shapes.get("query_embedding/embeddings") or (config_class().num_queries,)
    return config_class(
        backbone=backbone,
        num_classes=classes_of_head(checkpoint, scheme) or DEFAULT_CLASSES,
        num_queries=queries[0],
        d_model=needed("input_projection/kernel"),
        encoder_layers=depth("encoder"),
        decoder_layers=depth("decoder"),
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=needed("encoder/layer0/feed_forward/hidden/kernel"),
        decoder_ffn_dim=needed("decoder/layer0/feed_forward/hidden/kernel"),
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
