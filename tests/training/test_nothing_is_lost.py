"""Kills, full disks, damage and two processes at once: what a run has finished is kept, and is the same in the end."""

import json
import os
import random
import shutil
import subprocess
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import small_run
from run_process import TIMEOUT, heard, start, with_tensorflow

from tfdetr_keras.models.keras_file import load_keras_file
from tfdetr_keras.training import AdamW, Checkpoint, RunFolder
from tfdetr_keras.training.state_file import StateFile

pytestmark = pytest.mark.slow

KILLS, DAMAGES = 30, 60


@pytest.fixture(scope="module")
def processes():
    return with_tensorflow()


def end_of(processes, folder, limit=None):
    """How a resumed run ends."""
    process, pipe = start(processes, small_run.train_limited, folder, limit)
    words = heard(pipe, 1)
    process.join(TIMEOUT)
    assert words, f"the process ended with {process.exitcode} and no word"
    return words[0]


@pytest.fixture(scope="module")
def undisturbed(processes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert end_of(processes, folder) == ("done", "")
    return folder


@pytest.fixture(scope="module")
def half(processes, undisturbed, tmp_path_factory):
    """A run that was killed in its third epoch."""
    folder = tmp_path_factory.mktemp("runs") / "half"
    process, pipe = start(processes, small_run.train, folder, resume=True)
    while True:
        assert heard(pipe, 1)
        if (folder / "state.safetensors").exists() and epochs_of(folder) == 2:
            break
    process.kill()
    process.join()
    return folder


def epochs_of(folder):
    """How many epochs a run has finished, each of which must be readable."""
    path = folder / "state.safetensors"
    return len(StateFile(path).notes["history"]) if path.exists() else 0


def assert_is_the_same(folder, undisturbed):
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
    assert {path.name for path in folder.iterdir()} == {path.name for path in undisturbed.iterdir()}


def assert_what_stands_is_whole(folder, undisturbed, done):
    """After a kill: no epoch less than before, each as the undisturbed run had it, and every file whole."""
    now = epochs_of(folder)
    assert now >= done
    if now:
        history = StateFile(undisturbed / "state.safetensors").notes["history"]
        assert StateFile(folder / "state.safetensors").notes["history"] == history[:now]
        assert (folder / "last.keras").exists()
    for path in filter(Path.is_file, folder.glob("*.keras")):  # no folder of a killed writer
        assert zipfile.ZipFile(path).testzip() is None
    for path in filter(Path.is_file, folder.glob("*.json")):
        json.loads(path.read_text())
    return now


def test_killed_at_any_moment(processes, undisturbed, tmp_path):
    """Between and inside of the files of every epoch; a run that ends in spite of it is compared, and another begun."""
    lots, killed_at, ended = random.Random(7), [], 0
    while len(killed_at) < KILLS or not ended:
        folder, done = tmp_path / f"run-{ended}", 0
        while True:
            process, pipe = start(processes, small_run.train, folder, resume=True, files=True)
            wanted = lots.randint(1, 45) if len(killed_at) < KILLS else 10_000
            words = heard(pipe, wanted)
            if len(words) == wanted and words[-1] != "done":
                process.kill()
                process.join()
                killed_at.append(words[-1])
                done = assert_what_stands_is_whole(folder, undisturbed, done) if folder.exists() else 0
                continue
            process.join(TIMEOUT)
            assert process.exitcode == 0
            break
        assert_is_the_same(folder, undisturbed)
        ended += 1
    files = {word for word in killed_at if word.startswith(("begins", "wrote"))}
    print(f"\n{len(killed_at)} kills, {len(files)} moments of different files, {ended} runs ended as undisturbed")
    assert len(files) >= 8, killed_at


def test_its_disk_is_full(processes, undisturbed, half, tmp_path):
    """By a limit on the size of files, so that one file after another is the one that finds no room."""
    sizes = sorted({path.stat().st_size for path in undisturbed.iterdir() if path.is_file()})
    limits = [10, *(size - 1 for size in sizes[::2]), sizes[-1] // 2]
    told = 0
    for number, limit in enumerate(limits):
        folder = tmp_path / str(number)
        shutil.copytree(half, folder)
        before = (folder / "state.safetensors").read_bytes()
        kind, message = end_of(processes, folder, limit)
        if kind != "done":
            told += 1
            assert kind == "FullDiskError", (limit, kind, message)
            assert "has no room" in message
            assert str(folder) in message
            assert "\n" not in message
            assert_what_stands_is_whole(folder, undisturbed, 2)
            if limit < len(before):
                assert (folder / "state.safetensors").read_bytes() == before
        assert end_of(processes, folder) == ("done", "")
        assert_is_the_same(folder, undisturbed)
    print(f"\n{len(limits)} limits, {told} full disks told, no epoch lost")
    assert told >= 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk")
def test_its_disk_is_really_full(processes, undisturbed, half, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    needed = sum(path.stat().st_size for path in half.iterdir() if path.is_file())
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={needed + 64 * 1024}", "none", str(disk)]
    if subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        shutil.copytree(half, disk / "run")
        kind, message = end_of(processes, disk / "run")
        assert (kind, "has no room" in message) == ("FullDiskError", True), (kind, message)
        assert_what_stands_is_whole(disk / "run", undisturbed, 2)
        shutil.copytree(disk / "run", tmp_path / "run")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert end_of(processes, tmp_path / "run") == ("done", "")
    assert_is_the_same(tmp_path / "run", undisturbed)


def test_its_state_is_damaged(undisturbed, tmp_path):
    """Byte by byte: the run refuses it, and nothing of it gets into the model."""
    lots = random.Random(3)
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    path = folder / "state.safetensors"
    content = path.read_bytes()
    model = RunFolder(folder).new_model()
    options = {"use_ema": True, "ema_momentum": 0.9, "gradient_accumulation_steps": 2}
    # A schedule, as in the run: for a number the optimizer would have a variable more.
    model.compile(optimizer=AdamW(keras.optimizers.schedules.CosineDecay(1e-3, 8), **options), jit_compile=False)
    checkpoint = Checkpoint(folder, averaged=True)
    assert checkpoint.restore(model) == small_run.EPOCHS
    weights = model.get_weights()
    places = [*range(0, 16), *lots.sample(range(len(content)), DAMAGES - 16)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << lots.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"state\.safetensors is (damaged|not a complete training state)"):
            checkpoint.restore(model)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)
    path.write_bytes(content)
    assert checkpoint.restore(model) == small_run.EPOCHS
    print(f"\n{len(places)} damaged states refused")


@pytest.mark.parametrize("name", ["best.keras", "last.keras"])
def test_its_models_are_damaged(undisturbed, tmp_path, name):
    """A model that is damaged is refused, or is the same: no weight of it is another."""
    lots, content = random.Random(4), (undisturbed / name).read_bytes()
    weights = load_keras_file(undisturbed / name, False).get_weights()
    refused = 0
    for place in lots.sample(range(len(content)), DAMAGES // 2):
        damaged = bytearray(content)
        damaged[place] ^= 1 << lots.randrange(8)
        (tmp_path / name).write_bytes(damaged)
        try:
            found = load_keras_file(tmp_path / name, False).get_weights()
        except ValueError:
            refused += 1
            continue
        for ours, theirs in zip(found, weights, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    print(f"\n{refused} of {DAMAGES // 2} damaged models refused, the others are the same")
    assert refused


def test_two_processes_share_its_folder(processes, undisturbed, tmp_path):
    lots, folder = random.Random(5), tmp_path / "run"
    process, pipe = start(processes, small_run.train, folder, resume=True, files=True)
    refused = 0
    for _ in range(3):
        assert heard(pipe, lots.randint(1, 12))[-1] != "done"
        kind, message = end_of(processes, folder)
        assert (kind, "is in use, process" in message) == ("ValueError", True), (kind, message)
        refused += 1
    assert heard(pipe, 10_000)[-1] == "done"
    process.join(TIMEOUT)
    assert process.exitcode == 0
    assert_is_the_same(folder, undisturbed)
    print(f"\n{refused} second processes refused")
