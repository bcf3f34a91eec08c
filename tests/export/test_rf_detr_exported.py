"""RF-DETR and LW-DETR in ONNX Runtime and LiteRT: stretched images, one group of queries, masks where there are any."""

import keras
import numpy as np
import onnxruntime
import pytest
from test_deformable_detr_exported import assert_same, images_of, wanted_of
from test_litert import run

import tfdetr_keras as td
from tfdetr_keras import export
from tfdetr_keras.backbones.dinov2 import DINOv2Config
from tfdetr_keras.backbones.lw_vit import LWViTConfig

pytestmark = pytest.mark.slow

SCORE = 1.5e-6  # Measured on a CPU: 1.8e-7 in ONNX Runtime and LiteRT.
MASK = 2e-5  # of the probability of a pixel. Measured: 2.3e-6.
SIZES = ((64, 96), (50, 41), (64, 64))
VIT = {"patch_size": 8, "windows": 2, "width": 24, "depth": 3, "heads": 3, "table_side": 5, "taps": (1, 3)}
BACKBONES = {"LWDETR": LWViTConfig(**VIT, windowed=(0,)), "RFDETR": DINOv2Config(**VIT)}


@pytest.fixture(scope="module", params=["LWDETR", "RFDETR", "RFDETRForSegmentation"])
def model(request):
    """All weights at random, over a table of positions that is not the image's grid, which is no square."""
    keras.utils.set_random_seed(0)
    kind = getattr(td, request.param)
    images = td.Preprocessing((64, 96), "stretch", antialias=request.param == "LWDETR", multiple_of=16)
    model = kind(
        kind.config_class(
            BACKBONES[request.param.removesuffix("ForSegmentation")],
            num_classes=3,
            num_queries=20,
            d_model=32,
            projector_blocks=1,
            decoder_layers=2,
            self_attention_heads=2,
            cross_attention_heads=4,
            decoder_ffn_dim=24,
            groups=3,
            preprocessing=images,
        )
    )
    for weight in model.weights:
        # The scores are to be far enough apart for their order to be compared.
        is_of_classes = "class_head" in weight.path and weight.path.endswith("kernel")
        noise = keras.random.normal(weight.shape, stddev=0.2 if is_of_classes else 0.05)
        weight.assign(weight + (abs(noise) if "variance" in weight.path else noise))
    return model


def assert_found(found, model, image):
    wanted = wanted_of(model, image, model.preprocessing)
    assert_same(found, wanted, SCORE)
    assert ("masks" in found) == model.has_masks
    if model.has_masks:
        mine, theirs = (np.argsort(-one["scores"], kind="stable") for one in (found, wanted))
        np.testing.assert_allclose(found["masks"][mine], wanted["masks"][theirs], rtol=0, atol=MASK)
        assert 0.05 < (wanted["masks"] > 0.5).mean() < 0.95


def test_onnx_runtime_finds_what_keras_finds(model, tmp_path):
    session = onnxruntime.InferenceSession(export.onnx(model, tmp_path / "model.onnx"))
    names = [output.name for output in session.get_outputs()]
    for image in images_of(*SIZES):
        found = dict(zip(names, (x[0] for x in session.run(names, {"images": image[None]})), strict=True))
        assert_found(found, model, image)


def test_litert_finds_what_keras_finds(model, tmp_path):
    path = export.litert(model, tmp_path / "model.tflite")
    for image in images_of((64, 96)):
        found = {name: value[0] for name, value in run(path, image[None]).items()}
        assert_found(found, model, image)
