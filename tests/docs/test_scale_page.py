"""docs/scale.md's programs, on one CPU.

What is as on the page: the strategy and the distribution, the start of a JAX process, sizes and canvas. What is
replaced, so that they end within minutes, stands in `REPLACED`: one epoch instead of 50, and in the second a smaller
batch. The checkpoint is a small one, images are drawings.
"""

import os
import shutil
import socket
import subprocess
import sys

import pytest
import tensorflow as tf
from code_blocks import DOCS, blocks_of
from own_process import in_own_process
from stand_ins import write_coco

import tfdetr_keras as td

TIMEOUT = 500  # seconds
# Each a piece of the page, and what is run in its place.
REPLACED = (
    {"epochs=50": "epochs=1"},
    {
        "batch_size=64": "batch_size=4, epochs=1",
    },
)


def program(number):
    code = [block.code for block in blocks_of(DOCS / "scale.md") if block.language == "python"][number]
    for piece, other in REPLACED[number].items():
        assert code.count(piece) == 1
        code = code.replace(piece, other)
    return code


def test_there_are_two_programs():
    assert len([block for block in blocks_of(DOCS / "scale.md") if block.language == "python"]) == len(REPLACED)


@pytest.mark.slow
def test_several_devices_of_one_machine(workplace):
    write_coco(workplace / "photos", workplace / "train.json", 16)
    in_own_process(run_first_program, workplace)


def run_first_program():
    """With the names that it takes for given."""
    records, names = td.data.load_coco("photos", "train.json")
    namespace = {"td": td, "tf": tf, "records": records, "names": names}
    exec(compile(program(0), "scale.md", "exec"), namespace)
    assert len(namespace["model"].history.history["loss"]) == 1
    assert namespace["model"].id2label == dict(enumerate(names))


@pytest.mark.slow
def test_several_processes(workplace):
    """Of which there is one."""
    shutil.rmtree(workplace / "run")  # the program begins one
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    given = f'coordinator_address, num_processes, process_id = "127.0.0.1:{port}", 1, 0\n'
    run = subprocess.run(
        [sys.executable, "-c", given + program(1)],
        check=False,
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "val_AP" in run.stdout
    assert (workplace / "run" / "best.keras").is_file()
