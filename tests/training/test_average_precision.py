"""AP in `fit` and `evaluate`: the figures are `evaluate_detections`' own, and Keras' callbacks can use them."""

import contextlib
import io
import json

import keras
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import tfdetr_keras as td
from tfdetr_keras.evaluation.coco import METRIC_NAMES, coco_metrics, evaluate_detections, write_coco_results
from tfdetr_keras.training import AveragePrecision

SIZE = (64, 64)


@pytest.mark.slow
def test_the_logs_have_the_figures_of_the_weights_at_the_epochs_end(compiled, held_out, batches, tmp_path):
    records, names = held_out
    model = compiled(names)
    measured, expected = AveragePrecision(records, names, SIZE, batch_size=4, pad_to=SIZE), []

    class Check(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            expected.append(evaluate_detections(self.model, records, names, SIZE, 4, SIZE))

    best = tmp_path / "best.keras"
    keep = keras.callbacks.ModelCheckpoint(best, monitor="val_AP", mode="max", save_best_only=True)
    stop = keras.callbacks.EarlyStopping(monitor="val_AP50", mode="max", patience=1, min_delta=2)
    history = model.fit(
        batches, epochs=4, validation_data=batches, callbacks=[measured, Check(), keep, stop], verbose=0
    ).history
    assert len(history["val_AP"]) == 2  # stopped: nothing gets better by 2
    for name in METRIC_NAMES:
        assert history[f"val_{name}"] == [metrics[name] for metrics in expected]
    assert measured.metrics == expected[-1]
    assert set(measured.metrics["AP_per_class"]) == set(names)
    assert best.is_file()
    assert "val_loss" in history


def test_every_so_many_epochs_and_the_last(compiled, held_out):
    records, names = held_out
    measured = AveragePrecision(records.take(2), names, SIZE, every=2)
    measured.set_model(compiled(names))
    measured.set_params({"epochs": 5})
    logs = [{} for _ in range(5)]
    for epoch, found in enumerate(logs):
        measured.on_epoch_end(epoch, found)
    assert [set(found) for found in logs] == [set(), full := {f"val_{n}" for n in METRIC_NAMES}, set(), full, full]


def test_evaluate_measures_once(compiled, held_out, batches, capsys):
    records, names = held_out
    model = compiled(names)
    measured = AveragePrecision(records, names, SIZE, batch_size=4)
    model.evaluate(batches, callbacks=[measured], verbose=0)
    assert measured.metrics == evaluate_detections(model, records, names, SIZE, 4)
    assert f"AP50 {measured.metrics['AP50']:.3f}" in capsys.readouterr().out


@pytest.mark.slow
def test_the_averaged_weights_are_measured_and_the_own_ones_come_back(compiled, held_out, batches):
    records, names = held_out
    figures, models = [], []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            figures.append(logs["val_AP"])
            own = [np.array(variable) for variable in self.model.trainable_variables]
            with td.training.averaged_weights(self.model):
                models.append([np.array(variable) for variable in self.model.trainable_variables])
                assert evaluate_detections(self.model, records, names, SIZE, 4)["AP"] == figures[-1]
            for before, after in zip(own, self.model.trainable_variables, strict=True):
                np.testing.assert_array_equal(before, after)
            assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(own, models[-1], strict=True))

    model = compiled(names, 1e-2, use_ema=True, ema_momentum=0.9)
    measured = AveragePrecision(records, names, SIZE, batch_size=4, averaged=True)
    model.fit(batches, epochs=2, callbacks=[measured, Look()], verbose=0)
    assert len(figures) == 2
    for average, variable in zip(models[-1], model.trainable_variables, strict=True):  # as Keras ends `fit`
        np.testing.assert_array_equal(average, variable)


@pytest.mark.slow
def test_swapped_in_by_keras_callback_they_are_measured_too(compiled, held_out, batches):
    records, names = held_out
    model = compiled(names, 1e-2, use_ema=True, ema_momentum=0.9)
    measured = AveragePrecision(records, names, SIZE, batch_size=4)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    model.fit(batches, epochs=2, callbacks=[swap, measured], verbose=0)
    assert measured.metrics == evaluate_detections(model, records, names, SIZE, 4)


@pytest.mark.slow
def test_no_averages_to_measure(compiled, held_out, batches):
    records, names = held_out
    measured = AveragePrecision(records, names, SIZE, averaged=True)
    with pytest.raises(ValueError, match="keeps no averages: compile it with an optimizer that has use_ema=True"):
        compiled(names).fit(batches, callbacks=[measured], verbose=0)


def test_dumped_detections_give_the_same_figures_by_hand(compiled, held_out, tmp_path):
    """To the last digit, by way of COCO's own files and category ids."""
    records, names = held_out
    measured = AveragePrecision(records, names, SIZE)
    measured.set_model(compiled(names))
    measured.on_test_end()
    ids = [7, 30, 2]
    write_coco_results(measured.evaluator.detections, tmp_path / "found.json", ids)
    truth = {"images": [], "annotations": [], "categories": [{"id": i, "name": str(i)} for i in ids]}
    for record in records.as_numpy_iterator():
        truth["images"].append({"id": int(record["image_id"])})
        for label, area, (x, y, x2, y2) in zip(record["labels"], record["area"], record["boxes"].tolist(), strict=True):
            row = {"image_id": int(record["image_id"]), "category_id": ids[label], "bbox": [x, y, x2 - x, y2 - y]}
            truth["annotations"].append(row | {"id": len(truth["annotations"]) + 1, "iscrowd": 0, "area": float(area)})
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(tmp_path / "truth.json")
        scorer = COCOeval(coco, coco.loadRes(str(tmp_path / "found.json")), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    assert [measured.metrics[name] for name in METRIC_NAMES] == scorer.stats.tolist()
    assert measured.metrics == coco_metrics(measured.evaluator.ground_truth, measured.evaluator.detections, names)


def test_mistakes(compiled, held_out):
    records, names = held_out
    with pytest.raises(ValueError, match="every must be at least 1"):
        AveragePrecision(records, names, every=0)
    measured = AveragePrecision(records, names[:2], SIZE)
    measured.set_model(compiled(names))
    with pytest.raises(ValueError, match="the model gives 4 logits, but 2 class names need 3"):
        measured.on_epoch_end(0, {})
