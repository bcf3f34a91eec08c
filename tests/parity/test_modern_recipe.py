"""Fifty steps of DETR with ResNet-18 by the recipe of modern detectors, beside PyTorch's own loop.

Learning rates by part and by layer, no decay of normalisations and biases, warm-up, accumulated gradients, batch
normalisation that is trained, and averages of all floating state with their ramp. Dropout is off, as it draws
differently. From random weights the training is chaotic: in float32 rounding alone moves its losses by 1e-3. So both
sides compute in float64, but for the heads and the loss, which are float32 on both. Measured on a CPU: losses differ by
up to 6e-5 of their value, averages by 7e-6 of their largest value or of 1. AdamW's epsilon is 1e-5 here: with 1e-8 each
weight whose gradient is rounding takes whole steps.
"""

import dataclasses

import keras
import numpy as np
import pytest
from batches import padded_batch, random_targets
from members import DETR

import tfdetr_keras as td
from port_weights import to_torch
from port_weights.architecture import hugging_face_config
from port_weights.schemes import scheme
from tfdetr_keras.training.schedules import WarmUp

pytestmark = pytest.mark.slow

IN_MEMORY = scheme("hugging-face", "hugging-face-in-memory", "model.", "model.backbone.model.")
STEPS, ACCUMULATE, WARMUP = 50, 2, 20
RATE, DECAY, MAX_NORM, MOMENTUM, RAMP, EPSILON = 3e-5, 1e-4, 0.1, 0.99, 10, 1e-5
LOSS, AVERAGE, WAY = 1e-4, 1e-5, 0.05
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
BACKBONE, LAYER_DECAY = 0.1, 0.8
# By layer, deepest last: what PyTorch calls the layers, and how far they are from the end.
OURS = {"backbone/stem": 5, "backbone/stage1": 4, "backbone/stage2": 3, "backbone/stage3": 2, "backbone/stage4": 1}
THEIRS = {"embedder.": 5, "stages.0.": 4, "stages.1.": 3, "stages.2.": 2, "stages.3.": 1}


def batches():
    """Two padded images each, with 0 to 9 objects."""
    counts = [(3, 7), (9, 1), (4, 0), (6, 2), (5, 5)]
    for step in range(STEPS):
        inputs = padded_batch((96, 128), (80, 100), seed=step)
        inputs["pixel_values"] = inputs["pixel_values"].astype(np.float64)
        yield inputs, random_targets(counts[step % 5], 20, rows=9, seed=step)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    backbone = dataclasses.replace(td.PRESETS["table-transformer-detection"].backbone, batch_norm="trainable")
    drawn = td.from_preset("detr-resnet-50", backbone=backbone, num_classes=20, num_queries=12, frozen=(), **NO_DROPOUT)
    model = td.DETR(drawn.config, dtype="float64")
    model.set_weights(drawn.get_weights())
    return model


@pytest.fixture(scope="module")
def theirs(model, pytorch):
    multipliers = {part: BACKBONE * LAYER_DECAY**depth for part, depth in THEIRS.items()}
    return pytorch.call(
        "training:recipe_steps",
        hugging_face_config(model.config),
        to_torch(model, IN_MEMORY),
        list(batches()),
        **{"rate": RATE, "multipliers": multipliers, "decay": DECAY, "max_norm": MAX_NORM, "momentum": MOMENTUM},
        **{"ramp": RAMP, "warmup": WARMUP, "accumulate": ACCUMULATE, "eps": EPSILON},
    )


def test_losses_weights_and_averages_stay_together(model, theirs):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([10 * STEPS], [RATE, RATE])
    optimizer = td.AdamW(
        WarmUp(schedule, WARMUP),
        learning_rate_multipliers={part: BACKBONE * LAYER_DECAY**depth for part, depth in OURS.items()},
        weight_decay=DECAY,
        weight_decay_exclude=["norms", "biases"],
        global_clipnorm=MAX_NORM,
        gradient_accumulation_steps=ACCUMULATE,
        epsilon=EPSILON,
        use_ema=True,
        ema_momentum=MOMENTUM,
        ema_ramp_steps=RAMP,
    )
    model.compile(optimizer=optimizer)
    start = by_path(model)
    losses = []
    for inputs, targets in batches():
        model.reset_metrics()
        losses.append(model.train_on_batch(inputs, targets, return_dict=True)["loss"])
    assert_same_groups(model, optimizer, theirs["groups"])
    print(f"losses differ by {np.abs(np.divide(losses, theirs['losses']) - 1).max():.2g}")
    averages = {variable.path.split("/", 1)[1]: np.asarray(average) for variable, average in optimizer.averages()}
    apart, ways, moved = {}, {}, {}
    for path, average in averages.items():
        name, layout = IN_MEMORY.torch_name(path)
        expected = layout.read(theirs["averages"][name], average.shape)
        apart[path] = float(np.abs(average - expected).max() / max(1.0, np.abs(expected).max()))
        moved[path] = float(np.linalg.norm(expected - start[path]))
        ways[path] = float(np.linalg.norm(average - expected)) / max(moved[path], 1e-12)
    counting = {path: way for path, way in ways.items() if DETR.has_effect(path)}
    print(f"averages apart by {max(apart.values()):.2g}, ways by {max(counting.values()):.2g}")
    np.testing.assert_allclose(losses, theirs["losses"], rtol=LOSS)
    statistics = [path for path in averages if "moving_" in path]
    assert len(statistics) == 40
    assert min(moved[path] for path in statistics) > 1e-3
    assert max(apart.values()) <= AVERAGE
    assert max(counting.values()) <= WAY


def by_path(model):
    return {variable.path.split("/", 1)[1]: np.array(variable) for variable in model.weights}


def assert_same_groups(model, optimizer, expected):
    """Every variable has the learning rate and the decay that it has there."""
    for place, variable in enumerate(model.trainable_variables):
        name, _ = IN_MEMORY.torch_name(variable.path.split("/", 1)[1])
        rate, decay = expected[name]
        assert optimizer._multipliers[place] * RATE == pytest.approx(rate), variable.path
        assert optimizer._decays[place] * DECAY == decay, variable.path
