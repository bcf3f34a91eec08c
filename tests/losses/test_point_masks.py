"""Masks that are compared at points: where they are read, which points are chosen, and what a pair costs."""

import keras
import numpy as np
import pytest
from keras import ops

from tfdetr_keras.layers.segmentation_head import masks_of
from tfdetr_keras.losses.mask_criterion import PointMaskCriterion
from tfdetr_keras.losses.point_masks import (
    number_of_points,
    point_costs,
    point_losses,
    sample_bilinear,
    sample_nearest,
    shared_points,
    uncertain_points,
)

CORNERS = [[0.0, 0.0], [1.0, 1.0], [1e-4, 0.9999], [0.5, 0.5]]


def given(height=9, width=13, masks=6, points=40, seed=0):
    rng = np.random.default_rng(seed)
    places = rng.random((masks, points, 2), dtype="float32")
    places[:, : len(CORNERS)] = CORNERS
    return rng.normal(size=(masks, height, width)).astype("float32"), places


def test_masks_are_read_as_pytorch_reads_them(pytorch):
    maps, points = given()
    # Measured: 9e-7.
    np.testing.assert_allclose(sample_bilinear(maps, points), pytorch.call("layers:points", maps, points), atol=5e-6)
    is_inside = (maps > 0).astype("float32")
    expected = pytorch.call("layers:points", is_inside, points, "nearest")
    np.testing.assert_array_equal(sample_nearest(is_inside > 0, points), expected)


def test_points_that_all_share_are_read_alike():
    rng = np.random.default_rng(1)
    maps, points = rng.normal(size=(2, 7, 9, 5)).astype("float32"), rng.random((30, 2), dtype="float32")
    found = shared_points(maps, points)
    by_channel = np.moveaxis(maps, 3, 1)
    each = sample_bilinear(by_channel, np.broadcast_to(points, (2, 5, 30, 2)))
    np.testing.assert_allclose(found, np.swapaxes(each, 1, 2), atol=1e-6)


def test_most_points_are_where_a_mask_is_least_sure():
    """The mask of a half plane is unsure along a line; there most points lie, and the others anywhere."""
    x = np.linspace(-20, 20, 40, dtype="float32")
    logits = np.broadcast_to(x, (3, 40, 40)).copy()
    points = ops.convert_to_numpy(uncertain_points(logits, 100, seed=1))
    assert points.shape == (3, 100, 2)
    is_near = np.abs(points[..., 0] - 0.5) < 0.2
    assert is_near[:, :75].all()
    assert not is_near[:, 75:].all()
    assert (points >= 0).all()
    assert (points <= 1).all()
    np.testing.assert_array_equal(points, uncertain_points(logits, 100, seed=1))
    draws = {"candidates": np.random.default_rng(0).random((3, 300, 2), dtype="float32")}
    draws["others"] = np.zeros((3, 25, 2), "float32")
    chosen = ops.convert_to_numpy(uncertain_points(logits, 100, draws=draws))
    assert (chosen[:, 75:] == 0).all()
    nearest = np.sort(np.abs(draws["candidates"][..., 0] - 0.5), axis=1)[:, :75]
    np.testing.assert_allclose(np.sort(np.abs(chosen[:, :75, 0] - 0.5), axis=1), nearest, atol=1e-6)


def test_losses_and_costs_are_the_same_terms(pytorch):
    rng = np.random.default_rng(2)
    logits = (4 * rng.normal(size=(2, 3, 5, 20))).astype("float32")  # batch, layers, queries
    labels = (rng.random((2, 4, 20)) > 0.5).astype("float32")  # batch, objects
    costs = point_costs(logits, labels[:, None])
    assert costs["mask"].shape == costs["dice"].shape == (2, 3, 4, 5)
    pairs = (
        np.broadcast_to(logits[:, :, None], (2, 3, 4, 5, 20)),
        np.broadcast_to(labels[:, None, :, None], (2, 3, 4, 5, 20)),
    )
    flat = [np.ascontiguousarray(part.reshape(-1, 20)) for part in pairs]
    expected = pytorch.call("layers:point_terms", *flat)
    losses = point_losses(*pairs)
    for name, kind, theirs in zip(("mask", "dice"), ("loss_mask", "loss_dice"), expected, strict=True):
        # Measured: 1e-6 of 4.
        np.testing.assert_allclose(np.ravel(costs[name]), theirs, atol=5e-6)
        np.testing.assert_allclose(np.ravel(losses[kind]), theirs, atol=5e-6)


@pytest.mark.parametrize("size", [(9, 13), (26, 26), (192, 192)])
def test_a_mask_has_at_least_a_row_of_points(size):
    assert number_of_points(*size) == max(size[0], size[0] * size[1] // 16)


# ---- the criterion ----

GROUPS, DEPTH, QUERIES, OBJECTS, CHANNELS = 3, 2, 6, 4, 8


def outputs_of(seed=0, scale=1.0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return (scale * rng.normal(size=shape)).astype("float32")

    rows = GROUPS * QUERIES
    boxes = np.concatenate([rng.uniform(0.3, 0.7, (2, DEPTH, rows, 2)), rng.uniform(0.1, 0.4, (2, DEPTH, rows, 2))], -1)
    logits, boxes = normal(2, DEPTH, rows, 3), boxes.astype("float32")
    return {
        "logits": logits[:, -1],
        "pred_boxes": boxes[:, -1],
        "aux_logits": logits[:, :-1],
        "aux_boxes": boxes[:, :-1],
        "groups": GROUPS,
        "point_masks": {
            "features": normal(2, DEPTH, 8, 12, CHANNELS),
            "queries": normal(2, DEPTH, rows, CHANNELS),
            "bias": normal(1),
            "seed": 3,
        },
    }


def targets_of(seed=1, counts=(3, 1)):
    rng = np.random.default_rng(seed)
    labels = np.where(np.arange(OBJECTS) < np.array(counts)[:, None], rng.integers(0, 3, (2, OBJECTS)), -1)
    boxes = np.concatenate([rng.uniform(0.3, 0.7, (2, OBJECTS, 2)), rng.uniform(0.1, 0.4, (2, OBJECTS, 2))], -1)
    masks = rng.random((2, OBJECTS, 32, 48)) > 0.5
    return {"labels": labels.astype("int32"), "boxes": boxes.astype("float32"), "masks": masks}


CRITERION = PointMaskCriterion(classification="iou_aware", cost_class=2.0)


def test_each_layer_and_group_is_a_problem_of_its_own():
    """The losses are means over the groups of what each group alone would give, with the same points."""
    outputs, targets = outputs_of(), targets_of()
    rng = np.random.default_rng(4)
    count = number_of_points(8, 12)
    matching = rng.random((DEPTH, 6, 2), dtype="float32")
    of_pairs = [
        {
            "candidates": rng.random((2, GROUPS, OBJECTS, 3 * count, 2), dtype="float32"),
            "others": rng.random((2, GROUPS, OBJECTS, count - int(0.75 * count), 2), dtype="float32"),
        }
        for _ in range(DEPTH)
    ]

    def drawn(groups):
        flat = [{n: x[:, groups].reshape(2, -1, *x.shape[3:]) for n, x in layer.items()} for layer in of_pairs]
        return {"matching": matching, "layers": flat}

    whole = dict(outputs, point_masks={**outputs["point_masks"], "draws": drawn(slice(0, GROUPS))})
    found = CRITERION(whole, targets)
    alone = []
    for group in range(GROUPS):
        rows = slice(group * QUERIES, (group + 1) * QUERIES)
        parts = outputs["point_masks"]
        of_group = {
            **{name: outputs[name][:, rows] for name in ("logits", "pred_boxes")},
            **{name: outputs[name][:, :, rows] for name in ("aux_logits", "aux_boxes")},
            "point_masks": {**parts, "queries": parts["queries"][:, :, rows], "draws": drawn(slice(group, group + 1))},
        }
        alone.append(CRITERION(of_group, targets))
    for name, value in found.items():
        if name != "cardinality_error":
            expected = np.mean([float(one[name]) for one in alone])
            assert float(value) == pytest.approx(expected, rel=1e-5), name
    assert {"loss_mask", "loss_dice", "loss_mask_0", "loss_dice_0"} <= set(found)


def test_masks_decide_a_matching_that_boxes_leave_open():
    outputs, targets = outputs_of(), targets_of(counts=(2, 1))
    for name in ("logits", "aux_logits"):
        outputs[name] = np.zeros_like(outputs[name])
    for name in ("pred_boxes", "aux_boxes"):
        outputs[name] = np.full_like(outputs[name], 0.4)
    parts = outputs["point_masks"]
    # The second query of each group has the first object's mask, the first the second's.
    rng = np.random.default_rng(0)
    patterns = rng.random((2, 8, 12)) > 0.5
    features = np.zeros((2, DEPTH, 8, 12, CHANNELS), "float32")
    features[..., 0], features[..., 1] = 2.0 * patterns[1] - 1, 2.0 * patterns[0] - 1
    queries = np.zeros((2, DEPTH, GROUPS, QUERIES, CHANNELS), "float32")
    queries[..., 0, 0] = queries[..., 1, 1] = 10
    parts |= {"features": features, "queries": queries.reshape(2, DEPTH, -1, CHANNELS), "bias": np.zeros(1, "float32")}
    targets["masks"][:, :2] = np.kron(patterns, np.ones((4, 4))) > 0
    targets["labels"][1] = [0, -1, -1, -1]
    found = CRITERION._further_cost(outputs, targets, GROUPS)
    assert found.shape == (2, DEPTH * GROUPS, OBJECTS, QUERIES)
    best = ops.convert_to_numpy(ops.argmin(found, axis=-1))
    assert (best[0, :, 0] == 1).all()
    assert (best[0, :, 1] == 0).all()


@pytest.mark.parametrize("scale", [1.0, 110.0])
@pytest.mark.parametrize("counts", [(0, 0), (4, 0), (3, 2)])
def test_losses_are_finite(scale, counts):
    found = CRITERION(outputs_of(scale=scale), targets_of(counts=counts))
    assert all(np.isfinite(float(value)) for value in found.values())
    if not any(counts):
        assert float(found["loss_mask"]) == float(found["loss_dice"]) == 0


def test_it_is_kept_with_a_model():
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(CRITERION))
    assert again == CRITERION
    assert again.mask_loss_coefficient == again.cost_dice == 5.0


def test_targets_without_masks_are_refused():
    targets = targets_of()
    del targets["masks"]
    with pytest.raises(ValueError, match="the targets have none: read the data with masks=True"):
        CRITERION(outputs_of(), targets)


def test_masks_are_products():
    rng = np.random.default_rng(0)
    features, queries = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 6, 5))
    found = masks_of(features.astype("float32"), queries.astype("float32"), np.float32([0.5]))
    np.testing.assert_allclose(found, np.einsum("bhwc,bnc->bnhw", features, queries) + 0.5, atol=1e-5)
