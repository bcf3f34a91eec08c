"""LiteRT's own interpreter finds what Keras finds."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from photograph_sizes import CANVAS, SIZE

from tfdetr_keras import export


def run(path, images):
    interpreter = Interpreter(str(path))
    [inputs] = interpreter.get_input_details()
    interpreter.resize_tensor_input(inputs["index"], images.shape)
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    return runner(images=images)


@pytest.mark.slow
def test_litert_finds_what_keras_finds(detector, photographs, by_matrices, unresized, assert_same, tmp_path):
    path = export.litert(detector, tmp_path / "detector.tflite", SIZE, CANVAS)
    for image, wanted in zip(photographs[1], by_matrices(CANVAS), strict=True):
        assert_same({key: value[0] for key, value in run(path, image[None]).items()}, wanted, rounded=True)
    for image, wanted in unresized(CANVAS):
        assert_same({key: value[0] for key, value in run(path, image[None]).items()}, wanted)
    together, alone = (run(path, np.stack([photographs[1][0]] * count))["scores"] for count in (3, 1))
    np.testing.assert_allclose(together[2], alone[0], rtol=0, atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "share", "tolerance"), [("float16", 0.55, 0.02), ("int8", 0.35, 0.2)])
def test_smaller_weights_are_smaller_and_nearly_the_same(
    detector, photographs, by_matrices, tmp_path, precision, share, tolerance
):
    whole = export.litert(detector, tmp_path / "float32.tflite", SIZE, CANVAS)
    path = export.litert(detector, tmp_path / "small.tflite", SIZE, CANVAS, precision=precision)
    assert path.stat().st_size < share * whole.stat().st_size
    for image, wanted in list(zip(photographs[1], by_matrices(CANVAS), strict=True))[:6]:
        scores = run(path, image[None])["scores"][0]
        assert np.abs(scores - np.sort(wanted["scores"])[::-1]).max() < tolerance
        assert np.abs(scores - np.sort(wanted["scores"])[::-1]).max() > 1e-6


def test_an_unknown_precision(detector, tmp_path):
    with pytest.raises(ValueError, match='"float16" or "int8", not \'int4\''):
        export.litert(detector, tmp_path / "detector.tflite", SIZE, CANVAS, precision="int4")
