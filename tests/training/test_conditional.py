"""A Conditional DETR trained by `fit_detector`: sigmoids instead of a softmax, in loss, AP and the run's folder."""

import csv
import dataclasses

import numpy as np
import pytest
import small_run
import tensorflow as tf

import tfdetr_keras as td
from tfdetr_keras.evaluation.coco import evaluate_detections
from tfdetr_keras.models import PRESETS
from tfdetr_keras.training.fitting import fit_detector
from tfdetr_keras.training.settings import Settings
from tfdetr_keras.training.starting_model import starting_model

pytestmark = [pytest.mark.slow, pytest.mark.member(name="ConditionalDETR")]

SHORT = {"epochs": 1, "gradient_accumulation_steps": 1, "warmup_steps": 0}
QUICK = small_run.SETTINGS | {"source": "conditional-smallest"} | SHORT
SIZES = {"size": (small_run.SIDE, small_run.SIDE), "batch_size": 4, "pad_to": (small_run.SIDE, small_run.SIDE)}


@pytest.fixture(scope="module", autouse=True)
def smallest(without_tracing):
    PRESETS["conditional-smallest"] = td.ConditionalDETRConfig(**dataclasses.asdict(small_run.SMALLEST))
    yield
    del PRESETS["conditional-smallest"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    training, validation, names = small_run.sets()
    return fit_detector(
        training, names, tmp_path_factory.mktemp("conditional") / "run", validation, pretraining_epochs=1, **QUICK
    )


def test_the_best_model_has_the_metrics_that_are_told(run):
    _, validation, names = small_run.sets()
    model = run.load_model()
    assert type(model) is td.ConditionalDETR
    assert model.class_head.kernel.shape[-1] == len(names)
    assert model.criterion == td.ConditionalDETR.default_criterion()
    measured = evaluate_detections(model, validation, names, **SIZES)
    assert measured == {name: value for name, value in run.metrics.items() if name != "epoch"}
    assert (run.path / "predictions.png").is_file()


def test_ap_is_that_of_the_surest_pairs_of_query_and_class(run):
    """Against sigmoids written out: each query may speak for each class."""
    _, validation, names = small_run.sets()
    model = run.load_model()
    records = list(validation.as_numpy_iterator())
    detections = []
    for inputs, targets in td.data.prepare(validation, **SIZES):
        outputs = {key: np.array(value, np.float64) for key, value in model(inputs, training=False).items()}
        scores = 1 / (1 + np.exp(-outputs["logits"]))
        for image, (height, width) in enumerate(targets["orig_size"].numpy()):
            x, y, w, h = outputs["pred_boxes"][image].T * np.array([[width], [height], [width], [height]])
            boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)
            found = {"boxes": np.repeat(boxes, len(names), axis=0), "scores": scores[image].ravel()}
            labels = np.tile(np.arange(len(names)), len(boxes))
            detections.append({"image_id": int(targets["image_id"][image]), "labels": labels, **found})
    expected = td.evaluation.coco_metrics(records, detections, names)
    assert evaluate_detections(model, validation, names, **SIZES)["AP"] == pytest.approx(expected["AP"], abs=1e-6)


def test_it_is_a_source_itself(run):
    model = starting_model(run.path, ["x", "y"], Settings(num_queries=4, dropout=0.2, freeze="backbone"))
    assert type(model) is td.ConditionalDETR
    assert (model.config.num_classes, model.config.num_queries, model.config.frozen) == (2, 4, ("backbone",))
    assert model.criterion.classification == "focal"
    fresh = starting_model(run.path, ["x", "y", "z"], Settings(random_weights=True))
    assert type(fresh) is td.ConditionalDETR
    published = starting_model("conditional-detr-resnet-50", ["x", "y", "z"], Settings(batch_norm="frozen"))
    assert (published.config.num_logits, published.config.backbone.batch_norm) == (3, "frozen")


@pytest.mark.slow
def test_photographs_are_learnt_by_heart(coco128, tmp_path):
    tf.config.run_functions_eagerly(False)
    records, names = td.data.load_coco(coco128 / "images", coco128 / "annotations/instances_train2017.json")
    photographs = (
        records.filter(lambda record: (tf.size(record["labels"]) > 0) & (tf.size(record["labels"]) <= 4))
        .take(4)
        .cache()
    )
    PRESETS["conditional-thin"] = td.ConditionalDETRConfig(
        td.ResNetConfig(block="basic", depths=(1, 1, 1, 1), channels=(16, 16, 32, 32), stem_channels=16),
        num_queries=12,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    )
    recipe = {"size": (96, 96), "pad_to": (96, 96), "max_boxes": 4, "augmentation": "none", "warmup_steps": 20}
    recipe |= {"backbone_multiplier": 1.0, "steps_per_epoch": 50, "epochs": 6, "learning_rate": 1e-3, "batch_size": 4}
    try:
        run = fit_detector(
            photographs, names, tmp_path / "run", photographs, "conditional-thin", evaluate_every=3, **recipe
        )
    finally:
        del PRESETS["conditional-thin"]
    with (run.path / "metrics.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0] / 5
    assert run.metrics["AP50"] > 0.8
