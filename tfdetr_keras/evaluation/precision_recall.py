"""Precision and recall of each class by the score from which a detection counts, and the score of the highest F1."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tfdetr_keras.evaluation.coco_scorer import Scored

MATCHED = 0.5  # IoU from which a detection has found an object
_MOST_DIGITS = 17


class Curve(NamedTuple):
    """What would be found of a class if only detections from a score on counted; highest score first.

    Attributes:
        objects: how many there are, crowds left away.
        scores: that its detections have, `(scores,)`, each once.
        precision: share of right ones among the detections of that score or a higher one.
        recall: share of the objects that these have found.
        f1: harmonic mean of both.
    """

    objects: int
    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def best(self) -> int | None:
        """Return the place of the highest F1, of several the highest score; None where nothing is found.

        No threshold leaves detections with a score of 0 above it.
        """
        f1 = self.f1[self.scores > 0]
        return int(f1.argmax()) if len(f1) and f1.max() > 0 else None

    def best_threshold(self) -> float | None:
        """Return the shortest number that leaves the detections of the highest F1, and no others, above it."""
        place = self.best()
        if place is None:
            return None
        lower = self.scores[place + 1] if place + 1 < len(self.scores) else 0.0
        return _between(float(lower), float(self.scores[place]))


def curves(scored: Scored, num_classes: int) -> list[Curve]:
    """Return each class's curve, at an IoU of 0.5; detections within crowds count neither way.

    Args:
        scored: of a set.
        num_classes: labels are below it.
    """
    right = verdicts(scored)
    singles = ~scored.truth.is_crowd
    found = []
    for label in range(num_classes):
        objects = int((singles & (scored.truth.labels == label)).sum())
        own = (scored.found.labels == label) & (right >= 0)
        found.append(_curve(scored.found.scores[own], right[own] == 1, objects))
    return found


def verdicts(scored: Scored) -> np.ndarray:
    """Return of each detection whether it found an object at an IoU of 0.5: 1 or 0; -1 where it does not count."""
    told: dict[int, Any] = scored.scorer.image_diagnostics(iou_thr=MATCHED)["dt_status"]
    right = np.full(len(scored.found.labels), -1)
    rows = np.fromiter(told, np.int64, len(told)) - 1
    right[rows] = np.fromiter((status == "tp" for status in told.values()), np.int64, len(told))
    return right


def _curve(scores: np.ndarray, right: np.ndarray, objects: int) -> Curve:
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], right[order]
    last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]  # of those that have the same score
    hits, counted = np.cumsum(right)[last], np.arange(1, 1 + len(scores))[last]
    precision = hits / np.maximum(counted, 1)
    recall = hits / max(objects, 1)
    f1 = 2 * hits / np.maximum(counted + objects, 1)
    return Curve(objects, scores[last], precision, recall, f1)


def _between(lower: float, upper: float) -> float:
    """Return the number of the fewest digits in [lower, upper)."""
    middle = (lower + upper) / 2
    for digits in range(1, _MOST_DIGITS):
        if lower <= (short := round(middle, digits)) < upper:
            return short
    return lower
