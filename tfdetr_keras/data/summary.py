"""A summary of a data set in numbers, to read before training on it."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfdetr_keras import notebook
from tfdetr_keras.data.checks import readable_errors
from tfdetr_keras.data.record import Record, name_of, tally_of

# COCO's size classes: areas below, in pixels² of the image as it is stored.
SIZE_CLASSES = {"small": 32**2, "medium": 96**2, "large": np.inf}
MOST_CLASSES = 20  # lines that a summary's text spends on them
MOST_UNUSED = 10  # names of classes without objects
MOST_KINDS = 8  # lines on what was left out, and on what was noticed


class Spread(NamedTuple):
    """The range of numbers: smallest, median, largest."""

    smallest: int
    median: float
    largest: int


@dataclass(frozen=True, repr=False)
class Summary:
    """The content of a data set; its `str` fits on a screen.

    Attributes:
        class_names: name of each label.
        images: number of images.
        empty_images: images without an object that is a target; they may have crowds.
        objects: number of objects, crowds not counted.
        crowds: number of groups marked as one, which are not targets.
        class_counts: objects of each label.
        most_objects: in one image.
        heights: of the images, pixels.
        widths: of the images, pixels.
        size_counts: objects by COCO's size classes, "small" (area below 32² pixels), "medium" (below 96²) and "large".
        with_masks: objects whose mask is not empty; None if records have no masks.
        left_out: what the reader left out, kind -> descriptions; None if the dataset is not a reader's.
        noticed: what it kept although it may be worth a look, likewise.
    """

    class_names: tuple[str, ...]
    images: int
    empty_images: int
    objects: int
    crowds: int
    class_counts: tuple[int, ...]
    most_objects: int
    heights: Spread
    widths: Spread
    size_counts: Mapping[str, int]
    with_masks: int | None
    left_out: Mapping[str, Sequence[str]] | None
    noticed: Mapping[str, Sequence[str]] | None

    @property
    def mean_objects(self) -> float:
        """Number of objects per image."""
        return self.objects / self.images

    def __repr__(self) -> str:
        """Return a description of the set in one line; `str` says more."""
        left_out = sum(map(len, (self.left_out or {}).values()))
        rest = f", {left_out} left out" if left_out else ""
        return f"<Summary: {self.images} images, {self.objects} objects of {len(self.class_names)} classes{rest}>"

    def _repr_html_(self) -> str:
        """Return tables of the set and of its classes, for notebooks."""
        facts = [
            ("images", f"{self.images}, {self.empty_images} of them without objects"),
            ("height", _spread(self.heights)),
            ("width", _spread(self.widths)),
            ("objects", f"{self.objects}, {self.mean_objects:.1f} per image, at most {self.most_objects}"),
            *((f"{name} objects", f"{count} ({self._share(count)})") for name, count in self.size_counts.items()),
        ]
        if self.with_masks is not None:
            facts.append(("masks", f"{self.with_masks}, {self.objects - self.with_masks} objects without one"))
        if self.crowds:
            facts.append(("crowds", f"{self.crowds}, which are no targets"))
        for title, found in (("left out", self.left_out), ("noticed", self.noticed)):
            facts += [(title, f"{len(things)} {kind}, e.g. {things[0]}") for kind, things in (found or {}).items()]
        order = np.argsort(-np.array(self.class_counts), kind="stable").tolist()
        counts = [(self.class_names[label], self.class_counts[label]) for label in order]
        return notebook.page(
            f"{self.images} images, {self.objects} objects of {len(self.class_names)} classes",
            notebook.table((), facts, most=len(facts)),
            notebook.table(("class", "objects", "share"), [(*row, self._share(row[1])) for row in counts]),
        )

    def __str__(self) -> str:
        sizes = ", ".join(f"{count} {name} ({self._share(count)})" for name, count in self.size_counts.items())
        lines = [
            f"images    {self.images}, {self.empty_images} of them without objects",
            f"height    {_spread(self.heights)}",
            f"width     {_spread(self.widths)}",
            f"objects   {self.objects}, {self.mean_objects:.1f} per image, at most {self.most_objects}",
            f"          {sizes}",
        ]
        if self.with_masks is not None:
            lines.append(f"masks     {self.with_masks}, {self.objects - self.with_masks} objects without one")
        lines += [f"crowds    {self.crowds}, which are no targets"] if self.crowds else []
        return "\n".join(lines + self._class_lines() + self._tally_lines())

    def _share(self, count: int) -> str:
        return f"{count / max(self.objects, 1):.0%}"

    def _class_lines(self) -> list[str]:
        counts = np.array(self.class_counts)
        order = np.argsort(-counts, kind="stable")
        used, unused = order[counts[order] > 0].tolist(), order[counts[order] == 0].tolist()
        lines = [f"classes   {len(counts)}, {len(used)} of them with objects"]
        # One more than allowed is rather shown than summed up.
        shown = used if len(used) <= MOST_CLASSES + 1 else used[:MOST_CLASSES]
        width = max((len(self.class_names[label]) for label in shown), default=0)
        digits = len(str(max(self.class_counts, default=0)))
        for label in shown:
            count = self.class_counts[label]
            lines.append(f"          {self.class_names[label]:{width}}  {count:{digits}}  {self._share(count):>4}")
        if rest := used[len(shown) :]:
            lines.append(f"          {len(rest)} more  {counts[rest].sum()}  {self._share(counts[rest].sum())}")
        if unused:
            names = ", ".join(self.class_names[label] for label in unused[:MOST_UNUSED])
            more = f" and {len(unused) - MOST_UNUSED} more" if len(unused) > MOST_UNUSED else ""
            lines.append(f"          without objects: {names}{more}")
        return lines

    def _tally_lines(self) -> list[str]:
        if self.left_out is None:
            return []
        lines: list[str] = []
        for title, found in (("left out", self.left_out), ("noticed", self.noticed or {})):
            kinds = [f"{len(things)} {kind}, e.g. {things[0]}" for kind, things in found.items()]
            if len(kinds) > MOST_KINDS + 1:
                kinds[MOST_KINDS:] = [f"{len(kinds) - MOST_KINDS} more kinds"]
            kinds = kinds or (["nothing"] if title == "left out" else [])
            lines += [f"{'' if place else title:10}{kind}" for place, kind in enumerate(kinds)]
        return lines


def summarize(
    dataset: tf.data.Dataset, class_names: Sequence[str], progress: Callable[[int], None] | None = None
) -> Summary:
    """Count what is in a data set, in one pass that holds no image in memory.

    Images are decoded on the way, so that one that cannot be read is found, too.

    Args:
        dataset: of records (see `tfdetr_keras.data.record`), best as the reader returned it, so that its tally is
            reported.
        class_names: name of each label.
        progress: called after each image with the number of images so far.

    Raises:
        ValueError: no records, a label without a name, or a fault of the data where the reader makes it an error.
    """
    counts, sizes = np.zeros(len(class_names), np.int64), array("i")
    objects_per_image, small_to_large = array("i"), np.zeros(len(SIZE_CLASSES), np.int64)
    crowds, has_masks, with_masks = 0, "masks" in dataset.element_spec, 0
    with readable_errors():
        for record in dataset.map(_without_pixels).as_numpy_iterator():
            single = ~record["iscrowd"]
            labels, areas = record["labels"][single], record["area"][single]
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(counts):
                raise ValueError(
                    f"{name_of(dataset, record['image_id'])} has a label outside 0..{len(counts) - 1}: class_names "
                    "must name all"
                )
            counts += np.bincount(labels, minlength=len(counts))
            small_to_large += np.bincount(_size_class(areas), minlength=len(SIZE_CLASSES))
            sizes.extend(record["orig_size"].tolist())
            objects_per_image.append(len(labels))
            crowds += int((~single).sum())
            with_masks += int(record["has_mask"][single].sum()) if has_masks else 0
            if progress is not None:
                progress(len(objects_per_image))
    tally = tally_of(dataset)
    if not objects_per_image:
        raise ValueError(f"the set is empty: it has no record that could be read ({tally or 'nothing left out'})")
    heights_and_widths = np.array(sizes).reshape(-1, 2)
    return Summary(
        class_names=tuple(class_names),
        images=len(objects_per_image),
        empty_images=objects_per_image.count(0),
        objects=int(counts.sum()),
        crowds=crowds,
        class_counts=tuple(counts.tolist()),
        most_objects=max(objects_per_image),
        heights=_spread_of(heights_and_widths[:, 0]),
        widths=_spread_of(heights_and_widths[:, 1]),
        size_counts=dict(zip(SIZE_CLASSES, small_to_large.tolist(), strict=True)),
        with_masks=with_masks if has_masks else None,
        left_out=None if tally is None else tally.left_out(),
        noticed=None if tally is None else tally.noticed(),
    )


def _without_pixels(record: Record) -> Record:
    """Return what is counted of a record, so that images and masks are not even handed over to Python."""
    counted = {key: record[key] for key in ("image_id", "orig_size", "labels", "iscrowd", "area")}
    return counted | ({"has_mask": tf.reduce_any(record["masks"], axis=(1, 2))} if "masks" in record else {})


def _size_class(areas: np.ndarray) -> np.ndarray:
    return np.searchsorted(list(SIZE_CLASSES.values()), areas, side="right")


def _spread_of(values: np.ndarray) -> Spread:
    return Spread(int(values.min()), float(np.median(values)), int(values.max()))


def _spread(spread: Spread) -> str:
    return f"{spread.smallest} .. {spread.largest} pixels, median {spread.median:g}"
