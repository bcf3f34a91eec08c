"""Quality of panoptic segmentations: panoptic quality, PQ, as COCO's evaluation computes it.

For each class, with the matches (true positives, TP) of true and predicted segments whose IoU exceeds 0.5,

    PQ = Σ IoU / (TP + FP / 2 + FN / 2) = SQ · RQ,    SQ = Σ IoU / TP,    RQ = TP / (TP + FP / 2 + FN / 2).

Source: Kirillov et al. 2019, "Panoptic Segmentation", arXiv:1801.00868, section 4; `panopticapi`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from tfdetr_keras.data.class_names import UNUSED_NAME, distinct_names
from tfdetr_keras.evaluation.panoptic_results import NumberedSegments, number_segments


def panoptic_quality(
    ground_truth: Iterable[Mapping[str, Any]],
    predictions: Iterable[Mapping[str, Any]],
    class_names: Sequence[str],
    things: Sequence[bool],
) -> dict[str, Any]:
    """Compute panoptic quality over a set of images, of which only one is held at a time.

    Args:
        ground_truth: per image `{"segmentation": (height, width) int, "segments_info": [{"id": int, "label_id": int,
            "iscrowd": bool}, …]}`, see `panoptic_truth`; `iscrowd` may be missing. Ids are from 1; pixels of 0 and
            below belong to no segment (void).
        predictions: of the same images in the same order, likewise, as `tfdetr_keras.inference.segments` makes them.
            Where both have an `image_id`, it must be the same.
        class_names: name of each label; "N/A" for a label that is not in use, which counts in no mean.
        things: for each label, whether it is a thing, see `td.data.coco_things`; the others are stuff.

    Returns:
        See `PanopticQuality.result`.

    Raises:
        ValueError: more images on one side, or as `PanopticQuality.add`.
    """
    quality = PanopticQuality(class_names, things)
    for truth, found in zip_longest(ground_truth, predictions):
        if truth is None or found is None:
            fewer, more = ("ground truth", "predictions") if truth is None else ("predictions", "ground truth")
            raise ValueError(f"{more}: there are more images than in the {fewer}")
        quality.add(truth, found)
    return quality.result()


class PanopticQuality:
    """Panoptic quality, image by image: `add` each, then `result()`.

    A true and a predicted segment of one class match where their IoU exceeds 0.5, without the predicted segment's
    pixels that are void in the ground truth. A true segment without a match is a false negative, except crowds. A
    predicted one is a false positive, unless more than half of it is void or in the crowd of its class. As in
    `panopticapi`, if a class has several crowds in one image, the last one listed counts.

    Args:
        class_names: name of each label; "N/A" for a label that is not in use.
        things: of each label, whether it is a thing; the others are stuff.

    Attributes:
        sums: `(classes, 4)` float64: the sum of the matches' IoU, and the numbers of matches, false positives and false
            negatives. Those of several processes can be added up.
    """

    def __init__(self, class_names: Sequence[str], things: Sequence[bool]) -> None:
        if len(class_names) != len(things):
            raise ValueError(f"there are {len(class_names)} class names, but things has {len(things)} values")
        self.class_names = list(class_names)
        self.things = np.array(things, bool)
        self.sums = np.zeros((len(class_names), 4))

    def add(self, truth: Mapping[str, Any], prediction: Mapping[str, Any]) -> None:
        """Count the segments of one image.

        Args:
            truth: see `panoptic_quality`.
            prediction: see `panoptic_quality`.

        Raises:
            ValueError: two image ids or sizes; a faulty segmentation, see `number_segments`.
        """
        true_id, found_id = truth.get("image_id"), prediction.get("image_id")
        if true_id is not None and found_id is not None and int(true_id) != int(found_id):
            raise ValueError(f"the ground truth is of image {true_id}, but the prediction of image {found_id}")
        true = number_segments(truth, "ground truth", len(self.class_names))
        found = number_segments(prediction, "predictions", len(self.class_names))
        if true.numbers.shape != found.numbers.shape:
            name = "the image" if true_id is None else f"image {true_id}"
            raise ValueError(
                f"{name} has {_size(true)} pixels in the ground truth (height x width), but {_size(found)} in the "
                "predictions"
            )
        columns = len(found.ids) + 1
        pairs = true.numbers * columns + found.numbers
        overlaps = np.bincount(pairs.ravel(), minlength=(len(true.ids) + 1) * columns).reshape(-1, columns)
        overlaps, in_void = overlaps[1:, 1:], overlaps[0, 1:]
        unions = true.areas[:, None] + found.areas - in_void - overlaps
        matches = (true.labels[:, None] == found.labels) & ~true.iscrowd[:, None] & (2 * overlaps > unions)
        ignored = in_void.copy()
        crowds = {int(true.labels[row]): row for row in np.flatnonzero(true.iscrowd)}
        for label, row in crowds.items():
            ignored[found.labels == label] += overlaps[row, found.labels == label]
        excess = ~matches.any(axis=0) & (2 * ignored <= found.areas)
        missed = ~matches.any(axis=1) & ~true.iscrowd
        matched = true.labels[np.nonzero(matches)[0]]
        np.add.at(self.sums[:, 0], matched, overlaps[matches] / unions[matches])
        for column, labels in enumerate((matched, found.labels[excess], true.labels[missed]), start=1):
            self.sums[:, column] += np.bincount(labels, minlength=len(self.sums))

    def result(self) -> dict[str, Any]:
        """Return panoptic quality over what was added so far.

        Returns:
            `{"PQ", "SQ", "RQ"}` in [0, 1], means over the classes with a segment that counts; the same with `_things`
            and `_stuff` over these classes alone; and `"per_class"`, a dict from class name to its `{"PQ", "SQ",
            "RQ"}`. −1 where there is no such class or segment.
        """
        ious, matches, excess, missed = self.sums.T
        with np.errstate(invalid="ignore"):
            recognition = matches / (matches + excess / 2 + missed / 2)
            segmentation = np.where(matches > 0, ious / matches, 0)
        values = np.stack([segmentation * recognition, segmentation, recognition], axis=1)
        named = np.array([name != UNUSED_NAME for name in self.class_names], bool)
        counts = named & (matches + excess + missed > 0)
        result: dict[str, Any] = {}
        for ending, part in (("", counts), ("_things", counts & self.things), ("_stuff", counts & ~self.things)):
            result |= _named(values[part].mean(axis=0) if part.any() else np.full(3, -1.0), ending)
        names = distinct_names(self.class_names)
        result["per_class"] = {
            names[label]: _named(values[label] if counts[label] else np.full(3, -1.0))
            for label in np.flatnonzero(named).tolist()
        }
        return result


def _named(values: np.ndarray, ending: str = "") -> dict[str, float]:
    return dict(zip((f"PQ{ending}", f"SQ{ending}", f"RQ{ending}"), values.tolist(), strict=True))


def _size(segments: NumberedSegments) -> str:
    return " x ".join(map(str, segments.numbers.shape))
