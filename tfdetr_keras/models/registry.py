"""The members of the family by name: which class a configuration, a preset or a description is of."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from tfdetr_keras.models.config import DetectorConfig

if TYPE_CHECKING:
    from tfdetr_keras.models.detector import Detector

    Kind = TypeVar("Kind", bound=type[Detector])

# Imported when one is asked for: each stands on the base class, which asks here for presets.
_MODULES = {
    "DETR": "tfdetr_keras.models.detr",
    "DETRForSegmentation": "tfdetr_keras.models.detr_segmentation",
    "TableTransformer": "tfdetr_keras.models.table_transformer",
    "ConditionalDETR": "tfdetr_keras.models.conditional_detr",
    "DeformableDETR": "tfdetr_keras.models.deformable_detr",
    "DABDETR": "tfdetr_keras.models.dab_detr",
    "RTDETR": "tfdetr_keras.models.rt_detr",
    "RTDETRV2": "tfdetr_keras.models.rt_detr_v2",
    "DFINE": "tfdetr_keras.models.dfine",
    "LWDETR": "tfdetr_keras.models.lw_detr",
    "RFDETR": "tfdetr_keras.models.rf_detr",
    "RFDETRForSegmentation": "tfdetr_keras.models.rf_detr_segmentation",
}
_REGISTERED: dict[str, type[Detector]] = {}


def members() -> dict[str, type[Detector]]:
    """Return the classes of the family by name, and those that were registered beside them."""
    own = {name: getattr(importlib.import_module(module), name) for name, module in _MODULES.items()}
    return {**own, **_REGISTERED}


def register(kind: Kind) -> Kind:
    """Make a class of your own a member: files, run folders, presets and commands then find it by its name.

    Args:
        kind: derived from `Detector`; also usable as a decorator of it.

    Raises:
        ValueError: another class or another preset has its name.
    """
    taken = {*members(), *presets()}
    for name in (kind.__name__, *kind.presets):
        if name in taken:
            raise ValueError(f"{name!r} is a member of the family already: give yours another name")
    _REGISTERED[kind.__name__] = kind
    presets().update(kind.presets)
    return kind


@functools.cache
def presets() -> dict[str, DetectorConfig]:
    """Return the architectures of all members by name; one dictionary, whoever asks."""
    return {name: config for kind in members().values() for name, config in kind.presets.items()}


def model_class(config: DetectorConfig) -> type[Detector]:
    """Return the class of the models that a configuration describes."""
    return next(kind for kind in members().values() if kind.config_class is type(config))


def describe(config: DetectorConfig) -> dict[str, Any]:
    """Return a configuration as plain values, with the name of its model's class; `config_of` reads it."""
    return {"class": model_class(config).__name__, **config.to_dict()}


def config_of(description: Mapping[str, Any]) -> DetectorConfig:
    """Return the configuration that `describe` described, in this version or an earlier one.

    Raises:
        ValueError: no member of that name, or fields that it does not have.
    """
    fields = dict(description)
    kind = fields.pop("class", "DETR")
    if kind == "DETR" and fields.get("pre_norm"):  # as earlier versions described a Table Transformer
        kind = "TableTransformer"
    if not isinstance(kind, str) or kind not in members():
        raise ValueError(f"no class {kind!r} of models is known here; there are {', '.join(members())}")
    return members()[kind].config_class.of(fields)


def recast(config: DetectorConfig, kind: type[Detector]) -> DetectorConfig:
    """Return the configuration of the same architecture as another class of the family has it.

    Args:
        config: of any class.
        kind: the class that is wanted. A class with masks is its detector with more to it; others cannot be had of one
            another.

    Raises:
        ValueError: the architecture is not one of that class.
    """
    own = model_class(config)
    if own is kind:
        return config
    if own.without_masks is not kind and kind.without_masks is not own:
        raise ValueError(
            f"this is a {own.__name__}, not a {kind.__name__}: load it with td.{own.__name__}.from_pretrained, or with "
            "td.from_pretrained, which picks the class"
        )
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    recast = kind.config_class(**{**fields, "frozen": ()})
    return dataclasses.replace(recast, frozen=[part for part in config.frozen if part in recast.parts])


def with_masks(detector: Detector, kind: type[Detector]) -> Detector:
    """Return a model of a class with masks that has a detector's weights; what makes its masks is fresh.

    Args:
        detector: the detector.
        kind: the class that is wanted.

    Raises:
        ValueError: the detector is not the one that this class adds masks to.
    """
    model = kind(recast(detector.config, kind), kind.criterion_of(detector.criterion), dtype=detector.dtype_policy)
    values = detector.weights_by_path()
    for path, variable in model.weights_by_path().items():
        if path in values:
            variable.assign(values[path])
    return model


def from_preset(name: str, **changes: Any) -> Detector:
    """Make a model of a named architecture with random weights, of whichever class it is.

    Args:
        name: one of `PRESETS`.
        **changes: fields of its configuration that differ.

    Raises:
        ValueError: an unknown name, or a field that does not exist or does not fit.
    """
    kind = model_class(presets()[name]) if name in presets() else members()["DETR"]
    return kind.from_preset(name, **changes)
