"""Checkpoints by other names than a path or a hub id: those that come with the package, and those of a training run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
BEST_OF_RUN = "best.keras"


def packaged_checkpoints() -> dict[str, Path]:
    """Name → folder in Hugging Face's format of each checkpoint that comes with the package."""
    return {config.parent.name: config.parent for config in sorted(CHECKPOINTS.glob("*/config.json"))}


def find_source(source: Any) -> Any:
    """The file or folder that a source stands for.

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
