"""Box formats and overlaps, against exact arithmetic and recorded values of TensorFlow Addons."""

import itertools
import json
from fractions import Fraction
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies
from hypothesis.extra import numpy as arrays

from tfdetr_keras.boxes import box_area, cxcywh_to_xyxy, generalized_iou, iou, xyxy_to_cxcywh

TFA_CASES = json.loads((Path(__file__).parent / "golden" / "tfa_giou.json").read_text())["cases"]

# Every box with corners on a grid of four: among their pairs are identical, nested, touching, crossing and disjoint
# boxes, points, lines and inverted boxes, and all their areas are exact even in bfloat16.
GRID = np.array(list(itertools.product(range(4), repeat=4)), np.float32)


def exact_overlaps(first, second):
    """IoU and GIoU of two xyxy boxes with whole corners, as fractions; an inverted box has no area."""

    def area(x1, y1, x2, y2):
        return max(x2 - x1, 0) * max(y2 - y1, 0)

    pairs = list(zip(first, second, strict=True))
    intersection = area(*map(max, pairs[:2]), *map(min, pairs[2:]))
    hull = area(*map(min, pairs[:2]), *map(max, pairs[2:]))
    union = area(*first) + area(*second) - intersection
    overlap = Fraction(intersection, union) if union else Fraction(0)
    return overlap, overlap - (Fraction(hull - union, hull) if hull else 0)


@pytest.fixture(scope="module")
def exact():
    """IoU and GIoU of all pairs of the grid, `(256, 256)` float64 each."""
    boxes = GRID.astype(int).tolist()
    values = [[exact_overlaps(first, second) for second in boxes] for first in boxes]
    return np.array(values, np.float64).transpose(2, 0, 1)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-7), ("bfloat16", 1e-2)])
def test_overlaps_of_all_boxes_of_a_grid(exact, dtype, tolerance):
    boxes = tf.cast(GRID, dtype)
    for function, expected in zip((iou, generalized_iou), exact, strict=True):
        got = tf.cast(function(boxes[:, None], boxes[None]), "float64").numpy()
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("function", [iou, generalized_iou])
def test_gradients_of_all_boxes_of_a_grid_are_finite(function, dtype):
    first, second = tf.cast(GRID[:, None], dtype), tf.cast(GRID[None], dtype)
    first, second = (tf.broadcast_to(boxes, (256, 256, 4)) for boxes in (first, second))
    with tf.GradientTape() as tape:
        tape.watch([first, second])
        overlap = function(first, second)
    for gradient in tape.gradient(overlap, [first, second]):
        assert np.isfinite(tf.cast(gradient, "float32")).all()


def test_a_term_without_denominator_has_no_gradient():
    point = tf.constant([0.25, 0.5, 0.25, 0.5])
    with tf.GradientTape() as tape:
        tape.watch(point)
        overlap = generalized_iou(point, tf.identity(point))
    assert float(overlap) == 0
    np.testing.assert_array_equal(tape.gradient(overlap, point), np.zeros(4))


def test_gradient_is_the_slope_of_the_value():
    rng = np.random.default_rng(0)
    first, second = (xyxy_to_cxcywh_numpy(rng.uniform(0.1, 0.9, (64, 4))) for _ in range(2))

    def value(boxes):
        return generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(tf.constant(second)))

    boxes = tf.constant(first)
    with tf.GradientTape() as tape:
        tape.watch(boxes)
        overlap = value(boxes)
    gradient = tape.gradient(overlap, boxes).numpy()
    step = 1e-7
    for axis in range(4):
        shift = np.eye(4)[axis] * step
        slope = (value(tf.constant(first + shift)) - value(tf.constant(first - shift))).numpy() / (2 * step)
        np.testing.assert_allclose(gradient[:, axis], slope, rtol=1e-6, atol=1e-6)


def xyxy_to_cxcywh_numpy(corners):
    """Any four numbers, taken as the corners of a box after sorting, as cxcywh."""
    x1, x2 = np.sort(corners[:, 0::2]).T
    y1, y2 = np.sort(corners[:, 1::2]).T
    return np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=-1)


@pytest.mark.parametrize("case", TFA_CASES, ids=lambda case: case["name"])
def test_tensorflow_addons_gives_the_same_losses(case):
    """Its boxes are y1x1y2x2; swapping the axes of both boxes changes no area."""
    true, predicted = (np.array(case[name], np.float32)[:, [1, 0, 3, 2]] for name in ("y_true", "y_pred"))
    np.testing.assert_allclose(1 - generalized_iou(true, predicted).numpy(), case["giou"], rtol=0, atol=5e-7)
    np.testing.assert_allclose(1 - iou(true, predicted).numpy(), case["iou"], rtol=0, atol=5e-7)


COORDINATES = arrays.arrays(np.float32, (8, 4), elements=strategies.floats(0, 1, width=32, allow_subnormal=False))


@hypothesis.given(COORDINATES)
@hypothesis.settings(deadline=None, max_examples=50)
def test_formats_round_trip(boxes):
    np.testing.assert_allclose(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes, rtol=0, atol=3e-7)
    np.testing.assert_allclose(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes, rtol=0, atol=3e-7)


def test_formats_by_hand():
    np.testing.assert_allclose(cxcywh_to_xyxy(np.array([0.5, 0.25, 0.5, 0.25])), [0.25, 0.125, 0.75, 0.375])
    np.testing.assert_allclose(xyxy_to_cxcywh(np.array([0.25, 0.125, 0.75, 0.375])), [0.5, 0.25, 0.5, 0.25])
    np.testing.assert_allclose(box_area(np.array([[0.25, 0.125, 0.75, 0.375], [0.75, 0, 0.25, 1]])), [0.125, 0])


@hypothesis.given(COORDINATES, COORDINATES)
@hypothesis.settings(deadline=None, max_examples=50)
def test_overlap_is_symmetric_and_bounded(first, second):
    """For any four numbers: tiny, degenerate and inverted boxes too."""
    for function, lowest in ((iou, 0), (generalized_iou, -1)):
        overlap = function(first, second).numpy()
        np.testing.assert_array_equal(overlap, function(second, first))
        assert (overlap >= lowest - 1e-6).all()
        assert (overlap <= 1 + 1e-6).all()
