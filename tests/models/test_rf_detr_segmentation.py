"""What RF-DETR with masks has of its own: batches without objects, masks of some queries, what is refused."""

import numpy as np
import pytest
import tensorflow as tf
from small_group_detrs import FIELDS, pixels_of, small, targets_of
from some_slow import some_slow

import tfdetr_keras as td
from tfdetr_keras.losses.mask_criterion import PointMaskCriterion
from tfdetr_keras.training.settings import Settings
from tfdetr_keras.training.starting_model import starting_model

pytestmark = pytest.mark.usefixtures("without_tracing")

KIND = "RFDETRForSegmentation"
NAMES = ("circle", "square", "triangle")
SIDES = {"nano": 312, "small": 384, "medium": 432, "large": 504, "xlarge": 624, "2xlarge": 768}


def masked(*counts, rows=None, sides=(64, 96)):
    """Return targets with so many objects in each image, whose masks are drawn at random."""
    targets = targets_of(*counts, rows=rows)
    shape = (*targets["labels"].shape, *sides)
    return {**targets, "masks": np.random.default_rng(2).random(shape) > 0.5}


def test_presets_have_the_published_images():
    for size, side in SIDES.items():
        config = td.PRESETS[f"rf-detr-seg-{size}"]
        windows = 1 if size == "nano" else 2
        assert config.preprocessing == td.Preprocessing(
            (side, side), "stretch", antialias=False, multiple_of=12 * windows
        )
        assert config.backbone.table_side * 12 == side


# ---- training ----


@pytest.mark.parametrize(
    "counts",
    some_slow([(0, 0), (15, 0), (3, 1)], (0, 0), (3, 1)),
    ids=["no object", "more objects than queries", "some"],
)
def test_a_step_is_finite(counts):
    model = small(KIND)
    model.compile(optimizer=td.AdamW(1e-3), run_eagerly=True)
    logs = model.train_on_batch(pixels_of(), masked(*counts), return_dict=True)
    assert {"loss_mask", "loss_dice"} <= set(logs)
    assert all(np.isfinite(value) for value in logs.values()), logs
    assert (logs["loss_mask"] == logs["loss_dice"] == 0) == (sum(counts) == 0)
    assert all(np.isfinite(np.asarray(weight)).all() for weight in model.weights)


def test_a_step_without_a_row_of_targets():
    model = small(KIND)
    model.compile(optimizer=td.AdamW(1e-3), run_eagerly=True)
    nothing = {"labels": np.zeros((2, 0), "int32"), "boxes": np.zeros((2, 0, 4), "float32")}
    nothing["masks"] = np.zeros((2, 0, 64, 96), bool)
    assert np.isfinite(model.train_on_batch(pixels_of(), nothing, return_dict=True)["loss"])


def test_an_object_without_a_mask_is_finite():
    """As a box has it that lies between pixels, or in a crop's corner."""
    model, targets = small(KIND), masked(3, 1)
    targets["masks"][0] = False
    losses = model.criterion(model(pixels_of(), training=True), targets)
    assert all(np.isfinite(float(value)) for value in losses.values()), losses


def test_targets_without_masks_are_refused_by_name():
    model = small(KIND)
    model.compile(optimizer=td.AdamW(1e-3), run_eagerly=True)
    with pytest.raises(ValueError, match="masks"):
        model.train_on_batch(pixels_of(), targets_of(2, 1))


def test_every_layer_and_group_learns_masks():
    model, targets = small(KIND), masked(3, 2)
    with tf.GradientTape() as tape:
        losses = model.criterion(model(pixels_of(), training=True), targets)
    assert {"loss_mask", "loss_mask_0", "loss_mask_encoder_0", "loss_dice_encoder_0"} <= set(losses)
    head = model.segmentation_head
    gradients = tape.gradient(losses["loss_mask"], [one.value for one in head.trainable_variables])
    assert all(np.abs(tf.convert_to_tensor(one)).max() > 0 for one in gradients)


# ---- inference ----


def test_masks_of_some_queries_are_those_of_all():
    model = small(KIND)
    every = model(pixels_of())["pred_masks"]
    assert every.shape == (2, 12, 16, 24)
    some = np.array([[3, 0], [11, 5]])
    found = model.masks_of(model.stages(pixels_of(), masks=False)["mask_inputs"], some)
    expected = np.take_along_axis(np.asarray(every), some[..., None, None], axis=1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_images_in_which_nothing_is_found():
    model = small(KIND, num_classes=3, id2label=NAMES)
    images = [np.zeros((40, 60, 3), np.uint8), np.full((64, 30, 3), 200, np.uint8)]
    for image, found in zip(images, model.detect(images, threshold=0.999), strict=True):
        assert found.masks.shape == (0, *image.shape[:2])
    for image, found in zip(images, model.segment(images, threshold=0.999), strict=True):
        assert found.segmentation.shape == image.shape[:2]
        assert len(found) == 0
    assert model.detect(images[0], threshold=0.0).masks.shape[1:] == (40, 60)


def test_masks_are_measured_on_images_without_objects_too():
    model = small(KIND, num_classes=3, id2label=NAMES)
    records, _ = td.data.load_shapes(2, 5, NAMES, (24, 32), masks=True)
    assert [len(record["labels"]) for record in records] == [0, 2]
    metrics = td.evaluation.evaluate_detections(model, records, NAMES, masks=True)
    assert 0 <= metrics["mask_AP"] <= 1


# ---- what it is not ----


def test_a_detector_is_given_masks(tmp_path):
    """In memory, from a file, and for a run: boxes as they were, a fresh mask head, and all of it is trained."""
    path, detector = tmp_path / "detector.keras", small("RFDETR", id2label=["a", "b", "c", "d"])
    detector.criterion = td.SetCriterion(classification="iou_aware", cost_bbox=4.0)
    detector.save(path)
    expected = detector(pixels_of())
    for model in (
        td.RFDETRForSegmentation.from_detector(detector),
        td.RFDETRForSegmentation.from_pretrained(path),
        starting_model(path, ["a", "b", "c", "d"], Settings(masks=True)),
    ):
        found = model(pixels_of())
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)
        assert found["pred_masks"].shape == (2, model.config.num_queries, 16, 24)
        assert model.criterion == PointMaskCriterion(classification="iou_aware", cost_bbox=4.0)
        parts = {weight.path.split("/")[1] for weight in model.trainable_weights}
        assert {"segmentation_head", "backbone", "class_head"} <= parts
    frozen = td.RFDETRForSegmentation.from_detector(detector, freeze=True)
    assert {weight.path.split("/")[1] for weight in frozen.trainable_weights} == {"segmentation_head"}


def test_who_is_not_given_masks(tmp_path):
    path = tmp_path / "detector.keras"
    small("LWDETR", id2label=["a", "b", "c", "d"]).save(path)
    with pytest.raises(
        ValueError, match=r"masks: .* is a LWDETR, and only a DETR or a RFDETR can be given a mask head"
    ):
        starting_model(path, ["a", "b"], Settings(masks=True))
    with pytest.raises(ValueError, match="this is a LWDETR, not a RFDETRForSegmentation: load it with td"):
        td.RFDETRForSegmentation.from_pretrained(path)


def test_parts_can_be_frozen():
    model = small(KIND, frozen="segmentation_head+projector")
    assert not [one.path for one in model.trainable_weights if "segmentation_head" in one.path]
    with pytest.raises(ValueError, match="'mask_head' is no part of this model"):
        td.RFDETRSegmentationConfig(**{**FIELDS, "preprocessing": None, "frozen": "mask_head"})
