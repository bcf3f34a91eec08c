"""Names of classes: the forms in which they are given, and when two of them, or none, mean a class."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ClassNames = Mapping[int, str] | Mapping[str, str] | Sequence[str]

_FORMS = "give a mapping {0: name, 1: name, …}, or a list of the names in the order of their ids"
# What frameworks call a class that nobody named, by its id, and the gaps among COCO's ids.
_NUMBERED = re.compile(r"(?:label|class|category|cls)[ _-]?(\d+)", re.IGNORECASE)
_PLACEHOLDERS = ("", "n/a", "na", "none", "null", "unknown")
# Between letters a space, an underscore and a hyphen are ways of writing one name; beside a digit one may be a minus.
_BETWEEN_LETTERS = re.compile(r"(?<=[^\W\d_])[\s_-]+(?=[^\W\d_])")
# Classes that COCO and Pascal VOC call otherwise: published weights of COCO have names of either.
_OF_COCO = {"aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv"}
_SPACES = re.compile(r"[\s_]+")


def names_by_id(id2label: Any) -> dict[int, str]:
    """Return the names of classes as a mapping, in the order of the ids, from any form in which people have them.

    Args:
        id2label: a mapping of ids (ints, or texts as JSON has them) to names, or the names in the order of their ids.

    Raises:
        ValueError: it is neither; an id is no whole number or occurs twice; or a name is no text.
    """
    if isinstance(id2label, Mapping):
        pairs = [(_whole_number(key), name) for key, name in id2label.items()]
    elif isinstance(id2label, Iterable) and not isinstance(id2label, str | bytes | set | frozenset):
        pairs = list(enumerate(id2label))
    else:
        raise ValueError(f"id2label must not be {_article(id2label)}: {_FORMS}")
    names: dict[int, str] = {}
    for index, name in pairs:
        if index in names:
            raise ValueError(f"id2label names the id {index} twice, as {names[index]!r} and as {name!r}: {_FORMS}")
        if isinstance(name, bytes | bool) or not isinstance(name, str | int | float):
            raise ValueError(f"id2label names the id {index} {name!r}, which is {_article(name)}, not a text: {_FORMS}")
        names[index] = str(name)
    return {index: names[index] for index in sorted(names)}


def is_generic(name: str, index: int) -> bool:
    """Whether the name of the class `index` says nothing about it: `LABEL_3` of the class 3, or `N/A`."""
    numbered = _NUMBERED.fullmatch(name.strip())
    return name.strip().casefold() in _PLACEHOLDERS or (numbered is not None and int(numbered[1]) == index)


def spelling_of(name: str) -> str:
    """Return a name without what people write in several ways: case, and what stands between words."""
    name = unicodedata.normalize("NFKC", name).strip().casefold()
    return _SPACES.sub(" ", _BETWEEN_LETTERS.sub("", name))


def meaning_of(name: str) -> str:
    """Return the spelling of a name, and COCO's of what Pascal VOC calls otherwise: a sofa is a couch."""
    spelling = spelling_of(name)
    return _OF_COCO.get(spelling, spelling)


def _whole_number(key: Any) -> int:
    try:
        number = int(key)
        if isinstance(key, bool) or (not isinstance(key, str) and number != key):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"id2label has the id {key!r}, which is not a whole number: {_FORMS}") from None
    return number


def _article(value: Any) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
