import contextlib
import io
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tfdetr_keras.data import load_coco, load_shapes, prepare
from tfdetr_keras.data.record import RECORD_SPEC
from tfdetr_keras.evaluation.coco import (
    METRIC_NAMES,
    Evaluator,
    class_table,
    coco_metrics,
    evaluate_detections,
    metric_names,
)

CLASSES = ["circle", "square", "triangle"]


def truths(count=30, seed=0):
    return [
        {key: value for key, value in record.items() if key != "image"}
        for record in load_shapes(count, seed)[0].as_numpy_iterator()
    ]


def perfect(ground_truth):
    return [
        {key: image[key] for key in ("image_id", "boxes", "labels")} | {"scores": np.full(len(image["labels"]), 0.9)}
        for image in ground_truth
    ]


def empty(image_id):
    return {
        "image_id": image_id,
        "boxes": np.zeros((0, 4)),
        "labels": np.zeros(0, int),
        "scores": np.zeros(0),
        "iscrowd": np.zeros(0, bool),
        "area": np.zeros(0),
    }


def test_perfect_detections_have_ap_1():
    ground_truth = truths()
    metrics = coco_metrics(ground_truth, perfect(ground_truth), CLASSES)
    np.testing.assert_allclose([metrics[name] for name in ("AP", "AP50", "AP75", "AR100")], 1.0, atol=1e-12)
    assert [row[0] for row in class_table(metrics)] == CLASSES
    np.testing.assert_allclose([row[1:] for row in class_table(metrics)], 1.0, atol=1e-12)
    assert set(metrics) == {*METRIC_NAMES, "AP_per_class", "AP50_per_class"}


def test_no_detections_have_ap_0_and_no_objects_none():
    ground_truth = truths()
    for nothing in ([], [empty(image["image_id"]) for image in ground_truth]):
        metrics = coco_metrics(ground_truth, nothing, CLASSES)
        assert metrics["AP"] == metrics["AR100"] == metrics["AP_per_class"]["square"] == 0
    metrics = coco_metrics([empty(1), empty(2)], [empty(1)], CLASSES)
    assert [metrics[name] for name in METRIC_NAMES] == [-1] * 12
    assert metrics["AP_per_class"] == dict.fromkeys(CLASSES, -1.0)


def test_metrics_are_pycocotools_own(coco128, tmp_path):
    """The same noisy detections by way of COCO's own files, with its sparse ids and crowds."""
    file = coco128 / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    category_ids = sorted(category["id"] for category in content["categories"])
    rng = np.random.default_rng(0)
    rows = []
    for annotation in content["annotations"]:
        for _ in range(rng.integers(3)):
            box = np.array(annotation["bbox"]) * rng.normal(1, 0.03, 4)
            category = annotation["category_id"] if rng.random() < 0.8 else rng.choice(category_ids)
            rows.append((annotation["image_id"], int(category), np.abs(box).tolist(), float(rng.random())))
    (tmp_path / "found.json").write_text(
        json.dumps([dict(zip(("image_id", "category_id", "bbox", "score"), row, strict=True)) for row in rows])
    )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(file)
        by_hand = COCOeval(coco, coco.loadRes(str(tmp_path / "found.json")), "bbox")
        by_hand.evaluate()
        by_hand.accumulate()
        by_hand.summarize()

    records, names = load_coco(coco128 / "images", file)
    ground_truth = [{k: v for k, v in record.items() if k != "image"} for record in records.as_numpy_iterator()]
    detections = []
    for image_id in {row[0] for row in rows}:
        _, categories, boxes, scores = zip(*[row for row in rows if row[0] == image_id], strict=True)
        corners = np.array(boxes)
        corners[:, 2:] += corners[:, :2]
        labels = np.searchsorted(category_ids, categories)
        detections.append({"image_id": image_id, "boxes": corners, "labels": labels, "scores": np.array(scores)})
    metrics = coco_metrics(ground_truth, detections, names)
    assert 0.1 < metrics["AP"] < 0.9
    np.testing.assert_allclose([metrics[name] for name in METRIC_NAMES], by_hand.stats, atol=1e-12)
    for name, ap, ap50 in class_table(metrics):
        by_hand.params.catIds = [category_ids[names.index(name)]]
        with contextlib.redirect_stdout(io.StringIO()):
            by_hand.evaluate()
            by_hand.accumulate()
            by_hand.summarize()
        np.testing.assert_allclose([ap, ap50], by_hand.stats[:2], atol=1e-12, err_msg=name)


def many(images=3, objects=170, seed=0):
    """More objects of one class in an image than COCO counts, and noisy detections of them and of others."""
    rng = np.random.default_rng(seed)
    truths, found = [], []
    for image_id in range(1, images + 1):
        count = objects if image_id < images else 20
        corners = rng.uniform(0, 900, (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(8, 120, (count, 2))], axis=1)
        labels = (rng.random(count) < 0.1).astype(int)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        truths.append(
            {"image_id": image_id, "boxes": boxes, "labels": labels, "iscrowd": np.zeros(count, bool), "area": area}
        )
        near = np.repeat(boxes, 2, axis=0) + rng.normal(0, 3, (2 * count, 4))
        found.append(
            {"image_id": image_id, "boxes": near, "labels": np.repeat(labels, 2), "scores": rng.random(2 * count)}
        )
    return truths, found


def by_pycocotools(truths, found, most):
    """Its own arrays for [1, 10, most] detections, summed up as its `summarize` does, which knows 100 alone."""

    def index(images):
        rows = [
            {
                "image_id": image["image_id"],
                "category_id": int(label),
                "bbox": [x, y, right - x, below - y],
                "area": (right - x) * (below - y),
                "iscrowd": 0,
            }
            | ({"score": float(image["scores"][row])} if "scores" in image else {})
            for image in images
            for row, (label, (x, y, right, below)) in enumerate(
                zip(image["labels"], image["boxes"].tolist(), strict=True)
            )
        ]
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image["image_id"]} for image in truths],
            "categories": [{"id": 0}, {"id": 1}],
            "annotations": [row | {"id": number} for number, row in enumerate(rows, 1)],
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        scorer = COCOeval(index(truths), index(found), "bbox")
        scorer.params.maxDets = [1, 10, most]
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    precision = scorer.eval["precision"][:, :, :, 0, 2]
    return [precision[precision > -1].mean(), *scorer.stats[1:]]  # the first is -1 for other than 100


@pytest.mark.parametrize("most", [100, 150, 300, 1000])
def test_more_detections_can_count(most):
    truths, found = many()
    metrics = coco_metrics(truths, found, ["a", "b"], max_detections=most)
    names = [f"AR{most}" if name == "AR100" else name for name in METRIC_NAMES]
    np.testing.assert_allclose([metrics[name] for name in names], by_pycocotools(truths, found, most), atol=1e-12)
    assert metrics["AR100"] == pytest.approx(by_pycocotools(truths, found, 100)[8], abs=1e-12)
    assert set(metric_names(most)) | {"AP_per_class", "AP50_per_class"} == set(metrics)
    per_class = [value for _, value, _ in class_table(metrics)]
    assert np.mean(per_class) == pytest.approx(metrics["AP"])


def test_perfect_detections_of_many_objects_have_ap_1_where_all_count(caplog):
    truths, _ = many()
    metrics = coco_metrics(truths, perfect(truths), ["a", "b"], max_detections=200)
    assert metrics["AP"] == pytest.approx(1)
    assert not caplog.records
    assert coco_metrics(truths, perfect(truths), ["a", "b"])["AP"] < 0.9
    [told] = [record.getMessage() for record in caplog.records]
    assert told.startswith("2 images have more than 100 objects of one class, e.g. image ")
    assert "max_detections (--max-detections)" in told


@pytest.mark.parametrize("wrong", [99, 0, -1, 1.5, 200.0, "200", None, True])
def test_a_number_of_detections_that_is_none(wrong):
    with pytest.raises(ValueError, match="max_detections must be "):
        coco_metrics([empty(1)], [], CLASSES, max_detections=wrong)
    with pytest.raises(ValueError, match="max_detections must be "):
        evaluate_detections(None, load_shapes(1)[0], CLASSES, max_detections=wrong)


def test_a_crowd_is_neither_right_nor_wrong():
    truth = {
        "image_id": 1,
        "boxes": np.array([[0, 0, 50, 50], [60, 60, 90, 90]]),
        "labels": np.array([0, 0]),
        "iscrowd": np.array([True, False]),
        "area": np.array([2500, 900]),
    }
    inside = np.array([[5, 5, 25, 25], [60, 60, 90, 90]])
    found = {"image_id": 1, "boxes": inside, "labels": np.array([0, 0]), "scores": np.array([0.9, 0.8])}
    assert coco_metrics([truth], [found], CLASSES)["AP"] == pytest.approx(1.0)
    not_a_crowd = truth | {"iscrowd": np.array([False, False])}
    assert coco_metrics([not_a_crowd], [found], CLASSES)["AP"] < 0.6


def test_nothing_is_printed(capsys):
    coco_metrics(truths(3), [], CLASSES)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("ground_truth", "detections", "complaint"),
    [
        ([empty(1), empty(1)], [], "image 1 appears more than once"),
        ([empty(1)], [empty(2)], "image 2 is not in the ground truth"),
        (
            [empty(1) | {"boxes": np.ones((1, 4)), "labels": np.array([3])}],
            [],
            "ground truth: image 1, row 0 has label 3",
        ),
        ([empty(1)], [empty(1) | {"boxes": np.ones((1, 4)), "labels": np.array([-1])}], "detections: image 1, row 0"),
    ],
)
def test_bad_arguments(ground_truth, detections, complaint):
    with pytest.raises(ValueError, match=complaint):
        coco_metrics(ground_truth, detections, CLASSES)


class Oracle(keras.Model):
    """Knows the targets of each image by the mean of its pixels, and how many logits to give."""

    def __init__(self, batches, num_classes=3, queries=8):
        super().__init__()
        keys, logits, boxes = [], [], []
        for inputs, targets in batches:
            keys.append(keras.ops.convert_to_numpy(self.fingerprint(inputs))[0])
            labels = np.full(queries, num_classes)
            labels[: targets["labels"].shape[1]] = np.where(targets["labels"] < 0, num_classes, targets["labels"])[0]
            logits.append(20 * np.eye(num_classes + 1)[labels])
            boxes.append(np.pad(targets["boxes"][0], ((0, queries - targets["boxes"].shape[1]), (0, 0))))
        self.keys, self.logits, self.boxes = (np.array(a, np.float32) for a in (keys, logits, boxes))

    @staticmethod
    def fingerprint(inputs):
        return keras.ops.sum(inputs["pixel_values"], axis=(1, 2, 3)) / keras.ops.cast(
            keras.ops.sum(inputs["pixel_mask"], axis=(1, 2)), "float32"
        )

    def call(self, inputs):
        distance = keras.ops.abs(keras.ops.expand_dims(self.fingerprint(inputs), 1) - self.keys)
        nearest = keras.ops.argmin(distance, axis=1)
        return {"logits": keras.ops.take(self.logits, nearest, 0), "pred_boxes": keras.ops.take(self.boxes, nearest, 0)}


@pytest.mark.parametrize("arguments", [{}, {"batch_size": 4}, {"batch_size": 4, "pad_to": (128, 128)}])
def test_a_model_that_knows_the_answers_has_ap_1(arguments):
    records, names = load_shapes(10, seed=3)
    model = Oracle(prepare(records, 1, size=(80, 128)))
    metrics = evaluate_detections(model, records, names, size=(80, 128), **arguments)
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["AR100"] == pytest.approx(1.0)


def test_a_model_that_knows_other_answers_has_not():
    records, names = load_shapes(10, seed=3)
    model = Oracle(prepare(load_shapes(10, seed=4)[0], 1, size=(80, 128)))
    assert evaluate_detections(model, records, names, size=(80, 128))["AP"] < 0.2


def test_records_keep_their_crowds_in_the_evaluation():
    record = {
        "image": np.full((80, 100, 3), 9, np.uint8),
        "image_id": np.int64(4),
        "orig_size": np.array([80, 100], np.int32),
        "boxes": np.array([[0, 0, 60, 60], [70, 60, 90, 79]], np.float32),
        "labels": np.array([1, 1], np.int32),
        "iscrowd": np.array([True, False]),
        "area": np.array([3600, 380], np.float32),
    }
    records = tf.data.Dataset.from_generator(lambda: iter([record]), output_signature=RECORD_SPEC)
    model = Oracle(prepare(records, 1, size=(80, 128)), queries=3)
    model.boxes[0, 1] = [0.2, 0.25, 0.2, 0.2]  # inside the crowd
    model.logits[0, 1] = [0, 30, 0, 0]
    assert evaluate_detections(model, records, CLASSES, size=(80, 128))["AP"] == pytest.approx(1.0)


def test_an_evaluator_counts_more_and_says_once_where_too_few_count(caplog):
    """A model of 130 queries that knows 130 squares of one image."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 500, (130, 2))
    record = {
        "image": np.full((600, 600, 3), 9, np.uint8),
        "image_id": np.int64(4),
        "orig_size": np.array([600, 600], np.int32),
        "boxes": np.concatenate([corners, corners + 40], axis=1).astype(np.float32),
        "labels": np.ones(130, np.int32),
        "iscrowd": np.zeros(130, bool),
        "area": np.full(130, 1600, np.float32),
    }
    records = tf.data.Dataset.from_generator(lambda: iter([record]), output_signature=RECORD_SPEC)
    model = Oracle(prepare(records, 1, size=(80, 80)), queries=130)
    assert evaluate_detections(model, records, CLASSES, size=(80, 80), max_detections=130)["AP"] == pytest.approx(1)
    assert not caplog.records
    evaluator = Evaluator(records, CLASSES, size=(80, 80))
    for _ in range(2):
        assert evaluator(model)["AR100"] == pytest.approx(100 / 130)
    assert [record.getMessage()[:42] for record in caplog.records] == ["1 images have more than 100 objects of one"]


def test_class_names_must_be_the_models():
    records, _ = load_shapes(2)
    model = Oracle(prepare(records, 1, size=(80, 128)))
    with pytest.raises(ValueError, match="gives 4 logits, but 5 class names need 6"):
        evaluate_detections(model, records, list("abcde"), size=(80, 128))
