"""A SavedModel in a process that has TensorFlow alone finds what Keras finds."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from photograph_sizes import CANVAS, SIZE

from tfdetr_keras import export

ALONE = """
    import sys
    import numpy as np
    import tensorflow as tf

    folder, inputs, outputs = sys.argv[1:]
    signatures = tf.saved_model.load(folder).signatures
    arrays, found = np.load(inputs, allow_pickle=False), {}
    for place in range(len(arrays.files)):
        for key, value in signatures["serving_default"](images=tf.constant(arrays[f"arr_{place}"][None])).items():
            found[f"{place} {key}"] = value[0].numpy()
    assert "tfdetr_keras" not in sys.modules
    np.savez(outputs, **found)
"""


@pytest.mark.slow
@pytest.mark.parametrize("pad_to", [None, CANVAS])
def test_pixels_in_a_process_with_tensorflow_alone(detector, photographs, expected, assert_same, tmp_path, pad_to):
    _, images = photographs
    folder = export.saved_model(detector, tmp_path / "served", SIZE, pad_to)
    np.savez(tmp_path / "images.npz", *images)
    arguments = [str(folder), str(tmp_path / "images.npz"), str(tmp_path / "found.npz")]
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ALONE), *arguments],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    found = np.load(tmp_path / "found.npz")
    for place, wanted in enumerate(expected[pad_to is not None]):
        assert_same({key: found[f"{place} {key}"] for key in ("scores", "labels", "boxes")}, wanted)
