"""Checkpoints by other names than a path or a hub id: those that come with the package, and those of a training run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tfdetr_keras.names.spelling import did_you_mean

WEIGHT_FILES = (".bin", ".ckpt", ".h5", ".keras", ".pt", ".pth", ".safetensors")
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
BEST_OF_RUN = "best.keras"


def packaged_checkpoints() -> dict[str, Path]:
    """Name → folder in Hugging Face's format of each checkpoint that comes with the package."""
    return {config.parent.name: config.parent for config in sorted(CHECKPOINTS.glob("*/config.json"))}


def packaged_names() -> str:
    """Return the names of the checkpoints that come with the package as a sentence has them, "a, b or c"."""
    *names, last = packaged_checkpoints()
    return f"{', '.join(names)} or {last}"


def refuse_unknown_name(source: Any) -> None:
    """Raise a `ValueError` for a name of nothing: no file, no hub id, no checkpoint of the package.

    Raises:
        ValueError: such a name, with the nearest ones; or that of an architecture, whose published weights are named.
    """
    from tfdetr_keras.models.presets import PRESETS, PUBLISHED  # which loads Keras

    if not isinstance(source, (str, os.PathLike)) or os.path.exists(source):
        return
    name = str(source)
    if "/" in name or os.sep in name or Path(name).suffix in WEIGHT_FILES or name in packaged_checkpoints():
        return
    if name in PRESETS:
        published = [hub_id for hub_id, preset in PUBLISHED.items() if preset == name]
        weights = f"its published weights are {' or '.join(published)}, " if published else ""
        raise ValueError(
            f"{name} is an architecture, of which the package has no weights: {weights}td.from_preset makes it with "
            "random ones"
        )
    names = [*packaged_checkpoints(), *PUBLISHED]
    near = did_you_mean(name, [*names, *PRESETS])
    raise ValueError(
        f"{name}: no such file or folder, nor the name of a checkpoint: expected {', '.join(names)} or another hub id "
        "of the form owner/name, a folder with config.json and model.safetensors, a .safetensors, a .pth or a .keras "
        f"file{near}"
    )


def find_source(source: Any) -> Any:
    """Return the file or folder that a source stands for.

    Args:
        source: the name of a packaged checkpoint, unless a file or folder of that name is at hand; or the folder of a
            training run, which stands for its best model. Anything else stands for itself.
    """
    if not isinstance(source, (str, os.PathLike)):
        return source
    path = Path(source)
    if not path.exists():
        return packaged_checkpoints().get(str(source), source)
    if path.is_dir() and (path / BEST_OF_RUN).is_file():
        return path / BEST_OF_RUN
    return source
