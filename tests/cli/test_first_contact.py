"""What somebody sees whose first start fails or is stopped: one line, and nothing left. Each start is a process."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from PIL import Image

SMALL = ("--size", "32", "32", "--pad-to", "32", "32", "--batch-size", "2")
# The smallest model there can be, under a name to start from; once the command line has begun, in its process.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what runs in the background
from tfdetr_keras.cli import main, standard_error
sys.argv[0] = "tfdetr"

def smallest():
    import tfdetr_keras as td
    from tfdetr_keras.models.presets import PRESETS
    one = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1)
    PRESETS["detr-smallest"] = td.DETRConfig(
        backbone=td.ResNetConfig(block="basic", depths=(1,), channels=(8,), stem_channels=8),
        num_queries=6, d_model=8, encoder_ffn_dim=8, decoder_ffn_dim=8, **one)

configure = standard_error.configure
def and_then(whole_process):
    configure(whole_process)
    smallest()
    prepare()
standard_error.configure = and_then

def prepare():
    pass
"""
END = "\nsys.exit(main())\n"
FROM = ("--from", "detr-smallest")


def start(folder, *arguments, before=""):
    """Starts the command line in a folder; `before` is run in its process, once stderr is filtered."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TF_CPP", "TFDETR_LOG"))}
    return subprocess.Popen(
        [sys.executable, "-c", f"{PROGRAM}{textwrap.indent(textwrap.dedent(before), '    ')}{END}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
    )


def run(folder, *arguments, before=""):
    process = start(folder, *arguments, before=before)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err.splitlines()


def entries(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def yolo(tmp_path):
    """Arguments for a set of six images, of which the last has three objects and the others one."""
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (tmp_path / "set" / part).mkdir(parents=True)
    for number in range(6):
        pixels = rng.integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"set/images/photo {number}.png")
        (tmp_path / f"set/labels/photo {number}.txt").write_text("0 .5 .5 .5 .5\n" * (3 if number == 5 else 1))
    (tmp_path / "set/data.yaml").write_text("train: images\nnames: [cell]\n")
    return ("--data", "yolo", "--images", "set")


EXPECTED = (
    "INFO: ",
    "WARNING: there is no validation set",
    "WARNING: detr-smallest is an architecture without weights",
    *("measured ", "looked at "),  # so far, where it takes long
)


def told(lines):
    """The lines but those that say what is about to be done."""
    return [line for line in lines if not line.startswith(EXPECTED)]


@pytest.mark.slow
def test_too_few_rows_are_one_line_with_the_file_and_leave_nothing(tmp_path, yolo):
    before = entries(tmp_path)
    arguments = ("train", *yolo, *FROM, *SMALL, "--max-boxes", "2", "--epochs", "1", "--out", "runs/first")
    status, _, lines = run(tmp_path, *arguments)
    assert status == 2
    [line] = told(lines)
    assert line.startswith("error: set/images/photo 5.png (image 5) has 3 objects, more than --max-boxes = 2: ")
    assert entries(tmp_path) == before


@pytest.mark.slow
def test_a_damaged_image_is_one_line(tmp_path, yolo):
    damaged = tmp_path / "set/images/photo 3.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    before = entries(tmp_path)
    for arguments in (
        ("train", *yolo, *FROM, *SMALL, "--epochs", "1", "--out", "run"),
        ("inspect-data", *yolo, "--size", "32", "32", "--out", "pictures/look.png"),
        ("evaluate", *yolo, "--model", "detr-tiny", "--size", "32", "32", "--class-names", "names.txt", "--out", "res"),
        ("predict", "set/images", "--model", "detr-tiny", "--size", "32", "32", "--out", "found"),
    ):
        (tmp_path / "names.txt").write_text("circle\nsquare\ntriangle\n")
        status, _, lines = run(tmp_path, *arguments)
        (tmp_path / "names.txt").unlink()
        assert status == 2, arguments[0]
        [line] = told(lines)
        assert line.startswith("error: set/images/photo 3.png is damaged"), arguments[0]
        assert entries(tmp_path) == before, arguments[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("raise MemoryError('no room')", id="an error of another kind"),
        pytest.param("raise ValueError('as it was')", id="an error of the command line's"),
    ],
)
def test_an_error_in_the_first_epoch_leaves_nothing(tmp_path, fault):
    """In the middle of an epoch, with batches made ahead, and with TensorBoard's folder made already."""
    before = f"""
    import keras
    from tfdetr_keras.training import reporting
    class Break(reporting.LearningRate):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                {fault}
    reporting.LearningRate = Break
    """
    data = ("--data", "shapes", "--count", "40", "--drawn-size", "24", "32", "--val-split", "0.2")
    arguments = ("train", *data, *FROM, *SMALL, "--epochs", "1", "--tensorboard", "--out", "run")
    status, _, lines = run(tmp_path, *arguments, before=before)
    assert entries(tmp_path) == []
    if "ValueError" in fault:
        assert (status, told(lines)) == (2, ["error: as it was"])
    else:  # a fault of the program's: Python's own traceback, and nothing behind it
        assert status == 1
        assert lines[-1] == "MemoryError: no room"
        assert "".join(lines).count("Traceback") == 1


def until(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


SHAPES = ("--data", "shapes", "--count", "12", "--drawn-size", "24", "32")


def stop(process):
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err.splitlines()


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tmp_path):
    process = start(tmp_path, "train", *SHAPES, *FROM, *SMALL, "--epochs", "10000", "--out", "run")
    until(tmp_path / "run/state.safetensors", process)
    status, _, lines = stop(process)
    assert (status, told(lines)) == (130, ["stopped; go on with: tfdetr resume run"])
    assert not list((tmp_path / "run").glob(".partial*"))

    process = start(tmp_path, "resume", "run", "--epochs", "10001")
    time_of = (tmp_path / "run/state.safetensors").stat().st_mtime_ns
    while (tmp_path / "run/state.safetensors").stat().st_mtime_ns == time_of:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    status, _, lines = stop(process)
    assert (status, told(lines)) == (130, ["stopped; go on with: tfdetr resume run"])


@pytest.mark.slow
def test_ctrl_c_in_the_first_epoch_leaves_nothing(tmp_path):
    arguments = ("train", *SHAPES, *FROM, *SMALL, "--steps-per-epoch", "1000000", "--out", "a/run")
    process = start(tmp_path, *arguments)
    lines = [process.stderr.readline()]
    while "the first step is done" not in lines[-1]:
        assert lines[-1], lines
        lines.append(process.stderr.readline())
    status, _, rest = stop(process)
    assert (status, told(rest)) == (130, ["stopped; no epoch was finished, and nothing is left of it"])
    assert entries(tmp_path) == []
    shown = [line for line in lines if "without weights" not in line]
    assert shown[0].startswith("INFO: training a DETR of ")
    assert "12 images" in shown[0]
    assert shown[1].startswith("INFO: a training step takes about ")
    assert shown[2].startswith("WARNING: there is no validation set")
    assert "tracing and compiling the first step" in shown[3]


@pytest.mark.slow
def test_a_killed_start_is_no_run(tmp_path):
    arguments = ("train", *SHAPES, *FROM, *SMALL, "--out", "run")
    process = start(tmp_path, *arguments, "--steps-per-epoch", "1000000", "--tensorboard")
    while "the first step is done" not in (line := process.stderr.readline()):
        assert line
    process.kill()
    process.communicate()
    status, _, lines = run(tmp_path, "resume", "run")
    assert status == 2
    assert "run is not the folder of a training run" in lines[-1]
    status, out, _ = run(tmp_path, *arguments, "--epochs", "1")
    assert status == 0
    assert "the run is in run" in out
    status, _, lines = run(tmp_path, *arguments, "--epochs", "1")
    assert (status, lines[-1]) == (
        2,
        "error: run holds a run already: resume it (tfdetr resume run), or give another folder",
    )


GENERATORS = """
import sys
import numpy as np
import keras
import tfdetr_keras as td

one = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1)
model = td.DETR(td.DETRConfig(
    backbone=td.ResNetConfig(block="basic", depths=(1,), channels=(8,), stem_channels=8),
    num_classes=3, num_queries=6, d_model=8, encoder_ffn_dim=8, decoder_ffn_dim=8, **one))
model.compile(optimizer="adam")

def batch(label):
    pixels = {"pixel_values": np.zeros((2, 32, 32, 3), np.float32)}
    return pixels, {"labels": np.full((2, 1), label, np.int32), "boxes": np.full((2, 1, 4), 0.5, np.float32)}

def item(number):
    if number == 4 and sys.argv[1] == "raises":
        raise KeyError("the user's own")
    return batch(7 if number == 4 else 0)

class Items(keras.utils.PyDataset):
    def __len__(self):
        return 8

    def __getitem__(self, number):
        return item(number)

data = map(item, range(8)) if sys.argv[2] == "generator" else Items(workers=2)
try:
    model.fit(data, verbose=0)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("kind", ["generator", "PyDataset"])
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("raises", 'KeyError "the user\'s own"'),
        ("label", "ValueError targets, image 0 of the batch, row 0: label 7 is"),
    ],
)
@pytest.mark.slow
def test_a_users_own_error_comes_as_it_was(kind, fault, told):
    done = subprocess.run(
        [sys.executable, "-c", GENERATORS, fault, kind], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.startswith(told), done.stderr
    assert len(done.stdout.splitlines()) == 1
