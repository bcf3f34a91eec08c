"""The starting model of a training run."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfdetr_keras.backbones.batch_norm import of_part
from tfdetr_keras.models import DETR, PRESETS, from_preset, from_pretrained
from tfdetr_keras.models.class_rows import match_rows
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.models.packaged import packaged_checkpoints
from tfdetr_keras.models.registry import members
from tfdetr_keras.training.settings import Settings

logger = logging.getLogger(__name__)


def starting_model(source: Any, class_names: Sequence[str], settings: Settings) -> Detector:
    """Make the model from a source, changed as the settings and the classes require.

    Args:
        source: whatever `DETR.from_pretrained` takes, a run's folder, or the name of a preset, for random weights.
        class_names: name of each label.
        settings: of the run.

    Raises:
        ValueError: no such source, or as `DETR.from_pretrained`; a mask head for a model that is not a detector, or for
            a frozen detector that has other classes.
    """
    names = dict(enumerate(class_names))
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(settings.precision)
    try:
        model, is_random = _model(source, names, settings)
        settings = dataclasses.replace(settings, **settings.of_recipe(model))
        backbone = model.config.backbone
        of_projector = getattr(model.config, "projector_norm", None)
        if "folded" in (backbone.batch_norm, of_projector):
            raise ValueError(f"{source}: its batch normalisation was folded for inference; train on from the original")
        if settings.masks and not model.has_masks:
            model = _with_mask_head(model, source, settings, is_random)
        changes: dict[str, Any] = {}
        batch_norm: Any = "trainable" if is_random else backbone.batch_norm
        if of_projector in ("trainable", "frozen") and isinstance(settings.batch_norm, str):
            changes["projector_norm"] = settings.batch_norm
        elif backbone.batch_norm is None and settings.batch_norm:
            raise ValueError(f"batch_norm={settings.batch_norm!r}: the backbone of {source} has no batch normalisation")
        if isinstance(settings.batch_norm, Mapping):
            batch_norm = {part: of_part(batch_norm, part) for part in backbone.parts} | dict(settings.batch_norm)
        elif settings.batch_norm:
            batch_norm = settings.batch_norm
        if backbone.batch_norm is not None:
            changes["backbone"] = dataclasses.replace(backbone, batch_norm=batch_norm)
        if hasattr(model.config, "encoder_batch_norm"):
            if is_random:
                changes["encoder_batch_norm"] = "trainable"
            if isinstance(settings.batch_norm, str):
                changes["encoder_batch_norm"] = settings.batch_norm
        if settings.num_denoising is not None:
            if not hasattr(model.config, "num_denoising"):
                raise ValueError(f"num_denoising={settings.num_denoising}: a {model.title} has no denoising queries")
            changes["num_denoising"] = settings.num_denoising
        if settings.dropout is not None:
            if not hasattr(model.config, "dropout"):
                raise ValueError(f"dropout={settings.dropout}: a {model.title} has no dropout")
            changes["dropout"] = settings.dropout
        if settings.freeze is not None:
            changes["frozen"] = settings.freeze
        elif is_random:
            changes["frozen"] = ()  # what was never trained is not worth keeping
        return _rebuilt(model, dataclasses.replace(model.config, **changes))
    finally:
        keras.config.set_dtype_policy(before)


def _model(source: Any, names: dict[int, str], settings: Settings) -> tuple[DETR, bool]:
    """Return the source's model, and whether its weights are random."""
    is_preset = isinstance(source, str) and source in PRESETS and not os.path.exists(source)
    if is_preset and (settings.random_weights or source not in packaged_checkpoints()):
        if settings.keep_head:
            raise ValueError(f"keep_head: {source} is an architecture without weights here, so it has no class head")
        if not settings.random_weights:
            logger.warning("%s is an architecture without weights here: starting from random ones", source)
        changes = {} if settings.num_queries is None else {"num_queries": settings.num_queries}
        return from_preset(source, id2label=names, **changes), True
    keep_head = False if settings.random_weights else settings.keep_head
    model = from_pretrained(source, id2label=names, num_queries=settings.num_queries, keep_head=keep_head)
    return (type(model)(model.config, model.criterion), True) if settings.random_weights else (model, False)


def _with_mask_head(detector: Detector, source: Any, settings: Settings, is_random: bool) -> Detector:
    """Return the detector with a mask head.

    Where masks are trained last, it is frozen if its weights are worth keeping and no setting says otherwise.
    """
    kinds: dict[Any, Any] = {kind.without_masks: kind for kind in members().values() if kind.without_masks}
    kind = kinds.get(type(detector))
    if kind is None:
        able = " or a ".join(of_boxes.__name__ for of_boxes in kinds)
        raise ValueError(f"masks: {source} is a {type(detector).__name__}, and only a {able} can be given a mask head")
    if settings.freeze is not None or is_random or not kind.masks_come_last:
        return kind.from_detector(detector, freeze=False)
    known, wanted = from_pretrained(source).config, detector.config
    rows = match_rows(known.names, wanted.names, are_named=True, keep_head=settings.keep_head)
    new = f" (new to it: {', '.join(rows.fresh)})" if rows.fresh else ""
    if new or wanted.num_queries > known.num_queries:
        raise ValueError(
            f"masks=True freezes the detector, but {source} has {known.num_classes} classes and "
            f"{known.num_queries} queries, not {wanted.num_classes} and {wanted.num_queries}{new}: train boxes "
            'first and start from that run, or name the parts to freeze with freeze ("" trains all)'
        )
    return kind.from_detector(detector)


def _rebuilt(model: Detector, config: Any) -> Detector:
    """Return a model of another configuration with the same weights; the same model if the configuration is equal.

    What the model has no weights for, as denoising queries that are new, keeps its random ones.
    """
    if config == model.config:
        return model
    rebuilt = type(model)(config, model.criterion)
    values = {variable.path: variable for variable in model.weights}
    for variable in rebuilt.weights:
        if variable.path in values:
            variable.assign(values[variable.path])
    return rebuilt
