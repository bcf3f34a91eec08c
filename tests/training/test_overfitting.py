"""Eight photographs learnt by heart, from random weights: a detector cannot if anything in its training is wrong."""

import os
from pathlib import Path

import pytest

import tfdetr_keras as td
from tfdetr_keras.models import PRESETS

CANVAS = (192, 192)  # pixels


@pytest.mark.slow
def test_a_resnet_18_learns_eight_photographs_by_heart(coco128, tmp_path):
    """The first eight of COCO128: 32 objects, from 9 to 346 pixels wide; nothing is frozen or pretrained elsewhere.

    A small transformer, which learns in minutes what the paper's takes an hour for. The run's folder stays where
    `OVERFITTING_RUN` says, for its figures and pictures.
    """
    records, names = td.data.load_coco(coco128 / "images", coco128 / "annotations/instances_train2017.json")
    photographs = records.take(8).cache()
    start = td.DETR(
        td.DETRConfig(
            backbone=PRESETS["detr-resnet-18"].backbone,
            num_queries=25,
            d_model=128,
            encoder_layers=2,
            decoder_layers=3,
            encoder_ffn_dim=256,
            decoder_ffn_dim=256,
            dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
        )
    )
    start.save(tmp_path / "start.keras")
    run = td.fit_detector(
        photographs,
        names,
        Path(os.environ.get("OVERFITTING_RUN", tmp_path / "run")),
        validation=photographs,
        source=tmp_path / "start.keras",
        random_weights=True,
        augmentation="none",
        batch_size=8,
        size=CANVAS,
        pad_to=CANVAS,
        max_boxes=10,
        pretraining_epochs=1,
        epochs=8,
        steps_per_epoch=50,
        learning_rate=1e-3,
        warmup_steps=50,
    )
    assert run.load_model().config.backbone.batch_norm == "trainable"
    # The model that was saved, not the one in memory.
    metrics = td.evaluation.evaluate_detections(run.load_model(), photographs, names, CANVAS, pad_to=CANVAS)
    assert metrics["AP50"] >= 0.9
