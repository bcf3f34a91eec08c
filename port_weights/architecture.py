"""What model a checkpoint needs, as plain values: from its `config.json`, else from its tensors' names and shapes.

And back: what `config.json` says of a model. What is one member's own is in its record, see `port_weights.families`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from port_weights.checkpoints import Checkpoint
from port_weights.families import FAMILIES, family_of, model_types
from port_weights.families.family import Family, shapes_by_path
from port_weights.families.resnet import Backbone
from port_weights.pairing import CLASS_HEADS
from port_weights.tables import Scheme
from tfdetr_keras.names.classes import names_by_id

# A size is absurd that is so many times the largest side of a tensor, and beyond that of any published model.
_ABSURD, _USUAL_SIZE = 64, 4096
_BACKBONES = ("resnet", "rt_detr_resnet", "hgnet_v2")  # what config.json calls those that are alone


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a checkpoint's model is.

    Args:
        member: the class of the model.
        fields: of its configuration, as plain values.
        coefficients: of its loss, as fields of `SetCriterion`, as far as the checkpoint tells them.
        is_told: whether a `config.json` tells it, rather than names and shapes of tensors.
    """

    member: str
    fields: Mapping[str, Any]
    coefficients: Mapping[str, float]
    is_told: bool

    @property
    def description(self) -> dict[str, Any]:
        """Architecture as `tfdetr_keras.models.registry.config_of` reads it."""
        return {"class": self.member, **self.fields}


def architecture_of(
    checkpoint: Checkpoint, scheme: Scheme, heads: int | None = None, dilation: bool | None = None
) -> Architecture:
    """Return the architecture that fits a checkpoint, and what it tells of the loss it was trained with.

    Names of classes that cannot be those of the checkpoint's head are left out, see `doubt_of_names`.

    Args:
        checkpoint: the opened checkpoint.
        scheme: how it names its tensors.
        heads: attention heads, which no tensor's shape tells; from the configuration, else 8.
        dilation: whether the last stage is dilated (DC5), which no tensor's shape tells either; from the
            configuration, the training arguments or the file's name, else not.

    Raises:
        ValueError: `config.json` describes something other than a member of the family, or sizes that the tensors do
            not come near.
    """
    config = checkpoint.config or {}
    model_type = config.get("model_type")
    is_told = "d_model" in config or model_type in model_types()
    if model_type not in model_types() and (is_told or model_type not in (None, *_BACKBONES)):
        raise ValueError(
            f"{checkpoint.name}: config.json says model_type={model_type!r}; expected one of "
            f"{', '.join(map(repr, model_types()))}, or {' or '.join(map(repr, _BACKBONES))} for a backbone alone"
        )
    family = family_for(checkpoint, scheme)
    if heads is not None:  # as if a training script had said so; other numbers may depend on it
        checkpoint = dataclasses.replace(checkpoint, arguments={**checkpoint.arguments, "nheads": heads})
    try:
        fields = dict(family.architecture(checkpoint, scheme))
        if (classes := classes_of_head(checkpoint, scheme)) is not None:
            fields["num_classes"] = classes
        if doubt_of_names(checkpoint, scheme):
            fields["id2label"] = None
        if heads is not None:
            fields |= dict.fromkeys(family.fields_of_heads, heads)
        if dilation is not None:
            fields["backbone"] = {**fields["backbone"], "dilation": bool(dilation)}
        coefficients = family.coefficients(checkpoint)
    except Exception as error:  # for each value that is not of the kind that it should be
        raise ValueError(told_wrongly(checkpoint.name, is_told, error)) from error
    _refuse_absurd(fields, checkpoint, scheme)
    return Architecture(family.member, fields, coefficients, is_told)


def told_wrongly(name: str, is_told: bool, error: Exception) -> str:
    """Return the message for an architecture that cannot be: of a `config.json`, or of tensors."""
    text = str(error)
    if name in text:
        return text
    if is_told:
        return f"{name}: config.json does not describe a DETR: {text}"
    return f"{name}: {text}" if isinstance(error, ValueError) else f"{name} does not describe a DETR: {text}"


def family_for(checkpoint: Checkpoint, scheme: Scheme) -> Family:
    """Return the record of the member that a checkpoint is of; a DETR's for a backbone alone."""
    paths = set(shapes_by_path(checkpoint, scheme))
    model_type = (checkpoint.config or {}).get("model_type")
    model_type = model_type if model_type in model_types() else None
    names = set(checkpoint.shapes)
    of_names = [family for family in FAMILIES if (found := family.detect(names)) and found.title == scheme.title]
    return next((family for family in of_names if family.is_of(paths, names, model_type)), (of_names or FAMILIES)[-1])


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
    return any(_is_class_path(path) for path, _ in scheme.keras_paths(name))


def _is_class_path(path: str) -> bool:
    return path.startswith(CLASS_HEADS) and path.endswith("/kernel")


def classes_of_head(checkpoint: Checkpoint, scheme: Scheme) -> int | None:
    """Return the number of classes that a checkpoint's class head has rows for; None where it has no such head."""
    shapes = shapes_by_path(checkpoint, scheme)
    shape = next((shape for path, shape in shapes.items() if _is_class_path(path)), None)
    return shape[0] - family_for(checkpoint, scheme).has_no_object if shape else None


def _refuse_absurd(fields: Mapping[str, Any], checkpoint: Checkpoint, scheme: Scheme) -> None:
    """Raise a `ValueError` for sizes that no tensor of the checkpoint comes near: building such a model would not end.

    Of sizes that merely do not fit, the names of the tensors say more, see `port_weights.pairing`.
    """
    backbone = fields["backbone"]
    blocks = sum(backbone.get("depths", ()))
    if "encoder" in str(set(shapes_by_path(checkpoint, scheme))):
        blocks += sum(
            depth for name in ("encoder_layers", "decoder_layers") if isinstance(depth := fields.get(name), int)
        )
    if blocks > len(checkpoint.shapes):
        raise ValueError(
            f"{checkpoint.name}: an architecture of {blocks} blocks and layers is described, but there are only "
            f"{len(checkpoint.shapes)} tensors"
        )
    largest = max((side for shape in checkpoint.shapes.values() for side in shape), default=1)
    sizes = {
        name: fields.get(name)
        for name in ("d_model", "encoder_dim", "encoder_ffn_dim", "decoder_ffn_dim", "num_queries")
    }
    sizes.update({f"channels of stage {index + 1}": width for index, width in enumerate(backbone.get("channels", ()))})
    sizes["channels of the stem"] = backbone.get("stem_channels")
    for name, size in sizes.items():
        if isinstance(size, int) and size > max(_USUAL_SIZE, _ABSURD * largest):
            raise ValueError(
                f"{checkpoint.name}: {name}={size} is described, but no tensor has a side of more than {largest}"
            )


def hugging_face_config(config: Any, criterion: Any = None, backbone: Backbone = "hugging-face") -> dict[str, Any]:
    """Return what `config.json` says of a model, for versions 4 and 5 of transformers.

    Coefficients of the loss that are not whole numbers are left out, since version 5 refuses them; so are the settings
    that Hugging Face has no name for.

    Args:
        config: the architecture.
        criterion: the loss; without, transformers' own counts there.
        backbone: `"hugging-face"` describes the backbone by its depths and widths, `"timm"` by its name there, which it
            must have (see `port_weights.families.resnet.timm_name`).
    """
    return family_of(config).hugging_face_config(config, criterion, backbone)


def hugging_face_scheme(config: Any, backbone: Backbone = "hugging-face") -> Scheme:
    """Return how transformers names a detector's tensors on disk: version 5; and 4, but for DETR's learned positions.

    Args:
        config: the architecture.
        backbone: whose ResNet it is there.
    """
    return family_of(config).hugging_face_scheme(config, backbone)
