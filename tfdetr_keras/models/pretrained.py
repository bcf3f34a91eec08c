"""Models with the weights of a checkpoint: what porting reads of it becomes a configuration, and variables its values.

Every tensor is accounted for by name; what is new in the model is drawn, and a line of the log says so.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from port_weights import conversions, hub
from port_weights.architecture import architecture_of, classes_of_head, doubt_of_names, family_for, told_wrongly
from port_weights.checkpoints import Checkpoint, open_checkpoint
from port_weights.conversions import Conversion
from port_weights.pairing import CLASS_HEADS, DENOISING, QUERIES, pair
from port_weights.processor import preprocessing_of
from port_weights.schemes import Scheme, detect_scheme
from port_weights.wrappers import unwrapped
from tfdetr_keras.backend.atomic import whole_file
from tfdetr_keras.backend.initialization import FirstValues, Fresh, first_values
from tfdetr_keras.losses.criterion import SetCriterion
from tfdetr_keras.models.changes import Changes
from tfdetr_keras.models.class_rows import ClassRows
from tfdetr_keras.models.config import DetectorConfig
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.models.keras_file import load_keras_file
from tfdetr_keras.models.packaged import find_source, refuse_unknown_name
from tfdetr_keras.models.presets import PUBLISHED, nearest_preset
from tfdetr_keras.models.quantization import mode_of
from tfdetr_keras.models.registry import config_of, describe, recast
from tfdetr_keras.models.registry import model_class as class_of
from tfdetr_keras.names.classes import ClassNames
from tfdetr_keras.preprocessing import Preprocessing

logger = logging.getLogger(__name__)


def load_model(
    source: Any,
    num_classes: int | None = None,
    num_queries: int | None = None,
    id2label: ClassNames | None = None,
    revision: str | None = None,
    heads: int | None = None,
    dilation: bool | None = None,
    model_class: type[Detector] | None = None,
    keep_head: bool | None = None,
) -> Detector:
    """Make a model of the family with a checkpoint's weights.

    The rows of the class head are kept by the names of their classes, see `tfdetr_keras.models.class_rows`.

    Args:
        source: a hub id or what `hub.fetch` made of one, a folder with `config.json` and weights, a `.safetensors`,
            `.pth`, `.ckpt` or `.keras` file, the folder of a training run, the name of a packaged checkpoint, or a
            state dict. A backbone alone is taken, too: the rest of the model is then fresh.
        num_classes: number of classes without names; another one than the checkpoint's makes them all new.
        num_queries: fewer keep the first query embeddings, more add fresh ones.
        id2label: names of the classes, `num_classes` of them, as `{id: name}` or a list.
        revision: branch, tag or commit, for a hub id.
        heads: attention heads of a checkpoint without configuration (8 if not told).
        dilation: whether a checkpoint without configuration is a DC5 model.
        model_class: the class that is wanted; by default the checkpoint's own. A `DETR` of a segmentation checkpoint
            leaves its mask head out, and a `DETRForSegmentation` of a detector starts with a fresh one.
        keep_head: True keeps the class head by position, False draws all of it anew.

    Returns:
        The model. What was made anew is logged as a warning.

    Raises:
        ValueError: the source is missing or damaged, its naming is unknown, its configuration does not describe a
            DETR, or tensors are missing, left over or of another shape, each of which is named; or the changes are
            none that can be made.
    """
    changes = Changes.of(num_classes, id2label, num_queries, keep_head)
    if not isinstance(source, str | os.PathLike | Mapping | hub.Commit):
        raise ValueError(
            f"a checkpoint is a path, a hub id or a state dict of named tensors, not a {type(source).__name__}"
        )
    source = find_source(source)
    refuse_unknown_name(source)
    if hub.is_hub_id(source):
        source = hub.fetch(str(source), revision, known=PUBLISHED)

    if isinstance(source, (str, os.PathLike)) and Path(source).suffix == ".keras":
        original = load_keras_file(Path(source), compile=False)
        if mode_of(original):
            return _quantized(original, _wanted(original.config, changes, model_class, source), changes, source)
        return _Start(_of_keras(original), original.config, changes, model_class, source).model()
    if isinstance(source, hub.Commit):
        return _of_hub(source, changes, model_class, heads, dilation)
    return _ported(open_checkpoint(source), changes, model_class, heads, dilation, source)


def _title(source: Any) -> str:
    """Return what to call a source in messages."""
    if isinstance(source, hub.Commit):
        return source.hub_id
    return str(source) if isinstance(source, (str, Path)) else "the checkpoint"


def convert(source: Any, target: str | os.PathLike[str], **options: Any) -> Detector:
    """Port a checkpoint to a `.keras` file, which appears complete or not at all.

    Args:
        source: as for `load_model`.
        target: path of the file to write, ending in `.keras`.
        **options: of `load_model`.

    Raises:
        ValueError: as `load_model`; or the target's name does not end in `.keras`, or its folder does not exist.
    """
    target = Path(target)
    if target.suffix != ".keras":
        raise ValueError(f"{target}: the file to write must end in .keras")
    if not target.parent.is_dir():
        raise ValueError(f"{target}: the folder {target.parent} does not exist")
    model = load_model(source, **options)
    with whole_file(target) as partial:
        model.save(partial)
    return model


def _wanted(
    config: DetectorConfig, changes: Changes, model_class: type[Detector] | None, source: Any
) -> DetectorConfig:
    """Return a checkpoint's configuration as the caller wants it."""
    try:
        changes.rows(config)  # whether the class head can be kept so, before anything is built
        return changes.applied_to(recast(config, model_class or class_of(config)))
    except ValueError as error:
        raise ValueError(f"{_title(source)}: {error}") from None


@dataclasses.dataclass(frozen=True)
class _Start:
    """A model that is about to start from a checkpoint.

    Args:
        conversion: what porting made of the checkpoint; without readers where its tensors are yet to be paired.
        config: the checkpoint's own configuration.
        changes: what the caller wants to be different.
        model_class: the class that the caller wants; None for the checkpoint's own.
        source: the checkpoint, for messages.
    """

    conversion: Conversion
    config: DetectorConfig
    changes: Changes
    model_class: type[Detector] | None
    source: Any

    def model(self, paired: Callable[[dict[str, tuple[int, ...]]], Conversion] | None = None) -> Detector:
        """Make the model; nothing is drawn that the checkpoint holds.

        Args:
            paired: gives the conversion, where it needs the shapes of the model's variables as they would be with the
                checkpoint's own configuration.
        """
        wanted = _wanted(self.config, self.changes, self.model_class, self.source)
        criterion = self.changes.of_criterion(self.conversion.criterion, self.config)
        rows = self.changes.rows(self.config)
        with first_values() as values:
            # Frozen behind the scope: backends record no gradient of what was frozen before it had a value, ever.
            trained = dataclasses.replace(wanted, frozen=())
            kind = self.model_class or class_of(self.config)
            model = kind(trained, kind.criterion_of(criterion))
            conversion = self.conversion if paired is None else paired(_shapes(model, self.config))
            _refuse_lost_parts(conversion, self.changes, self.source)
            _give(values, model, conversion, rows)
        model.freeze(wanted.frozen)
        _report(self.config, conversion, model, rows)
        return model


def _refuse_lost_parts(conversion: Conversion, changes: Changes, source: Any) -> None:
    """Raise a `ValueError` if a part was deleted from the checkpoint, and the caller does not say what replaces it."""
    lacks_head = any(path.startswith(CLASS_HEADS) for path in conversion.lacking)
    if not any(path.startswith("box_head/") for path in conversion.readers):
        return  # a base model or a backbone: the heads are new
    if lacks_head and not changes.say_classes:
        raise ValueError(
            f"{_title(source)} holds no class head, which is deleted to fine-tune on other classes: say with id2label "
            "or num_classes which they are, and it is drawn anew"
        )
    if changes.num_queries is None and any(path.startswith(QUERIES) for path in conversion.lacking):
        raise ValueError(
            f"{_title(source)} holds no query embeddings, which are deleted to train with another number of them: say "
            "with num_queries how many there are to be, and they are drawn anew"
        )


def _quantized(original: Detector, wanted: DetectorConfig, changes: Changes, source: Any) -> Detector:
    """Return the quantised model as it was loaded, if no more than its classes' names are to change."""
    own, rows = original.config, changes.rows(original.config)
    same_parts = type(own) is type(wanted) and {**own.to_dict(), "id2label": None} == {
        **wanted.to_dict(),
        "id2label": None,
    }
    if same_parts and not rows.are_all:
        raise ValueError(
            f"{source} is quantised ({mode_of(original)}), so that no class can be moved or drawn anew: start from the "
            f"original, or say keep_head=True if its classes {', '.join(own.names.values())} are only to be called "
            "otherwise"
        )
    if not same_parts:
        raise ValueError(
            f"{source} is quantised ({mode_of(original)}), so that its classes, queries and parts cannot be changed: "
            "start from the original, then quantise"
        )
    if story := rows.story():
        logger.warning("%s", story)
    original.config = wanted
    return original


def _of_keras(original: Detector) -> Conversion:
    readers = {path: _reader(variable) for path, variable in original.weights_by_path().items()}
    return Conversion(describe(original.config), original.criterion, readers, [])


def _reader(variable: Any) -> Callable[[], np.ndarray]:
    return lambda: np.asarray(variable)


def _of_hub(
    commit: hub.Commit,
    changes: Changes,
    model_class: type[Detector] | None,
    heads: int | None,
    dilation: bool | None,
) -> Detector:
    """Make the model from what an earlier start kept, or else from a port, which is kept for the next one."""
    kept = conversions.find(commit) if heads is None and dilation is None else None
    if kept is not None and (model := _of_kept(kept, changes, model_class, commit)) is not None:
        return model
    hub.verify(commit)

    def kept_for_later(conversion: Conversion) -> Conversion:
        # What the caller says of the checkpoint itself is not kept: the next start may say something else.
        is_its_own = heads is None and dilation is None and not conversion.are_names_unknown
        return conversions.keep(commit, conversion) if is_its_own else conversion

    return _ported(
        open_checkpoint(commit.folder), changes, model_class, heads, dilation, commit, and_then=kept_for_later
    )


def _of_kept(
    kept: Conversion, changes: Changes, model_class: type[Detector] | None, commit: hub.Commit
) -> Detector | None:
    """Make the model of a kept conversion; None where that is not whole, or of another version."""
    try:
        config = config_of(kept.architecture)
    except ValueError as error:
        logger.warning("the conversion of %s cannot be used, so it is ported again (%s)", commit.hub_id, error)
        return None

    def whole(shapes: dict[str, tuple[int, ...]]) -> Conversion:
        if not set(shapes) <= set(kept.readers).union(kept.lacking):
            raise _NotWhole
        return kept

    try:
        return _Start(kept, config, changes, model_class, commit).model(whole)
    except _NotWhole:
        return None


class _NotWhole(Exception):
    """Said of a kept conversion that does not hold all that a model needs."""


def _ported(
    checkpoint: Checkpoint,
    changes: Changes,
    model_class: type[Detector] | None,
    heads: int | None,
    dilation: bool | None,
    source: Any,
    and_then: Callable[[Conversion], Conversion] = lambda conversion: conversion,
) -> Detector:
    """Make a model with a checkpoint's tensors; `and_then` is given what became of them before they are read."""
    checkpoint = unwrapped(checkpoint)
    try:
        scheme = detect_scheme(checkpoint.shapes)
    except ValueError as error:
        raise ValueError(f"{checkpoint.name}: {error}") from None
    doubt = doubt_of_names(checkpoint, scheme)
    if doubt and not changes.say_classes:
        raise ValueError(f"{checkpoint.name}: config.json does not describe a DETR: {doubt}")
    if changes.keep_head and classes_of_head(checkpoint, scheme) is None:
        raise ValueError(f"{checkpoint.name} holds no class head that keep_head=True could keep: leave keep_head out")
    config, criterion = config_and_loss(checkpoint, scheme, heads, dilation)
    config = _as_its_authors(config, source, family_for(checkpoint, scheme).image_size(checkpoint))
    conversion = Conversion(describe(config), criterion, {}, [], bool(doubt))

    def paired(shapes: dict[str, tuple[int, ...]]) -> Conversion:
        readers, lacking = pair(checkpoint, scheme, shapes)
        return and_then(dataclasses.replace(conversion, readers=readers, lacking=lacking))

    return _Start(conversion, config, changes, model_class, source).model(paired)


def config_and_loss(
    checkpoint: Checkpoint, scheme: Scheme, heads: int | None = None, dilation: bool | None = None
) -> tuple[DetectorConfig, SetCriterion]:
    """Return the configuration that fits a checkpoint, and the loss it was trained with.

    Args:
        checkpoint: the opened checkpoint.
        scheme: how it names its tensors.
        heads: as for `load_model`.
        dilation: as for `load_model`.

    Raises:
        ValueError: what the checkpoint describes is no model of the family.
    """
    architecture = architecture_of(checkpoint, scheme, heads, dilation)
    try:
        config = config_of(architecture.description)
        told: dict[str, Any] = dict(architecture.coefficients)
        return config, dataclasses.replace(class_of(config).default_criterion(), **told)
    except Exception as error:  # for each value that is not of the kind that it should be
        raise ValueError(told_wrongly(checkpoint.name, architecture.is_told, error)) from error


def _as_its_authors(config: DetectorConfig, source: Any, size: tuple[int, int] | None = None) -> DetectorConfig:
    """Return the architecture with its authors' recipe, and the preprocessing of the checkpoint or theirs.

    Args:
        config: the architecture.
        source: the checkpoint.
        size: of images, where its training arguments name one.
    """
    preset = nearest_preset(config)
    if preset is not None:
        config = dataclasses.replace(config, recipe=preset.recipe)
    published = config.preprocessing if preset is None else preset.preprocessing
    published = published if size is None else published.changed(size=size)
    if config.knows_padding:
        return dataclasses.replace(config, preprocessing=preprocessing_of(source, published))
    # Of any size, which is rounded then.
    found = preprocessing_of(source, dataclasses.replace(published, multiple_of=1))
    return dataclasses.replace(config, preprocessing=_stretched(found, published))


def _stretched(found: Preprocessing, published: Preprocessing) -> Preprocessing:
    """Return how images are prepared for a model that knows no padding, where a file says that they are padded.

    Scripts that fine-tune with transformers write so; the network was then trained on images with padding in them.
    """
    multiple = published.multiple_of
    size = found.size if found.rule in ("fit", "stretch") else published.size
    size = (found.rounded_up(size[0], multiple), found.rounded_up(size[1], multiple))
    stretched = dataclasses.replace(found, rule="stretch", size=size, pad_to=None, multiple_of=multiple)
    if (found.rule, found.size) != ("stretch", size) or found.pad_to not in (None, size):
        logger.warning(
            "preprocessor_config.json says: %s; the network knows no padding, so images are %s instead",
            found,
            stretched,
        )
    return stretched


def _shapes(model: Detector, config: DetectorConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the model's variables would have with the checkpoint's own classes and queries."""
    shapes = {path: tuple(variable.shape) for path, variable in model.weights_by_path().items()}
    for path, shape in shapes.items():
        if path.startswith(CLASS_HEADS):
            shapes[path] = (*shape[:-1], config.num_logits)
        elif path.startswith(QUERIES):
            shapes[path] = (config.num_queries * config.query_groups, *shape[1:])
        elif path.startswith(DENOISING):
            shapes[path] = (config.num_classes + 1, *shape[1:])
    return shapes


def _give(values: FirstValues, model: Detector, conversion: Conversion, rows: ClassRows) -> None:
    """Let the model's variables start with what the checkpoint holds of them."""
    variables = model.weights_by_path()
    for path, read in conversion.readers.items():
        if path in variables:  # a detector has no mask head
            groups = model.config.query_groups
            values.give(variables[path], _first(path, tuple(variables[path].shape), read, rows, groups))


def _first(
    path: str, shape: tuple[int, ...], read: Callable[[], np.ndarray], rows: ClassRows, groups: int
) -> Callable[[Fresh], np.ndarray]:
    """Return what a variable starts with: what is read, with what is new in it drawn."""

    def first(fresh: Fresh) -> np.ndarray:
        array = read()
        if path.startswith(QUERIES) and array.shape != shape:
            return _kept_queries(fresh(), array, groups)
        if path.startswith(CLASS_HEADS) and not (rows.are_all and array.shape == shape):
            return _kept_columns(fresh(), array, rows)
        if path.startswith(DENOISING) and not (rows.are_all and array.shape == shape):
            return _kept_embeddings(fresh(), array, rows)
        return array

    return first


def _kept_queries(fresh: np.ndarray, trained: np.ndarray, groups: int) -> np.ndarray:
    """Return embeddings `(groups · queries, channels)` of which each group's first are a checkpoint's."""
    of_groups = [np.split(array, groups) for array in (trained, fresh)]
    kept = min(len(part) for parts in of_groups for part in parts)
    parts = [part for old, new in zip(*of_groups, strict=True) for part in (old[:kept], new[kept:])]
    return np.concatenate(parts)


def _kept_embeddings(fresh: np.ndarray, trained: np.ndarray, rows: ClassRows) -> np.ndarray:
    """Return the classes' embeddings `(num_classes + 1, d_model)` with a checkpoint's kept rows, and its padding."""
    array = fresh.copy()
    for new, old in enumerate(rows.sources):
        if old is not None:
            array[new] = trained[old]
    array[-1] = trained[-1]
    return array


def _kept_columns(fresh: np.ndarray, trained: np.ndarray, rows: ClassRows) -> np.ndarray:
    """Return the class head's kernel `(d_model, logits)` or bias `(logits,)` with a checkpoint's kept columns."""
    columns = [(label, source) for label, source in enumerate(rows.sources) if source is not None]
    if rows.no_object and fresh.shape[-1] > len(rows.wanted):
        columns.append((fresh.shape[-1] - 1, trained.shape[-1] - 1))
    array = fresh.copy()
    for new, old in columns:
        array[..., new] = trained[..., old]
    return array


def _report(config: DetectorConfig, conversion: Conversion, model: Detector, rows: ClassRows) -> None:
    wanted, variables = model.config, model.weights_by_path()
    lacking = [path for path in conversion.lacking if path in variables]
    if class_of(config).has_masks and not model.has_masks:
        logger.warning("a detector of a segmentation model: the mask head is left out")
    if lacking:
        parts = sorted({path.split("/")[0] for path in lacking})
        logger.warning("not in the checkpoint, so started from random weights: %s", ", ".join(parts))
    if not any(path.startswith(CLASS_HEADS) for path in lacking) and (story := rows.story()):
        logger.warning("%s", story)
    if any(path.startswith(QUERIES) for path in lacking):
        return
    if not any(path.startswith(QUERIES) for path in variables):
        if wanted.num_queries != config.num_queries:
            logger.warning("the best %d tokens are the queries, not %d", wanted.num_queries, config.num_queries)
    elif wanted.num_queries < config.num_queries:
        logger.warning("kept the first %d of %d query embeddings", wanted.num_queries, config.num_queries)
    elif wanted.num_queries > config.num_queries:
        logger.warning(
            "added %d fresh query embeddings to the checkpoint's %d",
            wanted.num_queries - config.num_queries,
            config.num_queries,
        )


def from_pretrained(
    source: Any,
    num_classes: int | None = None,
    id2label: ClassNames | None = None,
    num_queries: int | None = None,
    keep_head: bool | None = None,
    revision: str | None = None,
) -> Detector:
    """Make a model with the weights of a checkpoint, of the class that the checkpoint is of.

    The rows of the class head are kept by the names of their classes, see `DETR.from_pretrained`.

    Args:
        source: as for `DETR.from_pretrained`.
        num_classes: number of classes without names; another one than the checkpoint's makes them all new.
        id2label: names of the classes, as `{id: name}` or a list; implies `num_classes`.
        num_queries: fewer keep the first query embeddings, more add fresh ones.
        keep_head: True keeps the class head by position, whatever its classes are called; False draws all of it anew.
        revision: branch, tag or commit on the hub.

    Returns:
        A model of whichever class of the family it is, or of a registered one.

    Raises:
        ValueError: as `DETR.from_pretrained`.
    """
    return load_model(
        source,
        num_classes=num_classes,
        id2label=id2label,
        num_queries=num_queries,
        keep_head=keep_head,
        revision=revision,
    )
