"""Porting: a checkpoint into a Keras DETR, every tensor accounted for by name; and a model's weights back out."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from port_weights import conversions, hub
from port_weights.architecture import architecture_of
from port_weights.checkpoints import Checkpoint, open_checkpoint
from port_weights.conversions import Conversion
from port_weights.processor import tell_processor
from port_weights.schemes import IGNORED, Scheme, detect_scheme
from tfdetr_keras.atomic import whole_file
from tfdetr_keras.models.config import DETRConfig, SegmentationConfig
from tfdetr_keras.models.detr import DETR
from tfdetr_keras.models.family import model_class as class_of
from tfdetr_keras.models.family import recast
from tfdetr_keras.models.keras_file import load_keras_file
from tfdetr_keras.models.packaged import find_source, refuse_unknown_name
from tfdetr_keras.models.quantization import mode_of

logger = logging.getLogger(__name__)


# The parts of a model that a checkpoint may hold or lack as a whole.
_HEADS = ("class_head/", "box_head/")
_MASKS = ("mask_attention/", "mask_head/")
_BACKBONE = ("backbone/",)


def load_model(
    source: Any,
    num_classes: int | None = None,
    num_queries: int | None = None,
    id2label: Mapping[int, str] | None = None,
    revision: str | None = None,
    heads: int | None = None,
    dilation: bool | None = None,
    model_class: type[DETR] | None = None,
) -> DETR:
    """Makes a Keras DETR, or one of its relatives, with a checkpoint's weights.

    Args:
        source: a hub id or what `hub.fetch` made of one, a folder with `config.json` and `model.safetensors`, a
            `.safetensors`, `.pth` or `.keras` file, the folder of a training run, the name of a packaged checkpoint, or
            a state dict. A backbone alone is taken, too: the rest of the model is then fresh.
        num_classes: where it differs from the checkpoint's, the class head is made anew.
        num_queries: fewer keep the first query embeddings, more add fresh ones.
        id2label: names of the classes, `num_classes` of them.
        revision: branch, tag or commit, for a hub id.
        heads: attention heads of a checkpoint without configuration (8 if not told).
        dilation: whether a checkpoint without configuration is a DC5 model.
        model_class: the class that is wanted; by default the checkpoint's own. A `DETR` of a segmentation checkpoint
            leaves its mask head out, and a `DETRForSegmentation` of a detector starts with a fresh one.

    Returns:
        The model. What was made anew is logged as a warning.

    Raises:
        ValueError: the source is missing or damaged, its naming is unknown, its configuration does not describe a
            DETR, or tensors are missing, left over or of another shape, each of which is named.
    """
    source = find_source(source)
    refuse_unknown_name(source)
    if hub.is_hub_id(source):
        source = hub.fetch(str(source), revision)
    tell_processor(source.folder if isinstance(source, hub.Commit) else source)

    def wanted(config: DETRConfig) -> DETRConfig:
        try:
            config = recast(config, model_class or class_of(config))
        except ValueError as error:
            raise ValueError(f"{_title(source)}: {error}") from None
        return _with_changes(config, num_classes, num_queries, id2label)

    def new_model(conversion: Conversion) -> DETR:
        return (model_class or class_of(conversion.config))(wanted(conversion.config), conversion.criterion)

    if isinstance(source, (str, os.PathLike)) and Path(source).suffix == ".keras":
        original = load_keras_file(Path(source), compile=False)
        if mode_of(original):
            return _quantized(original, wanted(original.config), source)
        conversion = _of_keras(original)
        model = new_model(conversion)
    elif isinstance(source, hub.Commit):
        conversion, model = _of_hub(source, new_model, heads, dilation)
    else:
        conversion, model = _ported(open_checkpoint(source), new_model, heads, dilation)
    _assign(model, conversion)
    _report(conversion, model)
    return model


def _title(source: Any) -> str:
    """What to call a source in messages."""
    if isinstance(source, hub.Commit):
        return source.hub_id
    return str(source) if isinstance(source, (str, Path)) else "the checkpoint"


def convert(source: Any, target: str | os.PathLike[str], **options: Any) -> DETR:
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


def to_torch(model: DETR, scheme: Scheme) -> dict[str, np.ndarray]:
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


def refuse_quantized(model: DETR, name: str) -> None:
    """Raise a `ValueError` if a model that is to be ported is quantised."""
    if mode := mode_of(model):
        raise ValueError(f"{name} is quantised ({mode}), which no PyTorch DETR is: port the original")


def _variables(model: DETR) -> dict[str, Any]:
    """The model's weights by path, without the model's own name."""
    return {variable.path.split("/", 1)[1]: variable for variable in model.weights}


def _quantized(original: DETR, wanted: DETRConfig, source: Any) -> DETR:
    """The quantised model as it was loaded, if what is wanted of it is no more than other names of its classes."""
    own = original.config
    if type(own) is not type(wanted) or {**own.to_dict(), "id2label": None} != {**wanted.to_dict(), "id2label": None}:
        raise ValueError(
            f"{source} is quantised ({mode_of(original)}), so that its classes, queries and parts cannot be changed: "
            "start from the original, then quantise"
        )
    original.config = wanted
    return original


def _of_keras(original: DETR) -> Conversion:
    readers = {path: _reader(variable) for path, variable in _variables(original).items()}
    return Conversion(original.config, original.criterion, readers, [])


def _reader(variable: Any) -> Callable[[], np.ndarray]:
    return lambda: np.asarray(variable)


def _of_hub(
    commit: hub.Commit, new_model: Callable[[Conversion], DETR], heads: int | None, dilation: bool | None
) -> tuple[Conversion, DETR]:
    """What is kept of an earlier start, or else a port, which is kept for the next one."""
    kept = conversions.find(commit) if heads is None and dilation is None else None
    if kept is not None:
        model = new_model(kept)
        if set(_variables(model)) <= set(kept.readers).union(kept.lacking):
            return kept, model
    hub.verify(commit)
    conversion, model = _ported(open_checkpoint(commit.folder), new_model, heads, dilation)
    return (conversions.keep(commit, conversion) if heads is None and dilation is None else conversion), model


def _ported(
    checkpoint: Checkpoint, new_model: Callable[[Conversion], DETR], heads: int | None, dilation: bool | None
) -> tuple[Conversion, DETR]:
    """Pairs a checkpoint's tensors with the variables of a new model."""
    scheme = detect_scheme(checkpoint.shapes)
    config, criterion = architecture_of(checkpoint, scheme, heads, dilation)
    model = new_model(Conversion(config, criterion, {}, []))
    readers, lacking = _match_names(checkpoint, scheme, _shapes(model, config))
    return Conversion(config, criterion, readers, lacking), model


def _shapes(model: DETR, config: DETRConfig) -> dict[str, tuple[int, ...]]:
    """The shapes that the model's variables would have with the checkpoint's own configuration."""
    shapes = {path: tuple(variable.shape) for path, variable in _variables(model).items()}
    shapes["class_head/kernel"] = (config.d_model, config.num_logits)
    shapes["class_head/bias"] = (config.num_logits,)
    shapes["query_embedding/embeddings"] = (config.num_queries, config.d_model)
    return shapes


def _match_names(
    checkpoint: Checkpoint, scheme: Scheme, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Callable[[], np.ndarray]], list[str]]:
    """Pairs tensors with variables by the scheme's table; refuses a checkpoint that leaves any without a partner.

    Returns:
        A reader for each variable's path, and the paths that the checkpoint lacks.
    """
    names = {path: named for path in shapes if (named := scheme.torch_name(path))}
    held = {path for path, (name, _) in names.items() if name in checkpoint.shapes}
    lacking = _lacking_parts(set(shapes), held)

    missing = [names[path][0] if path in names else path for path in shapes if path not in held | set(lacking)]
    expected = {names[path][0]: names[path][1].torch_shape(shapes[path]) for path in held}
    misshapen = [
        f"{name} is {checkpoint.shapes[name]}, expected {shape}"
        for name, shape in expected.items()
        if checkpoint.shapes[name] != shape
    ]
    masks_wanted = any(path.startswith(_MASKS) for path in shapes)
    unexpected = [
        name
        for name in checkpoint.shapes
        if name not in expected and not IGNORED.fullmatch(name) and (masks_wanted or not _is_of_masks(scheme, name))
    ]
    _refuse(checkpoint, scheme, missing, sorted(unexpected), misshapen)

    def reader(path: str) -> Callable[[], np.ndarray]:
        name, layout = names[path]
        return lambda: layout.read(checkpoint.read(name), shapes[path])

    # In the model's order, which is that of every process: where several hold one model, they assign together.
    return {path: reader(path) for path in shapes if path in held}, lacking


def _is_of_masks(scheme: Scheme, name: str) -> bool:
    return any(path.startswith(_MASKS) for path, _ in scheme.keras_paths(name))


def _lacking_parts(paths: set[str], held: set[str]) -> list[str]:
    """Paths of the heads, of the mask head, or of everything but the backbone, if the checkpoint holds none of them."""
    transformer = sorted(path for path in paths if not path.startswith(_BACKBONE))
    if not held.intersection(transformer):
        return transformer
    parts = [sorted(path for path in paths if path.startswith(prefixes)) for prefixes in (_HEADS, _MASKS)]
    return [path for part in parts if not held.intersection(part) for path in part]


def _refuse(
    checkpoint: Checkpoint, scheme: Scheme, missing: list[str], unexpected: list[str], misshapen: list[str]
) -> None:
    lists = [
        (f"{len(names)} {title}: {', '.join(sorted(set(names)))}")
        for title, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if lists:
        source = "config.json" if checkpoint.config else "the architecture told from the tensors' shapes"
        raise ValueError(
            f"{checkpoint.name} ({scheme.title}): its tensors do not fit {source}\n  " + "\n  ".join(lists)
        )


def _with_changes(
    config: DETRConfig, num_classes: int | None, num_queries: int | None, id2label: Mapping[int, str] | None
) -> DETRConfig:
    if id2label is not None:
        if num_classes is not None and num_classes != len(id2label):
            raise ValueError(f"id2label names {len(id2label)} classes, but num_classes={num_classes}")
        num_classes = len(id2label)
    changes: dict[str, Any] = {}
    if num_queries is not None:
        changes["num_queries"] = num_queries
    if id2label is not None or num_classes not in (None, config.num_classes):
        changes.update(num_classes=num_classes, id2label=id2label)
    return dataclasses.replace(config, **changes)


def _assign(model: DETR, conversion: Conversion) -> None:
    variables = _variables(model)
    for path, read in conversion.readers.items():
        if path not in variables:
            continue  # a mask head, for a detector
        variable, array = variables[path], read()
        if path == "query_embedding/embeddings":
            kept = min(len(array), variable.shape[0])
            array = np.concatenate([array[:kept], np.asarray(variable)[kept:]])
        if path.startswith("class_head/") and array.shape != tuple(variable.shape):
            continue  # another number of classes: the new head stays as it was drawn
        variable.assign(array)


def _report(conversion: Conversion, model: DETR) -> None:
    config, wanted, variables = conversion.config, model.config, _variables(model)
    lacking = [path for path in conversion.lacking if path in variables]
    if isinstance(config, SegmentationConfig) and not isinstance(wanted, SegmentationConfig):
        logger.warning("a detector of a segmentation model: the mask head is left out")
    if lacking:
        parts = sorted({path.split("/")[0] for path in lacking})
        logger.warning("not in the checkpoint, so started from random weights: %s", ", ".join(parts))
    if wanted.num_classes != config.num_classes and not any(path.startswith("class_head/") for path in lacking):
        logger.warning(
            "new class head: %d classes instead of the checkpoint's %d", wanted.num_classes, config.num_classes
        )
    if wanted.num_queries < config.num_queries:
        logger.warning("kept the first %d of %d query embeddings", wanted.num_queries, config.num_queries)
    elif wanted.num_queries > config.num_queries:
        logger.warning(
            "added %d fresh query embeddings to the checkpoint's %d",
            wanted.num_queries - config.num_queries,
            config.num_queries,
        )
