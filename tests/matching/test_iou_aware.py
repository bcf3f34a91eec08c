"""The IoU-aware loss, computed in one pass, against its definition in double precision."""

import numpy as np
import tensorflow as tf

from tfdetr_keras.matching.classification import IoUAware, Weighting
from tfdetr_keras.matching.iou_aware import iou_aware_losses

ALPHA, GAMMA, LEAST = 0.25, 2.0, 0.01


def drawn():
    """Logits of all sizes, classes of which some are none, qualities and weights of the classes."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (2, 3, 50, 7)).astype("float32")
    logits[0, 0, :10] = np.linspace(-110, 110, 70).reshape(10, 7)
    classes = rng.integers(0, 8, (2, 3, 50)).astype("int32")
    quality = rng.uniform(0, 1, classes.shape).astype("float32")
    return logits, classes, quality, rng.uniform(0.5, 2, 7).astype("float32")


def wanted(logits, classes, quality, class_weights):
    """Losses of the queries and their gradient by the logits, as the definition has them."""
    x = logits.astype("float64")
    p, softplus = 1 / (1 + np.exp(-x)), np.logaddexp(0, x)
    target = np.maximum(p**ALPHA * quality[..., None] ** (1 - ALPHA), LEAST)
    is_own = classes[..., None] == np.arange(x.shape[-1])
    losses = np.where(is_own, target * (softplus - x) + (1 - target) * softplus, p**GAMMA * softplus)
    gradient = np.where(is_own, p - target, p**GAMMA * (GAMMA * (1 - p) * softplus + p))
    return (class_weights * losses).sum(-1), class_weights * gradient


def test_losses_and_gradient_are_those_of_the_definition():
    given = drawn()
    logits = tf.constant(given[0])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = iou_aware_losses(logits, *given[1:], ALPHA, GAMMA, LEAST)
    expected, expected_gradient = wanted(*given)
    np.testing.assert_allclose(losses, expected, rtol=2e-6)
    np.testing.assert_allclose(tape.gradient(losses, logits), expected_gradient, rtol=2e-5, atol=1e-7)


def test_a_sum_over_millions_is_exact():
    rng = np.random.default_rng(0)
    logits = rng.normal(-4.6, 1, (4, 1, 3900, 91)).astype("float32")
    classes, quality = np.full((4, 1, 3900), 91, "int32"), np.zeros((4, 1, 3900), "float32")
    loss = IoUAware().loss(tf.constant(logits), tf.constant(classes), 1.0, Weighting(), quality=tf.constant(quality))
    np.testing.assert_allclose(loss[0], wanted(logits, classes, quality, np.ones(91))[0].sum(), rtol=1e-5)
