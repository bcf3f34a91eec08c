"""Class names that files and tables can hold: on one line, without blanks at their ends, and all different.

Names are written one a line into `class_names.txt`, into the cells of tables, and into dicts of AP by class. A name
that breaks a line, or that two classes share, would shift or hide others there.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from tfdetr_keras.data.validation import Tally

UNUSED_NAME = "N/A"  # the class name of a number that COCO does not use; as many as there are gaps
RENAMED = "class names that were changed"
# Whatever `str.splitlines` takes for the end of a line, and tabs, with the blanks around.
_BREAK = re.compile(r"\s*[\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]\s*")
_FORBIDDEN = {"Cc": "a control character", "Cs": "half of a surrogate pair"}


def tidy_name(name: str) -> str:
    """Put a name on one line: replace a line break or tab by one blank, and remove blanks at the ends."""
    return _BREAK.sub(" ", name).strip()


def tidy_names(names: Iterable[str], source: object = "class_names") -> list[str]:
    """Make class names fit for files and tables (see the module); names that are fit stay as they are.

    If several classes share a name, the first keeps it and the others get a number: "car", "car (2)".

    Args:
        names: of each label.
        source: where they come from, for messages.

    Returns:
        As many names, all different except "N/A".

    Raises:
        ValueError: a name that is not text, is empty, or has control characters.
    """
    tidy: list[str] = []
    names = list(names)
    for label, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f"{source}: the name of class {label} is {name!r}, not a text: put it in quotes")
        tidied = tidy_name(name)
        if not tidied:
            raise ValueError(f"{source}: the name of class {label}, {name!r}, is empty: give it a name")
        for character in tidied:
            if complaint := _FORBIDDEN.get(unicodedata.category(character)):
                raise ValueError(f"{source}: the name of class {label}, {name!r}, has {complaint}: remove it")
        tidy.append(tidied)
    return distinct_names(tidy)


def distinct_names(names: Sequence[str]) -> list[str]:
    """Number the names that several classes share, except the first of each: "car", "car (2)"."""
    given, taken, distinct = set(names), set(), []
    for name in names:
        found, number = name, 1
        while found in taken and found != UNUSED_NAME:
            number += 1
            numbered = f"{name} ({number})"
            found = numbered if numbered not in given else found
        taken.add(found)
        distinct.append(found)
    return distinct


def note_renamed(before: Sequence[str], after: Sequence[str], source: object, tally: Tally) -> None:
    """Count the names that `tidy_names` changed by more than blanks at their ends."""
    for label, (name, tidied) in enumerate(zip(before, after, strict=True)):
        if name.strip() != tidied:
            tally.add(RENAMED, f"{source}: class {label}, {name!r}, is called {tidied!r}")
