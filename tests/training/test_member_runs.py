"""Every member of the family trained by `fit_detector`: its run measures, goes on, and is a source itself.

DETR trains its mask head in a stage of its own, see `test_segmentation.py`.
"""

import dataclasses
import json

import pytest
import small_run
from members import of_members

import tfdetr_keras as td
from tfdetr_keras.evaluation.coco import evaluate_detections
from tfdetr_keras.models import PRESETS
from tfdetr_keras.training.fitting import fit_detector
from tfdetr_keras.training.settings import Settings
from tfdetr_keras.training.starting_model import starting_model

pytestmark = pytest.mark.slow

PRESET = "member-smallest"
SHORT = {"source": PRESET, "epochs": 1, "gradient_accumulation_steps": 1, "warmup_steps": 0}
SIZES = {"size": (small_run.SIDE, small_run.SIDE), "batch_size": 4, "pad_to": (small_run.SIDE, small_run.SIDE)}


@of_members(lambda member: member.name != "DETRForSegmentation")
def test_a_run_measures_goes_on_and_is_a_source(member, without_tracing, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, PRESET, dataclasses.replace(member.config, frozen=(), **member.of_32_pixels))
    masks = member.case.has_masks
    training, validation, names = small_run.sets(masks)
    settings = small_run.SETTINGS | SHORT
    run = fit_detector(training, names, tmp_path / "run", validation, **settings)
    model = run.load_model()
    assert type(model) is member.kind
    assert model.config.num_classes == len(names)
    assert model.criterion == member.kind.default_criterion()
    measured = evaluate_detections(model, validation, names, **SIZES, masks=masks)
    assert measured == {name: value for name, value in run.metrics.items() if name != "epoch"}
    assert (run.path / "predictions.png").is_file()
    assert ("mask_AP" in measured) == (run.path / "segments.png").is_file() == masks
    assert json.loads((run.path / "config.json").read_text())["model"]["class"] == member.name

    again = fit_detector(training, names, run.path, validation, resume=True, **settings | {"epochs": 2})
    assert type(again.new_model()) is member.kind
    assert len((run.path / "metrics.csv").read_text().splitlines()) == 3

    started = starting_model(run.path, ["x", "y"], Settings(num_queries=4, freeze="backbone"))
    assert type(started) is member.kind
    assert (started.config.num_classes, started.config.num_queries, started.config.frozen) == (2, 4, ("backbone",))
    fresh = starting_model(run.path, ["x", "y", "z"], Settings(random_weights=True))
    assert (type(fresh), fresh.criterion) == (member.kind, td.models.model_class(fresh.config).default_criterion())
