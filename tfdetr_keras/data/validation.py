"""Validation of data on entry: data that cannot be used is an error that names it, or is left out and counted."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]

EMPTY_BOX = "boxes without area inside their image"
WITHOUT_BOXES = "sets of which no box is left"
MANY = 1000  # objects; where of so many none can be used, nothing better is to be expected


class Tally:
    """A count of what a reader left out, or kept but noticed, by kind, each thing once however often it is read.

    A reader's dataset carries its tally as `dataset.tally`. Files that are looked at only while the dataset is read are
    counted only then.
    """

    def __init__(self) -> None:
        self._found: dict[str, dict[str, None]] = {}
        self._left_out: set[str] = set()
        self._lock = threading.Lock()

    def add(self, kind: str, description: str, left_out: bool = False) -> bool:
        """Count one thing, which is kept unless said otherwise; return whether it is the first of its kind."""
        with self._lock:
            first = kind not in self._found
            self._found.setdefault(kind, {})[description] = None
            if left_out:
                self._left_out.add(kind)
        return first

    def counts(self) -> dict[str, int]:
        """Return kind -> how many, both of what was left out and of what was noticed."""
        with self._lock:
            return {kind: len(found) for kind, found in self._found.items()}

    def left_out(self) -> dict[str, list[str]]:
        """Return kind -> descriptions of what was left out."""
        with self._lock:
            return {kind: list(found) for kind, found in self._found.items() if kind in self._left_out}

    def noticed(self) -> dict[str, list[str]]:
        """Return kind -> descriptions of what was kept, but may be worth a look."""
        with self._lock:
            return {kind: list(found) for kind, found in self._found.items() if kind not in self._left_out}

    def descriptions(self, kind: str) -> list[str]:
        """Return what exactly was found, file by file or row by row."""
        with self._lock:
            return list(self._found.get(kind, ()))

    def __repr__(self) -> str:
        """Return how much was left out and noticed; `str` says what."""
        left_out, noticed = (sum(map(len, found().values())) for found in (self.left_out, self.noticed))
        return f"<Tally: {left_out} left out, {noticed} noticed>"

    def __str__(self) -> str:
        left_out, noticed = map(_lines, (self.left_out(), self.noticed()))
        return "\n".join([*(left_out or ["nothing left out"]), *(f"noticed {line}" for line in noticed)])


class Validation:
    """Handling of faulty data: `"raise"` a ValueError, or `"skip"` it and count it in the tally."""

    def __init__(self, on_error: OnError = "raise") -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error must be "raise" or "skip", not {on_error!r}')
        self.on_error = on_error
        self.tally = Tally()
        self._lock = threading.Lock()
        self.objects = self.objects_kept = 0  # that came to `admit_boxes`, again each time they are read

    def refuse(self, kind: str, description: str, remedy: str = "") -> None:
        """Raise for one faulty thing, or leave it out.

        Args:
            kind: of fault, in the plural, under which it is counted.
            description: the file, image or row, and what is wrong with it.
            remedy: what to do about it, for the error.

        Raises:
            ValueError: if faults are errors.
        """
        if self.on_error == "raise":
            raise ValueError(f"{description}; {remedy}" if remedy else description)
        self.leave_out(kind, description)

    def leave_out(self, kind: str, description: str) -> None:
        """Count something that is left out without being an error, and log the first of its kind."""
        if self.tally.add(kind, description, left_out=True):
            logger.warning("leaving out %s, first: %s", kind, description)

    def notice(self, kind: str, description: str) -> None:
        """Count something that is kept, but may be worth a look, and log the first of its kind."""
        if self.tally.add(kind, description):
            logger.warning("noticed %s, first: %s", kind, description)

    def refuse_total_loss(self, for_training: bool = False, at_least: int = 1) -> None:
        """Raise, or count, if there were objects so far and none of them could be used.

        Otherwise a model would be trained on, or measured by, a set without a single object. A set that has no objects
        is not affected: nothing of it was lost.

        Args:
            for_training: whether it is an error even where faults are left out.
            at_least: how many objects must have been lost.

        Raises:
            ValueError: see above.
        """
        if self.objects_kept or self.objects < at_least:
            return
        examples = [found[0] for kind, found in self.tally.left_out().items() if kind != WITHOUT_BOXES]
        description = f"none of {self.objects} objects can be used" + (f", e.g. {examples[0]}" if examples else "")
        if EMPTY_BOX in self.tally.counts():
            description = (
                f"none of {self.objects} boxes has an area inside its image, e.g. "
                f"{self.tally.descriptions(EMPTY_BOX)[0]}; are relative boxes taken for pixels, or pixels for relative "
                "boxes?"
            )
        if for_training:
            raise ValueError(description)
        # Where faults are left out, each was told already; boxes outside of their image are no faults by themselves.
        if self.on_error == "raise" or (EMPTY_BOX in self.tally.counts() and WITHOUT_BOXES not in self.tally.counts()):
            self.refuse(WITHOUT_BOXES, description)

    def admit_boxes(
        self,
        boxes: np.ndarray,
        labels: np.ndarray,
        sizes: np.ndarray,
        num_classes: int | None,
        describe: Callable[[int], str],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Clip boxes to their images and tell which objects a model can be trained on.

        Boxes without area inside their image are left out and counted, as facebookresearch and Hugging Face do. A box
        that is not finite or has its corners the wrong way round, and a label that is not a class, are faults.

        Args:
            boxes: `(objects, 4)` float, xyxy, pixels.
            labels: `(objects,)` int.
            sizes: `(objects, 2)` or `(2,)`, height and width of each box's image, pixels.
            num_classes: labels must lie in 0 .. num_classes - 1; None if that is not known.
            describe: row -> "file: image, row", for messages.

        Returns:
            The clipped boxes `(objects, 4)` float32 and which objects to keep `(objects,)` bool.

        Raises:
            ValueError: a fault, where these are errors; names the first one.
        """
        with np.errstate(invalid="ignore"):  # NaN compares false
            outside = (labels < 0) | (labels >= num_classes) if num_classes is not None else labels < 0
            classes = "below 0" if num_classes is None else f"outside 0..{num_classes - 1}"
            faults = [
                (~np.isfinite(boxes).all(axis=-1), "non-finite boxes", "has a box with a non-finite coordinate"),
                ((boxes[:, 2:] < boxes[:, :2]).any(axis=-1), "inverted boxes", "has a box with x2 < x1 or y2 < y1"),
                (outside, "labels that are no class", f"has a label {classes}"),
            ]
            remedies = {"inverted boxes": "is the box format right?"}
        kept = np.ones(len(boxes), bool)
        for wrong, kind, complaint in faults:
            for row in np.flatnonzero(wrong & kept).tolist():
                description = f"{describe(row)} {complaint}: box {_listed(boxes[row])} (xyxy), label {labels[row]}"
                self.refuse(kind, description, remedies.get(kind, ""))
            kept &= ~wrong
        limits = np.asarray(sizes, np.float32)[..., [1, 0, 1, 0]]
        # float32 already here: what is checked must be what is trained on
        clipped = np.clip(np.where(kept[:, None], boxes, 0), 0, limits).astype(np.float32)
        positive = (clipped[:, 2:] > clipped[:, :2]).all(axis=-1)
        for row in np.flatnonzero(kept & ~positive).tolist():
            self.leave_out(EMPTY_BOX, f"{describe(row)} has the box {_listed(boxes[row])} (xyxy)")
        with self._lock:
            self.objects += len(boxes)
            self.objects_kept += int((kept & positive).sum())
        return clipped, kept & positive


def _lines(kinds: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"{len(found)} {kind}, e.g. {found[0]}" for kind, found in kinds.items()]


def _listed(box: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in box]
