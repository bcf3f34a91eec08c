"""AP of independent classes and of masks, and panoptic quality, of models that say what they are told to.

What they say is known, so each figure is computed a second time: by pycocotools from files that are written here, or
from segments that are made image by image.
"""

import contextlib
import io
import json
import tracemalloc
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from some_slow import some_slow

from tfdetr_keras.data import load_shapes, prepare
from tfdetr_keras.data.record import MASKS_SPEC, RECORD_SPEC
from tfdetr_keras.evaluation import batches as evaluation_batches
from tfdetr_keras.evaluation import panoptic as panoptic_evaluation
from tfdetr_keras.evaluation.coco import METRIC_NAMES, Evaluator, class_table, evaluate_detections, write_coco_results
from tfdetr_keras.evaluation.panoptic import evaluate_panoptic
from tfdetr_keras.evaluation.panoptic_quality import panoptic_quality
from tfdetr_keras.evaluation.panoptic_results import panoptic_truth
from tfdetr_keras.inference.detection import detect, segment
from tfdetr_keras.inference.postprocess import post_process
from tfdetr_keras.inference.segments import post_process_masks, post_process_panoptic
from tfdetr_keras.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

CLASSES = ["circle", "square", "triangle", "paper", "table"]
THINGS = [True, True, True, False, False]
# (height, width), of which the resize makes halves, and these are whole cells of the masks.
SHAPES = [(80, 120), (96, 80), (80, 88), (80, 192), (184, 80), (80, 80)]
SIZE, STRIDE, MOST_CELLS = (40, 96), 4, 24
BATCHES = [{}, {"batch_size": 4}, {"batch_size": 2, "pad_to": (96, 128)}]
LEVEL = 20  # of grey, by which images differ


class Told(keras.Model):
    """Says of each image, which it knows by its colour, what it is told to; masks cover the canvas in cells.

    In the padding the image's last cells go on: without any, an interpolation takes these twice.
    """

    def __init__(self, logits, boxes, masks=None, classification="softmax"):
        super().__init__()
        self.config = types.SimpleNamespace(classification=classification)
        self.told = {"logits": logits, "pred_boxes": boxes} | ({} if masks is None else {"pred_masks": masks})

    def call(self, inputs):
        inside = ops.cast(inputs["pixel_mask"], "float32")
        red = ops.sum(inputs["pixel_values"][..., 0], (1, 2)) / ops.sum(inside, (1, 2))
        place = ops.cast(ops.round((red * IMAGENET_STD[0] + IMAGENET_MEAN[0]) * 255 / LEVEL), "int32")
        outputs = {name: ops.take(told, place, 0) for name, told in self.told.items()}
        if "pred_masks" in outputs:
            rows = self.cells(ops.shape(inside)[1], ops.sum(inside[:, :, 0], 1))
            columns = self.cells(ops.shape(inside)[2], ops.sum(inside[:, 0], 1))
            outputs["pred_masks"] = ops.einsum("bhr,bqrc,bwc->bqhw", rows, outputs["pred_masks"], columns)
        return outputs

    @staticmethod
    def cells(side, length):
        """One-hot, `(batch, cells of the canvas, MOST_CELLS)`."""
        last = ops.cast(length, "int32") // STRIDE - 1
        return ops.one_hot(ops.minimum(ops.arange(side // STRIDE)[None], last[:, None]), MOST_CELLS)

    def outputs(self, place):
        """What it says of one image that stands alone, without going through the model."""
        height, width = (side // 2 // STRIDE for side in SHAPES[place])
        outputs = {name: told[place : place + 1] for name, told in self.told.items()}
        if "pred_masks" in outputs:
            outputs["pred_masks"] = outputs["pred_masks"][:, :, :height, :width]
        return outputs


def ellipse(rng, shape):
    centre, radii = rng.uniform(0.2, 0.8, 2) * shape, rng.uniform(0.1, 0.4, 2) * shape
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return ((rows + 0.5 - centre[0]) / radii[0]) ** 2 + ((columns + 0.5 - centre[1]) / radii[1]) ** 2 < 1


def extent(mask):
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def record(place, masks, labels, iscrowd):
    shape = SHAPES[place]
    return {
        "image": np.full((*shape, 3), LEVEL * place, np.uint8),
        "image_id": np.int64(100 - place),
        "orig_size": np.array(shape, np.int32),
        "boxes": np.array([extent(mask) for mask in masks], np.float32).reshape(-1, 4),
        "labels": np.array(labels, np.int32),
        "iscrowd": np.array(iscrowd, bool),
        "area": masks.sum((1, 2)).astype(np.float32) * np.float32(0.9),
        "masks": masks,
    }


def instance_set(seed):
    """Records with objects that overlap, and a crowd here and there; one has none."""
    rng = np.random.default_rng(seed)
    records = []
    for place, shape in enumerate(SHAPES):
        count = 0 if place == 2 else rng.integers(2, 7)
        masks = np.array([ellipse(rng, shape) for _ in range(count)], bool).reshape(-1, *shape)
        records.append(record(place, masks, rng.integers(0, 5, count), rng.random(count) < 0.15))
    return records


def panoptic_set(seed):
    """Records whose masks share no pixel; some pixels are in none."""
    rng = np.random.default_rng(seed)
    records = []
    for place, shape in enumerate(SHAPES):
        owner = np.zeros(shape, int)
        owner[shape[0] // 8 : shape[0] // 2], owner[shape[0] // 2 :] = 1, 2
        for number in range(3, 7):
            owner[ellipse(rng, shape)] = number
        masks = np.array([owner == number for number in np.unique(owner[owner > 0])])
        labels = [3 + number if number < 2 else rng.integers(3) for number in range(len(masks))]
        records.append(record(place, masks, labels, rng.random(len(masks)) < 0.1))
    return records


def dataset(records, masks=True):
    spec = RECORD_SPEC | ({"masks": MASKS_SPEC} if masks else {})
    return tf.data.Dataset.from_generator(
        lambda: ({key: one[key] for key in spec} for one in records), output_signature=spec
    )


def told(records, seed, queries=20, classification="softmax"):
    """A model that finds most objects about where they are, and others."""
    rng = np.random.default_rng(seed)
    focal = classification == "focal"
    logits = rng.normal(-2 if focal else 0, 1, (len(records), queries, 5 + (not focal))).astype(np.float32)
    boxes = rng.uniform(0.1, 0.9, (len(records), queries, 4)).astype(np.float32)
    masks = rng.normal(-4, 2, (len(records), queries, MOST_CELLS, MOST_CELLS)).astype(np.float32)
    for place, truth in enumerate(records):
        height, width = truth["orig_size"]
        for query in range(queries if len(truth["labels"]) else 0):
            row = rng.integers(len(truth["labels"]))
            x1, y1, x2, y2 = truth["boxes"][row] / [width, height, width, height]
            noise = rng.normal(0, 0.02, 4)
            boxes[place, query] = np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]) + noise
            label = truth["labels"][row] if rng.random() < 0.8 else rng.integers(5)
            logits[place, query, label] += rng.uniform(1, 6)
            cells = truth["masks"][row].reshape(height // 8, 8, width // 8, 8).mean((1, 3))
            shift = rng.normal(0, 2)
            masks[place, query, : height // 8, : width // 8] = 8 * cells - 4 + shift + rng.normal(0, 1, cells.shape)
    return Told(logits, boxes, masks, classification)


def by_pycocotools(records, detections, iou_type, folder):
    """pycocotools' evaluation, by way of files."""
    rows = []
    for truth in records:
        for box, label, iscrowd, area, mask in zip(
            *(truth[key] for key in ("boxes", "labels", "iscrowd", "area", "masks")), strict=True
        ):
            x1, y1, x2, y2 = box.tolist()
            row = {"id": len(rows) + 1, "image_id": int(truth["image_id"]), "category_id": int(label) + 1}
            row |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(iscrowd), "area": float(area)}
            rows.append(row | {"segmentation": lengths_of(mask)})
    sizes = {int(truth["image_id"]): truth["orig_size"].tolist() for truth in records}
    content = {
        "images": [{"id": key, "height": height, "width": width} for key, (height, width) in sizes.items()],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)],
        "annotations": rows,
    }
    (folder / "set.json").write_text(json.dumps(content))
    found = []
    for truth, image in zip(records, detections, strict=True):
        for number, (label, score) in enumerate(zip(image["labels"].tolist(), image["scores"].tolist(), strict=True)):
            row = {"image_id": int(truth["image_id"]), "category_id": label + 1, "score": score}
            x1, y1, x2, y2 = image["boxes"][number].astype(float).tolist()
            segm = {"segmentation": lengths_of(image["masks"][number])} if iou_type == "segm" else {}
            found.append(row | (segm or {"bbox": [x1, y1, x2 - x1, y2 - y1]}))
    (folder / "found.json").write_text(json.dumps(found))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(folder / "set.json")
        scorer = COCOeval(coco, coco.loadRes(str(folder / "found.json")), iou_type)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return scorer


def lengths_of(mask):
    lengths = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": lengths["size"], "counts": lengths["counts"].decode()}


def masks_by_hand(model, records):
    """`post_process_masks` of each image alone."""
    return [
        post_process_masks(
            model.outputs(place), [truth["orig_size"]], 0.0, pixel_mask=np.ones((1, *truth["orig_size"] // 2))
        )[0]
        for place, truth in enumerate(records)
    ]


@pytest.mark.parametrize("batches", some_slow(BATCHES, *BATCHES[1:]))
@pytest.mark.parametrize("classification", ["softmax", "focal"])
def test_ap_of_boxes_is_pycocotools_own(classification, batches, tmp_path):
    for seed in range(3):
        records = instance_set(seed)
        model = told(records, seed, classification=classification)
        detections = [
            post_process(model.outputs(place), [truth["orig_size"]], 0.0, classification)[0]
            for place, truth in enumerate(records)
        ]
        assert all(len(image["scores"]) == (100 if classification == "focal" else 20) for image in detections)
        expected = by_pycocotools(records, detections, "bbox", tmp_path)
        metrics = evaluate_detections(model, dataset(records), CLASSES, SIZE, **batches)
        np.testing.assert_allclose([metrics[name] for name in METRIC_NAMES], expected.stats, atol=1e-12)
        assert 0.1 < metrics["AP"] < 0.9
        assert set(metrics) == {*METRIC_NAMES, "AP_per_class", "AP50_per_class"}


@pytest.mark.parametrize("batches", some_slow(BATCHES, *BATCHES[:2]))
@pytest.mark.parametrize("queries", [20, 160])
def test_ap_of_masks_is_pycocotools_own(queries, batches, tmp_path):
    """With 160 queries more than a hundred are of one class in an image, which COCO's evaluation does not look at."""
    for seed in range(2):
        records = instance_set(seed)
        model = told(records, seed, queries)
        if queries > 100:
            model.told["logits"][1, :150, 0] = 8 + np.arange(150) % 30 / 10  # some of them equally sure
        detections = masks_by_hand(model, records)
        evaluator = Evaluator(dataset(records), CLASSES, SIZE, masks=True, **batches)
        metrics = evaluator(model)
        for prefix, iou_type in (("", "bbox"), ("mask_", "segm")):
            expected = by_pycocotools(records, detections, iou_type, tmp_path)
            np.testing.assert_allclose([metrics[prefix + name] for name in METRIC_NAMES], expected.stats, atol=1e-12)
            assert 0.05 < metrics[f"{prefix}AP"] < 0.9
            precision = expected.eval["precision"][:, :, :, 0, -1]
            for label, (name, ap, _) in enumerate(class_table(metrics, masks=iou_type == "segm")):
                assert (name, ap) == (CLASSES[label], pytest.approx(precision[:, :, label].mean(), abs=1e-12))
        counts = [len(image["masks"]) for image in evaluator.detections]
        assert counts[1] == (queries if queries == 20 else 100 + (detections[1]["labels"] > 0).sum())
        assert max(counts) == queries
        write_coco_results(evaluator.detections, tmp_path / "written.json", range(1, 6), "segm")
        with contextlib.redirect_stdout(io.StringIO()):
            found = COCO(tmp_path / "set.json").loadRes(str(tmp_path / "written.json"))
        assert len(found.anns) == sum(len(image["masks"]) for image in evaluator.detections)


def test_masks_that_are_not_wanted_are_not_measured(tmp_path):
    records = instance_set(0)
    model = told(records, 0)
    evaluator = Evaluator(dataset(records), CLASSES, SIZE)
    with_masks = Evaluator(dataset(records), CLASSES, SIZE, masks=True)
    metrics, more = evaluator(model), with_masks(model)
    assert {name: more[name] for name in metrics} == metrics
    assert set(more) - set(metrics) == {f"mask_{name}" for name in metrics}
    assert "masks" not in evaluator.detections[0]
    assert "masks" not in evaluator.ground_truth[0]
    # The other way round: masks of the model are no reason to have some in the records.
    assert evaluate_detections(model, dataset(records, masks=False), CLASSES, SIZE) == metrics


def test_masks_are_made_one_at_a_time():
    """All masks of one image would be 200 MB."""
    side, queries = 2000, 50
    one = {
        "image": np.zeros((side, side, 3), np.uint8),
        "image_id": np.int64(1),
        "orig_size": np.array([side, side], np.int32),
        "boxes": np.array([[0, 0, side, side]], np.float32),
        "labels": np.zeros(1, np.int32),
        "iscrowd": np.zeros(1, bool),
        "area": np.array([side * side], np.float32),
        "masks": np.ones((1, side, side), bool),
    }
    logits = np.zeros((1, queries, 6), np.float32)
    logits[..., 0] = 3
    boxes = np.full((1, queries, 4), 0.5, np.float32)
    model = Told(logits, boxes, np.ones((1, queries, MOST_CELLS, MOST_CELLS), np.float32))
    evaluator = Evaluator(dataset([one]), CLASSES, (96, 96), masks=True)
    tracemalloc.start()
    assert evaluator(model)["mask_AP"] == pytest.approx(1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6


def inside(found, record):
    """Detections with their boxes clipped to the image, as `detect` gives them."""
    height, width = record["orig_size"]
    return found | {"boxes": np.clip(found["boxes"], 0, np.array([width, height, width, height], np.float32))}


@pytest.mark.parametrize("batches", BATCHES)
def test_detect_gives_the_masks_of_the_original_images(batches):
    records = instance_set(4)
    model = told(records, 4)
    found = list(detect(model, dataset(records), SIZE, threshold=0.3, **batches))
    for place, (image, whole) in enumerate(zip(found, masks_by_hand(model, records), strict=True)):
        kept = whole["scores"] > 0.3
        assert image["image_id"] == records[place]["image_id"]
        assert set(image) == {"image_id", *whole}
        expected = {key: value[kept] for key, value in whole.items()}
        for key, value in inside(expected, records[place]).items():
            np.testing.assert_array_equal(image[key], value)
    assert sum(len(image["scores"]) for image in found) > 20
    without = detect(model, dataset(records), SIZE, threshold=0.3, masks=False, **batches)
    for image, other in zip(found, without, strict=True):
        assert set(other) == set(image) - {"masks"}
        np.testing.assert_array_equal(image["boxes"], other["boxes"])


@pytest.mark.parametrize("batches", BATCHES)
def test_detect_takes_the_models_classification(batches):
    records = instance_set(4)
    model = told(records, 4, classification="focal")
    del model.told["pred_masks"]
    found = list(detect(model, dataset(records), SIZE, threshold=0.3, **batches))
    for place, image in enumerate(found):
        [expected] = post_process(model.outputs(place), [records[place]["orig_size"]], 0.3, "focal")
        for key, value in inside(expected, records[place]).items():
            np.testing.assert_array_equal(image[key], value)
    assert any(len(image["scores"]) > 20 for image in found)  # more than queries


def segments_by_hand(model, records, threshold, things=THINGS):
    """Of each image alone: `post_process_panoptic`, and then a new map with one segment of each class of stuff."""
    segments = []
    for place, truth in enumerate(records):
        canvas = np.ones((1, *truth["orig_size"] // 2))
        [found] = post_process_panoptic(model.outputs(place), [truth["orig_size"]], threshold, pixel_mask=canvas)
        parts = {}
        for entry in found["segments_info"]:
            label = entry["label_id"]
            parts.setdefault(("thing", entry["id"], label) if things[label] else ("stuff", 0, label), []).append(entry)
        whole, info = np.zeros(truth["orig_size"], int), []
        for number, ((_, _, label), entries) in enumerate(parts.items(), start=1):
            whole[np.isin(found["segmentation"], [entry["id"] for entry in entries])] = number
            info.append({"id": number, "label_id": label, "score": max(entry["score"] for entry in entries)})
        segments.append({"image_id": int(truth["image_id"]), "segmentation": whole, "segments_info": info})
    return segments


@pytest.mark.parametrize("batches", BATCHES)
def test_panoptic_quality_is_that_of_the_segments(batches):
    fused_matters = []
    for seed in range(3):
        records = panoptic_set(seed)
        model = told(records, seed)
        expected = panoptic_quality(
            map(panoptic_truth, records), segments_by_hand(model, records, 0.4), CLASSES, THINGS
        )
        counts = []
        quality = evaluate_panoptic(
            model, dataset(records), CLASSES, THINGS, SIZE, threshold=0.4, progress=counts.append, **batches
        )
        assert quality == expected
        assert 0.05 < quality["PQ"] < 0.95
        assert quality["PQ_things"] > 0 < quality["PQ_stuff"]
        assert counts[-1] == len(records)
        unfused = segments_by_hand(model, records, 0.4, [True] * 5)
        fused_matters.append(panoptic_quality(map(panoptic_truth, records), unfused, CLASSES, THINGS) != quality)
    assert any(fused_matters)


@pytest.mark.parametrize("things", [THINGS, None])
@pytest.mark.parametrize("batches", BATCHES)
def test_segment_gives_the_segments_of_the_original_images(batches, things):
    records = panoptic_set(7)
    model = told(records, 7)
    found = list(segment(model, dataset(records), SIZE, threshold=0.4, things=things, **batches))
    expected = segments_by_hand(model, records, 0.4, things or [True] * 5)
    for image, other in zip(found, expected, strict=True):
        assert image["image_id"] == other["image_id"]
        assert image["segmentation"].dtype == np.int32
        ids = [entry["id"] for entry in image["segments_info"]]
        assert len(set(ids)) == len(ids) == len(other["segments_info"])
        for entry, wanted in zip(image["segments_info"], other["segments_info"], strict=True):
            assert (entry["label_id"], entry["score"]) == (wanted["label_id"], wanted["score"])
            assert entry["was_fused"] == (things is not None and not things[entry["label_id"]])
            own, its = image["segmentation"] == entry["id"], other["segmentation"] == wanted["id"]
            np.testing.assert_array_equal(own, its)


def test_two_processes_measure_half_each(monkeypatch):
    records = panoptic_set(1)
    model, sums = told(records, 1), []

    def gathered(value):
        sums.append(value)
        return [value] if len(sums) < 3 else sums[1:]

    monkeypatch.setattr(panoptic_evaluation, "gather", gathered)
    whole = evaluate_panoptic(model, dataset(records), CLASSES, THINGS, SIZE, threshold=0.4)
    monkeypatch.setattr(evaluation_batches, "number_of_processes", lambda: 2)
    for index in range(2):
        monkeypatch.setattr(evaluation_batches, "process_index", lambda index=index: index)
        shared = evaluate_panoptic(model, dataset(records), CLASSES, THINGS, SIZE, threshold=0.4)
    np.testing.assert_allclose(sums[1] + sums[2], sums[0])
    for name in ("PQ", "SQ_things", "RQ_stuff"):
        assert shared[name] == pytest.approx(whole[name], abs=1e-12)


@pytest.mark.parametrize("rule", ["table", "facebook"])
def test_images_are_resized_by_the_models_rule(rule):
    records = dataset(instance_set(0))
    expected = prepare(records, 1, size=SIZE, size_rule=rule)
    batches = evaluation_batches.evaluation_batches(records, lambda record: {}, Preprocessing(SIZE, rule), 1)
    for (inputs, _), (other, _) in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(inputs["pixel_values"], other["pixel_values"])


def test_faults():
    records = instance_set(0)
    model = told(records, 0)
    without = dataset(records, masks=False)
    boxes_alone = told(records, 0)
    del boxes_alone.told["pred_masks"]
    with pytest.raises(ValueError, match="the records have no masks to compare with"):
        evaluate_detections(model, without, CLASSES, SIZE, masks=True)
    with pytest.raises(ValueError, match='outputs have no "pred_masks"'):
        evaluate_detections(boxes_alone, dataset(records), CLASSES, SIZE, masks=True)
    with pytest.raises(ValueError, match=r"the model gives 6 logits, but 4 class names need 5 \(the last one for no"):
        evaluate_detections(model, dataset(records), CLASSES[:4], SIZE, masks=True)
    with pytest.raises(ValueError, match="the model gives 5 logits, but 4 class names need 4"):
        evaluate_detections(told(records, 0, classification="focal"), without, CLASSES[:4], SIZE)
    with pytest.raises(ValueError, match=r"size_rule must be one of .*'table'.*, not 'tables'"):
        evaluate_detections(model, without, CLASSES, SIZE, size_rule="tables")


def test_faults_of_panoptic_sets():
    records = panoptic_set(0)
    model = told(records, 0)
    boxes_alone = told(records, 0)
    del boxes_alone.told["pred_masks"]
    with pytest.raises(ValueError, match="the records have no masks to compare segments with"):
        evaluate_panoptic(model, dataset(records, masks=False), CLASSES, THINGS, SIZE)
    with pytest.raises(ValueError, match="there are 5 class names, but things has 4 values"):
        evaluate_panoptic(model, dataset(records), CLASSES, THINGS[:4], SIZE)
    with pytest.raises(ValueError, match="the model gives 6 logits, but 4 class names need 5"):
        evaluate_panoptic(model, dataset(records), CLASSES[:4], THINGS[:4], SIZE)
    with pytest.raises(ValueError, match='outputs have no "pred_masks"'):
        evaluate_panoptic(boxes_alone, dataset(records), CLASSES, THINGS, SIZE)
    with pytest.raises(ValueError, match="things has 4 values, but the model has 5 classes"):
        next(segment(model, dataset(records), SIZE, things=THINGS[:4]))
    records[3]["masks"][1] |= records[3]["masks"][0]
    with pytest.raises(ValueError, match="image 97: the mask of object 1 overlaps an earlier one"):
        evaluate_panoptic(model, dataset(records), CLASSES, THINGS, SIZE)


def test_a_model_that_does_not_say_is_a_softmax():
    records, names = load_shapes(3, size=(32, 40))
    model = Told(np.zeros((13, 4, 4), np.float32), np.full((13, 4, 4), 0.5, np.float32))
    del model.config
    assert len(next(detect(model, records, (32, 40), threshold=0.2))["scores"]) == 4
    assert evaluate_detections(model, records, names, (32, 40))["AP"] >= 0
