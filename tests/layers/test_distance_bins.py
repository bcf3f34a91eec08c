"""Distances as distributions: the published figures, and plain loops over one box and one side at a time."""

import numpy as np
import pytest
from keras import ops

from tfdetr_keras.layers.distance_bins import (
    bin_values,
    boxes_to_distances,
    distances_to_boxes,
    expected_distances,
    neighbouring_bins,
)

SCALES = (4.0, 8.0)


def plain_values(up, reg_scale, bins):
    """W(n) from its definition, one bin after the other, in float64."""
    bound, found = abs(up * reg_scale), []
    for n in range(bins + 1):
        steps = abs(n - bins // 2)
        away = 2 * bound if steps == bins // 2 else (bound + 1) ** (2 * steps / (bins - 2)) - 1
        found.append(away if n > bins // 2 else -away)
    return np.array(found)


def plain_box(reference, distances, scale):
    cx, cy, w, h = reference
    left, top = cx - w / 2 - distances[0] * w / scale, cy - h / 2 - distances[1] * h / scale
    right, bottom = cx + w / 2 + distances[2] * w / scale, cy + h / 2 + distances[3] * h / scale
    return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def references_and_distances(scale, seed=0):
    rng = np.random.default_rng(seed)
    references = rng.uniform(0.05, 0.9, (2, 6, 4)).astype("float32")
    return references, rng.uniform(-1.5 * scale, 1.5 * scale, (2, 6, 4)).astype("float32")


def test_published_bins():
    """Of all published models but the largest: ±4 at the ends, then ±1.7881, and a first step of 0.076."""
    values = ops.convert_to_numpy(bin_values(np.float32([0.5]), np.float32([4.0])))
    assert values.shape == (33,)
    assert values[[0, 16, 32]].tolist() == [-4, 0, 4]
    assert values[[1, 31]].tolist() == pytest.approx([-2, 2], abs=1e-6)
    assert values[[2, 30]].tolist() == pytest.approx([-1.7881, 1.7881], abs=1e-4)
    assert values[17] == pytest.approx(0.076, abs=1e-3)


@pytest.mark.parametrize("scale", [*SCALES, -4.0])
@pytest.mark.parametrize("up", [0.5, 0.3])
@pytest.mark.parametrize("bins", [32, 8])
def test_bins_by_their_definition(up, scale, bins):
    values = ops.convert_to_numpy(bin_values(np.float32(up), np.float32(scale), bins))
    # Measured: 2.4e-7 of the largest.
    np.testing.assert_allclose(values, plain_values(up, scale, bins), rtol=0, atol=2e-6 * abs(scale))
    assert (np.diff(values) > 0).all()


def test_the_mean_of_a_distribution():
    rng, values = np.random.default_rng(1), plain_values(0.5, 4, 32)
    logits = rng.normal(0, 3, (2, 5, 4 * 33)).astype("float32")
    logits[0, 0] = 110 * np.sign(logits[0, 0])
    found = ops.convert_to_numpy(expected_distances(logits, values.astype("float32")))
    for place in np.ndindex(found.shape):
        own = logits[(*place[:-1], slice(33 * place[-1], 33 * place[-1] + 33))].astype("float64")
        share = np.exp(own - own.max())
        assert found[place] == pytest.approx((share * values).sum() / share.sum(), abs=5e-6)  # measured: 6e-7


@pytest.mark.parametrize("scale", SCALES)
def test_boxes_of_distances_and_back(scale):
    references, distances = references_and_distances(scale)
    boxes = ops.convert_to_numpy(distances_to_boxes(references, distances, scale))
    for place in np.ndindex(2, 6):
        expected = plain_box(references[place].astype("float64"), distances[place].astype("float64"), scale)
        np.testing.assert_allclose(boxes[place], expected, rtol=0, atol=2e-6)  # measured: 2.4e-7
    assert (boxes[..., 2:] < 0).any()  # sides that cross
    np.testing.assert_array_equal(distances_to_boxes(references, distances, np.float32([-scale])), boxes)
    again = boxes_to_distances(references, boxes, scale)
    np.testing.assert_allclose(again, distances, rtol=0, atol=5e-5)  # measured: 6e-6, where a reference is narrow


def test_no_distance_leaves_a_box_as_it_is_and_its_unit_is_the_width():
    reference = np.float32([[0.5, 0.4, 0.2, 0.1]])
    np.testing.assert_allclose(distances_to_boxes(reference, np.zeros((1, 4), "f"), 4.0), reference, atol=1e-7)
    wider = distances_to_boxes(reference, np.float32([[4, 0, 0, 0]]), 4.0)
    np.testing.assert_allclose(wider, [[0.4, 0.4, 0.4, 0.1]], atol=1e-7)


def test_a_reference_without_extent_has_finite_distances():
    found = boxes_to_distances(np.zeros((1, 4), "f"), np.float32([[0.5, 0.5, 0.2, 0.2]]), 4.0)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("scale", SCALES)
def test_the_bins_of_a_distance(scale):
    values = plain_values(0.5, scale, 32).astype("float32")
    drawn = np.random.default_rng(2).uniform(-1.4 * scale, 1.4 * scale, 200)
    distances = np.concatenate([drawn, values, [-9, 0, 4, 8, 1e9, -1e9]]).astype("float32")
    lower, share = map(ops.convert_to_numpy, neighbouring_bins(distances, values))
    for distance, found, above in zip(distances, lower, share, strict=True):
        if distance < values[0]:
            expected = 0, 0.0
        elif distance >= values[32]:
            expected = 31, 1.0
        else:
            expected = next(n for n in range(32) if values[n] <= distance < values[n + 1]), None
            expected = expected[0], (distance - values[expected[0]]) / (values[expected[0] + 1] - values[expected[0]])
        assert found == expected[0]
        assert above == pytest.approx(expected[1], abs=1e-6)


def test_bins_that_are_published():
    """Of the distances −9, 0 and everything from 4 on, with the bins of ±4."""
    values = bin_values(np.float32(0.5), np.float32(4.0))
    lower, share = neighbouring_bins(np.float32([-9, 0, 4, 7]), values)
    assert ops.convert_to_numpy(lower).tolist() == [0, 16, 31, 31]
    assert ops.convert_to_numpy(share).tolist() == [0, 0, 1, 1]
