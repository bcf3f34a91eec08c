"""The lower floors stand on Keras alone: they run on JAX and PyTorch, without TensorFlow, and give the same numbers.

One process per backend does it for the usual members of the family, whichever test asks first, and one for the others.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec

import numpy as np
import pytest
from batches import padded_batch, random_targets
from members import MEMBERS, of_members
from once import once
from ports import gentle
from seconds_of_members import record_share

# The others are made of the same layers and losses; JAX compiles a member's step for half a minute.
USUAL = ("DETR", "RTDETR")
ROUNDING = 5e-6  # of the largest logit. Measured: 2.2e-6, of D-FINE.

# Runs in a fresh interpreter where no module of `blocked` can be imported. What it finds of each model lies beside it.
SCRIPT = """
import json, sys, time, traceback

folder, *blocked = sys.argv[1:]
sys.modules.update(dict.fromkeys(blocked))  # None: whoever imports it gets a ModuleNotFoundError

import keras
import numpy as np
from tfdetr_keras import boxes, models
from tfdetr_keras.matching import assignment
from tfdetr_keras.losses import criterion as losses
from tfdetr_keras.matching import matcher
from tfdetr_keras.inference import postprocess
from tfdetr_keras.inference import segments
from tfdetr_keras.inference import tables
from tfdetr_keras.losses import targets


def run(place):
    example = dict(np.load(place + "example.npz"))
    inputs = {name: example.pop(name) for name in ("pixel_values", "pixel_mask")}
    model = keras.saving.load_model(place + "model.keras")
    outputs = model.predict(inputs, batch_size=2, verbose=0)
    np.savez(place + "outputs.npz", **outputs)
    sizes = [[64, 96], [64, 96]]
    detections = postprocess.post_process(outputs, sizes, 0.0, model.config.classification)
    if "pred_masks" in outputs:
        segments.post_process_panoptic(outputs, sizes, 0.0)
    model.compile(optimizer=keras.optimizers.SGD(0.0001))
    history = {}
    for _ in range(2):
        if hasattr(model, "noise"):  # with the same denoising queries both times, so that their losses can be compared
            model.noise.state.assign(np.array([1, 7], "uint32"))
        for name, [value] in model.fit(inputs, example, batch_size=2, shuffle=False, verbose=0).history.items():
            history.setdefault(name, []).append(value)
    return {"detections": [len(detection["scores"]) for detection in detections], "history": history}


for name in json.load(open(folder + "/members.json")):
    start, place = time.monotonic(), f"{folder}/{name}-"
    try:
        report = run(place)
    except Exception:  # of one member
        report = {"failure": traceback.format_exc()}
    report |= {"backend": keras.backend.backend(), "seconds": time.monotonic() - start}
    json.dump(report, open(place + "report.json", "w"))
"""


def is_computed(member):
    """Whether a member is computed elsewhere; RF-DETR is, where RF-DETR with masks is."""
    return member.name != "RFDETR"


def smaller(member):
    """The member with the model that is computed elsewhere."""
    return dataclasses.replace(member, config=dataclasses.replace(member.config, **member.of_backends))


def example_of(member):
    """A batch of two images, padded where the member knows padding, and their objects."""
    inputs = padded_batch((64, 96), (40, 70) if member.case.knows_padding else (64, 96))
    canvas = inputs["pixel_mask"].shape[1:] if member.case.has_masks else None
    return inputs, random_targets((3, 1), member.config.num_classes, rows=3, canvas=canvas)


def model_of(member):
    """The model, whose objects are matched without masks where these would be compared at drawn points."""
    model = gentle(smaller(member))
    if hasattr(model, "points"):
        model.criterion = dataclasses.replace(model.criterion, cost_mask=0.0, cost_dice=0.0)
    return model


@pytest.fixture(params=["jax", "torch"])
def other(request, member, run_folder):
    """What the model of a member, saved here, computes on another backend."""
    backend = request.param
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")

    is_usual = member.name in USUAL
    chosen = {name: one for name, one in MEMBERS.items() if is_computed(one) and (name in USUAL) == is_usual}

    def fill(folder):
        for name, one in chosen.items():
            model_of(one).save(folder / f"{name}-model.keras")
            inputs, targets = example_of(one)
            np.savez(folder / f"{name}-example.npz", **inputs, **targets)
        (folder / "members.json").write_text(json.dumps(list(chosen)))
        blocked = sorted({"tensorflow", "torch", "jax", "transformers"} - {backend})
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder), *blocked],
            env={
                **os.environ,
                "KERAS_BACKEND": backend,
                "PYTHONPATH": str(request.config.rootpath),
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",  # what is computed is the same, compiling takes half as long
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    start = time.monotonic()
    folder = once(run_folder / f"{'usual' if is_usual else 'other'}-members-on-{backend}", fill)
    report = json.loads((folder / f"{member.name}-report.json").read_text())
    record_share(request.node, waited=time.monotonic() - start, own=report["seconds"])
    assert "failure" not in report, report["failure"]
    assert report["backend"] == backend
    return {**report, "outputs": dict(np.load(folder / f"{member.name}-outputs.npz"))}


@of_members(is_computed, slow=lambda member: member.name not in USUAL)
def test_another_backend_computes_and_trains_the_same(member, other):
    """Outputs and first losses are those of this backend; the second loss is lower."""
    model, (inputs, targets) = model_of(member), example_of(member)
    outputs = model(inputs)
    assert set(outputs) == set(other["outputs"])
    for name, value in outputs.items():
        largest = 1.0 if name == "pred_boxes" else float(np.abs(value).max(initial=0))
        atol = (ROUNDING if name == "logits" else 1e-5) * largest
        np.testing.assert_allclose(other["outputs"][name], value, rtol=0, atol=atol, err_msg=name)
    pairs = 1 if model.config.classification == "softmax" else model.config.num_logits
    of_queries = model.config.classification in ("varifocal", "iou_aware")
    most = model.config.num_queries if of_queries else 100
    assert other["detections"] == [min(most, pairs * model.config.num_queries)] * 2

    expected, history = model.criterion(model(inputs, training=True), targets), other["history"]
    assert set(history) == {"loss", *model.logged}
    of_drawn_points = {"loss", "loss_mask", "loss_dice"} if hasattr(model, "points") else set()
    for name, (first, _) in history.items():
        if name in of_drawn_points:  # which each backend draws for itself
            continue
        if name == "loss" and model.wants_targets:  # there are losses of denoising, too, of which each draws its own
            assert first > float(expected[name])
            continue
        assert first == pytest.approx(float(expected[name]), rel=1e-6, abs=1e-5), name
    if not of_drawn_points:  # or the second loss is one at others
        assert history["loss"][1] < history["loss"][0]
