"""Tiles cover an image, objects are cut as they are told to, and what is cut is merged again."""

from itertools import pairwise

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import tfdetr_keras as td
from tfdetr_keras.data.tiles import Tiles, cut_tiles
from tfdetr_keras.inference.tiled import detect_tiled, merged


@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    tile=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    overlap=st.floats(0, 0.9),
)
def test_windows_cover_the_image_and_overlap_enough(size, tile, overlap):
    windows = Tiles(tile, overlap).windows(*size)
    covered = np.zeros(size, int)
    for top, left, height, width in windows:
        assert (height, width) == (min(size[0], tile[0]), min(size[1], tile[1]))
        assert top + height <= size[0]
        assert left + width <= size[1]
        covered[top : top + height, left : left + width] += 1
    assert covered.min() >= 1
    for axis, side in enumerate(tile):
        starts = sorted({window[axis] for window in windows})
        most = max(1, np.floor(side * (1 - overlap)))
        assert all(after - before <= most for before, after in pairwise(starts))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "size must be"),
        ((12.5,), "size must be"),
        (((64, 64, 3),), "size must be"),
        ((64, 1.0), "overlap must be"),
        ((64, -0.1), "overlap must be"),
    ],
)
def test_impossible_tiles(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tiles(*arguments)


def scene(rng, size, longest, classes=2):
    """Boxes that do not touch one another, of sides up to `longest`, anywhere in an image."""
    boxes = []
    for _ in range(40):
        sides = rng.uniform(4, longest, 2)
        if (sides >= size).any():
            continue
        corner = rng.uniform(0, np.array(size) - sides)
        new = np.concatenate([corner, corner + sides])[[1, 0, 3, 2]]
        if all((new[2:] + 1 < box[:2]).any() or (box[2:] + 1 < new[:2]).any() for box in boxes):
            boxes.append(new)
    return np.array(boxes, np.float32).reshape(-1, 4), rng.integers(0, classes, len(boxes))


def record_of(boxes, labels, size, image_id=7):
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    rng = np.random.default_rng(0)
    record = {
        "image": rng.integers(0, 256, (*size, 3), np.uint8),
        "image_id": np.int64(image_id),
        "orig_size": np.array(size, np.int32),
        "boxes": boxes,
        "labels": labels.astype(np.int32),
        "iscrowd": np.zeros(len(labels), bool),
        "area": area,
    }
    return record, tf.data.Dataset.from_tensors(record)


def seen_in(boxes, labels, windows):
    """What a perfect model finds in each tile: of each object the part that is there, if it is more than a sliver."""
    parts = []
    for top, left, height, width in windows:
        inside = np.clip(boxes - [left, top, left, top], 0, [width, height, width, height])
        kept = ((inside[:, 2:] - inside[:, :2]) > 1).all(axis=1)
        scores = np.linspace(0.9, 0.5, len(boxes))[kept] if len(boxes) else np.zeros(0)
        parts.append({"boxes": inside[kept], "labels": labels[kept], "scores": scores})
    return parts


@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(40, 200), st.integers(40, 200)),
    tile=st.integers(40, 90),
    overlap=st.floats(0.3, 0.6),
)
def test_what_is_cut_is_merged_into_the_same_boxes(seed, size, tile, overlap):
    """Also objects that are larger than a tile: in what two tiles both see, their parts are the same."""
    rng = np.random.default_rng(seed)
    boxes, labels = scene(rng, size, 1.5 * tile)
    windows = Tiles(tile, overlap).windows(*size)
    found = merged(seen_in(boxes, labels, windows), windows, size)
    assert len(found["boxes"]) == len(boxes)
    order = np.lexsort(boxes.T), np.lexsort(found["boxes"].T)
    np.testing.assert_allclose(found["boxes"][order[1]], boxes[order[0]], rtol=0, atol=1.01)
    np.testing.assert_array_equal(found["labels"][order[1]], labels[order[0]])
    assert (np.diff(found["scores"]) <= 0).all()


def test_detections_of_one_tile_stay_apart():
    box = np.array([[10, 10, 30, 30], [11, 10, 30, 30]], np.float32)
    part = {"boxes": box, "labels": np.zeros(2, int), "scores": np.array([0.9, 0.8])}
    found = merged([part], [(0, 0, 64, 64)], (64, 64))
    np.testing.assert_array_equal(found["boxes"], box)


def test_a_whole_box_is_preferred_to_a_cut_one_of_a_higher_score():
    whole = {"boxes": np.array([[30, 10, 50, 30.0]]), "labels": np.array([1]), "scores": np.array([0.6])}
    cut = {"boxes": np.array([[0, 10, 10, 30.0]]), "labels": np.array([1]), "scores": np.array([0.9])}
    found = merged([whole, cut], [(0, 0, 64, 60), (0, 40, 64, 60)], (64, 100))
    np.testing.assert_allclose(found["boxes"], [[30, 10, 50, 30]])
    np.testing.assert_allclose(found["scores"], [0.9])


def test_other_classes_are_other_objects():
    first = {"boxes": np.array([[42, 10, 50, 30.0]]), "labels": np.array([1]), "scores": np.array([0.6])}
    second = {"boxes": np.array([[2, 10, 10, 30.0]]), "labels": np.array([0]), "scores": np.array([0.9])}
    found = merged([first, second], [(0, 0, 64, 60), (0, 40, 64, 60)], (64, 100))
    np.testing.assert_array_equal(found["labels"], [0, 1])


def test_masks_are_joined():
    masks = [np.zeros((1, 20, 20), bool) for _ in range(2)]
    masks[0][0, 5:10, 12:], masks[1][0, 5:10, :9] = True, True
    boxes = [np.array([[12, 5, 20, 10.0]]), np.array([[0, 5, 9, 10.0]])]
    parts = [
        {"boxes": box, "labels": np.array([0]), "scores": np.array([0.7]), "masks": mask}
        for box, mask in zip(boxes, masks, strict=True)
    ]
    found = merged(parts, [(0, 0, 20, 20), (0, 15, 20, 20)], (20, 35))
    expected = np.zeros((20, 35), bool)
    expected[5:10, 12:24] = True
    np.testing.assert_array_equal(found["masks"], expected[None])
    np.testing.assert_allclose(found["boxes"], [[12, 5, 24, 10]])


@pytest.mark.parametrize("least_visible", [0.2, 0.5, 1.0])
def test_objects_of_tiles(least_visible):
    rng = np.random.default_rng(3)
    size, tiles = (150, 190), Tiles((64, 80), 0.25)
    boxes, labels = scene(rng, size, 50)
    record, records = record_of(boxes, labels, size)
    cut = list(cut_tiles(records, tiles, least_visible, empty=1.0).as_numpy_iterator())
    windows = tiles.windows(*size)
    assert len(cut) == len(windows)
    for tile, (top, left, height, width) in zip(cut, windows, strict=True):
        np.testing.assert_array_equal(tile["image"], record["image"][top : top + height, left : left + width])
        assert (tile["image_id"], tuple(tile["orig_size"])) == (7, (height, width))
        inside = np.clip(boxes - [left, top, left, top], 0, [width, height, width, height])
        area, whole = ((one[:, 2:] - one[:, :2]).prod(axis=1) for one in (inside, boxes))
        seen = area > 0
        np.testing.assert_allclose(tile["boxes"], inside[seen], atol=1e-4)
        np.testing.assert_array_equal(tile["labels"], labels[seen])
        np.testing.assert_allclose(tile["area"], area[seen], rtol=1e-4)
        share = area[seen] / whole[seen]
        clear = np.abs(share - least_visible) > 1e-4  # which rounding does not decide
        np.testing.assert_array_equal(tile["iscrowd"][clear], (share < least_visible)[clear])


def test_a_share_of_the_empty_tiles_stays_the_same_one_each_time():
    size = (400, 400)
    _, records = record_of(np.array([[5, 5, 9, 9]], np.float32), np.zeros(1, int), size)
    tiles = Tiles(20, 0.0)
    counts = {}
    for share in (0.0, 0.25, 1.0):
        first, second = (
            [tile["image"] for tile in cut_tiles(records, tiles, empty=share).as_numpy_iterator()] for _ in range(2)
        )
        assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
        counts[share] = len(first)
    assert (counts[0.0], counts[1.0]) == (1, 400)
    assert 70 <= counts[0.25] <= 130  # 100 are expected, with a standard deviation of 9


@pytest.mark.parametrize(
    ("name", "value"), [("least_visible", 0), ("least_visible", 1.5), ("empty", -0.1), ("empty", 2)]
)
def test_impossible_shares(name, value):
    _, records = record_of(np.zeros((0, 4), np.float32), np.zeros(0, int), (30, 30))
    with pytest.raises(ValueError, match=name):
        cut_tiles(records, Tiles(20), **{name: value})


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_cut(seed):
    records, _ = td.data.load_shapes(1, seed=seed, size=(60, 70), masks=True)
    (record,) = records.as_numpy_iterator()
    tiles = Tiles(40, 0.3)
    cut = cut_tiles(records, tiles, empty=1.0).as_numpy_iterator()
    for tile, (top, left, height, width) in zip(cut, tiles.windows(*record["image"].shape[:2]), strict=True):
        inside = np.clip(record["boxes"] - [left, top, left, top], 0, [width, height, width, height])
        seen = ((inside[:, 2:] - inside[:, :2]) > 0).all(axis=1)
        expected = record["masks"][seen, top : top + height, left : left + width]
        np.testing.assert_array_equal(tile["masks"], expected)


def test_a_model_over_tiles_finds_what_it_finds_in_them():
    """Four pictures side by side, each a tile of its own: nothing is merged, and boxes are moved."""
    records, _ = td.data.load_shapes(4, seed=2, size=(64, 64))
    images = [record["image"][:64, :64] for record in records.as_numpy_iterator()]
    assert {image.shape for image in images} == {(64, 64, 3)}
    model = td.from_pretrained("detr-tiny")
    alone = model.detect(images, threshold=0.7)
    whole = np.concatenate([np.concatenate(images[:2], axis=1), np.concatenate(images[2:], axis=1)])
    _, wide = record_of(np.zeros((0, 4), np.float32), np.zeros(0, int), (128, 128), image_id=5)
    wide = wide.map(lambda record: record | {"image": whole})
    (found,) = detect_tiled(model, wide, Tiles(64, 0.0), threshold=0.7)
    assert found["image_id"] == 5
    expected = np.concatenate(
        [
            one.boxes + np.tile([64 * (place % 2), 64 * (place // 2)], 2).astype(np.float32)
            for place, one in enumerate(alone)
        ]
    )
    assert len(expected) > 4
    order = np.lexsort(expected.T.round()), np.lexsort(found["boxes"].T.round())
    np.testing.assert_allclose(found["boxes"][order[1]], expected[order[0]], atol=0.01)
