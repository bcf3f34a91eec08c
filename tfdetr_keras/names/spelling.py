"""Names that were mistyped: which one may be meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

ALIKE = 0.6  # of difflib's ratio, its default


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean X?" to end a message with, or nothing where no name is near.

    Args:
        name: that was typed.
        names: that there are.
    """
    by_lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=ALIKE)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""
