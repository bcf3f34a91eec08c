"""Models with a mask head trained by `fit_detector` and `tfdetr train`: both stages, going on, and what is refused."""

import csv
import dataclasses
import json
import logging
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools import mask as coco_mask

import tfdetr_keras as td
from tfdetr_keras.cli import main
from tfdetr_keras.data.panoptic_png import colours_of_ids
from tfdetr_keras.evaluation.coco import evaluate_detections
from tfdetr_keras.models import PRESETS
from tfdetr_keras.training.fitting import fit_detector
from tfdetr_keras.training.settings import Settings
from tfdetr_keras.training.starting_model import starting_model

SIDE = 32
# Not thinner than 16 channels: TensorFlow 2.21 on CPUs ends by a segmentation fault in the gradient of a 1 × 1
# convolution with stride 2 and fewer.
SMALLEST = td.DETRConfig(
    backbone=td.ResNetConfig(block="basic", depths=(1, 1), channels=(16, 16), stem_channels=16, batch_norm="trainable"),
    num_classes=3,
    num_queries=8,
    d_model=8,
    encoder_layers=1,
    decoder_layers=1,
    encoder_ffn_dim=8,
    decoder_ffn_dim=8,
)
QUICK = {
    "epochs": 1,
    "batch_size": 4,
    "size": (SIDE, SIDE),
    "pad_to": (SIDE, SIDE),
    "max_boxes": 8,
    "augmentation": "flip",
    "learning_rate": 1e-3,
    "schedule": "constant",
    "jit_compile": False,
}
MASKS = ("mask_attention", "mask_head")


@pytest.fixture(autouse=True)
def _eagerly():
    """Tracing takes most of so short a run's time."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """Drawn shapes as files with COCO's annotations: the arguments of `load_coco`."""
    folder = tmp_path_factory.mktemp("set")
    images, rows = [], []
    drawn, names = td.data.load_shapes(8, seed=3, size=(24, SIDE))
    for record in drawn.as_numpy_iterator():
        image_id, (height, width) = int(record["image_id"]), record["image"].shape[:2]
        Image.fromarray(record["image"]).save(folder / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width})
        for label, (x1, y1, x2, y2) in zip(record["labels"].tolist(), record["boxes"].tolist(), strict=True):
            rows.append({"id": len(rows) + 1, "image_id": image_id, "category_id": label + 1})
            rows[-1] |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1) / 2, "iscrowd": 0}
            rows[-1]["segmentation"] = [[x1, y1, x2, y1, (x1 + x2) / 2, y2]]  # the upper half of it, a triangle
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(names)]
    content = {"images": images, "categories": categories, "annotations": rows}
    (folder / "set.json").write_text(json.dumps(content))
    return folder, folder / "set.json"


@pytest.fixture(scope="module")
def records(annotated):
    return td.data.load_coco(*annotated, masks=True)[0]


@pytest.fixture(scope="module")
def names(annotated):
    return td.data.load_coco(*annotated)[1]


@pytest.fixture(scope="module")
def detector(names, tmp_path_factory):
    """A file with a detector, whose statistics are no fresh ones."""
    keras.utils.set_random_seed(3)
    model = td.DETR(dataclasses.replace(SMALLEST, id2label=dict(enumerate(names))))
    rng = np.random.default_rng(3)
    for variable in model.non_trainable_weights:
        if variable.path.endswith(("moving_mean", "moving_variance")):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    path = tmp_path_factory.mktemp("detector") / "detector.keras"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def second_stage(detector, records, names, tmp_path_factory):
    tf.config.run_functions_eagerly(True)
    out = tmp_path_factory.mktemp("masks") / "run"
    return fit_detector(records, names, out, records.take(3), detector, masks=True, **QUICK)


def weights_of(model):
    return {variable.path: np.array(variable) for variable in model.weights}


def changed(before, after):
    """The parts of a model of which a weight differs."""
    before, after = weights_of(before), weights_of(after)
    differing = {path.split("/")[1] for path in after if path in before and (before[path] != after[path]).any()}
    return differing | {path.split("/")[1] for path in set(after) - set(before)}


def test_the_second_stage_trains_the_masks_alone(second_stage, detector):
    model = second_stage.load_model("last")
    assert type(model) is td.DETRForSegmentation
    before = td.from_pretrained(detector)
    assert changed(before, model) == set(MASKS)
    assert model.config.frozen == SMALLEST.parts
    keras.utils.set_random_seed(0)
    start = starting_model(detector, list(model.id2label.values()), Settings(masks=True))
    assert changed(start, model) == set(MASKS)


def test_the_folder_tells_of_masks(second_stage, records, names):
    with (second_stage.path / "metrics.csv").open() as file:
        [logged] = csv.DictReader(file)
    assert {"loss_mask", "loss_dice", "val_loss_mask", "val_loss_dice", "val_AP", "val_mask_AP"} <= set(logged)
    sizes = {"size": (SIDE, SIDE), "pad_to": (SIDE, SIDE), "batch_size": 4}
    measured = evaluate_detections(second_stage.load_model(), records.take(3), names, masks=True, **sizes)
    assert {"epoch": 1, **measured} == second_stage.metrics
    report = (second_stage.path / "report.md").read_text()
    assert "| class | AP | AP50 | mask AP | mask AP50 |" in report
    assert "![Masks](segments.png)" in report
    with Image.open(second_stage.path / "segments.png") as picture:
        assert min(picture.size) > 200


@pytest.mark.slow
def test_what_is_frozen_may_be_said_and_nothing_is_warned_of(detector, records, names, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run = fit_detector(
            records, names, tmp_path / "run", source=detector, masks=True, freeze="backbone+encoder", **QUICK
        )
    told = [record.getMessage() for record in caplog.records]  # nothing of a backbone without trainable variables
    assert [message.split(":")[0] for message in told] == ["there is no validation set"]
    parts = changed(td.from_pretrained(detector), run.load_model("last"))
    assert {*MASKS, "decoder", "class_head", "box_head"} <= parts
    assert not parts & {"backbone", "encoder"}


def test_random_weights_are_all_trained(names):
    PRESETS["detr-smallest"] = SMALLEST
    try:
        model = starting_model("detr-smallest", names, Settings(masks=True))
    finally:
        del PRESETS["detr-smallest"]
    assert type(model) is td.DETRForSegmentation
    assert model.config.frozen == ()
    assert list(model.id2label.values()) == names


@pytest.mark.slow
def test_a_source_with_a_mask_head_is_trained_as_it_is(second_stage, names):
    for masks in (False, True):
        model = starting_model(second_stage.path, names, Settings(masks=masks))
        assert changed(second_stage.load_model(), model) == set()
        assert model.config == second_stage.load_model().config
    other = starting_model(second_stage.path, ["x", "y"], Settings(freeze=""))
    assert type(other) is td.DETRForSegmentation
    assert (other.config.num_classes, other.config.frozen) == (2, ())
    np.testing.assert_array_equal(other.mask_head.outputs.kernel, second_stage.load_model().mask_head.outputs.kernel)


@pytest.mark.slow
def test_the_published_panoptic_architecture_is_a_source(names):
    config = starting_model("detr-resnet-50-panoptic", names, Settings(dropout=0.0)).config
    assert isinstance(config, td.SegmentationConfig)
    assert (config.num_classes, config.backbone.batch_norm, config.dropout) == (3, "trainable", 0.0)


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped(second_stage, detector, records, names, tmp_path):
    """`test_kill_and_resume` compares every bit."""
    run = td.training.RunFolder(shutil.copytree(second_stage.path, tmp_path / "run"))
    model = run.new_model()
    assert type(model) is td.DETRForSegmentation
    assert model.config == run.load_model("last").config
    settings = {"source": detector, "resume": True, **QUICK, "epochs": 2}
    with pytest.raises(ValueError, match=r"cannot be resumed with other settings \(masks was True, not False\)"):
        fit_detector(records, names, run.path, records.take(3), **settings)
    fit_detector(records, names, run.path, records.take(3), masks=True, **settings)
    assert len((run.path / "metrics.csv").read_text().splitlines()) == 3
    assert changed(td.from_pretrained(detector), run.load_model("last")) == set(MASKS)
    assert changed(second_stage.load_model("last"), run.load_model("last")) == set(MASKS)


def test_records_without_masks_are_refused_before_anything_is_done(
    detector, second_stage, annotated, records, tmp_path
):
    plain, names = td.data.load_coco(*annotated)
    for source, settings in ((detector, {"masks": True}), (second_stage.path, {})):
        for arguments, which in (((plain, None), "training"), ((records, plain), "validation")):
            training, validation = arguments
            message = rf"a DETRForSegmentation is trained with masks, and the {which} records have none: read them with"
            with pytest.raises(ValueError, match=message):
                fit_detector(training, names, tmp_path / "run", validation, source, **settings, **QUICK)
    with pytest.raises(ValueError, match="the training records have none"):
        fit_detector(plain, names, second_stage.path, source=detector, masks=True, resume=True, **QUICK)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_frozen_detector_must_know_the_classes(detector, names):
    with pytest.raises(ValueError, match=r"freezes the detector, but .*keras has 3 classes and 8 queries, not 2 and"):
        starting_model(detector, ["x", "y"], Settings(masks=True))
    with pytest.raises(ValueError, match="not 3 and 9: train boxes first"):
        starting_model(detector, names, Settings(masks=True, num_queries=9))
    model = starting_model(detector, ["x", "y"], Settings(masks=True, freeze="backbone"))
    assert (model.config.num_classes, model.config.frozen) == (2, ("backbone",))
    fewer = starting_model(detector, names, Settings(masks=True, num_queries=5))
    assert (fewer.config.num_queries, fewer.config.frozen) == (5, SMALLEST.parts)


def test_only_a_detr_is_given_a_mask_head(names):
    PRESETS["conditional-smallest"] = td.ConditionalDETRConfig(**dataclasses.asdict(SMALLEST))
    try:
        with pytest.raises(
            ValueError, match="masks: conditional-smallest is a ConditionalDETR, and only a DETR or a RFDETR"
        ):
            starting_model("conditional-smallest", names, Settings(masks=True))
    finally:
        del PRESETS["conditional-smallest"]
    with pytest.raises(ValueError, match="must add up to a multiple of 8"):
        starting_model("detr-tiny", names, Settings(masks=True))


COMMAND = ["--size", "32", "32", "--pad-to", "32", "32", "--batch-size", "4", "--epochs", "1"]


@pytest.mark.slow
def test_the_command_line_reads_masks_and_goes_on(annotated, detector, tmp_path, capsys):
    images, annotations = map(str, annotated)
    data = ["--data", "coco", "--images", images, "--annotations", annotations]
    run = tmp_path / "run"
    arguments = ["train", *data, "--val-split", "0.3", "--from", str(detector), *COMMAND, "--out", str(run)]
    assert main([*arguments, "--masks"]) == 0
    content = json.loads((run / "config.json").read_text())
    assert content["data"]["training"]["masks"] is True
    assert content["settings"]["masks"] is True
    assert main(["resume", str(run), "--epochs", "2"]) == 0
    model = td.training.RunFolder(run).load_model("last")
    assert changed(td.from_pretrained(detector), model) == set(MASKS)
    assert len((run / "metrics.csv").read_text().splitlines()) == 3
    other = tmp_path / "other"
    assert main([*arguments[:-1], str(other), "--from", str(run)]) == 2
    assert "on the command line with --masks" in capsys.readouterr().err
    assert not other.exists()


@pytest.mark.slow
def test_a_panoptic_set_on_the_command_line(annotated, second_stage, records, tmp_path):
    """Whose masks need no asking for; the second set is read from a folder of its own."""
    images, annotations = annotated
    content = json.loads(annotations.read_text())
    content["annotations"] = []
    for folder in ("segments", "others"):
        (tmp_path / folder).mkdir()
    for record in records.as_numpy_iterator():
        segmentation = np.zeros(record["image"].shape[:2], np.int32)
        for row, mask in enumerate(record["masks"]):
            segmentation[mask] = row + 1
        drawn = np.unique(segmentation)[1:].tolist()
        info = [{"id": one, "category_id": int(record["labels"][one - 1]) + 1} for one in drawn]
        name = f"{record['image_id']}.png"
        content["annotations"].append({"image_id": int(record["image_id"]), "file_name": name, "segments_info": info})
        for folder in ("segments", "others"):
            Image.fromarray(colours_of_ids(segmentation)).save(tmp_path / folder / name)
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    panoptic = ["--annotations", str(tmp_path / "panoptic.json"), "--segments", str(tmp_path / "segments")]
    others = ["--val-annotations", str(tmp_path / "panoptic.json"), "--val-segments", str(tmp_path / "others")]
    arguments = ["train", "--data", "coco-panoptic", "--images", str(images), *panoptic, *others, *COMMAND]
    run = tmp_path / "run"
    assert main([*arguments, "--from", str(second_stage.path), "--freeze", "", "--out", str(run)]) == 0
    data = json.loads((run / "config.json").read_text())["data"]
    assert data["training"]["segments"] == str(tmp_path / "segments")
    assert data["validation"]["segments"] == str(tmp_path / "others")
    assert "mask_AP" in td.training.RunFolder(run).metrics


@pytest.mark.parametrize("command", ["train", "inspect-data"])
def test_the_command_line_knows_what_has_masks(command, detector, tmp_path, capsys):
    more = ["--from", str(detector)] if command == "train" else []
    files = ["--images", str(tmp_path), "--annotations", str(tmp_path)]
    assert main([command, "--data", "voc", *files, "--masks", *more, "--out", str(tmp_path / "out.png")]) == 2
    told = "data of the kind voc has no masks; these kinds have them: coco, coco-panoptic, shapes"
    assert told in capsys.readouterr().err


def test_inspection_checks_segmentations(annotated, tmp_path, capsys):
    images, annotations = annotated
    content = json.loads(annotations.read_text())
    content["annotations"][0]["segmentation"] = []
    (tmp_path / "empty.json").write_text(json.dumps(content))
    arguments = ["inspect-data", "--data", "coco", "--images", str(images), "--out", str(tmp_path / "look.png")]
    assert main([*arguments, "--annotations", str(tmp_path / "empty.json"), "--masks"]) == 0
    assert "1 objects without a segmentation" in capsys.readouterr().out
    content["annotations"][0]["segmentation"] = [[1, 2, 3]]
    (tmp_path / "faulty.json").write_text(json.dumps(content))
    faulty = [*arguments, "--annotations", str(tmp_path / "faulty.json")]
    assert main(faulty) == 0
    assert main([*faulty, "--masks"]) == 2
    assert "has a polygon that is not [x, y, x, y, x, y, …]" in capsys.readouterr().err


def few(coco128, count, least_area=6000, most_objects=4):
    """The first photographs with few and large objects, and the names of COCO's classes."""
    records, names = td.data.load_coco(coco128 / "images", coco128 / "annotations/instances_train2017.json", masks=True)

    def is_plain(record):
        objects = tf.size(record["labels"])
        large = tf.reduce_all((record["area"] > least_area) & ~record["iscrowd"])
        return (objects > 0) & (objects <= most_objects) & large

    return records.filter(is_plain).take(count).cache(), names


def test_masks_of_training_batches_lie_in_their_boxes(coco128):
    """Through crops, flips, scales and the padding of buckets; of real polygons, which reach their boxes' edges."""
    records, _ = td.data.load_coco(coco128 / "images", coco128 / "annotations/instances_train2017.json", masks=True)
    size = (160, 267)
    batches = td.data.prepare(records, 4, training=True, size=size, pad_to="buckets", max_boxes=60, seed=5)
    seen = reaching = 0
    for inputs, targets in batches.as_numpy_iterator():
        inside, masks = inputs["pixel_mask"] == 1, targets["masks"]
        assert masks.shape == (4, 60, *inside.shape[1:])
        assert not masks[targets["labels"] < 0].any()
        assert not (masks & ~inside[:, None]).any()
        for image, row in np.argwhere(masks.any(axis=(2, 3))):
            height, width = inside[image, :, 0].sum(), inside[image, 0].sum()
            x, y, w, h = targets["boxes"][image, row] * [width, height, width, height]
            ys, xs = np.nonzero(masks[image, row])
            outside = np.array([x - w / 2 - xs.min(), y - h / 2 - ys.min()])
            outside = np.append(outside, [xs.max() + 1 - x - w / 2, ys.max() + 1 - y - h / 2])
            # To the nearest pixel of an image that was shrunk: one of the result; and COCO's boxes are rounded.
            assert outside.max() < 1.5
            seen += 1
            reaching += np.abs(outside).max() < 2
    assert seen > 300
    assert reaching > 0.8 * seen  # crops cut boxes and masks apart


def ious(found, truth):
    """Of each true mask with the best found one of its class, by pycocotools."""
    best = []
    for label, mask in zip(truth["labels"], truth["masks"], strict=True):
        of_class = [coco_mask.encode(np.asfortranarray(m, np.uint8)) for m in found["masks"][found["labels"] == label]]
        true = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        best.append(np.max(coco_mask.iou(of_class, [true], [False]), initial=0.0) if of_class else 0.0)
    return best


@pytest.mark.slow
def test_masks_of_four_photographs_are_learnt_by_heart(coco128, tmp_path):
    """From random weights, in two stages: the boxes, then the masks of the frozen detector."""
    tf.config.run_functions_eagerly(False)
    photographs, names = few(coco128, 4)
    PRESETS["detr-thin"] = dataclasses.replace(
        SMALLEST,
        backbone=dataclasses.replace(SMALLEST.backbone, depths=(1, 1, 1, 1), channels=(16, 16, 32, 32)),
        num_classes=len(names),
        id2label=dict(enumerate(names)),
        d_model=32,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    )
    canvas = {"size": (96, 96), "pad_to": (96, 96)}
    recipe = QUICK | canvas | {"max_boxes": 4, "augmentation": "none", "warmup_steps": 20}
    recipe |= {"backbone_multiplier": 1.0, "steps_per_epoch": 50, "evaluate_every": 6}
    try:
        boxes = fit_detector(photographs, names, tmp_path / "boxes", source="detr-thin", **recipe | {"epochs": 5})
    finally:
        del PRESETS["detr-thin"]
    second = {"source": boxes.path, "masks": True, "epochs": 6}
    run = fit_detector(photographs, names, tmp_path / "masks", photographs, **recipe | second)
    with (run.path / "metrics.csv").open() as file:
        first, *_, last = ({name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file))
    assert last["loss_mask"] < first["loss_mask"] / 3
    assert last["loss_dice"] < first["loss_dice"] * 0.6
    assert last["loss_giou"] == pytest.approx(first["loss_giou"], abs=1e-5)  # of the boxes, which stay
    # The model that was saved, by detection and by pycocotools.
    found = td.detect(run.load_model(), photographs, batch_size=4, **canvas)
    overlaps = [ious(one, truth) for one, truth in zip(found, photographs.as_numpy_iterator(), strict=True)]
    assert np.mean(np.concatenate(overlaps)) > 0.7
    assert run.metrics["mask_AP50"] > 0.7
