from collections import Counter

import numpy as np
import pytest

from tfdetr_keras.data import SHAPES, load_shapes


def as_arrays(dataset):
    return [{key: value.numpy() for key, value in record.items()} for record in dataset]


@pytest.fixture(scope="module")
def drawn():
    return as_arrays(load_shapes(300, seed=5, classes=SHAPES)[0])


def test_records_keep_their_promises(drawn):
    for index, record in enumerate(drawn):
        height, width = record["image"].shape[:2]
        assert record["image_id"] == index
        assert record["orig_size"].tolist() == [height, width]
        assert 96 <= height <= 128
        assert 96 <= width <= 128
        assert len(record["labels"]) == len(record["boxes"]) == len(record["area"]) == len(record["iscrowd"]) <= 8
        assert not record["iscrowd"].any()
        x1, y1, x2, y2 = record["boxes"].T
        assert ((x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)).all()
        sides = np.maximum(x2 - x1, y2 - y1) / min(height, width)
        assert ((sides > 0.08) & (sides < 0.53)).all()
    counts = Counter(len(record["labels"]) for record in drawn)
    assert counts[0] >= 10
    assert len(counts) == 9
    assert {label for record in drawn for label in record["labels"]} == set(range(len(SHAPES)))


def test_boxes_and_areas_are_tight_on_the_pixels(drawn):
    """A shape has one flat colour that no background has: of a lone shape, its pixels can be found again."""
    seen = Counter()
    for record in drawn:
        if len(record["labels"]) != 1:
            continue
        x1, y1, x2, y2 = record["boxes"][0].astype(int)
        inside = record["image"][y1:y2, x1:x2].reshape(-1, 3)
        colours, counts = np.unique(inside, axis=0, return_counts=True)
        rows, columns = np.nonzero((record["image"] == colours[counts.argmax()]).all(axis=-1))
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == [x1, y1, x2, y2]
        assert len(rows) == record["area"][0]
        seen[int(record["labels"][0])] += 1
    assert len(seen) == len(SHAPES)


def test_every_object_stays_visible(drawn):
    """Within each box lie all pixels of one flat colour, at least 60 % of the object's and never more than all."""
    for record in drawn:
        colour = record["image"].astype(int) @ [1, 256, 256**2]
        values, counts = np.unique(colour, return_counts=True)
        flat = dict(zip(values, counts, strict=True))
        for (x1, y1, x2, y2), area in zip(record["boxes"].astype(int), record["area"], strict=True):
            inside = zip(*np.unique(colour[y1:y2, x1:x2], return_counts=True), strict=True)
            assert any(0.6 * area <= count <= area and flat[value] == count for value, count in inside)


def test_masks_are_what_is_seen_of_each_shape(drawn):
    """Each in the flat colour of its shape, within its box; of no pixel two."""
    with_masks = as_arrays(load_shapes(60, seed=5, classes=SHAPES, masks=True)[0])
    covered = 0
    for record, without in zip(with_masks, drawn, strict=False):
        masks = record.pop("masks")
        for key, value in without.items():
            np.testing.assert_array_equal(record[key], value)
        assert masks.shape == (len(record["labels"]), *record["image"].shape[:2])
        assert masks.sum(0).max(initial=0) <= 1
        for mask, (x1, y1, x2, y2), area in zip(masks, record["boxes"].astype(int), record["area"], strict=True):
            assert len(np.unique(record["image"][mask], axis=0)) == 1
            assert mask.sum() == mask[y1:y2, x1:x2].sum()
            assert 0.6 * area <= mask.sum() <= area
            covered += mask.sum() < area
    assert covered > 5


def test_an_image_depends_on_seed_and_index_alone():
    long, short = as_arrays(load_shapes(12, seed=3)[0]), as_arrays(load_shapes(4, seed=3)[0].shuffle(4, seed=1))
    for record in short:
        for key, value in long[record["image_id"]].items():
            np.testing.assert_array_equal(record[key], value)
    other = as_arrays(load_shapes(4, seed=4)[0])
    assert not any(np.array_equal(a["image"], b["image"]) for a, b in zip(long, other, strict=False))


def test_classes_choose_the_shapes():
    records, names = load_shapes(40, classes=("ring", "star"))
    assert names == ["ring", "star"]
    assert {int(label) for record in records for label in record["labels"]} == {0, 1}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"classes": ("circle", "blob")}, "different names out of"),
        ({"classes": ()}, "different names out of"),
        ({"classes": ("ring", "ring")}, "different names out of"),
        ({"count": 0}, "at least 1"),
        ({"seed": -1}, "at least 0"),
        ({"size": (128, 96)}, "smallest <= largest"),
        ({"size": (8, 96)}, "16 <= smallest"),
    ],
)
def test_bad_arguments(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_shapes(**({"count": 3} | arguments))
