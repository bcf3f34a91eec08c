"""Objects that a file describes: which may be made, before any is. Keras imports whatever module a file names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import keras

# Keras' objects that stand in a model of this package or its optimizer: data, and nothing that runs code of a file.
_KERAS = (
    "constraints",
    "dtype_policies",
    "initializers",
    "losses",
    "metrics",
    "optimizers",
    "quantizers",
    "regularizers",
)


def refuse_foreign(described: Any, title: str) -> None:
    """Raise a `ValueError` if a description of objects names one that would bring code of another place along.

    Allowed are classes that are registered with Keras, or whose module is imported already, and Keras' optimizers,
    policies, quantizers and the like.

    Args:
        described: plain values, as JSON has them.
        title: what to call their file in messages.
    """
    for part in _parts(described):
        if not _is_known(part):
            raise ValueError(
                f"{title} names a {part['class_name']} of {part['module']!r}, which is not known here: import its "
                "module first if it is yours, and do not load the file if it is not"
            )


def criterion_of(described: Any, title: str) -> Any:
    """Return the loss that plain values describe.

    Raises:
        ValueError: they describe none, or one of a class that is not known here.
    """
    refuse_foreign(described, title)
    try:
        criterion = keras.saving.deserialize_keras_object(described)
    except Exception as error:  # for each value that is not of the kind that it should be
        raise ValueError(f"{title}: its criterion cannot be read: {error}") from error
    if not callable(criterion):
        raise ValueError(f"{title}: its criterion is no loss but {criterion!r}")
    return criterion


def find_class(described: dict[str, Any]) -> Any:
    """Return the class that a description names, among those that are registered or imported; None if it is not."""
    registered, module, name = (described.get(key) for key in ("registered_name", "module", "class_name"))
    if isinstance(registered, str) and (found := keras.saving.get_registered_object(registered)) is not None:
        return found
    return getattr(sys.modules.get(module), name, None) if isinstance(module, str) and isinstance(name, str) else None


def _is_known(part: dict[str, Any]) -> bool:
    module, name = part["module"], part["class_name"]
    if not isinstance(name, str) or not isinstance(module, str | None):
        return False
    if module == "keras":
        return name.endswith(("DTypePolicy", "DTypePolicyMap"))
    if module is None or module.startswith("keras."):
        return module is None or module.split(".")[1] in _KERAS
    return find_class(part) is not None or (module, name) == ("builtins", "function")


def _parts(described: Any) -> Iterator[dict[str, Any]]:
    """Return the descriptions of objects among plain values, however deep."""
    waiting = [described]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "class_name" in value and "module" in value:
                yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
