"""Denoising queries beside transformers', slot by slot, and what a batch does not need."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import tfdetr_keras as td
from tfdetr_keras.layers.heads import inverse_sigmoid

CLASSES, QUERIES, DENOISING = 5, 7, 10


def batch_of(counts, rows=None, seed=0):
    """Targets of so many objects in each image."""
    rng = np.random.default_rng(seed)
    shape = len(counts), rows or max(*counts, 1)
    labels = np.where(np.arange(shape[1]) < np.array(counts)[:, None], rng.integers(0, CLASSES, shape), -1)
    boxes = np.concatenate([rng.uniform(0.1, 0.9, (*shape, 2)), rng.uniform(0.01, 0.6, (*shape, 2))], -1)
    return {"labels": labels.astype("int32"), "boxes": boxes.astype("float32")}


def draws_of(batch, slots, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "flip": rng.random((batch, slots), dtype="float32"),
        "label": rng.integers(0, CLASSES, (batch, slots)).astype("int32"),
        "sign": rng.choice([-1.0, 1.0], (batch, slots, 4)).astype("float32"),
        "part": rng.random((batch, slots, 4), dtype="float32"),
    }


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
@pytest.mark.parametrize("noise", [(0.5, 1.0), (1.0, 0.4)], ids=str)
def test_as_transformers_makes_them(most, noise, pytorch):
    targets = batch_of([most, 0, max(1, most // 2)])
    slots = 2 * max(DENOISING, most)
    draws = draws_of(3, slots)
    names = ("label_noise_ratio", "box_noise_scale")
    options = dict(zip(names, noise, strict=True))
    theirs = pytorch.call("denoising:queries", targets, CLASSES, QUERIES, DENOISING, draws, **options)
    ours = td.losses.denoising_queries(targets, CLASSES, DENOISING, draws=draws, **options)
    groups, used = ops.convert_to_numpy(ours.groups), theirs["labels"].shape[1]
    assert groups.shape == (slots,)
    assert (groups[:used] >= 0).all()
    assert (groups[used:] == -1).all()
    assert groups.max() + 1 == theirs["groups"]
    np.testing.assert_array_equal(ours.labels[:, :used], theirs["labels"])
    # As boxes again, since logits of sides next to 0 tell rounding apart. Measured: 1.2e-7.
    boxes = ops.sigmoid(inverse_sigmoid(ours.boxes))[:, :used]
    np.testing.assert_allclose(boxes, ops.sigmoid(theirs["logits"]), rtol=0, atol=1e-6)

    queries, objects = ops.convert_to_numpy(ours.queries), ops.convert_to_numpy(ours.objects)
    for image, positive in enumerate(theirs["positive"]):
        mended = queries[image][queries[image] >= 0]
        assert mended.tolist() == positive
        count = int((targets["labels"][image] >= 0).sum())
        assert objects[image][mended].tolist() == [*range(count)] * theirs["groups"]

    sees = ops.convert_to_numpy(ours.attention_mask(QUERIES))[0]
    there = np.r_[0:used, slots : slots + QUERIES]
    np.testing.assert_array_equal(sees[np.ix_(there, there)], theirs["sees"])
    # What a batch does not need sees the others, so that its attention is over something, and is seen by nobody.
    assert not sees[:, used:slots].any()
    assert sees[used:slots, slots:].all()
    assert not sees[used:slots, :slots].any()


def test_a_batch_without_objects_uses_no_slot():
    for targets in (batch_of([0, 0]), {"labels": np.zeros((2, 0), "int32"), "boxes": np.zeros((2, 0, 4), "float32")}):
        found = td.losses.denoising_queries(targets, CLASSES, DENOISING, seed=0)
        assert (ops.convert_to_numpy(found.groups) == -1).all()
        assert (ops.convert_to_numpy(found.queries) == -1).all()
        assert (ops.convert_to_numpy(found.labels) == CLASSES).all()
        assert np.isfinite(found.boxes).all()


def test_padding_may_stand_anywhere():
    targets = batch_of([3, 2], rows=5)
    draws = draws_of(2, 2 * DENOISING)
    order = [[3, 0, 4, 1, 2], [0, 3, 4, 2, 1]]
    mixed = {name: np.stack([rows[place] for rows, place in zip(x, order, strict=True)]) for name, x in targets.items()}
    plain, moved = (td.losses.denoising_queries(x, CLASSES, DENOISING, draws=draws) for x in (targets, mixed))
    np.testing.assert_array_equal(plain.labels, moved.labels)
    np.testing.assert_array_equal(plain.boxes, moved.boxes)
    for image, place in enumerate(order):
        mended = ops.convert_to_numpy(plain.queries)[image] >= 0
        rows = ops.convert_to_numpy(moved.objects)[image][mended]
        assert [place[row] for row in rows] == ops.convert_to_numpy(plain.objects)[image][mended].tolist()


def test_ragged_targets():
    dense = batch_of([3, 1])
    ragged = {
        "labels": tf.ragged.constant([row[row >= 0].tolist() for row in dense["labels"]]),
        "boxes": tf.RaggedTensor.from_row_lengths(dense["boxes"][dense["labels"] >= 0], [3, 1]),
    }
    draws = draws_of(2, 2 * DENOISING)
    for one, other in zip(
        td.losses.denoising_queries(dense, CLASSES, DENOISING, draws=draws),
        td.losses.denoising_queries(ragged, CLASSES, DENOISING, draws=draws),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_a_seed_repeats_a_generator_goes_on():
    targets = batch_of([3, 1])

    def boxes(seed):
        return np.asarray(td.losses.denoising_queries(targets, CLASSES, DENOISING, seed=seed).boxes)

    np.testing.assert_array_equal(boxes(3), boxes(3))
    assert (boxes(3) != boxes(4)).any()
    generator = keras.random.SeedGenerator(3)
    assert (boxes(generator) != boxes(generator)).any()


def test_noise_is_as_large_as_it_is_said():
    """Boxes that are to be mended overlap their objects, the others lie half a side off or more."""
    targets = {"labels": np.zeros((64, 5), "int32"), "boxes": np.full((64, 5, 4), (0.5, 0.5, 0.2, 0.1), "float32")}
    found = td.losses.denoising_queries(targets, CLASSES, 50, seed=0)
    corners = np.asarray(td.boxes.cxcywh_to_xyxy(found.boxes)) - np.array([0.4, 0.45, 0.6, 0.55])
    moved = np.abs(corners) / np.array([0.1, 0.05, 0.1, 0.05])
    is_mended = np.asarray(found.queries) >= 0
    assert is_mended.mean() == 0.5
    assert moved[is_mended].max() < 1 + 1e-5
    is_whole = (np.asarray(found.boxes)[..., 2:] > 0).all(-1)  # corners that cross leave no side
    assert moved[~is_mended & is_whole].min() > 1 - 1e-5
    assert (is_whole[~is_mended]).mean() > 0.5
    changed = (np.asarray(found.labels) != 0).mean()
    # A quarter is drawn anew, a fifth of these to the same class.
    assert changed == pytest.approx(0.25 * 0.8, abs=0.02)


def test_corners_that_have_crossed_leave_their_box_or_none():
    """Against the corners themselves, moved one box after the other: everything else stays, to the last bit."""
    targets, slots = batch_of([4, 2]), 2 * DENOISING
    draws = draws_of(2, slots)
    plain, absolute = (
        td.losses.denoising_queries(targets, CLASSES, DENOISING, draws=draws, absolute_sizes=option)
        for option in (False, True)
    )
    for name in ("labels", "groups", "queries", "objects"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(absolute, name))
    crossed = 0
    for image, slot in np.ndindex(2, slots):
        row = int(plain.objects[image, slot])
        box = np.zeros(4) if row >= (targets["labels"][image] >= 0).sum() else targets["boxes"][image, row]
        part = draws["part"][image, slot] + (slot % 8 >= 4)
        corners = np.concatenate([box[:2] - box[2:] / 2, box[:2] + box[2:] / 2])
        corners = np.clip(corners + draws["sign"][image, slot] * part * np.tile(box[2:] / 2, 2), 0, 1)
        first, last = np.minimum(corners[:2], corners[2:]), np.maximum(corners[:2], corners[2:])
        expected = np.concatenate([(first + last) / 2, last - first])
        # Measured: 6e-8.
        np.testing.assert_allclose(absolute.boxes[image, slot], expected, rtol=0, atol=6e-7)
        is_crossed = corners[2:] < corners[:2]
        crossed += is_crossed.sum()
        expected[2:][is_crossed] = 0
        np.testing.assert_allclose(plain.boxes[image, slot], expected, rtol=0, atol=6e-7)
    assert crossed > 3


def test_one_trace_for_any_number_of_objects():
    traces = []

    @tf.function(
        input_signature=[
            {"labels": tf.TensorSpec((2, None), tf.int32), "boxes": tf.TensorSpec((2, None, 4), tf.float32)}
        ]
    )
    def make(targets):
        traces.append(1)
        return td.losses.denoising_queries(targets, CLASSES, DENOISING, seed=1)

    for most in (1, 4, 9, 14):
        slots = 2 * max(DENOISING, most)
        found = make({name: tf.constant(x) for name, x in batch_of([most, 1]).items()})
        assert found.boxes.shape == (2, slots, 4)
    assert len(traces) == 1
