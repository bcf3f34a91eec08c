"""A run that is killed again and again ends as one that was left alone: weights, averages, moments, figures, models."""

import json
import random

import keras
import numpy as np
import pytest
import small_run
from run_process import TIMEOUT, heard, start, with_tensorflow

KILLS = 10
SEED = 2
# All that a modern recipe adds; the epochs are 4, of 2 batches each.
MODERN = {
    **{"augmentation": "strong", "plain_epochs": 1, "multiscale": (1.0, 2.0), "layer_decay": 0.8},
    **{"weight_decay_exclude": ("norms", "biases"), "batch_norm": "trainable"},
    **{"ema_ramp_steps": 3, "ema_restart_after": 2},
}


@pytest.fixture(scope="module")
def processes():
    return with_tensorflow()


def finish(process):
    process.join(TIMEOUT)
    assert process.exitcode == 0


def undisturbed_run(processes, folder, **options):
    process, pipe = start(processes, small_run.train, folder, **options)
    words = heard(pipe, 1000)
    finish(process)
    assert words[-1] == "done"
    assert words.count("epoch") == words.count("state half written") == small_run.EPOCHS
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("eagerly", "recipe"),
    [
        *[(True, {}), (False, {}), (False, MODERN)],
        *[(False, {"source": "rt-detr-smallest"}), (False, {"source": "d-fine-smallest"})],
    ],
    ids=["eager", "graph", "modern recipe", "denoising", "distributions"],
)
def test_killed_at_random_and_resumed(processes, tmp_path, eagerly, recipe):
    folder, lots, killed_in = tmp_path / "killed", random.Random(SEED), []
    undisturbed = undisturbed_run(processes, tmp_path / "undisturbed", eagerly=eagerly, **recipe)
    while len(killed_in) < KILLS:
        process, pipe = start(processes, small_run.train, folder, resume=True, eagerly=eagerly, **recipe)
        # Every third kill falls into the writing of a state, the others on any step or between two epochs.
        moments = heard(pipe, lots.choice((1, 2, 2, 3, 3, 4)))
        while len(killed_in) % 3 == 2 and moments[-1] not in ("state half written", "done"):
            moments += heard(pipe, 1)
        process.kill()
        process.join()
        if moments[-1] == "done":
            break
        killed_in.append(moments[-1])
    assert len(killed_in) >= 10, killed_in
    assert set(killed_in) >= {"step", "state half written"}

    process, _ = start(processes, small_run.train, folder, resume=True, eagerly=eagerly, **recipe)
    finish(process)
    expected, state = small_run.state_of(undisturbed), small_run.state_of(folder)
    assert set(state) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(state[name], array, err_msg=name)
    for name in ("metrics.csv", "best.json", "class_names.txt"):
        assert (folder / name).read_text() == (undisturbed / name).read_text(), name
    for name in ("best.keras", "last.keras"):
        models = [keras.saving.load_model(place / name, compile=False) for place in (folder, undisturbed)]
        for ours, theirs in zip(*(model.get_weights() for model in models), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert not list(folder.glob(".partial*"))


@pytest.mark.slow
def test_more_epochs_go_on_from_a_finished_run(processes, tmp_path):
    short, longer = tmp_path / "short", {"schedule": "constant", "warmup_steps": 2}
    process, _ = start(processes, small_run.train, short, epochs=1, **longer)
    finish(process)
    process, _ = start(processes, small_run.train, short, epochs=2, resume=True, **longer)
    finish(process)
    whole = tmp_path / "whole"
    process, _ = start(processes, small_run.train, whole, epochs=2, **longer)
    finish(process)
    expected, state = small_run.state_of(whole), small_run.state_of(short)
    for name, array in expected.items():
        np.testing.assert_array_equal(state[name], array, err_msg=name)
    assert json.loads((short / "config.json").read_text())["settings"]["epochs"] == 2
