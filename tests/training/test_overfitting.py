"""Eight photographs learnt by heart, from random weights: a detector cannot if anything in its training is wrong."""

import os
from pathlib import Path

import pytest

import tfdetr_keras as td
from tfdetr_keras.backbones.dinov2 import DINOv2Config
from tfdetr_keras.models import PRESETS
from tfdetr_keras.models.rf_detr_segmentation import RFDETRSegmentationConfig

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


@pytest.mark.slow
def test_an_rf_detr_learns_eight_photographs_and_their_masks_by_heart(coco128, tmp_path):
    """The same photographs, of 256 × 256 pixels, whose masks are of 64 × 64.

    The run's folder stays where `OVERFITTING_MASKS` says.
    """
    folder = coco128 / "images", coco128 / "annotations/instances_train2017.json"
    records, names = td.data.load_coco(*folder, masks=True)
    photographs = records.take(8).cache()
    backbone = DINOv2Config(patch_size=16, width=192, depth=6, heads=4, taps=(2, 4, 6), table_side=16)
    start = td.RFDETRForSegmentation(
        RFDETRSegmentationConfig(
            backbone, num_queries=25, d_model=128, cross_attention_heads=8, decoder_ffn_dim=256, groups=4
        )
    )
    start.save(tmp_path / "start.keras")
    run = td.fit_detector(
        photographs,
        names,
        Path(os.environ.get("OVERFITTING_MASKS", tmp_path / "run")),
        validation=photographs,
        source=tmp_path / "start.keras",
        random_weights=True,
        augmentation="none",
        multiscale=False,
        batch_size=8,
        max_boxes=10,
        epochs=10,
        steps_per_epoch=60,
        learning_rate=8e-4,
        backbone_multiplier=1.0,
        layer_decay=1.0,
        learning_rate_multipliers={"decoder": 1.0},
        schedule="cosine",
        warmup_steps=50,
        ema_momentum=0.99,
    )
    metrics = td.evaluation.evaluate_detections(run.load_model(), photographs, names, masks=True)
    assert min(metrics["AP50"], metrics["mask_AP50"]) >= 0.95


@pytest.mark.slow
def test_a_d_fine_learns_eight_photographs_by_heart(coco128, tmp_path):
    """The same photographs, of 192 × 192 pixels; the run's folder stays where `OVERFITTING_D_FINE` says."""
    records, names = td.data.load_coco(coco128 / "images", coco128 / "annotations/instances_train2017.json")
    photographs = records.take(8).cache()
    run = td.fit_detector(
        photographs,
        names,
        Path(os.environ.get("OVERFITTING_D_FINE", tmp_path / "run")),
        validation=photographs,
        source="d-fine-tiny",
        random_weights=True,
        augmentation="none",
        multiscale=False,
        batch_size=8,
        size=CANVAS,
        max_boxes=10,
        epochs=10,
        steps_per_epoch=60,
        learning_rate=8e-4,
        backbone_multiplier=1.0,
        schedule="cosine",
        warmup_steps=50,
        ema_momentum=0.99,
    )
    metrics = td.evaluation.evaluate_detections(run.load_model(), photographs, names, CANVAS)
    assert metrics["AP50"] >= 0.95
