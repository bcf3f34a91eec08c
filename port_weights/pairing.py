"""Pairs a checkpoint's tensors with a model's variables by name; one without a partner is named, never passed over."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from port_weights.checkpoints import Checkpoint
from port_weights.tables import IGNORED, Scheme

CLASS_HEADS, QUERIES = (
    ("class_head/", "encoder_class_head/"),
    (
        "query_embedding/",
        "content_embedding/",
        "reference_embedding/",
    ),
)
# A row for each class, and one for padding, which noisy queries of training start from; files may come without.
DENOISING = "denoising_embedding/"
# The parts of a model that a checkpoint may hold or lack as a whole.
_HEADS = (*CLASS_HEADS, "box_head/", "encoder_box_head/")
# Transformers' base models hold those of the encoder, where there are any.
_OF_LAYERS = ("class_head/", "box_head/")
_MASKS = ("mask_attention/", "mask_head/")
_BACKBONE = ("backbone/",)
# Those that people delete from a checkpoint to fine-tune it are lacking alone, too.
_PARTS = (_HEADS, _MASKS, CLASS_HEADS, QUERIES, (DENOISING,))


def pair(
    checkpoint: Checkpoint, scheme: Scheme, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Callable[[], np.ndarray]], list[str]]:
    """Pair tensors with variables by the scheme's table.

    Args:
        checkpoint: the opened checkpoint.
        scheme: how it names its tensors.
        shapes: of the model's variables by path, as they would be with the checkpoint's own configuration.

    Returns:
        A reader for each variable's path, and the paths that the checkpoint lacks.

    Raises:
        ValueError: tensors are missing, left over or of another shape, or differ from what they are to be copies of;
            each is named.
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
    copies = {copy: name for copy, name in _copies(checkpoint, scheme).items() if name in expected}
    masks_wanted = any(path.startswith(_MASKS) for path in shapes)
    known = {*expected, *copies}
    unexpected = [
        name
        for name in checkpoint.shapes
        if name not in known and not IGNORED.fullmatch(name) and (masks_wanted or not _is_of_masks(scheme, name))
    ]
    _refuse(checkpoint, scheme, missing, sorted(unexpected), misshapen)
    _refuse_unequal(checkpoint, {copy: name for copy, name in copies.items() if copy not in expected})

    def reader(path: str) -> Callable[[], np.ndarray]:
        name, layout = names[path]
        return lambda: layout.read(checkpoint.read(name), shapes[path])

    # In the model's order, which is that of every process: where several hold one model, they assign together.
    return {path: reader(path) for path in shapes if path in held}, lacking


def _copies(checkpoint: Checkpoint, scheme: Scheme) -> dict[str, str]:
    """Return the copies that a checkpoint holds, and what each is a copy of."""
    every = ((copy, name) for name, copies in scheme.copies.items() for copy in copies)
    return {copy: name for copy, name in every if copy in checkpoint.shapes and name in checkpoint.shapes}


def _is_of_masks(scheme: Scheme, name: str) -> bool:
    return any(path.startswith(_MASKS) for path, _ in scheme.keras_paths(name))


def _lacking_parts(paths: set[str], held: set[str]) -> list[str]:
    """Return the paths of parts that the checkpoint may lack and does; or of everything but the backbone."""
    transformer = sorted(path for path in paths if not path.startswith(_BACKBONE))
    if not held.intersection(transformer):
        return transformer
    parts = [[path for path in paths if path.startswith(prefixes)] for prefixes in _PARTS]
    lacking = {path for part in parts if not held.intersection(part) for path in part}
    of_layers = {path for path in paths if path.startswith(_OF_LAYERS)}
    return sorted(lacking if held.intersection(of_layers) else lacking | of_layers)


def _refuse_unequal(checkpoint: Checkpoint, copies: Mapping[str, str]) -> None:
    """Raise a `ValueError` if tensors that a model has once differ in a checkpoint that holds them several times."""
    for copy, name in copies.items():
        if not np.array_equal(checkpoint.read(copy), checkpoint.read(name)):
            raise ValueError(
                f"{checkpoint.name}: {copy} is not equal to {name}, of which it must be a copy: the two are one tensor "
                "of this model"
            )


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
