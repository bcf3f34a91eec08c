"""Porting: a checkpoint into a Keras DETR, every tensor accounted for by name; and a model's weights back out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from port_weights import conversions, hub
from port_weights.architecture import architecture_of, classes_of_head, doubt_of_names
from port_weights.changes import Changes
from port_weights.checkpoints import Checkpoint, open_checkpoint
from port_weights.conversions import Conversion
from port_weights.pairing import CLASS_HEAD, QUERIES, pair
from port_weights.processor import with_preprocessing
from port_weights.schemes import Scheme, detect_scheme
from port_weights.wrappers import unwrapped
from tfdetr_keras.backend.atomic import whole_file
from tfdetr_keras.models.class_names import ClassNames
from tfdetr_keras.models.class_rows import ClassRows
from tfdetr_keras.models.config import DetectorConfig
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.models.detr import DETR
from tfdetr_keras.models.detr_segmentation import SegmentationConfig
from tfdetr_keras.models.keras_file import load_keras_file
from tfdetr_keras.models.packaged import find_source, refuse_unknown_name
from tfdetr_keras.models.quantization import mode_of
from tfdetr_keras.models.registry import model_class as class_of
from tfdetr_keras.models.registry import recast

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
    """Makes a Keras DETR, or one of its relatives, with a checkpoint's weights.

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
        source = hub.fetch(str(source), revision)

    def wanted(config: DetectorConfig) -> DetectorConfig:
        try:
            return changes.applied_to(recast(config, model_class or class_of(config)))
        except ValueError as error:
            raise ValueError(f"{_title(source)}: {error}") from None

    def new_model(conversion: Conversion) -> Detector:
        _check_head(conversion, changes, source)
        criterion = changes.of_criterion(conversion.criterion, conversion.config)
        return (model_class or class_of(conversion.config))(wanted(conversion.config), criterion)

    if isinstance(source, (str, os.PathLike)) and Path(source).suffix == ".keras":
        original = load_keras_file(Path(source), compile=False)
        if mode_of(original):
            return _quantized(original, wanted(original.config), changes, source)
        conversion = _of_keras(original)
        model = new_model(conversion)
    elif isinstance(source, hub.Commit):
        conversion, model = _of_hub(source, new_model, changes, heads, dilation)
    else:
        conversion, model = _ported(open_checkpoint(source), new_model, changes, heads, dilation, source)
    _refuse_lost_parts(conversion, changes, source)
    rows = changes.rows(conversion.config)
    _assign(model, conversion, rows)
    _report(conversion, model, rows)
    return model


def _title(source: Any) -> str:
    """What to call a source in messages."""
    if isinstance(source, hub.Commit):
        return source.hub_id
    return str(source) if isinstance(source, (str, Path)) else "the checkpoint"


def convert(source: Any, target: str | os.PathLike[str], **options: Any) -> Detector:
    """Ports a checkpoint to a `.keras` file, which appears complete or not at all.

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


def to_torch(model: Detector, scheme: Scheme) -> dict[str, np.ndarray]:
    """A model's weights under their PyTorch names: the tables read backwards.

    Args:
        model: the Keras model.
        scheme: the naming scheme to write.

    Returns:
        PyTorch name → array in PyTorch's layout.

    Raises:
        ValueError: the model is quantised, or has a weight that the scheme has no name for.
    """
    refuse_quantized(model, "the model")
    parts: dict[str, list[np.ndarray]] = {}
    for path, variable in _variables(model).items():
        named = scheme.torch_name(path)
        if named is None:
            raise ValueError(f"the scheme {scheme.title!r} has no name for {path}")
        name, layout = named
        pieces = parts.setdefault(name, [np.empty(0)] * layout.parts)
        pieces[layout.part] = layout.to_torch(np.asarray(variable))
    return {name: np.concatenate(pieces) if len(pieces) > 1 else pieces[0].copy() for name, pieces in parts.items()}


def refuse_quantized(model: Detector, name: str) -> None:
    """Raise a `ValueError` if a model that is to be ported is quantised."""
    if mode := mode_of(model):
        raise ValueError(f"{name} is quantised ({mode}), which no PyTorch DETR is: port the original")


def _variables(model: Detector) -> dict[str, Any]:
    """The model's weights by path, without the model's own name."""
    return {variable.path.split("/", 1)[1]: variable for variable in model.weights}


def _check_head(conversion: Conversion, changes: Changes, source: Any) -> None:
    """Raise a `ValueError`, before anything is built, if the class head cannot be kept as the caller wants."""
    try:
        changes.rows(conversion.config)
    except ValueError as error:
        raise ValueError(f"{_title(source)}: {error}") from None


def _refuse_lost_parts(conversion: Conversion, changes: Changes, source: Any) -> None:
    """Raise a `ValueError` if a part was deleted from the checkpoint, and the caller does not say what replaces it."""
    lacks_head = any(path.startswith(CLASS_HEAD) for path in conversion.lacking)
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
    """The quantised model as it was loaded, if what is wanted of it is no more than other names of its classes."""
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
    readers = {path: _reader(variable) for path, variable in _variables(original).items()}
    return Conversion(original.config, original.criterion, readers, [])


def _reader(variable: Any) -> Callable[[], np.ndarray]:
    return lambda: np.asarray(variable)


def _of_hub(
    commit: hub.Commit,
    new_model: Callable[[Conversion], DETR],
    changes: Changes,
    heads: int | None,
    dilation: bool | None,
) -> tuple[Conversion, DETR]:
    """What is kept of an earlier start, or else a port, which is kept for the next one."""
    kept = conversions.find(commit) if heads is None and dilation is None else None
    if kept is not None:
        model = new_model(kept)
        if set(_variables(model)) <= set(kept.readers).union(kept.lacking):
            return kept, model
    hub.verify(commit)
    conversion, model = _ported(open_checkpoint(commit.folder), new_model, changes, heads, dilation, commit)
    # What the caller says of the checkpoint itself is not kept: the next start may say something else.
    is_its_own = heads is None and dilation is None and not conversion.are_names_unknown
    return (conversions.keep(commit, conversion) if is_its_own else conversion), model


def _ported(
    checkpoint: Checkpoint,
    new_model: Callable[[Conversion], DETR],
    changes: Changes,
    heads: int | None,
    dilation: bool | None,
    source: Any,
) -> tuple[Conversion, DETR]:
    """Pairs a checkpoint's tensors with the variables of a new model."""
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
    config, criterion = architecture_of(checkpoint, scheme, heads, dilation)
    config = with_preprocessing(config, source)
    model = new_model(Conversion(config, criterion, {}, []))
    readers, lacking = pair(checkpoint, scheme, _shapes(model, config))
    return Conversion(config, criterion, readers, lacking, bool(doubt)), model


def _shapes(model: Detector, config: Any) -> dict[str, tuple[int, ...]]:
    """The shapes that the model's variables would have with the checkpoint's own configuration."""
    shapes = {path: tuple(variable.shape) for path, variable in _variables(model).items()}
    shapes["class_head/kernel"] = (config.d_model, config.num_logits)
    shapes["class_head/bias"] = (config.num_logits,)
    shapes["query_embedding/embeddings"] = (config.num_queries, config.d_model)
    return shapes


def _assign(model: Detector, conversion: Conversion, rows: ClassRows) -> None:
    variables = _variables(model)
    for path, read in conversion.readers.items():
        if path not in variables:
            continue  # a mask head, for a detector
        variable, array = variables[path], read()
        if path == "query_embedding/embeddings":
            kept = min(len(array), variable.shape[0])
            array = np.concatenate([array[:kept], np.asarray(variable)[kept:]])
        if path.startswith(CLASS_HEAD):
            array = _kept_rows(np.asarray(variable), array, rows)
        variable.assign(array)


def _kept_rows(fresh: np.ndarray, trained: np.ndarray, rows: ClassRows) -> np.ndarray:
    """The class head's kernel `(d_model, logits)` or bias `(logits,)`: a checkpoint's columns where they are kept."""
    columns = [(label, source) for label, source in enumerate(rows.sources) if source is not None]
    if rows.no_object and fresh.shape[-1] > len(rows.wanted):
        columns.append((fresh.shape[-1] - 1, trained.shape[-1] - 1))
    array = fresh.copy()
    for new, old in columns:
        array[..., new] = trained[..., old]
    return array


def _report(conversion: Conversion, model: Detector, rows: ClassRows) -> None:
    config, wanted, variables = conversion.config, model.config, _variables(model)
    lacking = [path for path in conversion.lacking if path in variables]
    if isinstance(config, SegmentationConfig) and not isinstance(wanted, SegmentationConfig):
        logger.warning("a detector of a segmentation model: the mask head is left out")
    if lacking:
        parts = sorted({path.split("/")[0] for path in lacking})
        logger.warning("not in the checkpoint, so started from random weights: %s", ", ".join(parts))
    if not any(path.startswith(CLASS_HEAD) for path in lacking) and (story := rows.story()):
        logger.warning("%s", story)
    if any(path.startswith(QUERIES) for path in lacking):
        return
    if wanted.num_queries < config.num_queries:
        logger.warning("kept the first %d of %d query embeddings", wanted.num_queries, config.num_queries)
    elif wanted.num_queries > config.num_queries:
        logger.warning(
            "added %d fresh query embeddings to the checkpoint's %d",
            wanted.num_queries - config.num_queries,
            config.num_queries,
        )
