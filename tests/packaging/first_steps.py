"""What somebody does with the package on the first day, in an environment without its test tools.

Three training steps with dropout, weights that changed, detections, a `.keras` file and a SavedModel that answer as
the model does. Prints one line of JSON; anything that fails ends it. Run it with the Python of any environment.
"""

import json
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import tfdetr_keras as td

SIZE, CANVAS = (64, 96), (96, 96)
TOLERANCE = 1e-4  # of scores; boxes in pixels: 0.05


def main() -> None:
    """Runs all of it; the result stands on standard output."""
    keras.utils.set_random_seed(0)
    records, names = td.data.load_shapes(6, seed=1, size=(48, 64))
    batches = td.data.prepare(records, 2, training=True, size=SIZE, pad_to=CANVAS, max_boxes=8)
    model = td.DETR.from_preset("detr-resnet-18", num_classes=3, id2label=dict(enumerate(names)), dropout=0.1)
    model.compile(optimizer=td.AdamW(1e-4), jit_compile=False)
    before = [keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights]
    losses = model.fit(batches, epochs=1, verbose=0).history["loss"]
    assert np.isfinite(losses).all(), losses
    after = [keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights]
    changed = sum(not np.array_equal(old, new) for old, new in zip(before, after, strict=True))
    assert changed > 0.9 * len(before), f"{changed} of {len(before)} weights changed"

    image = next(records.as_numpy_iterator())["image"]
    found = model.detect(image, SIZE, threshold=0.0, pad_to=CANVAS)
    assert len(found) == model.config.num_queries
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "model.keras"))
        assert_same(found, keras.saving.load_model(Path(folder, "model.keras")).detect(image, SIZE, 0.0, pad_to=CANVAS))
        served = tf.saved_model.load(str(td.export.saved_model(model, Path(folder, "served"), SIZE, CANVAS)))
        answer = served.signatures["serving_default"](images=tf.constant(image[None]))
        np.testing.assert_allclose(np.sort(answer["scores"][0]), np.sort(found.scores), rtol=0, atol=TOLERANCE)
    packages = ("tensorflow", "keras", "numpy")
    print(json.dumps({"python": platform.python_version(), **{name: version(name) for name in packages}}))


def assert_same(one: td.Detections, other: td.Detections) -> None:
    """Compares what two models found, whose order among equal scores may differ."""
    np.testing.assert_allclose(np.sort(other.scores), np.sort(one.scores), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(np.sort(other.boxes, 0), np.sort(one.boxes, 0), rtol=0, atol=0.05)


if __name__ == "__main__":
    main()
