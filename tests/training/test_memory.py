"""What a training step takes is estimated from shapes, within a factor of 1.5 of what was measured, and told."""

import dataclasses
import json
import logging
import os
import subprocess
import sys

import pytest
from smallest import SMALLEST

import tfdetr_keras as td
from tfdetr_keras.cli import main
from tfdetr_keras.training import memory
from tfdetr_keras.training.settings import Settings

MEASURED = """
import json, os, sys
import numpy as np, tensorflow as tf, tfdetr_keras as td
from tfdetr_keras.training.memory import step_memory
name, batch, height, width = sys.argv[1], *map(int, sys.argv[2:5])
own = {} if name.startswith("rt-detr") else {"frozen": "" if name == "detr-tiny" else "stem+stage1"}
model = td.from_preset(name, num_classes=20, **own)
model.recompute = sys.argv[5:] == ["recompute"]
model.compile(optimizer=td.AdamW(), jit_compile=False)
rng = np.random.default_rng(0)
pixels = tf.constant(rng.normal(size=(batch, height, width, 3)), "float32")
targets = {"labels": rng.integers(0, 20, (batch, 8)), "boxes": rng.uniform(0.2, 0.4, (batch, 8, 4)).astype("f")}
def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
for _ in range(2):
    model.train_on_batch(pixels, targets)
print(json.dumps([status("VmHWM") - before, step_memory(model, batch, height, width)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux tells it")
@pytest.mark.parametrize(
    "arguments",
    [
        "detr-tiny 1 512 512",  # attention takes most
        "detr-tiny 8 64 64",
        "detr-resnet-18 2 320 480",
        "detr-resnet-50 2 480 640",
        "detr-resnet-50-dc5 1 320 480",
        "conditional-detr-resnet-50 1 320 480",
        "dab-detr-resnet-50 1 320 480",
        "dab-detr-resnet-50-pat3 1 320 480",
        "deformable-detr 2 480 640",
        "deformable-detr-with-box-refine-two-stage 1 480 640",
        "deformable-detr-single-scale 2 480 640",
        "rt-detr-tiny 8 64 64",
        "rt-detr-r18 2 320 320",
        "rt-detr-r18 2 640 640",
        "rt-detr-r50 1 640 640",
        "rt-detr-r18 2 640 640 recompute",
        "detr-tiny 1 512 512 recompute",
        "detr-resnet-50 2 480 640 recompute",
        "detr-resnet-18 4 320 480 recompute",
        "deformable-detr 2 480 640 recompute",
    ],
)
def test_the_estimate_is_what_is_measured(arguments, request):
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments.split()],
        env={**os.environ, "PYTHONPATH": str(request.config.rootpath)},
        capture_output=True,
        text=True,
        check=True,
    )
    measured, estimated = json.loads(done.stdout.splitlines()[-1])
    assert 1 / 1.5 < estimated / measured < 1.5


def test_it_grows_with_what_takes_memory():
    model = td.DETR(SMALLEST)
    least = memory.step_memory(model, 1, 64, 64)
    assert memory.step_memory(model, 4, 64, 64) > least
    assert memory.step_memory(model, 1, 64, 640) > least
    assert memory.step_memory(model, 4, 320, 320, recompute=True) < memory.step_memory(model, 4, 320, 320)
    frozen = td.DETR(dataclasses.replace(SMALLEST, frozen="backbone"))
    assert memory.step_memory(frozen, 1, 64, 64) < least


@pytest.mark.parametrize(
    ("preprocessing", "canvas"),
    [
        (td.Preprocessing(), (800, 1333)),
        (td.Preprocessing(multiple_of=32), (800, 1344)),
        (td.Preprocessing((800, 800), "table"), (800, 800)),
        (td.Preprocessing((64, 64), pad_to=(64, 96)), (64, 96)),
    ],
)
def test_the_canvas(preprocessing, canvas):
    assert memory.usual_canvas(preprocessing) == canvas


def test_too_much_is_told_with_what_to_do(monkeypatch):
    model = td.from_preset("detr-tiny")
    large = td.Preprocessing()  # 800 and 1333, for which this model was not made
    monkeypatch.setattr(memory, "free_memory", lambda: 12_000_000_000)
    advice = memory.advice_on_memory(model, Settings(batch_size=4), large)
    assert advice.is_too_much
    assert advice.needed > 30e9
    assert "images of 800 x 1333 pixels, and 12.0 GB are free: the system may end the run. Lower it by " in advice.text
    assert "size=(" in advice.text
    fits = memory.advice_on_memory(model, Settings(), model.preprocessing)
    assert not fits.is_too_much
    assert fits.text.endswith("for 4 images of 64 x 64 pixels, and 12.0 GB are free")
    monkeypatch.setattr(memory, "free_memory", lambda: 700_000_000)
    assert "batch_size=" in memory.advice_on_memory(model, Settings(batch_size=64), td.Preprocessing((160, 160))).text
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    assert not memory.advice_on_memory(model, Settings(), large).is_too_much


def test_a_container_has_less(monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:  50000 kB\n")
    (tmp_path / "max").write_text("30000000\n")
    (tmp_path / "current").write_text("10000000\n")
    places = {
        "/proc/meminfo": tmp_path / "meminfo",
        "/sys/fs/cgroup/memory.max": tmp_path / "max",
        "/sys/fs/cgroup/memory.current": tmp_path / "current",
    }
    monkeypatch.setattr(memory, "Path", lambda path: places.get(path, tmp_path / "nothing"))
    assert memory.free_memory() == 20_000_000
    (tmp_path / "max").write_text("max\n")
    assert memory.free_memory() == 50_000 * 1024
    (tmp_path / "meminfo").unlink()
    assert memory.free_memory() is None


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "own.keras"
    td.DETR(dataclasses.replace(SMALLEST, preprocessing=td.Preprocessing((48, 64)))).save(path)
    return str(path)


def test_a_run_is_told_beforehand(without_tracing, source, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    records, names = td.data.load_shapes(4, size=(40, 60))
    with caplog.at_level(logging.INFO):
        td.fit_detector(records, names, tmp_path / "run", None, source, epochs=1, batch_size=2)
    [told] = [record for record in caplog.records if "a training step takes about" in record.getMessage()]
    assert told.levelno == logging.WARNING


@pytest.mark.slow
def test_a_dry_run_does_all_once_and_keeps_nothing(source, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ["--data", "shapes", "--count", "6", "--drawn-size", "40", "60", "--batch-size", "2"]
    arguments = ["train", *data, "--from", source, "--warmup-steps", "100", "--gradient-accumulation-steps", "8"]
    assert main([*arguments, "--out", "run", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "one step, one evaluation and one checkpoint: " in printed
    assert "measured: AP " in printed
    assert "exported: a SavedModel of " in printed
    assert "images are prepared so: shorter side to 48 pixels, longer to 64 at most" in printed
    assert list(tmp_path.iterdir()) == []
    assert main(["train", *data[:-1], "40", "--from", source, "--out", "run", "--dry-run"]) == 2
    assert "6 records do not fill one training batch of 40" in capsys.readouterr().err
