"""Rows of class heads, and of the embeddings of denoising, that a model of other classes takes over: by their names."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from tfdetr_keras.names.classes import is_generic, meaning_of, spelling_of

SHOWN = 12  # names in one list of a log line; beyond, a count stands for the rest


@dataclasses.dataclass(frozen=True)
class ClassRows:
    """Which rows of a checkpoint's class head the new head keeps.

    Args:
        sources: of each new class, the checkpoint's class whose row it takes; None where its row is drawn anew.
        no_object: whether the row of "no object" is kept, where the head has one.
        reason: why: by their names; because all was kept as it is; because the checkpoint's classes have no names; or
            as `keep_head` said.
        known: the checkpoint's names.
        wanted: the new names.
    """

    sources: tuple[int | None, ...]
    no_object: bool
    reason: Literal["name", "same", "nameless", "keep_head=True", "keep_head=False"]
    known: tuple[str, ...]
    wanted: tuple[str, ...]

    @property
    def fresh(self) -> list[str]:
        """Names of the classes whose rows are drawn anew."""
        return [name for name, source in zip(self.wanted, self.sources, strict=True) if source is None]

    @property
    def are_all(self) -> bool:
        """Whether the whole head stays as it is, whatever its classes are called."""
        return self.no_object and self.sources == tuple(range(len(self.known)))

    def of_weights(self, weights: Sequence[float]) -> tuple[float, ...]:
        """Return the weight of each new class from the checkpoint's: 1 for a class that it does not know."""
        return tuple(1.0 if source is None else weights[source] for source in self.sources)

    def story(self) -> str | None:
        """Return a sentence on what was kept of which class; None where nothing changed."""
        if self.are_all and self.wanted == self.known:
            return None
        pairs = [
            (name, self.known[source])
            for name, source in zip(self.wanted, self.sources, strict=True)
            if source is not None
        ]
        if self.reason == "keep_head=True":
            renamed = [f"{old} is now {new}" for new, old in pairs if new != old]
            return f"class head: all {len(pairs)} rows kept by position, as keep_head=True says: {_listed(renamed)}"
        if self.reason == "keep_head=False":
            return f"new class head: all {len(self.wanted)} classes drawn anew, as keep_head=False says"
        if self.reason == "nameless":
            return (
                f"class head: the checkpoint has no names for its {len(pairs)} classes, so their rows were kept in "
                f"order, now called {_listed(self.wanted)}; keep_head=False draws them anew"
            )
        left_out = [name for index, name in enumerate(self.known) if index not in self.sources]
        if not pairs:
            count = f"{len(self.wanted)} classes instead of the checkpoint's {len(self.known)}"
            if len(self.wanted) == len(self.known):
                count = f"none of the checkpoint's {len(self.known)} classes has its name"
            return f"new class head: {count}; drawn anew: {_listed(self.fresh)}; left out: {_listed(left_out)}"
        kept = [new if new == old else f"{new} (there {old})" for new, old in pairs]
        parts = [
            f"kept by name: {_listed(kept) if len(kept) <= SHOWN else f'{len(kept)} classes'}",
            *([f"drawn anew: {_listed(self.fresh)}"] if self.fresh else []),
            *([f"left out: {_listed(left_out)}"] if left_out else []),
        ]
        return f"class head: {'; '.join(parts)}"


def match_rows(
    known: Mapping[int, str], wanted: Mapping[int, str], are_named: bool, keep_head: bool | None = None
) -> ClassRows:
    """Choose the rows that a new class head keeps.

    A name is looked for as it is written, then without regard to case and to what stands between its words, then under
    the other name that COCO or Pascal VOC has for the class. Where the
    checkpoint's classes have no names of their own (`class_0`, `LABEL_0`, `N/A`) and are as many, the caller is taken
    to name them, and all rows stay.

    Args:
        known: the checkpoint's names by id, 0 … n − 1.
        wanted: the new names by id.
        are_named: whether the caller gave the new names; without, the classes are the checkpoint's own if they are as
            many, and others if not.
        keep_head: True keeps all rows by position, False none.

    Raises:
        ValueError: `keep_head` is neither True, False nor None, or is True for another number of classes.
    """
    old, new = tuple(known.values()), tuple(wanted.values())
    same = tuple(range(len(old)))
    if keep_head not in (None, True, False):
        raise ValueError(f"keep_head must be True, False or None, not {keep_head!r}")
    if keep_head and len(old) != len(new):
        raise ValueError(
            f"keep_head=True keeps the class head as it is, of {len(old)} classes, and {len(new)} are asked for: leave "
            "keep_head out to keep the classes of the same names"
        )
    if keep_head is not None:
        return ClassRows(
            same if keep_head else (None,) * len(new),
            keep_head,
            "keep_head=True" if keep_head else "keep_head=False",
            old,
            new,
        )
    if old == new or (not are_named and len(old) == len(new)):
        return ClassRows(same, True, "same", old, new)
    sources = _by_name(old, new) if are_named else (None,) * len(new)
    nameless = all(is_generic(name, index) for index, name in enumerate(old))
    if are_named and nameless and len(old) == len(new) and set(sources) == {None}:
        return ClassRows(same, True, "nameless", old, new)
    return ClassRows(sources, True, "name", old, new)


def _by_name(old: Sequence[str], new: Sequence[str]) -> tuple[int | None, ...]:
    """Pair each new class with an old one of its name; of several of one name with that of its own id, or the next."""
    sources: list[int | None] = [None] * len(new)
    written: tuple[Callable[[str], Any], ...] = (str, spelling_of, meaning_of)
    for key in written:
        free = defaultdict(list)
        for index, name in enumerate(old):
            if index not in sources:
                free[key(name)].append(index)
        left = [index for index, source in enumerate(sources) if source is None]
        for index in left:
            if index in (places := free[key(new[index])]):
                places.remove(index)
                sources[index] = index
        for index in left:
            if sources[index] is None and (places := free[key(new[index])]):
                sources[index] = places.pop(0)
    return tuple(sources)


def _listed(names: Sequence[str]) -> str:
    if len(names) <= SHOWN:
        return ", ".join(names) or "none"
    return f"{', '.join(names[:SHOWN])} and {len(names) - SHOWN} more"
