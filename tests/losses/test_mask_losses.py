"""The mask losses against transformers': values and gradients of random batches, crowded and empty."""

import numpy as np
import pytest
import tensorflow as tf

from tfdetr_keras.losses.criterion import SetCriterion, _paired_masks
from tfdetr_keras.losses.masks import mask_losses

BATCHES, BATCH, QUERIES, MOST = 100, 3, 7, 9
LOSS, GRADIENT = 1e-5, 1e-4  # measured: 5e-7, 2e-6


def random_batch(seed):
    """0 to 9 objects for 7 queries, each tenth batch without any; masks of any size, also smaller than predicted."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, MOST + 1, BATCH) * (seed % 10 > 0)
    queries = np.full((BATCH, MOST), -1, np.int32)
    for image, count in enumerate(counts):
        # Of more objects than queries, some have none.
        chosen = np.concatenate([rng.permutation(QUERIES), np.full(MOST, -1)])[: max(count, QUERIES)]
        queries[image, :count] = rng.permutation(chosen)[:count]
    height, width = rng.integers(1, 40, 2)
    logits = rng.normal(0, rng.uniform(1, 30), (BATCH, QUERIES, *rng.integers(1, 20, 2))).astype("float32")
    return logits, rng.random((BATCH, MOST, height, width)) < 0.4, queries, np.float32(max(counts.sum(), 1))


def test_losses_and_gradients_of_random_batches(pytorch):
    for seed in range(BATCHES):
        logits, masks, queries, num_boxes = random_batch(seed)
        focal, dice, expected = pytorch.call("losses:of_masks", logits, masks, queries, num_boxes, dice_coefficient=3)
        tensor = tf.constant(logits)
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            paired = _paired_masks(tensor, tf.constant(queries))
            losses = mask_losses(paired, tf.constant(masks), tf.constant(queries >= 0), num_boxes)
            total = losses["loss_mask"] + 3 * losses["loss_dice"]
        assert float(losses["loss_mask"]) == pytest.approx(focal, rel=LOSS), seed
        assert float(losses["loss_dice"]) == pytest.approx(dice, rel=LOSS), seed
        gradient = tf.convert_to_tensor(tape.gradient(total, tensor)).numpy()
        assert np.linalg.norm(gradient - expected) <= GRADIENT * np.linalg.norm(expected), seed


def test_what_stands_in_padding_rows_does_not_matter():
    logits, masks, queries, num_boxes = random_batch(1)
    is_pair = queries >= 0
    paired = _paired_masks(logits, queries)
    expected = mask_losses(paired, masks, is_pair, num_boxes)
    noise = np.random.default_rng(0).normal(0, 1e3, masks.shape).astype("float32")
    found = mask_losses(paired, np.where(is_pair[..., None, None], masks, noise), is_pair, num_boxes)
    for name, value in expected.items():
        assert float(found[name]) == float(value)


def test_extreme_logits_stay_finite():
    logits = np.array([1e4, -1e4], np.float32).reshape(1, 2, 1, 1)
    tensor = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        losses = mask_losses(tensor, np.array([0, 1]).reshape(1, 2, 1, 1), np.array([[True, True]]), 2.0)
        total = losses["loss_mask"] + losses["loss_dice"]
    assert np.isfinite(total)
    assert np.isfinite(tf.convert_to_tensor(tape.gradient(total, tensor))).all()


OUTPUTS = {
    "logits": np.zeros((2, 4, 3), np.float32),
    "pred_boxes": np.full((2, 4, 4), 0.5, np.float32),
    "pred_masks": np.zeros((2, 4, 8, 8), np.float32),
}
TARGETS = {"labels": np.array([[0], [1]], np.int32), "boxes": np.full((2, 1, 4), 0.5, np.float32)}


def test_targets_without_masks_are_refused():
    with pytest.raises(ValueError, match="the model predicts masks, and the targets have none: read the data with mas"):
        SetCriterion()(OUTPUTS, TARGETS)


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (1, 1, 8, 8), (2, 1, 8)], ids=str)
def test_masks_of_other_objects_are_refused(shape):
    with pytest.raises(ValueError, match=r"targets' masks .* must be \(batch, objects, height, width\)"):
        SetCriterion()(OUTPUTS, {**TARGETS, "masks": np.zeros(shape, bool)})


def test_the_weights_of_the_total():
    targets = {**TARGETS, "masks": np.ones((2, 1, 8, 8), bool)}
    plain, weighted = (
        SetCriterion(mask_loss_coefficient=mask, dice_loss_coefficient=dice)(OUTPUTS, targets)
        for mask, dice in ((1, 1), (3, 5))
    )
    extra = 2 * float(plain["loss_mask"]) + 4 * float(plain["loss_dice"])
    assert float(weighted["loss"]) == pytest.approx(float(plain["loss"]) + extra, rel=1e-6)
