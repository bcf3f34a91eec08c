"""A run that is killed again and again ends as one that was left alone: weights, averages, moments, figures, models."""

import json
import multiprocessing
import random

import keras
import numpy as np
import pytest
import small_run

KILLS = 10
SEED = 2
TIMEOUT = 300  # seconds to wait for a sign of life


@pytest.fixture(scope="module")
def processes():
    """Makes processes that have TensorFlow imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["small_run"])
    return context


def start(processes, *arguments, **options):
    here, there = processes.Pipe(duplex=False)
    process = processes.Process(target=small_run.train, args=(*arguments, there), kwargs=options)
    process.start()
    there.close()
    return process, here


def moments_until(pipe, number):
    """The next so many moments, fewer where the process ends before."""
    heard = []
    while len(heard) < number:
        assert pipe.poll(TIMEOUT)
        try:
            heard.append(pipe.recv())
        except EOFError:
            break
    return heard


def finish(process):
    process.join(TIMEOUT)
    assert process.exitcode == 0


def undisturbed_run(processes, folder, **options):
    process, pipe = start(processes, folder, **options)
    heard = moments_until(pipe, 1000)
    finish(process)
    assert heard[-1] == "done"
    assert heard.count("epoch") == heard.count("state half written") == small_run.EPOCHS
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("eagerly", [True, False], ids=["eager", "graph"])
def test_killed_at_random_and_resumed(processes, tmp_path, eagerly):
    folder, lots, killed_in = tmp_path / "killed", random.Random(SEED), []
    undisturbed = undisturbed_run(processes, tmp_path / "undisturbed", eagerly=eagerly)
    while len(killed_in) < KILLS:
        process, pipe = start(processes, folder, resume=True, eagerly=eagerly)
        # Every third kill falls into the writing of a state, the others on any step or between two epochs.
        moments = moments_until(pipe, lots.choice((1, 2, 2, 3, 3, 4)))
        while len(killed_in) % 3 == 2 and moments[-1] not in ("state half written", "done"):
            moments += moments_until(pipe, 1)
        process.kill()
        process.join()
        if moments[-1] == "done":
            break
        killed_in.append(moments[-1])
    assert len(killed_in) >= 10, killed_in
    assert set(killed_in) >= {"step", "state half written"}

    process, _ = start(processes, folder, resume=True, eagerly=eagerly)
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
    process, _ = start(processes, short, epochs=1, **longer)
    finish(process)
    process, _ = start(processes, short, epochs=2, resume=True, **longer)
    finish(process)
    whole = tmp_path / "whole"
    process, _ = start(processes, whole, epochs=2, **longer)
    finish(process)
    expected, state = small_run.state_of(whole), small_run.state_of(short)
    for name, array in expected.items():
        np.testing.assert_array_equal(state[name], array, err_msg=name)
    assert json.loads((short / "config.json").read_text())["settings"]["epochs"] == 2
