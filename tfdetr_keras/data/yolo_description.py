"""Reader of the YAML file that describes a YOLO set, as text: nothing in it is constructed, guessed at or expanded.

YAML 1.1 takes `no` and `off` for truth values, `010` for eight and `12:30` for a number of minutes. Class names are
kept as they were written.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tfdetr_keras.data.files import read_text

DEEPEST = 20  # lists within lists; a description has two
MOST_BYTES = 10_000_000  # of a file; the names of 100,000 classes take a fifth
_NOTHING = {"", "~", "null", "Null", "NULL"}
_LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # the same in C, where PyYAML was built with it


def read_description(folder: Path) -> tuple[dict[str, Any], Path | None]:
    """Read a set's YAML file.

    Args:
        folder: of the set; its `data.yaml` is read, or its only YAML file.

    Returns:
        The content and the file; an empty dict and None if there is no file. Scalars are text as it is written. `names`
        is a list; `kpt_shape`, a list of two numbers, and the places of splits are left out where they are empty.

    Raises:
        ValueError: a file that is not YAML or not a mapping, that has aliases, lists within lists 20 deep, or 10 MB;
            names that are not numbered from 0 on; another `kpt_shape`.
    """
    files = sorted(folder.glob("*.yaml")) + sorted(folder.glob("*.yml"))
    file = next((file for file in files if file.stem == "data"), files[0] if len(files) == 1 else None)
    if file is None:
        return {}, None
    content = _parsed(read_text(file), file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} does not describe a set: it has no names")
    content = {key: value for key, value in content.items() if key == "names" or not _is_nothing(value)}
    if "names" in content:
        content["names"] = _names(content["names"], file)
    if "kpt_shape" in content:
        content["kpt_shape"] = _keypoint_shape(content["kpt_shape"], file)
    return content, file


def _parsed(text: str, file: Path) -> Any:
    if len(text) > MOST_BYTES:
        raise ValueError(
            f"{file} has {len(text)} characters, too many for the description of a set: is it the right file?"
        )
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_LOADER):  # which neither composes nor recurses
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(
                    f"{file} has more than {DEEPEST} lists or mappings within one another: does it describe a set?"
                )
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"{file} has the alias *{event.anchor}: write out what it stands for")
        node = yaml.compose(text, Loader=_LOADER)
    except (yaml.YAMLError, OverflowError) as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from None
    except ValueError as error:  # also of an escape that is no character
        message = str(error)
        raise ValueError(message if message.startswith(str(file)) else f"{file} is not valid YAML: {error}") from None
    return _as_text(node, file)


def _as_text(node: yaml.Node | None, file: Path) -> Any:
    """Return the lists, dicts and texts of a node, whatever its tags say."""
    if isinstance(node, yaml.SequenceNode):
        return [_as_text(child, file) for child in node.value]
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"{file} has a key that is a list or mapping, not a text")
            if key.value in found:
                raise ValueError(f"{file} has the key {key.value!r} twice: remove one of them")
            found[key.value] = _as_text(value, file)
        return found
    return node.value if isinstance(node, yaml.ScalarNode) else None


def _is_nothing(value: Any) -> bool:
    return isinstance(value, str) and value in _NOTHING


def _names(names: Any, file: Path) -> list[str]:
    """Return the names in their order; an empty list if the entry is of another kind."""
    if isinstance(names, dict):
        numbers = [int(key) if re.fullmatch("[0-9]{1,9}", key) else -1 for key in names]
        if sorted(numbers) != list(range(len(names))):
            raise ValueError(f"{file}: the names must be numbered 0 .. {len(names) - 1}, not {_few(list(names))}")
        names = [name for _, name in sorted(zip(numbers, names.values(), strict=True), key=lambda pair: pair[0])]
    if not isinstance(names, list):
        return []
    for label, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f"{file}: the name of class {label} is {_few(name)}, not a text: put it in quotes")
    return names


def _few(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]} …"


def _keypoint_shape(shape: Any, file: Path) -> list[int]:
    match shape:
        case [str(count), "2" | "3" as size] if re.fullmatch("[0-9]{1,6}", count) and int(count) > 0:
            return [int(count), int(size)]
    raise ValueError(f"{file}: kpt_shape must be [number of keypoints, 2 or 3], not {_few(shape)}")
