import numpy as np
import pytest
import tensorflow as tf
from transformers.image_transforms import get_size_with_aspect_ratio

from tfdetr_keras.data.sizes import Resize, buckets, smallest_bucket, target_size


def python_size(height: int, width: int, shortest: int, longest: int, rule: str) -> tuple[int, int]:
    """The rules in plain Python: its own rounding and truncation are the specification."""
    low, high = min(height, width), max(height, width)
    exact = shortest
    if high / low * shortest > longest:
        exact = longest * low / high
    edge = round(exact)
    other = high if low == edge else int((exact if rule == "huggingface" else edge) * high / low)
    return (other, edge) if width < height else (edge, other)


@pytest.mark.parametrize("rule", ["huggingface", "facebook"])
def test_target_size_is_exact(rule):
    rng = np.random.default_rng(0)
    for shortest, longest in [(800, 1333), (480, 640), (96, 128), (600, 600)]:
        sides = np.concatenate([rng.integers(8, 3000, (8000, 2)), np.repeat(rng.integers(8, 3000, (500, 1)), 2, 1)])
        sides[:200, 0] = shortest  # nothing to do
        graph = tf.function(lambda h, w, a=shortest, b=longest: target_size(h, w, Resize(a, b, rule)))
        found = np.stack(graph(*tf.constant(sides.T, tf.int32)), axis=1)
        expected = np.array([python_size(h, w, shortest, longest, rule) for h, w in sides.tolist()])
        np.testing.assert_array_equal(found, np.maximum(expected, 1))
        if rule == "huggingface":
            reference = [get_size_with_aspect_ratio((h, w), shortest, longest) for h, w in sides.tolist()]
            np.testing.assert_array_equal(found, np.maximum(reference, 1))


def test_the_rules_differ_where_the_limit_is_reached():
    rng = np.random.default_rng(1)
    sides = rng.integers(300, 2000, (20000, 2))
    ours = [
        np.stack(target_size(*tf.constant(sides.T), Resize(800, 1333, rule)), 1) for rule in ("huggingface", "facebook")
    ]
    differ = (ours[0] != ours[1]).any(axis=1)
    limited = sides.max(axis=1) / sides.min(axis=1) * 800 > 1333
    assert not differ[~limited].any()
    assert 0.5 < differ[limited].mean() < 0.7
    strict = np.stack(target_size(*tf.constant(sides.T), Resize(800, 1333, strict=True)), 1)
    assert strict.max() == 1333
    assert ours[0].max() > 1333
    np.testing.assert_array_equal(np.minimum(ours[0], 1333), strict)


@pytest.mark.parametrize("size", [(800, 1333), (480, 800), (64, 64), (90, 100)])
def test_buckets_hold_every_resized_image_with_little_waste(size):
    rng = np.random.default_rng(2)
    sides = rng.integers(100, 2000, (2000, 2))
    for rule in ("huggingface", "facebook"):
        canvases = buckets(size)
        assert len(canvases) <= 7
        for height, width in np.stack(target_size(*tf.constant(sides.T), Resize(*size, rule, strict=True)), 1)[
            :500
        ].tolist():
            place = int(smallest_bucket(tf.constant([height, width]), canvases))
            fitting = [h * w for h, w in canvases if h >= height and w >= width]
            assert canvases[place][0] * canvases[place][1] == min(fitting)
            assert canvases[place][0] >= height
            assert canvases[place][1] >= width


def test_what_fits_nowhere():
    assert int(smallest_bucket(tf.constant([65, 64]), [(64, 64), (64, 96)])) == 2
