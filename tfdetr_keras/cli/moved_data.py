"""The place of a run's data: unchanged, moved together with the run, or given by the user."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfdetr_keras.cli.sources import is_there

# Arguments of a set that are paths.
PATHS = ("images", "annotations", "segments", "image_set")


def with_whole_paths(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a set with paths that hold from any working directory.

    Args:
        arguments: of `load_source`.
    """
    return {
        name: os.path.abspath(value) if name in PATHS and value and "://" not in value else value
        for name, value in arguments.items()
    }


def with_whole_places(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of a run's data for its folder: with paths that hold from any working directory.

    Args:
        description: with the arguments of the training set, and those of the validation set or None.
    """
    parts = {part: description[part] for part in ("training", "validation")}
    return {**description, **{part: one and with_whole_paths(one) for part, one in parts.items()}}


def find_moved(description: Mapping[str, Any], folder: Path, noted_folder: str | None) -> dict[str, Any]:
    """Return the description of a run's data with the places where it is now.

    A path that does not exist any more is looked up at its place relative to the run's folder: whole trees move.

    Args:
        description: the run's own, from its `config.json`.
        folder: of the run, now.
        noted_folder: of the run when it began; None in runs of earlier versions.

    Returns:
        A description with absolute paths; one that is not found stays unchanged.
    """

    def place(path: str) -> str:
        if is_there(path) or noted_folder is None or not os.path.isabs(path):
            return path
        moved = os.path.normpath(os.path.join(folder.absolute(), os.path.relpath(path, noted_folder)))
        return moved if is_there(moved) else path

    def found(arguments: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if arguments is None:
            return None
        return with_whole_paths(
            {name: place(value) if name in PATHS and value else value for name, value in arguments.items()}
        )

    return {**description, "training": found(description["training"]), "validation": found(description["validation"])}


def told_places(
    description: Mapping[str, Any], training: Mapping[str, Any], validation: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the description of a run's data with some places replaced by the user's.

    Moves of the training set also hold for a validation set that shared its places.

    Args:
        description: the run's own.
        training: the new places by argument; None keeps a place.
        validation: likewise, of the validation set.

    Raises:
        ValueError: a place that this kind of set does not have, or one for a validation set that the run lacks.
    """
    own, other = dict(description["training"]), description["validation"]
    changed = {name: value for name, value in training.items() if value is not None}
    for_validation = {name: value for name, value in validation.items() if value is not None}
    if other is None and for_validation:
        named = ", ".join(f"--val-{name.replace('_', '-')}" for name in for_validation)
        raise ValueError(f"{named}: the run has no validation set of its own, only what --val-split took")
    for name, where in (*((name, "") for name in changed), *((name, "val-") for name in for_validation)):
        if (other if where and other is not None else own).get(name) is None:
            raise ValueError(f"--{where}{name.replace('_', '-')}: the run's data of the kind {own['data']} has none")
    if other is not None:
        shared = {name: value for name, value in changed.items() if other.get(name) == own[name]}
        other = with_whole_paths({**other, **shared, **for_validation})
    return {**description, "training": with_whole_paths(own | changed), "validation": other}
