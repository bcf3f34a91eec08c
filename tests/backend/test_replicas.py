"""A batch split over replicas, or over processes, trains as the whole batch does on one device."""

import os
import signal
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest

STEPS, BATCH = 10, 4
TIMEOUT = 300  # seconds

# From trained weights, on images with 0 to 8 objects: the parts of a batch have unequal numbers of boxes.
SCRIPT = """
    import dataclasses, os, sys
    workers, index, replicas, port, steps, batch = map(int, sys.argv[1:7])
    precision = sys.argv[9]
    if workers > 1:
        import jax
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        patience = {"heartbeat_timeout_seconds": 10, "shutdown_timeout_seconds": 10}
        jax.distributed.initialize(f"127.0.0.1:{port}", workers, index, **patience)
    import keras
    import numpy as np
    import tensorflow as tf
    import tfdetr_keras as td

    if workers > 1:
        keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    size = (64, 64)
    records, _ = td.data.load_shapes(steps * batch, seed=3, size=(48, 64))
    batches = td.data.prepare(
        records, batch // workers, training=True, size=size, pad_to=size, max_boxes=8, augmentation="flip",
        shard=(workers, index), size_rule="stretch" if sys.argv[10] == "denoising" else None,
    ).cache()  # or each pass would be another epoch, of which Keras makes one more under a strategy
    counts = [int((targets["labels"].numpy() >= 0).sum()) for _, targets in batches]
    keras.utils.set_random_seed(0)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]) if replicas > 1 else tf.distribute.get_strategy()
    if sys.argv[10] == "denoising":
        # The same noise for every object, in however many slots and wherever in a batch it is; one group of queries.
        def drawn(shape, num_classes, seed):
            every = {"flip": (*shape,), "label": (*shape,), "sign": (*shape, 4), "part": (*shape, 4)}
            value = {"flip": 1.0, "label": 0, "sign": 1.0, "part": 0.3}
            return {name: keras.ops.full(shape, value[name]) for name, shape in every.items()}

        sys.modules["tfdetr_keras.losses.denoising"]._drawn = drawn
    with strategy.scope():
        trained = td.from_pretrained({"denoising": "rt-detr-tiny"}.get(sys.argv[10], "detr-tiny"))
        config = trained.config
        if sys.argv[10] == "modern":
            config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, batch_norm="trainable"))
        if sys.argv[10] == "denoising":
            model = td.RTDETR(dataclasses.replace(config, num_denoising=1), dtype=precision)
        else:
            model = td.DETR(config, td.SetCriterion(class_weights=(2.0, 1.0, 0.5)), dtype=precision)
        values = {variable.path: variable for variable in trained.weights}
        for variable in model.weights:
            variable.assign(values[variable.path])
        options = {}
        if sys.argv[10] == "modern":
            options = {"use_ema": True, "ema_momentum": 0.9, "ema_ramp_steps": 3, "gradient_accumulation_steps": 2}
            options |= {"weight_decay_exclude": ["norms", "biases"]}
        elif sys.argv[10] == "plain":
            model.backbone.trainable = False
        model.compile(optimizer=td.AdamW(**options))

    class Told(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            print("step", batch, flush=True)

    before = [np.asarray(variable.numpy()) for variable in model.weights]
    model.optimizer.finalize_variable_values = lambda variables: None  # the averages are compared beside the weights
    for _ in range(int(sys.argv[8])):
        logs = model.fit(batches, epochs=1, callbacks=[Told()], verbose=0).history
    weights = {variable.path: np.asarray(variable.numpy()) for variable in model.weights}
    of_optimizer = model.optimizer.averages() if options else []
    averages = {f"average of {variable.path}": np.asarray(average.numpy()) for variable, average in of_optimizer}
    moved = max(np.abs(old - new).max() for old, new in zip(before, weights.values()))
    learnt = [name for old, (name, new) in zip(before, weights.items()) if "denoising" in name and (old != new).any()]
    assert bool(learnt) == (sys.argv[10] == "denoising")
    logs = {f"log {name}": value[0] for name, value in logs.items()}
    np.savez(sys.argv[7], counts=counts, moved=moved, **weights, **averages, **logs)
"""


def start(folder, backend, name, workers=1, index=0, replicas=1, port=0, epochs=1, precision="float32", recipe="plain"):
    numbers = map(str, (workers, index, replicas, port, STEPS, BATCH))
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), *numbers, str(folder / name), str(epochs), precision, recipe],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "KERAS_BACKEND": backend, "JAX_ENABLE_X64": str(precision == "float64")},
    )


def result(process, folder, name):
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, output
    return dict(np.load(folder / f"{name}.npz"))


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def assert_same_training(found, expected):
    """Each weight to 1e-5, which is a hundredth of the way that they went.

    Statistics are no weights: that much is the seventh digit of a variance of 35, so their tolerance is relative, too.
    """
    names = set(expected) - {"counts"}
    assert set(found) - {"counts"} == names
    assert expected["moved"] > 5e-4
    for name in names:
        tolerance = {"rtol": 1e-4} if name.startswith("log ") else {"rtol": 0, "atol": 1e-5}
        if "/moving_" in name:
            tolerance["rtol"] = 1e-6
        np.testing.assert_allclose(found[name], expected[name], err_msg=name, **tolerance)


@pytest.mark.slow
def test_two_replicas_train_as_one_device_with_the_whole_batch(tmp_path):
    one = result(start(tmp_path, "tensorflow", "one"), tmp_path, "one")
    two = result(start(tmp_path, "tensorflow", "two", replicas=2), tmp_path, "two")
    assert_same_training(two, one)


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_whole_batch(tmp_path):
    """By `keras.distribution.DataParallel` on JAX; in float64.

    In float32 these images leave one weight of 1.2 million 1.3e-5 apart, three other sets none more than 6e-6: Adam
    divides by the root of squares, and makes as much of the rounding of a gradient next to zero as of any gradient.
    """
    double = {"precision": "float64"}
    one = result(start(tmp_path, "jax", "one", **double), tmp_path, "one")
    port = free_port()
    processes = [start(tmp_path, "jax", f"of two {index}", 2, index, port=port, **double) for index in range(2)]
    parts = [result(process, tmp_path, f"of two {index}") for index, process in enumerate(processes)]
    for part in parts:
        assert_same_training(part, one)
    assert (parts[0]["counts"] != parts[1]["counts"]).any()
    np.testing.assert_array_equal(sum(part["counts"] for part in parts), one["counts"])


@pytest.mark.slow
def test_the_modern_recipe_over_two_replicas(tmp_path):
    """With batch normalisation trained on the whole batch, averages of its statistics, and accumulated gradients."""
    modern = {"recipe": "modern"}
    one = result(start(tmp_path, "tensorflow", "one", **modern), tmp_path, "one")
    two = result(start(tmp_path, "tensorflow", "two", replicas=2, **modern), tmp_path, "two")
    assert sum(name.startswith("average of ") and "moving_" in name for name in one) > 10
    assert_same_training(two, one)


@pytest.mark.slow
def test_the_modern_recipe_over_two_processes(tmp_path):
    modern = {"precision": "float64", "recipe": "modern"}
    one = result(start(tmp_path, "jax", "one", **modern), tmp_path, "one")
    port = free_port()
    processes = [start(tmp_path, "jax", f"of two {index}", 2, index, port=port, **modern) for index in range(2)]
    assert sum(name.startswith("average of ") and "moving_" in name for name in one) > 10
    for index, process in enumerate(processes):
        assert_same_training(result(process, tmp_path, f"of two {index}"), one)


@pytest.mark.slow
def test_denoising_over_two_replicas(tmp_path):
    """Its queries are made of each part's own objects, and their losses divided by the objects of all."""
    one = result(start(tmp_path, "tensorflow", "one", recipe="denoising"), tmp_path, "one")
    two = result(start(tmp_path, "tensorflow", "two", replicas=2, recipe="denoising"), tmp_path, "two")
    assert_same_training(two, one)


@pytest.mark.slow
def test_a_killed_process_ends_the_other_with_a_message(tmp_path):
    port = free_port()
    processes = [start(tmp_path, "jax", f"killed {index}", 2, index, port=port, epochs=1000) for index in range(2)]
    line = ""
    while not line.startswith("step"):
        line = processes[1].stdout.readline()
        assert line, "ended before the first step"
    processes[1].send_signal(signal.SIGKILL)
    output, _ = processes[0].communicate(timeout=TIMEOUT)
    assert processes[0].returncode != 0
    assert "another task died" in output  # JAX's own words
