"""Pretraining of a backbone: what it is asked for, that it learns it, and that the detector gets the weights."""

import keras
import numpy as np
import pytest

from tfdetr_keras import DETR, BackbonePretraining, data

CLASSES = 3


@pytest.fixture
def detector():
    keras.utils.set_random_seed(0)
    return DETR.from_preset("detr-tiny", num_classes=CLASSES)


@pytest.fixture
def batch():
    """Two images of 64×64 and 40×48 pixels on a canvas of 64×64, the second padded to the first's three boxes."""
    rng = np.random.default_rng(0)
    mask = np.zeros((2, 64, 64), np.int32)
    mask[0], mask[1, :40, :48] = 1, 1
    inputs = {"pixel_values": rng.normal(size=(2, 64, 64, 3)).astype(np.float32), "pixel_mask": mask}
    boxes = rng.uniform(0.1, 0.45, (2, 3, 4)).astype(np.float32)
    boxes[..., :2] += 0.2
    labels = np.array([[0, 2, 2], [1, -1, -1]], np.int32)
    boxes[labels < 0] = np.nan  # padding rows mean nothing
    return inputs, {"labels": labels, "boxes": boxes}


def expected_loss(logits, inputs, targets):
    """The definition, cell by cell."""
    terms = []
    rows, columns = logits.shape[1:3]
    for b, image in enumerate(logits):
        height, width = inputs["pixel_mask"][b, :, 0].sum(), inputs["pixel_mask"][b, 0].sum()
        for i, j in np.ndindex(rows, columns):
            y, x = (i + 0.5) * 64 / rows / height, (j + 0.5) * 64 / columns / width
            if y >= 1 or x >= 1:
                continue
            covered = np.zeros(CLASSES)
            for label, (cx, cy, w, h) in zip(targets["labels"][b], targets["boxes"][b], strict=True):
                if label >= 0 and abs(x - cx) <= w / 2 and abs(y - cy) <= h / 2:
                    covered[label] = 1
            probability = 1 / (1 + np.exp(-image[i, j].astype(np.float64)))
            terms.append(-(covered * np.log(probability) + (1 - covered) * np.log(1 - probability)).mean())
    return np.mean(terms)


def test_loss_is_the_cross_entropy_of_the_classes_that_cover_each_cell(detector, batch):
    inputs, targets = batch
    backbone = BackbonePretraining(detector)
    logits = backbone(inputs)
    assert logits.shape == (2, 8, 8, CLASSES)
    loss = float(backbone.compute_loss(inputs, targets, logits))
    assert loss == pytest.approx(expected_loss(np.asarray(logits), inputs, targets), rel=1e-5)


def test_images_without_objects_count_as_background(detector, batch):
    inputs, _ = batch
    empty = {"labels": np.full((2, 0), -1, np.int32), "boxes": np.zeros((2, 0, 4), np.float32)}
    backbone = BackbonePretraining(detector)
    logits = backbone(inputs)
    loss = float(backbone.compute_loss(inputs, empty, logits))
    assert loss == pytest.approx(expected_loss(np.asarray(logits), inputs, empty), rel=1e-5)


@pytest.mark.slow
def test_fit_trains_the_detectors_own_backbone_and_nothing_else(detector):
    records, _ = data.load_shapes(16, size=(48, 64))
    dataset = data.prepare(records, 8, training=True, size=(48, 64), pad_to=(64, 64))
    before = {weight.path: np.array(weight) for weight in detector.weights}
    backbone = BackbonePretraining(detector)
    backbone.compile(optimizer=keras.optimizers.AdamW(2e-3))
    losses = backbone.fit(dataset.repeat(), steps_per_epoch=5, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    changed = {weight.path for weight in detector.weights if not np.array_equal(before[weight.path], weight)}
    backbone_weights = {weight.path for weight in detector.backbone.trainable_weights}
    assert backbone_weights <= changed
    assert changed <= {weight.path for weight in detector.backbone.weights}


def test_a_label_out_of_range_is_named(detector, batch):
    inputs, targets = batch
    backbone = BackbonePretraining(detector)
    backbone.compile(optimizer="adam")
    targets = {"labels": np.array([[0, 2, 3], [1, -1, -1]], np.int32), "boxes": targets["boxes"]}
    with pytest.raises(ValueError, match="image 0 of the batch, row 2: label 3 is not a class"):
        backbone.fit(inputs, targets, verbose=0)
