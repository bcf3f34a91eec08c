"""D-FINE's losses on other backends, compiled where they compile, and of a batch that is split over replicas."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from some_slow import some_slow

LOSSES = Path(__file__).parents[1] / "losses"
RECORDED = np.load(LOSSES.parent / "golden" / "fine_grained.npz")
LOSS, GRADIENT = 1e-5, 1.5e-6  # measured: 1.1e-6, and of all gradients together 1.7e-7

# Losses and gradients of the drawn outputs, which the first argument names, in a fresh interpreter.
SCRIPT = """
import json, sys
cases, folder, *blocked = sys.argv[1:]
sys.modules.update(dict.fromkeys(blocked))  # None: whoever imports it gets a ModuleNotFoundError

import keras
import numpy as np
from keras import ops
from fine_grained_outputs import CASES, UP, drawn, trained
from tfdetr_keras.layers.distance_bins import bin_values
from tfdetr_keras.losses.fine_grained_criterion import FineGrainedCriterion


def together(outputs, arrays, path=()):
    return {
        name: together(x, arrays, (*path, name)) if isinstance(x, dict) else arrays.get((*path, name), x)
        for name, x in outputs.items()
    }


def losses(arrays, outputs, targets, reg_scale):
    scale = ops.convert_to_tensor([reg_scale], "float32")
    bins = {"bin_values": bin_values(ops.convert_to_tensor([UP], "float32"), scale), "reg_scale": scale}
    found = FineGrainedCriterion()(together(outputs, arrays) | bins, targets)
    return found["loss"], found


for name in json.loads(cases):
    outputs, targets = drawn(CASES[name])
    arrays = {path: x.astype("float32") for path, x in trained(outputs)}
    paths = list(arrays)
    if keras.backend.backend() == "jax":
        import jax

        def of(values):
            return losses(dict(zip(paths, values)), outputs, targets, CASES[name].reg_scale)

        (_, found), gradients = jax.jit(jax.value_and_grad(of, has_aux=True))([arrays[path] for path in paths])
    else:
        values = {path: ops.convert_to_tensor(x).requires_grad_() for path, x in arrays.items()}
        total, found = losses(values, outputs, targets, CASES[name].reg_scale)
        total.backward()
        gradients = [np.zeros(x.shape) if x.grad is None else x.grad.cpu().numpy() for x in values.values()]
    found = {"/".join((name, key)): ops.convert_to_numpy(value) for key, value in found.items()}
    np.savez(f"{folder}/{name}.npz", **found, **{".".join(p): np.asarray(x) for p, x in zip(paths, gradients)})
"""
# Both halves of a batch on a replica each, and the whole batch on one.
OVER_REPLICAS = """
import sys
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from fine_grained_outputs import CASES, UP, drawn
from tfdetr_keras.layers.distance_bins import bin_values
from tfdetr_keras.losses.fine_grained_criterion import FineGrainedCriterion

outputs, targets = drawn(CASES["two images"])
bins = {"bin_values": bin_values(tf.constant([UP]), tf.constant([4.0])), "reg_scale": tf.constant([4.0])}


def part(x, images):
    return x if x.ndim == 1 else tf.constant(x, "float32" if x.dtype == float else None)[images]


def of(images):
    own = tf.nest.map_structure(lambda x: part(x, images), outputs)
    return FineGrainedCriterion()(own | bins, {name: part(x, images) for name, x in targets.items()})


one = of(slice(None))
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@tf.function
def both():
    def replica():
        context = tf.distribute.get_replica_context()
        return of(slice(context.replica_id_in_sync_group, context.replica_id_in_sync_group + 1))

    return strategy.run(replica)


apart = 0.0
for name, shares in both().items():
    found = sum(float(share) for share in strategy.experimental_local_results(shares))
    apart = max(apart, abs(found / float(one[name]) - 1) if float(one[name]) else 0.0)
    np.testing.assert_allclose(found, float(one[name]), rtol=2e-6, err_msg=name)  # measured: 2.2e-7
print(len(one), "losses, apart by", apart)
"""


def run(script, *arguments, **environment):
    path = os.pathsep.join([str(LOSSES.parents[1]), str(LOSSES)])
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("backend", some_slow(["jax", "torch"], "jax"))  # which compiles for long
def test_losses_and_gradients_are_the_authors(backend, tmp_path):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    names = ["an image without objects", "no objects", "large logits"]
    blocked = sorted({"tensorflow", "torch", "jax", "transformers"} - {backend})
    run(SCRIPT, json.dumps(names), tmp_path, *blocked, KERAS_BACKEND=backend, JAX_DISABLE_MOST_OPTIMIZATIONS="true")
    for name in names:
        found = dict(np.load(tmp_path / f"{name}.npz"))
        worst = 0.0
        for key, value in zip(RECORDED[f"{name}/names"], RECORDED[f"{name}/losses"], strict=True):
            own = float(found.pop(f"{name}/{key}"))
            worst = max(worst, abs(own - value) / (abs(value) or 1))
            assert own == pytest.approx(value, rel=LOSS, abs=1e-9), key
        assert found.pop(f"{name}/cardinality_error") >= 0
        expected = {key: RECORDED[f"{name}/{key}"] for key in found}
        apart = np.sqrt(sum(((found[key] - x) ** 2).sum() for key, x in expected.items()))
        size = np.sqrt(sum((x**2).sum() for x in expected.values()))
        print(f"{name}: losses {worst:.1e}, gradients {apart / size:.1e}")
        assert apart < GRADIENT * size


@pytest.mark.slow
def test_two_replicas_have_the_losses_of_the_whole_batch():
    """The union, its pairs and the other queries are counted over both; one image has more objects than the other."""
    output = run(OVER_REPLICAS, KERAS_BACKEND="tensorflow")
    print(output)
    assert "40 losses" in output
