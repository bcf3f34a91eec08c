import numpy as np
import pytest
import tensorflow as tf
from reference.process import ReferenceFailure

from tfdetr_keras.data import from_dataset, prepare
from tfdetr_keras.data.augmentation import RECIPES, SCALES
from tfdetr_keras.data.sizes import Resize, buckets, smallest_bucket, target_size


def python_size(height: int, width: int, shortest: int, longest: int, rule: str) -> tuple[int, int]:
    """The rules in plain Python: its own rounding and truncation are the specification."""
    low, high = min(height, width), max(height, width)
    if rule == "table":
        scale = longest / high
        return round(scale * height), round(scale * width)
    if rule == "fit":
        scale = min(shortest / height, longest / width)
        return int(scale * height), int(scale * width)
    exact = shortest
    if high / low * shortest > longest:
        exact = longest * low / high
    edge = round(exact)
    other = high if low == edge else int((exact if rule == "huggingface" else edge) * high / low)
    return (other, edge) if width < height else (edge, other)


@pytest.mark.parametrize("rule", ["huggingface", "facebook", "table", "fit"])
def test_target_size_is_exact(rule, pytorch):
    rng = np.random.default_rng(0)
    for shortest, longest in [(800, 1333), (480, 640), (96, 128), (600, 600)]:
        sides = np.concatenate([rng.integers(8, 3000, (8000, 2)), np.repeat(rng.integers(8, 3000, (500, 1)), 2, 1)])
        sides[:200, 0] = shortest  # nothing to do
        graph = tf.function(lambda h, w, a=shortest, b=longest: target_size(h, w, Resize(a, b, rule)))
        found = np.stack(graph(*tf.constant(sides.T, tf.int32)), axis=1)
        expected = np.array([python_size(h, w, shortest, longest, rule) for h, w in sides.tolist()])
        np.testing.assert_array_equal(found, np.maximum(expected, 1))
        if rule in ("huggingface", "fit"):
            reference = pytorch.call("processors:sizes", sides.tolist(), shortest, longest, rule)
            np.testing.assert_array_equal(found, np.maximum(reference, 1))


def test_a_stretched_image_has_the_one_size():
    sides = np.random.default_rng(0).integers(1, 3000, (50, 2))
    found = np.stack(target_size(*tf.constant(sides.T, tf.int32), Resize(480, 640, "stretch")), axis=1)
    np.testing.assert_array_equal(found, np.broadcast_to([480, 640], found.shape))


@pytest.mark.parametrize("rule", ["fit", "stretch"])
def test_buckets_of_rectangles(rule):
    canvases = buckets((480, 640), rule)
    assert all(height % 32 == width % 32 == 0 for height, width in canvases)
    assert canvases[-1] == (480, 640)
    sides = np.random.default_rng(0).integers(8, 3000, (300, 2))
    resized = np.stack(target_size(*tf.constant(sides.T, tf.int32), Resize(480, 640, rule)), axis=1)
    places = [int(smallest_bucket(tf.constant(size), canvases)) for size in resized]
    assert max(places) < len(canvases)
    assert len(set(places)) == len(canvases)


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


def test_halves_are_rounded_to_even_as_python_does():
    """Of images with a side of 1600 resized to 800, every other one falls between two whole numbers."""
    widths = np.arange(1, 1600)
    height, width = target_size(np.full_like(widths, 1600), widths, Resize(800, 800, "table"))
    assert set(height.numpy().tolist()) == {800}
    np.testing.assert_array_equal(width, [max(round(0.5 * width), 1) for width in widths.tolist()])


@pytest.mark.parametrize("longest", [800, 1000])
def test_table_transformers_longer_side_has_one_length(longest):
    """Of images large and small; the shortest edge and `strict` change nothing."""
    rng = np.random.default_rng(3)
    sides = rng.integers(8, 3000, (20000, 2)).T
    sizes = [
        np.stack(target_size(*sides, Resize(shortest, longest, "table", strict)))
        for shortest in (32, longest)
        for strict in (False, True)
    ]
    assert (sizes[0].max(axis=0) == longest).all()
    assert sides.max(axis=0).min() < longest < sides.max()
    for size in sizes[1:]:
        np.testing.assert_array_equal(size, sizes[0])


def test_table_transformers_rule_beside_hugging_faces():
    rng = np.random.default_rng(4)
    sides = rng.integers(200, 3000, (20000, 2))
    ratios = sides.max(axis=1) / sides.min(axis=1)
    table, alike, apart = (
        np.stack(target_size(*sides.T, resize), axis=1)
        for resize in (Resize(800, 1000, "table"), Resize(1000, 1000), Resize(800, 1000))
    )
    untouched = (apart == sides).all(axis=1) | (alike == sides).all(axis=1)
    assert untouched.mean() < 0.01
    assert np.abs(table - alike)[~untouched].max() == 1  # truncated
    assert 0.02 < (table != alike).any(axis=1).mean() < 0.1
    assert np.abs(table - apart)[(ratios >= 1.25) & ~untouched].max() == 1
    assert (apart.max(axis=1) < table.max(axis=1))[ratios < 1.24].all()


def test_what_hugging_faces_processor_makes_of_the_hubs_settings(pytorch):
    """As docs/tables.md says: both edges, only the one, and the older `max_size`."""

    def side(**settings):
        return pytorch.call("processors:side_of_square", 200, settings)

    assert int(target_size(200, 200, Resize(1000, 1000, "table"))[0]) == 1000
    assert side(size={"shortest_edge": 1000, "longest_edge": 1000}) == 1000
    assert side(size=800, max_size=1000) == 800
    assert pytorch.call("processors:size_of", {"max_size": 1000})["longest_edge"] == 1333
    with pytest.raises(ReferenceFailure, match="ValueError: Size must contain"):
        side(size={"longest_edge": 1000})


@pytest.mark.parametrize("size", [(500, 1000), (800, 800), (64, 100)])
def test_buckets_of_table_transformers_sizes(size):
    rng = np.random.default_rng(5)
    sides = np.stack(target_size(*rng.integers(20, 2000, (2, 1000)), Resize(*size, "table", strict=True)), axis=1)
    canvases = buckets(size, "table")
    assert len(canvases) <= 7
    for height, width in sides.tolist():
        canvas = canvases[int(smallest_bucket(tf.constant([height, width]), canvases))]
        assert canvas[0] * canvas[1] == min(h * w for h, w in canvases if h >= height and w >= width)


def records(shapes):
    """A record of each shape, of one object."""

    def record(height, width):
        whole = tf.cast(tf.stack([0, 0, width, height]), tf.float32)[None]
        return {"image": tf.zeros((height, width, 3), tf.uint8), "boxes": whole, "labels": tf.zeros(1, tf.int32)}

    dataset = tf.data.Dataset.from_tensor_slices(tuple(np.transpose(shapes))).map(record)
    fields = {key: key for key in ("image", "boxes", "labels")}
    return from_dataset(dataset, fields, ["table"], box_format="xyxy", relative=False)[0]


@pytest.mark.parametrize("pad_to", [None, (100, 100), "buckets"])
def test_prepare_resizes_by_the_rule_of_table_transformer(pad_to):
    shapes = [(33, 61), (300, 211), (90, 90), (250, 40)]
    batches = prepare(records(shapes), 1, size=(60, 100), pad_to=pad_to, size_rule="table")
    sizes = []
    for inputs, _ in batches:
        mask = inputs["pixel_mask"].numpy()[0]
        sizes.append((mask.any(axis=1).sum(), mask.any(axis=0).sum()))
    assert sorted(sizes) == sorted(python_size(*shape, 60, 100, "table") for shape in shapes)


def test_the_papers_scales_are_of_the_longer_side():
    record = next(iter(records([(120, 240)])))
    graph = tf.function(lambda seed: RECIPES["paper"](record, seed, Resize(800, 800, "table"))["image"])
    sides = {max(graph(tf.constant([seed, 1])).shape) for seed in range(100)}
    assert sides == {round(800 * scale) for scale in SCALES}
