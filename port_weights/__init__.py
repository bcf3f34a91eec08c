"""Weights between PyTorch checkpoints and Keras models: read once, without torch unless the file is a pickle."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from port_weights.exports import export, export_pth
    from port_weights.port import convert, load_model, to_torch

__all__ = ["convert", "export", "export_pth", "load_model", "to_torch"]

# No file has the name of one of these, or importing the file would put it in the function's place.
_FILES = {"export": "exports", "export_pth": "exports", "convert": "port", "load_model": "port", "to_torch": "port"}


def __getattr__(name: str) -> Any:
    # Imported when first asked for: PyTorch's process comes by here, and must not import Keras on its way.
    if name in _FILES:
        return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
