"""The criterion alone against Hugging Face's: 200 random batches, crowded and empty, with both classifications."""

import numpy as np
import pytest
import tensorflow as tf
from some_slow import some_slow

from tfdetr_keras import SetCriterion

BATCHES, BATCH, LAYERS, QUERIES, MOST_OBJECTS, CLASSES = 200, 3, 6, 40, 60, 9
# Measured on a CPU: losses 4e-7, gradients 1e-6.
LOSS, GRADIENT = 1e-5, 1e-4
CONFIG = dict(
    class_cost=1.0,
    bbox_cost=5.0,
    giou_cost=2.0,
    bbox_loss_coefficient=5.0,
    giou_loss_coefficient=2.0,
    eos_coefficient=0.1,
    num_labels=CLASSES,
    focal_alpha=0.25,
    auxiliary_loss=True,
    decoder_layers=LAYERS,
)
SIDES = {
    "softmax": (CLASSES + 1, {}),
    # The Deformable DETR recipe weighs its class cost and loss by 2; both sides get the weights of `CONFIG` here.
    "focal": (CLASSES, {"classification": "focal"}),
}


def random_batch(seed, logits_per_query):
    """Raw outputs of all layers and targets with 0 to 60 objects; every tenth batch has none at all."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, MOST_OBJECTS + 1, BATCH) * (rng.uniform(size=BATCH) < 0.8) * (seed % 10 > 0)
    labels = np.where(np.arange(MOST_OBJECTS) < counts[:, None], rng.integers(0, CLASSES, (BATCH, MOST_OBJECTS)), -1)
    boxes = np.concatenate(
        [rng.uniform(0.2, 0.8, (BATCH, MOST_OBJECTS, 2)), rng.uniform(0.02, 0.4, (BATCH, MOST_OBJECTS, 2))], -1
    )
    logits = rng.normal(0, rng.uniform(0.5, 4), (BATCH, LAYERS, QUERIES, logits_per_query))
    predicted = rng.uniform(0.02, 0.98, (BATCH, LAYERS, QUERIES, 4))
    return logits.astype("float32"), predicted.astype("float32"), labels.astype("int32"), boxes.astype("float32")


def relative_difference(ours, reference):
    return np.linalg.norm(ours - reference) / max(np.linalg.norm(reference), 1e-12)


@pytest.mark.parametrize("classification", some_slow(SIDES, "focal"))
def test_losses_and_gradients_of_random_batches(classification, pytorch):
    logits_per_query, options = SIDES[classification]
    criterion = SetCriterion(**options)

    @tf.function
    def ours(logits, predicted, labels, boxes):
        with tf.GradientTape() as tape:
            tape.watch([logits, predicted])
            outputs = {
                "logits": logits[:, -1],
                "pred_boxes": predicted[:, -1],
                "aux_logits": logits[:, :-1],
                "aux_boxes": predicted[:, :-1],
            }
            losses = criterion(outputs, {"labels": labels, "boxes": boxes})
        return losses, tape.gradient(losses["loss"], [logits, predicted])

    crowded = 0
    for seed in range(BATCHES):
        batch = random_batch(seed, logits_per_query)
        crowded += int(((batch[2] >= 0).sum(1) > QUERIES).any())
        losses, gradients = ours(*map(tf.constant, batch))
        logits, predicted, labels, boxes = batch
        expected, expected_gradients = pytorch.call(
            "losses:of_criterion",
            {**CONFIG, "classification": classification},
            logits,
            predicted,
            {"labels": labels, "boxes": boxes},
        )
        compared = {name for name in expected if not name.startswith("cardinality_error_")}  # theirs logs it per layer
        assert compared == set(losses)
        for name in compared:
            assert float(losses[name]) == pytest.approx(expected[name], rel=LOSS, abs=1e-9), f"batch {seed}: {name}"
        for name, gradient, reference in zip(("logits", "boxes"), gradients, expected_gradients, strict=True):
            assert relative_difference(gradient.numpy(), reference) <= GRADIENT, f"batch {seed}: {name}"
    assert crowded > 50
