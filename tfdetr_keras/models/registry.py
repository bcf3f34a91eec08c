"""DETR and its relatives: which class a configuration, a preset or a checkpoint is of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfdetr_keras.models.class_names import ClassNames
from tfdetr_keras.models.conditional import ConditionalDETR
from tfdetr_keras.models.config import DETRConfig
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.models.detr import DETR
from tfdetr_keras.models.presets import PRESETS
from tfdetr_keras.models.segmentation import DETRForSegmentation

FAMILY: dict[str, type[Detector]] = {kind.__name__: kind for kind in (DETR, DETRForSegmentation, ConditionalDETR)}


def model_class(config: DETRConfig) -> type[Detector]:
    """The class of the models that a configuration describes."""
    return next(kind for kind in FAMILY.values() if kind.config_class is type(config))


def describe(config: DETRConfig) -> dict[str, Any]:
    """A configuration as plain values, with the name of its model's class; `config_of` reads it."""
    return {"class": model_class(config).__name__, **config.to_dict()}


def config_of(description: Mapping[str, Any]) -> DETRConfig:
    """The configuration that `describe` described; a DETR's where no class is named."""
    fields = dict(description)
    kind = fields.pop("class", "DETR")
    if not isinstance(kind, str) or kind not in FAMILY:
        raise ValueError(f"no class {kind!r} of models is known here; there are {', '.join(FAMILY)}")
    try:
        return FAMILY[kind].config_class(**fields)
    except TypeError as error:
        raise ValueError(f"this does not describe a {kind}: {error}") from error


def recast(config: DETRConfig, kind: type[Detector]) -> DETRConfig:
    """The configuration of the same architecture as another class of the family has it.

    Args:
        config: of any class.
        kind: the class that is wanted. Segmentation is a detector with more to it; others cannot be had of one another.

    Raises:
        ValueError: the architecture is not one of that class.
    """
    own = model_class(config)
    if own is kind:
        return config
    if {own, kind} != {DETR, DETRForSegmentation}:
        raise ValueError(
            f"this is a {own.__name__}, not a {kind.__name__}: load it with td.{own.__name__}.from_pretrained, or with "
            "td.from_pretrained, which picks the class"
        )
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    recast = kind.config_class(**{**fields, "frozen": ()})
    return dataclasses.replace(recast, frozen=[part for part in config.frozen if part in recast.parts])


def from_preset(name: str, **changes: Any) -> Detector:
    """A model of a named architecture with random weights, of whichever class it is.

    Args:
        name: one of `PRESETS`.
        **changes: fields of its configuration that differ.

    Raises:
        ValueError: an unknown name, or a field that does not exist or does not fit.
    """
    kind = model_class(PRESETS[name]) if name in PRESETS else DETR
    return kind.from_preset(name, **changes)


def from_pretrained(
    source: Any,
    num_classes: int | None = None,
    id2label: ClassNames | None = None,
    num_queries: int | None = None,
    keep_head: bool | None = None,
    revision: str | None = None,
) -> Detector:
    """A model with the weights of a checkpoint, of the class that the checkpoint is of.

    The rows of the class head are kept by the names of their classes, see `DETR.from_pretrained`.

    Args:
        source: as for `DETR.from_pretrained`.
        num_classes: number of classes without names; another one than the checkpoint's makes them all new.
        id2label: names of the classes, as `{id: name}` or a list; implies `num_classes`.
        num_queries: fewer keep the first query embeddings, more add fresh ones.
        keep_head: True keeps the class head by position, whatever its classes are called; False draws all of it anew.
        revision: branch, tag or commit on the hub.

    Returns:
        A `DETR`, also for Table Transformers, a `DETRForSegmentation` or a `ConditionalDETR`.

    Raises:
        ValueError: as `DETR.from_pretrained`.
    """
    from port_weights import load_model  # the upper floor, called only when weights are wanted

    return load_model(
        source,
        num_classes=num_classes,
        id2label=id2label,
        num_queries=num_queries,
        keep_head=keep_head,
        revision=revision,
    )
