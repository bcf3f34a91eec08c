"""Published checkpoints on the images that transformers records: the numbers of both must agree.

Needs the Hugging Face hub; and for COCO's image its path in TFDETR_GOLDEN_IMAGE, val2017/000000039769.jpg. A page and a
table come from the hub's data set nielsr/example-pdf. Sources of the numbers and of their tolerances: transformers,
tests/models/*/test_modeling_*.py of the same members, and the script that converted Table Transformer.
"""

import os

import numpy as np
import pytest
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

import tfdetr_keras as td
from tfdetr_keras.data.sizes import Resize, target_size
from tfdetr_keras.models.presets import PRESETS, PUBLISHED
from tfdetr_keras.models.rt_detr_config import PUBLISHED_IMAGES
from tfdetr_keras.preprocessing import IMAGENET_MEAN, IMAGENET_STD

pytestmark = pytest.mark.hub

DETECTORS = {
    "facebook/detr-resnet-50": {
        "logits": [[-19.1194, -0.0893, -11.0154], [-17.3640, -1.8035, -14.0219], [-20.0461, -0.5837, -11.1060]],
        "pred_boxes": [[0.4433, 0.5302, 0.8853], [0.5494, 0.2517, 0.0529], [0.4998, 0.5360, 0.9956]],
        "decoder.layer5": [[0.0616, -0.5146, -0.4032], [-0.7629, -0.4934, -1.7153], [-0.4768, -0.6403, -0.7826]],
        "scores": [0.9982, 0.9960, 0.9955, 0.9988, 0.9987],
        "labels": [75, 75, 63, 17, 17],
        "first box": [40.1633, 70.8115, 175.5471, 117.9841],
        "tolerance": 1e-4,
    },
    "microsoft/conditional-detr-resnet-50": {
        "logits": [[-10.4371, -5.7565, -8.6765], [-10.5413, -5.8700, -8.0589], [-10.6824, -6.3477, -8.3927]],
        "pred_boxes": [[0.7733, 0.6576, 0.4496], [0.5171, 0.1184, 0.9095], [0.8846, 0.5647, 0.2486]],
        "decoder.layer5": [[0.4223, 0.7474, 0.8760], [0.6397, -0.2727, 0.7126], [-0.3089, 0.7643, 0.9529]],
        "scores": [0.8330, 0.8315, 0.8039, 0.6829, 0.5354],
        "labels": [75, 17, 17, 75, 63],
        "first box": [38.3089, 72.1023, 177.6292, 118.4514],
        "tolerance": 2e-4,
    },
    "SenseTime/deformable-detr": {
        "logits": [[-9.6644, -4.3434, -5.8707], [-9.7035, -3.8503, -5.0721], [-10.5633, -5.3387, -7.5119]],
        "pred_boxes": [[0.8693, 0.2290, 0.2492], [0.3150, 0.5489, 0.5845], [0.5563, 0.7580, 0.8518]],
        "scores": [0.7999, 0.7895, 0.6332, 0.4719, 0.4382],
        "labels": [17, 17, 75, 75, 63],
        "first box": [16.4960, 52.8387, 318.2565, 470.7831],
        "tolerance": 2e-4,
    },
    "SenseTime/deformable-detr-with-box-refine-two-stage": {
        "logits": [[-6.7112, -4.3216, -6.3781], [-8.9035, -6.1738, -6.7249], [-6.9314, -4.4736, -6.2303]],
        "pred_boxes": [[0.2582, 0.5499, 0.4683], [0.7652, 0.9084, 0.4884], [0.5490, 0.2763, 0.0564]],
        "tolerance": 2e-4,
    },
    "SenseTime/deformable-detr-single-scale": {
        "logits": [[-9.9051, -4.2541, -6.4852], [-9.6947, -4.0854, -6.8033], [-10.0665, -5.8470, -7.7003]],
        "tolerance": 2e-4,
    },
    "IDEA-Research/dab-detr-resnet-50": {
        "logits": [[-10.1765, -5.5243, -8.9324], [-9.8138, -5.6721, -7.5161], [-10.3054, -5.6081, -8.5931]],
        "pred_boxes": [[0.3708, 0.3000, 0.2753], [0.5211, 0.6125, 0.9495], [0.2897, 0.6730, 0.5459]],
        "decoder.layer5": [[-0.4879, -0.2594, 0.4524], [-0.4997, -0.4258, 0.4329], [-0.8220, -0.4996, 0.0577]],
        "scores": [0.8732, 0.8563, 0.8554, 0.6079, 0.5896],
        "labels": [17, 75, 17, 75, 63],
        "tolerance": 2e-4,
    },
}
# The first row of logits, in the order of the encoder's scores. Tolerances are transformers' own.
IN_REAL_TIME = {
    "PekingU/rtdetr_r18vd": [-4.3364, -6.4657, -3.6130],
    "PekingU/rtdetr_r34vd": [-4.3727, -4.7921, -5.7300],
    "PekingU/rtdetr_r50vd": [-4.6476, -5.0012, -4.9785],
    "PekingU/rtdetr_r101vd": [-4.6162, -4.9189, -4.6656],
    "PekingU/rtdetr_r18vd_coco_o365": [-4.8726, -5.9066, -5.2450],
    "PekingU/rtdetr_r50vd_coco_o365": [-4.6491, -3.9252, -5.3163],
    "PekingU/rtdetr_r101vd_coco_o365": [-4.5152, -5.6811, -5.7311],
    "PekingU/rtdetr_v2_r18vd": [-3.7047, -5.1914, -6.1787],
    "PekingU/rtdetr_v2_r34vd": [-4.6108, -5.9453, -3.8505],
    "PekingU/rtdetr_v2_r50vd": [-4.7881, -4.6754, -6.1624],
    "PekingU/rtdetr_v2_r101vd": [-4.6162, -4.9189, -4.6656],
    "ustc-community/dfine-nano-coco": [-3.7828, -5.0889, -4.8341],
    "ustc-community/dfine-small-coco": [-3.8098, -4.7725, -5.9945],
    "ustc-community/dfine-medium-coco": [-4.5187, -4.7171, -4.1177],
    "ustc-community/dfine-large-coco": [-4.0688, -5.1700, -4.3392],
    "ustc-community/dfine-xlarge-coco": [-4.8447, -4.7293, -4.5971],
    "ustc-community/dfine-small-obj365": [-6.3807, -4.3210, -6.4775],
    "ustc-community/dfine-medium-obj365": [-5.7705, -3.1611, -5.2808],
    "ustc-community/dfine-large-obj365": [-5.7953, -3.4901, -5.4394],
    "ustc-community/dfine-xlarge-obj365": [-6.3845, -3.7549, -4.6873],
    "ustc-community/dfine-small-obj2coco": [-6.0208, -7.5327, -5.0572],
    "ustc-community/dfine-medium-obj2coco": [-4.5207, -7.6678, -5.7399],
    "ustc-community/dfine-large-obj2coco-e25": [-3.6098, -6.6336, -5.1227],
    "ustc-community/dfine-xlarge-obj2coco": [-4.2304, -6.6295, -4.8340],
}
# A box of that row, where one is recorded.
BOXES_IN_REAL_TIME = {
    "PekingU/rtdetr_r50vd": [0.1688, 0.1999, 0.2123],
    "ustc-community/dfine-small-coco": [0.7678, 0.4148, 0.4644],
}
PANOPTIC = {
    "logits": [[-18.1565, -1.7568, -13.5029], [-16.8888, -1.4138, -14.1028], [-17.5709, -2.5080, -11.8654]],
    "pred_boxes": [[0.5344, 0.1789, 0.9285], [0.4420, 0.0572, 0.0875], [0.6630, 0.6887, 0.1017]],
    "pred_masks": [[-7.7558, -10.8788, -11.9797], [-11.8881, -16.4329, -17.7451], [-14.7316, -19.7383, -20.3004]],
}
TABLES = {
    "microsoft/table-transformer-detection": {
        "image": "example_pdf.png",
        "longest": 800,
        "logits": [[-6.7897, -16.9985, 6.7937], [-8.0186, -22.2192, 6.9677], [-7.3117, -21.0708, 7.4055]],
        "pred_boxes": [[0.4867, 0.1767, 0.6732], [0.6718, 0.4479, 0.3830], [0.4716, 0.1760, 0.6364]],
    },
    "microsoft/table-transformer-structure-recognition": {
        "image": "example_table.png",
        "longest": 1000,
        "logits": [[-18.1430, -8.3214, 4.8274], [-18.4685, -7.1361, -4.2667], [-26.3693, -9.3429, -4.9962]],
        "pred_boxes": [[0.4983, 0.5595, 0.9440], [0.4916, 0.6315, 0.5954], [0.6108, 0.8637, 0.1135]],
    },
}


@pytest.fixture(scope="module", autouse=True)
def hub():
    try:
        hf_hub_download("facebook/detr-resnet-50", "config.json")
    except (OSError, HfHubHTTPError) as error:
        pytest.skip(f"the Hugging Face hub cannot be reached: {error}")


def load(source):
    return td.from_pretrained(source)


@pytest.fixture(scope="module")
def image():
    path = os.environ.get("TFDETR_GOLDEN_IMAGE")
    if path is None:
        pytest.skip("set TFDETR_GOLDEN_IMAGE to the path of COCO's val2017/000000039769.jpg")
    return Image.open(path).convert("RGB")


@pytest.fixture(scope="module")
def inputs(image, pytorch):
    prepared = pytorch.call("processors:prepare", image)
    return {"pixel_values": prepared["pixel_values"].transpose(0, 2, 3, 1), "pixel_mask": prepared["pixel_mask"]}


@pytest.mark.parametrize("source", DETECTORS)
def test_detectors(source, image, inputs):
    golden, model = DETECTORS[source], load(source)
    limits = {"rtol": golden["tolerance"], "atol": golden["tolerance"]}
    stages = model.stages(inputs)
    for name in set(golden).intersection(stages):
        np.testing.assert_allclose(np.asarray(stages[name])[0, :3, :3], golden[name], **limits, err_msg=name)
    if "scores" not in golden:
        return
    [found] = td.post_process(stages, [image.size[::-1]], 0.3, model.config.classification)
    np.testing.assert_allclose(found["scores"], golden["scores"], **limits)
    np.testing.assert_array_equal(found["labels"], golden["labels"])
    if "first box" in golden:
        np.testing.assert_allclose(found["boxes"][0], golden["first box"], **limits)


@pytest.mark.parametrize("source", IN_REAL_TIME)
def test_detectors_in_real_time(source, image):
    """Queries whose scores are nearly equal may change places: the recorded row is looked for among all."""
    model = load(source)
    assert model.preprocessing == PUBLISHED_IMAGES
    pixels = np.asarray(image.resize((640, 640), Image.Resampling.BILINEAR), np.float32)[None] / 255
    outputs = model(pixels)
    rows = np.asarray(outputs["logits"])[0, :, :3]
    nearest = np.abs(rows - IN_REAL_TIME[source]).max(axis=-1).argmin()
    np.testing.assert_allclose(rows[nearest], IN_REAL_TIME[source], rtol=0, atol=1e-3)
    if source in BOXES_IN_REAL_TIME:
        box = outputs["pred_boxes"][0, nearest, :3]
        np.testing.assert_allclose(box, BOXES_IN_REAL_TIME[source], rtol=0, atol=1e-3)
    if source != "PekingU/rtdetr_r50vd":
        return
    [found] = td.post_process(outputs, [image.size[::-1]], 0.3, model.config.classification)
    order = np.argsort(-found["scores"])[:4]
    np.testing.assert_allclose(found["scores"][order], [0.9703, 0.9600, 0.9576, 0.9507], rtol=0, atol=1e-3)
    np.testing.assert_array_equal(found["labels"][order], [57, 15, 15, 65])


def test_panoptic_segmentation(image, inputs):
    outputs = load("facebook/detr-resnet-50-panoptic")(inputs)
    assert outputs["pred_masks"].shape == (1, 100, 200, 267)
    for name in ("logits", "pred_boxes"):
        np.testing.assert_allclose(outputs[name][0, :3, :3], PANOPTIC[name], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(outputs["pred_masks"][0, 0, :3, :3], PANOPTIC["pred_masks"], rtol=1e-3, atol=1e-3)
    [found] = td.post_process_panoptic(outputs, [image.size[::-1]], threshold=0.3)
    assert len(found["segments_info"]) == 5
    first = found["segments_info"][0]
    assert (first["id"], first["label_id"], first["was_fused"]) == (1, 17, False)
    assert first["score"] == pytest.approx(0.994097, abs=1e-3)
    np.testing.assert_array_equal(found["segmentation"][:3, :3], 4)


@pytest.mark.parametrize("source", TABLES)
def test_table_transformers(source):
    golden, model = TABLES[source], load(source)
    page = Image.open(hf_hub_download("nielsr/example-pdf", golden["image"], repo_type="dataset")).convert("RGB")
    size = target_size(*page.size[::-1], Resize(golden["longest"], golden["longest"], "table"))
    # Pillow's own choice of a filter, as in the script that the numbers come from.
    pixels = np.asarray(page.resize([int(side) for side in size[::-1]]), np.float32)[None] / 255
    outputs = model((pixels - IMAGENET_MEAN) / IMAGENET_STD)
    for name in ("logits", "pred_boxes"):
        np.testing.assert_allclose(outputs[name][0, :3, :3], golden[name], rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("source", PUBLISHED)
def test_every_published_checkpoint_is_of_its_preset(source):
    """The class, and all that makes the architecture; names of classes and dropout are the checkpoint's own."""
    model, preset = load(source), PRESETS[PUBLISHED[source]]
    assert type(model.config) is type(preset)
    fields = ("backbone", "num_classes", "num_queries", "d_model", "encoder_layers", "decoder_layers", "pre_norm")
    of_some = ("encoder_dim", "encoder_ffn_dim", "expansion", "decoder_points", "frozen", "num_denoising")
    of_some += ("num_feature_levels", "fusion_blocks", "reg_scale", "up")
    for name in (*fields, *(of_some if hasattr(preset, "encoder_dim") else ())):
        assert getattr(model.config, name, None) == getattr(preset, name, None), name
