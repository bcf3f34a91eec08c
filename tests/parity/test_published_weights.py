"""The published DETR-R50 on the one image that transformers' own tests record: the numbers of both must agree.

Needs the Hugging Face hub, and in TFDETR_GOLDEN_IMAGE the path of COCO's val2017/000000039769.jpg. Source of the
numbers and of their tolerance (1e-4 absolute and relative): transformers, tests/models/detr/test_modeling_detr.py.
"""

import os

import numpy as np
import pytest
import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from port_weights import load_model
from tfdetr_keras.postprocess import post_process

SOURCE = "facebook/detr-resnet-50"
LOGITS = [[-19.1194, -0.0893, -11.0154], [-17.3640, -1.8035, -14.0219], [-20.0461, -0.5837, -11.1060]]
BOXES = [[0.4433, 0.5302, 0.8853], [0.5494, 0.2517, 0.0529], [0.4998, 0.5360, 0.9956]]
DECODED = [[0.0616, -0.5146, -0.4032], [-0.7629, -0.4934, -1.7153], [-0.4768, -0.6403, -0.7826]]
SCORES, LABELS = [0.9982, 0.9960, 0.9955, 0.9988, 0.9987], [75, 75, 63, 17, 17]
FIRST_BOX = [40.1633, 70.8115, 175.5471, 117.9841]


@pytest.fixture(scope="module")
def image():
    path = os.environ.get("TFDETR_GOLDEN_IMAGE")
    if path is None:
        pytest.skip("set TFDETR_GOLDEN_IMAGE to the path of COCO's val2017/000000039769.jpg")
    return Image.open(path).convert("RGB")


@pytest.fixture(scope="module")
def model(image):
    try:
        hf_hub_download(SOURCE, "config.json")
    except (OSError, HfHubHTTPError) as error:
        pytest.skip(f"{SOURCE} cannot be downloaded: {error}")
    return load_model(SOURCE)


@pytest.mark.hub
def test_the_recorded_image(image, model):
    prepared = transformers.DetrImageProcessorPil()(images=image, return_tensors="np")
    inputs = {
        "pixel_values": prepared["pixel_values"].transpose(0, 2, 3, 1),
        "pixel_mask": prepared["pixel_mask"],
    }
    stages = model.stages(inputs)
    decoded = stages[f"decoder.layer{model.config.decoder_layers - 1}"]
    for got, expected in ((stages["logits"], LOGITS), (stages["pred_boxes"], BOXES), (decoded, DECODED)):
        np.testing.assert_allclose(np.asarray(got)[0, :3, :3], expected, rtol=1e-4, atol=1e-4)

    (detections,) = post_process(stages, target_sizes=[image.size[::-1]], threshold=0.3)
    np.testing.assert_allclose(detections["scores"], SCORES, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(detections["labels"], LABELS)
    np.testing.assert_allclose(detections["boxes"][0], FIRST_BOX, rtol=1e-4, atol=1e-4)
