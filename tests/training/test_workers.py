"""A run shared by two processes ends as one process's: weights, AP, files; and it survives the loss of one."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

TIMEOUT = 300  # seconds

SCRIPT = """
    import sys
    workers, index, port = map(int, sys.argv[1:4])
    if workers > 1:
        import jax
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", workers, index)
    import keras
    import tfdetr_keras as td

    if workers > 1:
        keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    records, names = td.data.load_shapes(11, seed=3, size=(48, 64))  # one worker has a record more than the other
    validation, _ = td.data.load_shapes(7, seed=4, size=(48, 64))
    for epochs in map(int, sys.argv[5].split(",")):  # the second time it goes on
        run = td.fit_detector(
            records, names, sys.argv[4], validation, "detr-tiny", resume=epochs > 1, epochs=epochs, batch_size=4,
            size=(64, 64), pad_to=(64, 64), max_boxes=8, augmentation="flip", schedule="constant", freeze="backbone",
            batch_norm="frozen", learning_rate=1e-4,
        )
    print(sorted(run.metrics))
"""


def start(folder, workers=1, index=0, port=0, epochs="1,2"):
    arguments = (workers, index, port, folder, epochs)
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax"},
    )


def finish(process):
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, output
    return output


def start_two(folder, **options):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    return [start(folder, 2, index, port, **options) for index in range(2)]


@pytest.mark.slow
def test_two_processes_share_a_run(tmp_path):
    finish(start(tmp_path / "alone"))
    outputs = [finish(process) for process in start_two(tmp_path / "shared")]
    assert "Epoch 2/2" in outputs[0]
    assert "Epoch" not in outputs[1]

    expected, found = (load_file(tmp_path / name / "state.safetensors") for name in ("alone", "shared"))
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-5, err_msg=name)
    best, of_shared = (json.loads((tmp_path / name / "best.json").read_text()) for name in ("alone", "shared"))
    assert 0.3 < best["AP"] < 1
    assert abs(of_shared["AP"] - best["AP"]) < 1e-3
    files = {path.name for path in (tmp_path / "alone").iterdir()}
    assert {path.name for path in (tmp_path / "shared").iterdir()} == files


@pytest.mark.slow
def test_a_killed_process_leaves_the_last_checkpoint(tmp_path):
    """The other ends with an error; the run goes on from its last whole epoch, with one process as well."""
    writer, other = start_two(tmp_path / "run", epochs="1000")
    line = ""
    while "Epoch 4/" not in line:
        line = writer.stdout.readline()
        assert line, "ended before the fourth epoch"
    other.send_signal(signal.SIGKILL)
    output, _ = writer.communicate(timeout=TIMEOUT)
    assert writer.returncode != 0
    assert "another task died" in output  # JAX's own words

    with (tmp_path / "run" / "metrics.csv").open() as file:
        done = len(list(csv.DictReader(file)))
    assert done >= 3
    model = keras.saving.load_model(tmp_path / "run" / "last.keras", compile=False)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    output = finish(start(tmp_path / "run", epochs=str(done + 1)))
    assert f"Epoch {done + 1}/{done + 1}" in output
    assert f"Epoch {done}/" not in output
