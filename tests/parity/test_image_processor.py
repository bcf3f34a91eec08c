"""The evaluation path against Hugging Face's image processor, with the same annotations: pixels, masks, boxes."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from some_slow import some_slow

from port_weights.processor import read_processor
from tfdetr_keras.data import load_coco, prepare
from tfdetr_keras.preprocessing import IMAGENET_STD

LEVEL = 1 / (255 * np.array(IMAGENET_STD))  # one uint8 level after the normalisation


@pytest.fixture(scope="module")
def annotated(coco128):
    """Every eighth image of COCO128 with its non-crowd annotations, as both sides take them."""
    file = coco128 / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    images = sorted(content["images"], key=lambda image: image["width"] / image["height"])[::8]
    return coco128 / "images", file, images, content["annotations"]


def ours(annotated, **arguments):
    folder, file, images, _ = annotated
    records, _ = load_coco(folder, file, category_ids="original", masks=True)
    wanted = tf.constant([image["id"] for image in images], tf.int64)
    records = records.filter(lambda record: tf.reduce_any(record["image_id"] == wanted))
    return {int(targets["image_id"][0]): (inputs, targets) for inputs, targets in prepare(records, 1, **arguments)}


@pytest.mark.parametrize("size", [(800, 1333), (320, 400)])  # enlarged and shrunk, the limit reached
def test_one_image(annotated, size, pytorch):
    folder, _, images, annotations = annotated
    settings = {"size": {"shortest_edge": size[0], "longest_edge": size[1]}}
    found = ours(annotated, size=size)
    for image in images:
        own = [row for row in annotations if row["image_id"] == image["id"] and not row["iscrowd"]]
        expected = pytorch.call(
            "processors:prepare",
            Image.open(folder / image["file_name"]).convert("RGB"),
            settings,
            annotations={"image_id": image["id"], "annotations": own},
            return_segmentation_masks=True,
        )
        inputs, targets = found[image["id"]]
        pixels = expected["pixel_values"][0].transpose(1, 2, 0)
        assert inputs["pixel_values"].shape[1:] == pixels.shape
        assert (np.abs(inputs["pixel_values"][0] - pixels) <= 1.01 * LEVEL).all()
        np.testing.assert_array_equal(inputs["pixel_mask"][0], expected["pixel_mask"][0])
        (labels,) = expected["labels"]
        count = len(labels["class_labels"])
        np.testing.assert_array_equal(targets["labels"][0, :count], labels["class_labels"])
        np.testing.assert_allclose(targets["boxes"][0, :count], labels["boxes"].reshape(-1, 4), atol=1e-5)
        np.testing.assert_array_equal(targets["masks"][0, :count], labels["masks"])
        np.testing.assert_array_equal(targets["orig_size"][0], labels["orig_size"])


FORMS = [
    {"size": {"max_height": 320, "max_width": 400}, "pad_size": {"height": 320, "width": 400}},
    {"size": {"height": 320, "width": 256}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3},
    {"size": {"shortest_edge": 320, "longest_edge": 400}, "do_normalize": False},
    {"size": {"shortest_edge": 320, "longest_edge": 400}, "do_rescale": False, "image_mean": [120.0] * 3},
    {"size": {"shortest_edge": 320, "longest_edge": 400}, "resample": 3, "rescale_factor": 1 / 127.5},
]


@pytest.mark.parametrize("settings", some_slow(FORMS, *FORMS[1:3]), ids=str)
def test_images_are_prepared_as_a_folder_says(annotated, settings, pytorch, tmp_path):
    folder, _, images, _ = annotated
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    own = read_processor(tmp_path)
    found = ours(annotated, preprocessing=own)
    level = own.rescale / np.array(own.std)
    for image in images[:6]:
        picture = Image.open(folder / image["file_name"]).convert("RGB")
        expected = pytorch.call("processors:prepare", picture, settings)
        inputs, _ = found[image["id"]]
        pixels = expected["pixel_values"][0].transpose(1, 2, 0)
        assert inputs["pixel_values"].shape[1:] == pixels.shape
        np.testing.assert_array_equal(inputs["pixel_mask"][0], expected["pixel_mask"][0])
        # Pillow rounds to whole levels between its two passes; a cubic's weights double what that makes.
        difference = np.abs(inputs["pixel_values"][0] - pixels) / level
        assert difference.max() <= (1.01 if own.interpolation == "bilinear" else 2.01)
        assert difference.mean() < 0.2


@pytest.mark.parametrize("reference", ["image", "padded"])
def test_a_padded_batch(annotated, reference, pytorch):
    """Hugging Face's training boxes are relative to the canvas: ours with `box_reference="padded"`, and only then."""
    folder, file, images, annotations = annotated
    settings = {"size": {"shortest_edge": 320, "longest_edge": 533}}
    pictures = [Image.open(folder / image["file_name"]).convert("RGB") for image in images]
    rows = [[row for row in annotations if row["image_id"] == image["id"] and not row["iscrowd"]] for image in images]
    targets = [{"image_id": image["id"], "annotations": own} for image, own in zip(images, rows, strict=True)]
    expected = pytorch.call("processors:prepare", pictures, settings, annotations=targets)
    records, _ = load_coco(folder, file, category_ids="original")
    wanted = tf.constant([image["id"] for image in images], tf.int64)
    records = records.filter(lambda record: tf.reduce_any(record["image_id"] == wanted))
    ((inputs, found),) = prepare(records, len(images), size=(320, 533), box_reference=reference)
    row_of = {int(image_id): row for row, image_id in enumerate(found["image_id"])}
    agree = []
    for place, labels in enumerate(expected["labels"]):
        row, count = row_of[images[place]["id"]], len(labels["class_labels"])
        np.testing.assert_array_equal(inputs["pixel_mask"][row], expected["pixel_mask"][place])
        pixels = expected["pixel_values"][place].transpose(1, 2, 0)
        assert (np.abs(inputs["pixel_values"][row] - pixels) <= 1.01 * LEVEL).all()
        agree.append(np.allclose(found["boxes"][row, :count], labels["boxes"].reshape(-1, 4), atol=1e-5))
    assert all(agree) == (reference == "padded")
