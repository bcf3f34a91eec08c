"""Reader of a training run's configuration; its errors name what is damaged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfdetr_keras.backend.whole_files import read_json
from tfdetr_keras.training.settings import NO_LIMIT

_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "settings": dict,
    "class_names": list,
    "counts": dict,
    "model": dict,
    "criterion": dict,
    "data": (dict, type(None)),
    "records": dict,
    "of_recipe": list,
    "shortened": dict,
    "folder": str,
}
OBJECT = "a JSON object, as a training run writes it"
_NEEDED = ("settings", "class_names")


def read_config(path: Path) -> dict[str, Any]:
    """Read a run's `config.json`, and check the kind of each value.

    Raises:
        ValueError: as `read_json`; or it is not that of a training run, or one of its values is of another kind.
    """
    content = read_json(path, OBJECT)
    if lacking := [name for name in _NEEDED if name not in content]:
        raise ValueError(f"{path} is not the configuration of a training run: it has no {', '.join(lacking)}")
    for name, kind in _KINDS.items():
        if name in content and not isinstance(content[name], kind):
            raise ValueError(f"{path} is damaged: its {name} must not be a {type(content[name]).__name__}")
    if not all(isinstance(name, str) for name in content["class_names"]):
        raise ValueError(f"{path} is damaged: its class_names must be texts")
    if content.get("format") == 1:
        content["settings"] = _of_format_1(content["settings"])
    return content


def _of_format_1(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run of an earlier version, in which null meant no limit and no average."""
    meant = {"global_clipnorm": NO_LIMIT, "ema_momentum": 0.0}
    return settings | {name: value for name, value in meant.items() if name in settings and settings[name] is None}


@contextlib.contextmanager
def said_of(path: Path) -> Iterator[None]:
    """Add the file's name to the errors that values of the wrong shape lead to.

    Raises:
        ValueError: instead of them.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, ValueError) as error:
        lacks = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is damaged, or of another version: {lacks}") from error
