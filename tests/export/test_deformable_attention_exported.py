"""Deformable attention in the formats that leave TensorFlow, and in a SavedModel: the same numbers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdetr_keras.backend.compiler import left_plain
from tfdetr_keras.layers.deformable import DeformableAttention

LEVELS, SHAPES = [(5, 8), (3, 4)], [(1, 6, 32), (1, 52, 32), (1, 6, 1, 4)]
EXACT = 1e-6


@pytest.fixture(params=["bilinear", "discrete"])
def example(request):
    """A model of one layer, its inputs and its output."""
    inputs = [keras.Input(shape[1:]) for shape in SHAPES]
    layer = DeformableAttention(32, 4, 2, [2, 3], sampling=request.param)
    model = keras.Model(inputs, layer(*inputs, spatial_shapes=LEVELS))
    rng = np.random.default_rng(0)
    given = [rng.uniform(size=shape).astype("float32") for shape in SHAPES]
    return model, given, np.asarray(model(given))


def function_of(model):
    return tf.function(lambda *given: model(list(given)), input_signature=[tf.TensorSpec(shape) for shape in SHAPES])


def test_saved_model(example, tmp_path):
    model, given, expected = example
    model.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(loaded.serve(given), expected, rtol=0, atol=EXACT)


def test_litert(example):
    interpreter_module = pytest.importorskip("ai_edge_litert.interpreter")
    model, given, expected = example
    function = function_of(model).get_concrete_function()
    content = tf.lite.TFLiteConverter.from_concrete_functions([function]).convert()
    interpreter = interpreter_module.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    for details, array in zip(interpreter.get_input_details(), given, strict=True):
        interpreter.set_tensor(details["index"], array)
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT)


def test_onnx(example):
    tf2onnx, onnxruntime = pytest.importorskip("tf2onnx"), pytest.importorskip("onnxruntime")
    model, given, expected = example
    function = function_of(model)
    with left_plain():
        written, _ = tf2onnx.convert.from_function(function, function.input_signature, opset=18)
    session = onnxruntime.InferenceSession(written.SerializeToString())
    named = {one.name: array for one, array in zip(session.get_inputs(), given, strict=True)}
    np.testing.assert_allclose(session.run(None, named)[0], expected, rtol=0, atol=EXACT)
