"""The inputs that the benchmarks share: targets, and predictions as DETR makes them at different times of its training.

Drawn with NumPy from a fixed seed, so that every process that asks for a load gets the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

QUERIES, CLASSES = 100, 91
COST_CLASS, COST_BBOX, COST_GIOU = 1.0, 5.0, 2.0  # DETR, appendix A.4
NOISE_OF_A_TRAINED_MODEL = 0.01  # of its boxes, in units of the image
NOISE_OF_A_FRESH_MODEL = 1e-3


class Scenes(NamedTuple):
    """Targets of some images and the predictions for them, of one or more decoder layers."""

    counts: np.ndarray  # (images,) int: how many of the targets are real; the others are padding
    labels: np.ndarray  # (images, targets) int32, −1 = padding
    boxes: np.ndarray  # (images, targets, 4) float32 cxcywh, 0 = padding
    probabilities: np.ndarray  # (images, layers, queries, classes + 1) float32, last = no object
    pred_boxes: np.ndarray  # (images, layers, queries, 4) float32 cxcywh


def _spread(rng: np.random.Generator, labels: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In mid-training: sure of itself, but not where the targets are."""
    return rng.dirichlet(np.full(CLASSES + 1, 0.05), QUERIES), _random_boxes(rng, QUERIES)


def _alike(rng: np.random.Generator, labels: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Early: all queries predict nearly the same box and know nothing of the class."""
    probabilities = rng.dirichlet(np.full(CLASSES + 1, 50.0), QUERIES)
    return probabilities, np.array([0.5, 0.5, 0.3, 0.3]) + rng.normal(0, NOISE_OF_A_FRESH_MODEL, (QUERIES, 4))


def _near(rng: np.random.Generator, labels: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Late: every target has a query that predicts it, the other queries are spread."""
    probabilities, predicted = _spread(rng, labels, boxes)
    own = rng.permutation(QUERIES)[: len(labels)]
    probabilities[own] *= 0.1
    probabilities[own, labels] += 0.9
    predicted[own] = np.clip(boxes + rng.normal(0, NOISE_OF_A_TRAINED_MODEL, boxes.shape), 0.01, 0.99)
    return probabilities, predicted


class _Load(NamedTuple):
    fewest: int
    most: int
    predict: Callable[[np.random.Generator, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


LOADS = {
    "COCO-like": _Load(0, 25, _spread),
    "crowded": _Load(60, 100, _spread),
    "early training": _Load(0, 25, _alike),
    "late training": _Load(0, 25, _near),
}


def draw_scenes(load: str, images: int, layers: int = 1, seed: int = 0) -> Scenes:
    """Draws targets and predictions.

    Args:
        load: a name in `LOADS`.
        images: number of images.
        layers: number of decoder layers, each with predictions of its own for the same targets.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)
    fewest, most, predict = LOADS[load]
    counts = rng.integers(fewest, most + 1, images)
    labels, boxes = np.full((images, most), -1, np.int32), np.zeros((images, most, 4), np.float32)
    probabilities = np.zeros((images, layers, QUERIES, CLASSES + 1), np.float32)
    pred_boxes = np.zeros((images, layers, QUERIES, 4), np.float32)
    for image, count in enumerate(counts):
        labels[image, :count] = rng.integers(0, CLASSES, count)
        boxes[image, :count] = _random_boxes(rng, count)
        for layer in range(layers):
            probabilities[image, layer], pred_boxes[image, layer] = predict(
                rng, labels[image, :count], boxes[image, :count]
            )
    return Scenes(counts, labels, boxes, probabilities, pred_boxes)


def draw_costs(load: str, problems: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draws matching problems.

    Returns:
        Costs `(problems, targets, queries)` float32, and how many targets of each problem are real `(problems,)`.
    """
    scenes = draw_scenes(load, problems, seed=seed)
    true, predicted = scenes.boxes[:, :, None], scenes.pred_boxes[:, 0, None]
    class_of_target = np.maximum(scenes.labels, 0)[:, None, :]
    probability = np.take_along_axis(scenes.probabilities[:, 0], class_of_target, axis=2).transpose(0, 2, 1)
    l1 = np.abs(true - predicted).sum(-1)
    cost = COST_BBOX * l1 - COST_CLASS * probability - COST_GIOU * _generalized_iou(true, predicted)
    return cost.astype(np.float32), scenes.counts


def _random_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    return np.concatenate([rng.uniform(0.1, 0.9, (number, 2)), rng.uniform(0.05, 0.5, (number, 2))], axis=-1)


def _generalized_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low_a, high_a = a[..., :2] - a[..., 2:] / 2, a[..., :2] + a[..., 2:] / 2
    low_b, high_b = b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2
    overlap = np.prod(np.clip(np.minimum(high_a, high_b) - np.maximum(low_a, low_b), 0, None), axis=-1)
    union = np.prod(a[..., 2:], axis=-1) + np.prod(b[..., 2:], axis=-1) - overlap
    hull = np.prod(np.maximum(high_a, high_b) - np.minimum(low_a, low_b), axis=-1)
    return overlap / union - (hull - union) / hull
