"""A batch split over replicas trains as the whole batch does on one device."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

# Four images with 3, 1, 0 and 0 objects: on two replicas, one gets all objects and the other none.
SCRIPT = """
    import json, sys
    import keras
    import numpy as np
    import tensorflow as tf
    from tfdetr_keras import DETR, ResNetConfig, SetCriterion

    replicas = int(sys.argv[1])
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    rng = np.random.default_rng(0)
    inputs = {"pixel_values": rng.normal(size=(4, 32, 32, 3)).astype("float32")}
    targets = {
        "labels": np.array([[0, 2, 1], [1, -1, -1], [-1, -1, -1], [-1, -1, -1]], "int32"),
        "boxes": rng.uniform(0.2, 0.5, (4, 3, 4)).astype("float32"),
    }
    # Batch normalisation is frozen: statistics of a replica are not those of the batch.
    trunk = ResNetConfig(block="basic", depths=(1, 1), channels=(8, 16), stem_channels=8)
    keras.utils.set_random_seed(0)
    start = DETR.from_preset("detr-tiny", num_classes=3, backbone=trunk)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"][:replicas])
    with strategy.scope():
        model = DETR.from_config(start.get_config())
        model.set_weights(start.get_weights())  # a strategy draws initial values in another order
        model.criterion = SetCriterion(class_weights=(2.0, 1.0, 0.5))
        model.compile(optimizer=keras.optimizers.SGD(0.01))
    dataset = tf.data.Dataset.from_tensors((inputs, targets)).repeat(3)
    logs = model.fit(dataset, epochs=2, verbose=0).history
    print(json.dumps({"logs": logs, "weights": [float(np.abs(w).sum()) for w in model.trainable_weights]}))
"""


def fit(replicas):
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(replicas)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
    )
    return json.loads(process.stdout.splitlines()[-1])


def test_two_replicas_train_as_one_device_with_the_whole_batch():
    one, two = fit(1), fit(2)
    assert two["logs"].keys() == one["logs"].keys()
    for name, expected in one["logs"].items():
        assert two["logs"][name] == pytest.approx(expected, rel=1e-4), name
    assert one["logs"]["loss"][1] != pytest.approx(one["logs"]["loss"][0], rel=1e-3)  # the weights have moved
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-5, abs=1e-7)
