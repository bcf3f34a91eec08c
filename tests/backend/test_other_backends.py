"""The lower floors stand on Keras alone: they run on JAX and PyTorch, without TensorFlow, and give the same numbers."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import keras
import numpy as np
import pytest

from tfdetr_keras import ResNetConfig
from tfdetr_keras.models import (
    ConditionalDETRConfig,
    DETRConfig,
    SegmentationConfig,
    model_class,
)

# Runs in a fresh interpreter where no module of `blocked` can be imported. Prints its results as one line of JSON.
SCRIPT = """
import json, sys

folder, *blocked = sys.argv[1:]
sys.modules.update(dict.fromkeys(blocked))  # None: whoever imports it gets a ModuleNotFoundError

import keras
import numpy as np
from tfdetr_keras import boxes, models
from tfdetr_keras.matching import assignment
from tfdetr_keras.losses import criterion as losses
from tfdetr_keras.matching import matcher
from tfdetr_keras.inference import postprocess
from tfdetr_keras.inference import segments
from tfdetr_keras.inference import tables
from tfdetr_keras.losses import targets

example = dict(np.load(folder + "/example.npz"))
inputs = {name: example[name] for name in ("pixel_values", "pixel_mask")}
model = keras.saving.load_model(folder + "/model.keras")
outputs = model.predict(inputs, batch_size=2, verbose=0)
np.savez(folder + "/outputs.npz", **outputs)
sizes = [[64, 96], [64, 96]]
detections = postprocess.post_process(outputs, sizes, 0.0, model.config.classification)
if "pred_masks" in outputs:
    segments.post_process_panoptic(outputs, sizes, 0.0)
truth = {name: example[name] for name in ("labels", "boxes", "masks") if name != "masks" or "pred_masks" in outputs}
model.compile(optimizer=keras.optimizers.SGD(0.01))
history = model.fit(inputs, truth, batch_size=2, epochs=2, verbose=0).history
print(json.dumps({
    "backend": keras.backend.backend(),
    "detections": [len(detection["scores"]) for detection in detections],
    "history": history,
}))
"""


RELATIVES = [pytest.param(kind, marks=pytest.mark.slow) for kind in (SegmentationConfig, ConditionalDETRConfig)]


@pytest.fixture(scope="module", params=[DETRConfig, *RELATIVES])
def tiny(request):
    """A small model of each class on the backend of this test run."""
    keras.utils.set_random_seed(0)
    config = request.param(
        backbone=ResNetConfig(block="basic", depths=(1, 1), channels=(8, 16), stem_channels=8),
        num_classes=3,
        num_queries=5,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=8,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    )
    model = model_class(config)(config)
    for variable in model.weights:
        if variable.path.endswith(("moving_mean", "beta")):
            variable.assign(keras.random.normal(variable.shape, stddev=0.1))
    return model


@pytest.fixture(scope="module")
def example():
    """A padded batch of two images and their objects."""
    rng = np.random.default_rng(0)
    mask = np.ones((2, 64, 96), np.int32)
    mask[1, 40:] = mask[1, :, 70:] = 0
    return {
        "pixel_values": rng.normal(size=(2, 64, 96, 3)).astype(np.float32) * mask[..., None],
        "pixel_mask": mask,
        "labels": np.array([[0, 2, 1], [1, -1, -1]], np.int32),
        "boxes": rng.uniform(0.2, 0.8, (2, 3, 4)).astype(np.float32),
        "masks": rng.random((2, 3, 64, 96)) < 0.3,
    }


@pytest.fixture(scope="module", params=["jax", "torch"])
def other(request, tiny, example, tmp_path_factory):
    """What the same model, saved here, computes on another backend."""
    backend = request.param
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    folder = tmp_path_factory.mktemp(backend)
    tiny.save(folder / "model.keras")
    np.savez(folder / "example.npz", **example)
    blocked = sorted({"tensorflow", "torch", "jax", "transformers"} - {backend})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), *blocked],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": str(request.config.rootpath),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",  # what is computed is the same, compiling it takes half as long
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["backend"] == backend
    return {**report, "outputs": dict(np.load(folder / "outputs.npz"))}


def test_outputs_agree_with_this_backend(tiny, example, other):
    outputs = tiny({name: example[name] for name in ("pixel_values", "pixel_mask")})
    assert set(outputs) == set(other["outputs"])
    for name, value in outputs.items():
        np.testing.assert_allclose(other["outputs"][name], value, rtol=0, atol=1e-5, err_msg=name)
    assert other["detections"] == ([5, 5] if tiny.config.classification == "softmax" else [15, 15])


def test_training_starts_from_the_same_losses_and_goes_down(tiny, example, other):
    outputs = tiny({name: example[name] for name in ("pixel_values", "pixel_mask")})
    expected = tiny.criterion(outputs, {name: example[name] for name in ("labels", "boxes", "masks")})
    history = other["history"]
    assert set(history) == {"loss", *tiny.logged}
    for name, (first, _) in history.items():
        assert first == pytest.approx(float(expected[name]), abs=1e-5), name
    assert history["loss"][1] < history["loss"][0]
