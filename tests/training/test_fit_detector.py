"""A whole run in one call: its folder, its settings, going on, and what it refuses."""

import csv
import json

import keras
import numpy as np
import pytest
import small_run
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tfdetr_keras as td
from tfdetr_keras.evaluation.coco import evaluate_detections
from tfdetr_keras.training.fitting import _epochs
from tfdetr_keras.training.settings import Settings
from tfdetr_keras.training.starting_model import starting_model

QUICK = small_run.SETTINGS | {"epochs": 2, "gradient_accumulation_steps": 1, "evaluate_every": 1}


@pytest.fixture(scope="module", autouse=True)
def smallest_preset():
    with small_run.smallest_preset():
        yield


@pytest.fixture(scope="module")
def sets():
    return small_run.sets()


@pytest.fixture(scope="module")
def run(sets, tmp_path_factory):
    training, validation, names = sets
    folder = tmp_path_factory.mktemp("runs") / "a" / "run"
    return td.fit_detector(training, names, folder, validation, tensorboard=True, **QUICK)


def test_the_folder(run, sets):
    names = sets[2]
    written = {path.name for path in run.path.iterdir()}
    files = {"config.json", "class_names.txt", "metrics.csv", "curves.png", "best.keras", "best.json", "last.keras"}
    assert written == files | {"state.safetensors", "predictions.png", "report.md", "tensorboard"}
    assert (run.path / "class_names.txt").read_text().split() == names
    with (run.path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"loss", "loss_ce", "val_loss", "val_AP", "val_AP50", "learning_rate"} <= set(rows[0])
    for name in ("curves.png", "predictions.png"):
        with Image.open(run.path / name) as picture:
            assert min(picture.size) > 200
    report = (run.path / "report.md").read_text()
    assert "trained for 2 of 2 epochs" in report
    assert f"Best model: epoch {run.metrics['epoch']}" in report
    assert "| batch_size | 4 |" in report
    assert "| class | AP | AP50 |" in report
    assert f"| square | {run.metrics['AP_per_class']['square']:.3f} |" in report
    assert "- training: 8 images" in report
    assert "- validation: 3 images" in report


def test_the_best_model_has_the_metrics_that_are_told(run, sets):
    _, validation, names = sets
    model = run.load_model()
    assert dict(model.id2label) == dict(enumerate(names))
    side = small_run.SIDE
    measured = evaluate_detections(model, validation, names, (side, side), 4, (side, side))
    assert measured == {name: value for name, value in run.metrics.items() if name != "epoch"}
    assert [np.array(w).tolist() for w in td.DETR.from_pretrained(run.path).weights] == [
        np.array(w).tolist() for w in model.weights
    ]


def test_tensorboard_gets_figures_and_pictures(run):
    figures = EventAccumulator(str(run.path / "tensorboard" / "train")).Reload()
    assert {"epoch_loss", "epoch_learning_rate"} <= set(figures.Tags()["tensors"])
    pictures = EventAccumulator(str(run.path / "tensorboard" / "validation"), {"tensors": 0}).Reload()
    assert {"epoch_AP", "predictions"} <= set(pictures.Tags()["tensors"])


def test_a_run_is_not_written_over_and_goes_on_only_as_it_was(run, sets):
    training, validation, names = sets
    with pytest.raises(
        ValueError, match=r"holds a run already: resume it \(tfdetr resume .*\), or give another folder"
    ):
        td.fit_detector(training, names, run.path, validation, **QUICK)
    with pytest.raises(ValueError, match=r"learning_rate was 0.001, not 0.1\): only epochs, evaluate_every"):
        td.fit_detector(training, names, run.path, validation, resume=True, **QUICK | {"learning_rate": 0.1})
    with pytest.raises(ValueError, match="was trained on other classes: circle, square, triangle"):
        td.fit_detector(training, ["a", "b", "c"], run.path, validation, resume=True, **QUICK)


def test_a_finished_run_has_nothing_to_go_on_with(run, sets):
    training, validation, names = sets
    before = (run.path / "state.safetensors").read_bytes()
    again = td.fit_detector(training, names, run.path, validation, resume=True, tensorboard=True, **QUICK)
    assert (run.path / "state.safetensors").read_bytes() == before
    assert again.metrics == run.metrics


@pytest.mark.slow
def test_without_validation_the_least_loss_is_best(sets, tmp_path):
    training, _, names = sets
    short = {"epochs": 1, "ema_momentum": None, "warmup_steps": 0}
    run = td.fit_detector(training, names, tmp_path / "run", **QUICK | short)
    assert run.metrics == {}
    assert run.load_model("best").get_weights()[0].tolist() == run.load_model("last").get_weights()[0].tolist()
    assert "Best model" not in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_it_and_names_the_images(sets, tmp_path):
    training, validation, names = sets

    class Break(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.class_head.bias.assign(np.full(self.model.class_head.bias.shape, np.nan))

    with pytest.raises(ValueError, match=r"the loss is nan in epoch 2, step 1 \(image ids \d+, \d+, \d+, \d+\)"):
        td.fit_detector(training, names, tmp_path / "run", validation, callbacks=[Break()], **QUICK)
    assert np.isfinite(td.DETR.from_pretrained(tmp_path / "run").get_weights()[0]).all()
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 2


def test_steps_per_epoch_takes_passes_of_its_own(sets):
    """So that the number of the epoch says which passes over the records it is made of."""
    training = sets[0]

    def ids(first_epoch):
        side = (small_run.SIDE, small_run.SIDE)
        settings = Settings(size=side, pad_to=side, steps_per_epoch=5, batch_size=4).resolved(None)
        epochs = _epochs(training, settings, first_epoch, count=8)
        assert epochs.cardinality() == 5
        return [[targets["image_id"].numpy().tolist() for _, targets in epochs] for _ in range(2)]

    first, second = ids(0)
    assert len({image for batch in first for image in batch}) > 4
    assert ids(1)[0] == second != first


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("trainable", (), 25)),
        ({"batch_norm": "frozen", "freeze": "backbone", "num_queries": 7}, ("frozen", ("backbone",), 7)),
    ],
)
def test_the_model_of_a_preset(settings, expected):
    model = starting_model("detr-tiny", ["a", "b"], Settings(random_weights=True, dropout=0.2, **settings))
    config = model.config
    assert (config.backbone.batch_norm, config.frozen, config.num_queries) == expected
    assert (config.num_classes, config.dropout) == (2, 0.2)


def test_the_model_of_a_file_keeps_its_weights(run):
    source = run.load_model()
    settings = Settings(batch_norm="frozen", freeze="encoder", keep_head=True)
    model = starting_model(run.path / "best.keras", ["x", "y", "z"], settings)
    assert model.config.backbone.batch_norm == "frozen"
    assert model.config.frozen == ("encoder",)
    assert list(model.id2label.values()) == ["x", "y", "z"]
    weights = {variable.path: np.array(variable) for variable in source.weights}
    for variable in model.weights:
        np.testing.assert_array_equal(variable, weights[variable.path])
    other = starting_model(run.path, ["x", "y"], Settings())
    np.testing.assert_array_equal(other.box_head.stack[0].kernel, source.box_head.stack[0].kernel)
    assert other.class_head.kernel.shape[-1] == 3
    fresh = starting_model(run.path, ["x", "y", "z"], Settings(random_weights=True))
    assert fresh.config.backbone == source.config.backbone
    assert np.abs(np.array(fresh.box_head.stack[0].kernel) - np.array(source.box_head.stack[0].kernel)).max() > 0.01


def test_config_json_makes_the_same_model(run):
    config = json.loads((run.path / "config.json").read_text())
    assert config["source"] == "detr-smallest"
    assert config["settings"]["ema_momentum"] == 0.9
    model = run.new_model()
    assert model.config == run.load_model().config


def test_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"is not the folder of a training run: it has no config\.json"):
        td.training.RunFolder(tmp_path).load_model()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: name a folder"):
        td.fit_detector(td.data.load_shapes(4)[0], ["a"], tmp_path / "file", **QUICK)
    with pytest.raises(ValueError, match="epoch: not a setting of a training run"):
        td.fit_detector(td.data.load_shapes(4)[0], ["a"], tmp_path / "new", epoch=3)
