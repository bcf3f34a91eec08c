"""Weights between PyTorch checkpoints and Keras models: read once, without torch unless the file is a pickle.

What is read becomes plain values: an architecture, and arrays by Keras path; `tfdetr_keras.models.pretrained` makes
models of them. Nothing is imported until a name is touched: PyTorch's process comes by here, and must not load Keras on
its way. The names stand here and not in a stub, which could not be read where the package lies in a zip file.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from port_weights.exports import export as export
    from port_weights.exports import export_pth as export_pth
    from port_weights.exports import to_torch as to_torch
    from tfdetr_keras.models.pretrained import convert as convert
    from tfdetr_keras.models.pretrained import load_model as load_model

# No file here has the name of one of these, or importing the file would put it in the function's place.
_NAMES = {
    "convert": "tfdetr_keras.models.pretrained",
    "export": "port_weights.exports",
    "export_pth": "port_weights.exports",
    "load_model": "tfdetr_keras.models.pretrained",
    "to_torch": "port_weights.exports",
}
__all__ = ["convert", "export", "export_pth", "load_model", "to_torch"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return __all__
