"""Eight photographs learnt by heart, from random weights: a detector cannot if anything in its training is wrong."""

import os
from pathlib import Path

import pytest

import tfdetr_keras as td

SIZE = 256  # of the square canvas, pixels


@pytest.mark.slow
def test_a_resnet_18_learns_eight_photographs_by_heart(coco128, tmp_path):
    """The first eight of COCO128: 32 objects of 12 classes, from 9 to 346 pixels; nothing is frozen or pretrained.

    The run's folder stays where `OVERFITTING_RUN` says, for its figures and pictures.
    """
    records, names = td.data.load_coco(coco128 / "images", coco128 / "annotations/instances_train2017.json")
    photographs = records.take(8)
    run = td.fit_detector(
        photographs,
        names,
        Path(os.environ.get("OVERFITTING_RUN", tmp_path / "run")),
        validation=photographs,
        source="detr-resnet-18",
        num_queries=25,
        dropout=0.0,
        augmentation="none",
        batch_size=8,
        size=(SIZE, SIZE),
        pad_to=(SIZE, SIZE),
        max_boxes=10,
        pretraining_epochs=2,
        epochs=20,
        steps_per_epoch=50,
        learning_rate=2e-4,
        backbone_multiplier=1.0,
        warmup_steps=50,
        evaluate_every=2,
    )
    # The model that was saved, not the one in memory, and image by image.
    metrics = td.evaluation.evaluate_detections(run.load_model(), photographs, names, (SIZE, SIZE), pad_to=(SIZE, SIZE))
    assert metrics["AP50"] >= 0.9
