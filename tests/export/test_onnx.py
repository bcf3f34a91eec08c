"""ONNX Runtime finds what Keras finds."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from photograph_sizes import CANVAS, SIZE

from tfdetr_keras import export


@pytest.mark.parametrize("pad_to", [None, pytest.param(CANVAS, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_onnx_runtime_finds_what_keras_finds(
    detector, photographs, by_matrices, unresized, assert_same, tmp_path, pad_to
):
    path = export.onnx(detector, tmp_path / "detector.onnx", SIZE, pad_to)
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(path)
    assert [(x.name, x.type, len(x.shape)) for x in session.get_inputs()] == [("images", "tensor(uint8)", 4)]
    names = [output.name for output in session.get_outputs()]
    assert sorted(names) == ["boxes", "labels", "scores"]
    for image, wanted in zip(photographs[1], by_matrices(pad_to), strict=True):
        found = dict(zip(names, session.run(names, {"images": image[None]}), strict=True))
        assert_same({key: value[0] for key, value in found.items()}, wanted, rounded=True)
    for image, wanted in unresized(pad_to):
        found = dict(zip(names, session.run(names, {"images": image[None]}), strict=True))
        assert_same({key: value[0] for key, value in found.items()}, wanted)
    together, alone = (session.run(["scores"], {"images": np.stack([image] * count)})[0] for count in (3, 1))
    np.testing.assert_allclose(together[2], alone[0], rtol=0, atol=5e-5)
    classes = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
    assert classes == list(detector.id2label.values())
