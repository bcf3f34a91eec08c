"""RT-DETR and D-FINE in SavedModel, ONNX Runtime and LiteRT: images of any size, folded, as Keras finds it."""

import keras
import onnxruntime
import pytest
import tensorflow as tf
from test_deformable_detr_exported import assert_same, images_of, wanted_of
from test_litert import run

import tfdetr_keras as td
from tfdetr_keras import export

pytestmark = pytest.mark.slow

SCORE = 5e-6  # of scores up to 0.6. Measured: 9.6e-7.
SIZES = ((64, 96), (50, 41), (64, 64))


@pytest.fixture(scope="module", params=["RTDETR", "RTDETRV2 discrete", "DFINE"])
def model(request):
    """All weights at random, with statistics of batch normalisation that are not those of a fresh model."""
    keras.utils.set_random_seed(0)
    tiny = td.PRESETS["d-fine-tiny" if request.param == "DFINE" else "rt-detr-tiny"]
    preprocessing = td.Preprocessing((64, 96), "stretch", mean=(0, 0, 0), std=(1, 1, 1), multiple_of=32)
    fields = {**vars(tiny), "num_classes": 3, "num_queries": 20, "id2label": None, "preprocessing": preprocessing}
    if request.param == "RTDETR":
        model = td.RTDETR(td.RTDETRConfig(**fields))
    elif request.param == "DFINE":
        model = td.DFINE(td.DFINEConfig(**fields))
    else:
        fields |= {"sampling": "discrete", "decoder_points": (3, 2, 1)}
        model = td.RTDETRV2(td.RTDETRV2Config(**fields))
    for weight in model.weights:
        if weight.path.endswith(("/up", "/reg_scale")):
            continue
        # The scores are to be far enough apart for their order to be compared.
        is_of_classes = "class_head" in weight.path and weight.path.endswith("kernel")
        of_classes = 0.4 if request.param == "DFINE" else 0.2
        noise = keras.random.normal(weight.shape, stddev=of_classes if is_of_classes else 0.05)
        weight.assign(weight + (abs(noise) if "variance" in weight.path else noise))
    return model


def test_a_saved_model_finds_what_keras_finds(model, tmp_path):
    served = tf.saved_model.load(str(export.saved_model(model, tmp_path / "served"))).signatures["serving_default"]
    for image in images_of(*SIZES):
        found = {name: value[0].numpy() for name, value in served(images=tf.constant(image)[None]).items()}
        assert_same(found, wanted_of(model, image, model.preprocessing, portable=False), SCORE)


def test_onnx_runtime_finds_what_keras_finds(model, tmp_path):
    session = onnxruntime.InferenceSession(export.onnx(model, tmp_path / "model.onnx"))
    names = [output.name for output in session.get_outputs()]
    for image in images_of(*SIZES):
        found = dict(zip(names, (x[0] for x in session.run(names, {"images": image[None]})), strict=True))
        assert_same(found, wanted_of(model, image, model.preprocessing), SCORE)


def test_litert_finds_what_keras_finds(model, tmp_path):
    path = export.litert(model, tmp_path / "model.tflite")
    for image in images_of((64, 96)):
        found = {name: value[0] for name, value in run(path, image[None]).items()}
        assert_same(found, wanted_of(model, image, model.preprocessing), SCORE)
