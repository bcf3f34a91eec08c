"""hotcoco's precisions and recalls are pycocotools', number for number."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from random_sets import random_set

from tfdetr_keras.data import load_coco, load_voc
from tfdetr_keras.evaluation.coco_scorer import score

SETS = 200


def refereed(truths, found, classes, iou_type="bbox", most=100, only=None):
    """Returns pycocotools' evaluation of the same set, written down as COCO's dicts; of some images only."""

    def index(images, scored):
        rows = []
        for image in images:
            for row, label in enumerate(image["labels"]):
                left, top, right, bottom = np.asarray(image["boxes"][row], np.float64).tolist()
                entry = {"id": len(rows) + 1, "image_id": int(image["image_id"]), "category_id": int(label)}
                entry |= {"iscrowd": int(image.get("iscrowd", np.zeros(len(image["labels"])))[row])}
                if iou_type == "segm":
                    entry["segmentation"] = coco_mask.encode(np.asfortranarray(image["masks"][row], np.uint8))
                    area = float(coco_mask.area(entry["segmentation"]))
                else:
                    entry["bbox"] = [left, top, right - left, bottom - top]
                    area = (right - left) * (bottom - top)
                entry["area"] = float(image["area"][row]) if "area" in image else area
                rows.append(entry | ({"score": float(image["scores"][row])} if scored else {}))
        coco = COCO()
        coco.dataset = {
            "images": [{"id": int(image["image_id"]), "height": 1, "width": 1} for image in truths],
            "categories": [{"id": label, "name": str(label)} for label in range(classes)],
            "annotations": rows,
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        referee = COCOeval(index(truths, False), index(found, True), iou_type)
        referee.params.maxDets = sorted({1, 10, 100, most})
        if only is not None:
            referee.params.imgIds = list(only)
        referee.evaluate()
        referee.accumulate()
        if most == 100:
            referee.summarize()
    return referee


def assert_same(scored, referee):
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(scored.results[name], referee.eval[name], err_msg=name)


@pytest.mark.parametrize("tenth", range(10))
def test_random_sets(tenth):
    for seed in range(tenth, SETS, 10):
        truths, found = random_set(seed)
        assert_same(score(truths, found, 5), refereed(truths, found, 5))  # the last class has no objects


@pytest.mark.parametrize("seed", range(6))
def test_masks(seed):
    truths, found = random_set(seed, images=4, masks=True)
    assert_same(score(truths, found, 4, "segm"), refereed(truths, found, 4, "segm"))


def test_more_detections_than_coco_counts():
    truths, found = random_set(0)
    many = [
        {key: np.concatenate([image[key]] * 30) if key != "image_id" else image[key] for key in image}
        for image in found
    ]
    assert_same(score(truths, many, 4, max_detections=300), refereed(truths, many, 4, most=300))


@pytest.mark.parametrize("kind", ["no detections", "no objects", "nothing"])
def test_empty_sets(kind):
    truths, found = random_set(1)
    bare = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int)}
    if kind != "no detections":
        truths = [{"image_id": image["image_id"], **bare} for image in truths]
    if kind != "no objects":
        found = []
    scored = score(truths, found, 4)
    np.testing.assert_array_equal(scored.results["precision"].max(), -1 if kind != "no detections" else 0)


def test_ids_of_images_may_be_as_large_as_they_like():
    truths, found = random_set(2)
    for image in (*truths, *found):
        image["image_id"] += 2**62  # a hash, where the files of a set are called otherwise
    scored = score(truths, found, 4)
    assert scored.compared.image_ids[0] == 2**62 + 3
    truths, found = random_set(2)
    assert_same(scored, refereed(truths, found, 4))


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_some_of_the_detections(masks):
    truths, found = random_set(4, masks=masks)
    kind = "segm" if masks else "bbox"
    scored = score(truths, found, 4, kind)
    fewer = [
        {key: value if key == "image_id" else value[image["scores"] > 0.4] for key, value in image.items()}
        for image in found
    ]
    assert_same(scored.above(scored.found.scores > 0.4), refereed(truths, fewer, 4, kind))


def real_sets():
    return {
        "COCO128": lambda coco128, bccd: load_coco(
            coco128 / "images", coco128 / "annotations/instances_train2017.json"
        ),
        "BCCD train": lambda coco128, bccd: load_voc(
            bccd / "JPEGImages", bccd / "Annotations", bccd / "ImageSets/Main/train.txt"
        ),
        "BCCD test": lambda coco128, bccd: load_voc(
            bccd / "JPEGImages", bccd / "Annotations", bccd / "ImageSets/Main/test.txt"
        ),
    }


def jittered(truths, seed=0):
    """Returns detections near the objects, some of them twice, of another class, or nowhere."""
    rng = np.random.default_rng(seed)
    classes = 1 + max(int(image["labels"].max(initial=0)) for image in truths)
    found = []
    for image in truths:
        rows = rng.integers(0, len(image["labels"]), 2 * len(image["labels"])) if len(image["labels"]) else []
        boxes = np.asarray(image["boxes"], np.float64)[rows]
        sides = boxes[:, 2:] - boxes[:, :2]
        boxes = boxes + np.tile(sides, 2) * rng.normal(0, 0.08, boxes.shape)
        labels = np.where(rng.random(len(boxes)) < 0.9, np.asarray(image["labels"])[rows], rng.integers(0, classes))
        scores = rng.random(len(boxes))
        found.append({"image_id": image["image_id"], "boxes": boxes, "labels": labels, "scores": scores})
    return found


@pytest.mark.parametrize("name", real_sets())
def test_real_sets(name, coco128, bccd):
    records, names = real_sets()[name](coco128, bccd)
    without_pixels = records.map(lambda record: {key: record[key] for key in record if key != "image"})
    truths = list(without_pixels.as_numpy_iterator())
    found = jittered(truths)
    assert_same(score(truths, found, len(names)), refereed(truths, found, len(names)))
