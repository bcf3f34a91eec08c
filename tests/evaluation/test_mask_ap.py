"""AP of masks is pycocotools' own, by way of COCO's files."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tfdetr_keras.data import coco_category_ids, load_coco
from tfdetr_keras.data.segmentations import rasterise, run_lengths
from tfdetr_keras.evaluation.coco import METRIC_NAMES, class_table, coco_metrics, write_coco_results

IMAGES = 40


def quietly(call, *arguments):
    with contextlib.redirect_stdout(io.StringIO()):
        return call(*arguments)


def perturbed(mask, rng):
    """Moved, and with a corner cut out or a block added."""
    found = np.roll(mask, rng.integers(-6, 7, 2), axis=(0, 1))
    top, left = rng.integers(0, mask.shape)
    found[top : top + 40, left : left + 40] = rng.random() < 0.3
    return found


@pytest.fixture(scope="module")
def small_set(coco128, tmp_path_factory):
    """A part of COCO128 with all of its crowds, as files, as records, and noisy detections of it."""
    folder = tmp_path_factory.mktemp("masks")
    whole = quietly(COCO, coco128 / "annotations/instances_train2017.json")
    crowds = {entry["image_id"] for entry in whole.dataset["annotations"] if entry["iscrowd"]}
    chosen = sorted(crowds) + [image_id for image_id in whole.getImgIds() if image_id not in crowds]
    content = {
        "images": whole.loadImgs(chosen[:IMAGES]),
        "annotations": whole.loadAnns(whole.getAnnIds(chosen[:IMAGES])),
        "categories": whole.dataset["categories"],
    }
    file = folder / "set.json"
    file.write_text(json.dumps(content))
    dataset, names = load_coco(coco128 / "images", file, masks=True)
    records = [{k: v for k, v in record.items() if k != "image"} for record in dataset.as_numpy_iterator()]
    rng = np.random.default_rng(0)
    detections = []
    for record in records:
        rows = [row for row in range(len(record["labels"])) for _ in range(rng.integers(0, 3))]
        labels = [record["labels"][row] if rng.random() < 0.8 else rng.integers(len(names)) for row in rows]
        masks = [perturbed(record["masks"][row], rng) for row in rows]
        detections.append(
            {
                "image_id": int(record["image_id"]),
                "masks": np.array(masks, bool).reshape(-1, *record["orig_size"]),
                "labels": np.array(labels, int),
                "scores": rng.random(len(rows)),
            }
        )
    return file, records, detections, names


@pytest.fixture(scope="module")
def by_hand(small_set, tmp_path_factory):
    """pycocotools' evaluation of the same detections, which were written to a file without this package."""
    file, _, detections, _ = small_set
    coco = quietly(COCO, file)
    ids = coco.getCatIds()
    rows = []
    for image in detections:
        for mask, label, score in zip(image["masks"], image["labels"], image["scores"], strict=True):
            lengths = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            segmentation = {"size": lengths["size"], "counts": lengths["counts"].decode()}
            row = {"image_id": image["image_id"], "category_id": ids[label], "score": float(score)}
            rows.append(row | {"segmentation": segmentation})
    path = tmp_path_factory.mktemp("found") / "found.json"
    path.write_text(json.dumps(rows))
    return evaluated(coco, path)


def evaluated(coco, path):
    scorer = COCOeval(coco, quietly(coco.loadRes, str(path)), "segm")
    for step in (scorer.evaluate, scorer.accumulate, scorer.summarize):
        quietly(step)
    return scorer


def as_texts(masks):
    return [one | {"counts": one["counts"].decode()} for one in run_lengths(masks)]


def as_lengths(masks):
    """Uncompressed, written by hand: how many pixels are off, on, off, … down the columns."""
    pixels = [mask.T.ravel().astype(int) for mask in masks]
    changes = [np.flatnonzero(np.diff(one, prepend=0)) for one in pixels]
    counts = [np.diff([0, *places, one.size]).tolist() for places, one in zip(changes, pixels, strict=True)]
    return [{"size": list(masks.shape[1:]), "counts": one} for one in counts]


def test_metrics_are_pycocotools_own(small_set, by_hand):
    _, records, detections, names = small_set
    assert sum(record["iscrowd"].sum() for record in records) == 10
    metrics = coco_metrics(iter(records), iter(detections), names, iou_type="segm")
    assert 0.1 < metrics["AP"] < 0.9
    np.testing.assert_allclose([metrics[name] for name in METRIC_NAMES], by_hand.stats, atol=1e-12)
    ids = coco_category_ids(small_set[0])
    for name, ap, ap50 in class_table(metrics):
        by_hand.params.catIds = [ids[names.index(name)]]
        for step in (by_hand.evaluate, by_hand.accumulate, by_hand.summarize):
            quietly(step)
        np.testing.assert_allclose([ap, ap50], by_hand.stats[:2], atol=1e-12, err_msg=name)


@pytest.mark.parametrize("form", [run_lengths, as_texts, as_lengths])
def test_run_lengths_count_as_their_masks(small_set, form):
    _, records, detections, names = small_set
    expected = coco_metrics(records, detections, names, iou_type="segm")
    found = coco_metrics(
        (record | {"masks": form(record["masks"])} for record in records),
        (image | {"masks": form(image["masks"])} for image in detections),
        names,
        iou_type="segm",
    )
    assert found == expected


def test_results_are_written_for_pycocotools(small_set, tmp_path):
    """A file of masks evaluates to the same, and one of boxes has no masks."""
    file, records, detections, names = small_set
    write_coco_results(detections, tmp_path / "segm.json", coco_category_ids(file), iou_type="segm")
    metrics = coco_metrics(records, detections, names, iou_type="segm")
    scorer = evaluated(quietly(COCO, file), tmp_path / "segm.json")
    np.testing.assert_allclose([metrics[name] for name in METRIC_NAMES], scorer.stats, atol=1e-12)
    rows = json.loads((tmp_path / "segm.json").read_text())
    assert set(rows[0]) == {"image_id", "category_id", "score", "segmentation"}
    boxes = [image | {"boxes": np.ones((len(image["labels"]), 4))} for image in detections]
    write_coco_results(boxes, tmp_path / "bbox.json")
    assert set(json.loads((tmp_path / "bbox.json").read_text())[0]) == {"image_id", "category_id", "score", "bbox"}


def test_masks_come_back_from_run_lengths():
    rng = np.random.default_rng(1)
    for height, width in ((1, 1), (7, 1), (5, 9), (40, 30)):
        masks = rng.random((6, height, width)) < rng.random((6, 1, 1))
        masks[0], masks[1] = False, True
        for form in (as_texts, as_lengths):
            for mask, lengths in zip(masks, form(masks), strict=True):
                assert lengths["size"] == [height, width]
                np.testing.assert_array_equal(rasterise(lengths, height, width), mask)
            assert run_lengths(form(masks)) == run_lengths(masks)
        assert run_lengths(run_lengths(masks)) == run_lengths(masks)
    assert run_lengths(np.zeros((0, 4, 5), bool)) == run_lengths([]) == []


def image(masks, image_id=1, **others):
    return {"image_id": image_id, "masks": masks, "labels": np.zeros(len(masks), int), **others}


SQUARE = np.zeros((1, 20, 30), bool)
SQUARE[0, 4:10, 5:15] = True


def test_a_crowd_is_neither_right_nor_wrong():
    masks = np.zeros((2, 60, 100), bool)
    masks[0, :50, :50] = masks[1, 20:50, 60:90] = True
    truth = image(masks, iscrowd=np.array([True, False]), area=np.array([2500, 900]))
    found = masks.copy()
    found[0, 20:] = False
    found = image(found, scores=np.array([0.9, 0.8]))
    assert coco_metrics([truth], [found], ["one"], iou_type="segm")["AP"] == pytest.approx(1.0)
    not_a_crowd = truth | {"iscrowd": np.array([False, False])}
    assert coco_metrics([not_a_crowd], [found], ["one"], iou_type="segm")["AP"] < 0.6


def test_areas_are_those_of_the_masks_where_nothing_else_is_said():
    """A mask of 60 pixels is small, whatever its box; what is said of the ground truth goes before it."""
    found = image(SQUARE, scores=np.array([0.9]))
    metrics = coco_metrics([image(SQUARE)], [found], ["one"], iou_type="segm")
    assert (metrics["APs"], metrics["APm"]) == (pytest.approx(1.0), -1)
    metrics = coco_metrics([image(SQUARE, area=np.array([2000.0]))], [found], ["one"], iou_type="segm")
    assert (metrics["APs"], metrics["APm"]) == (-1, pytest.approx(1.0))


def test_nothing_to_find_and_nothing_found():
    empty = np.zeros((0, 20, 30), bool)
    assert coco_metrics([image(SQUARE)], [], ["one"], iou_type="segm")["AP"] == 0
    found = image(empty, scores=np.zeros(0))
    assert coco_metrics([image(SQUARE)], [found], ["one"], iou_type="segm")["AP"] == 0
    assert coco_metrics([image([])], [image(SQUARE, scores=[0.5])], ["one"], iou_type="segm")["AP"] == -1
    blank = image(np.zeros_like(SQUARE), scores=[0.5])
    assert coco_metrics([image(SQUARE)], [blank], ["one"], iou_type="segm")["AP"] == 0


LENGTHS = {"size": [20, 30], "counts": [100, 20, 480]}


@pytest.mark.parametrize(
    ("masks", "complaint"),
    [
        (SQUARE[:, :19], r"mask 0 has the size \[19, 30\], but another one of the image \[20, 30\]"),
        (SQUARE[0][None, :, :, None], r"has masks of the shape \(1, 20, 30, 1\), bool"),
        (SQUARE.astype(float), r"has masks of the shape \(1, 20, 30\), float64"),
        (np.repeat(SQUARE, 2, 0), "has 2 masks for 1 labels"),
        ([{**LENGTHS, "counts": [100, 20, 481]}], "has run lengths that add up to 601, not to 20 x 30"),
        ([{**LENGTHS, "counts": "?P"}], "has run lengths that are neither whole numbers nor compressed"),
        ([{**LENGTHS, "counts": b"\xff"}], "has run lengths that are neither whole numbers nor compressed"),
        ([{**LENGTHS, "counts": None}], "has run lengths that are neither whole numbers nor compressed"),
        ([{"counts": [600]}], r"has run lengths of the size None, not \(height, width\)"),
        ([{**LENGTHS, "size": [20]}], r"has run lengths of the size \[20\], not \(height, width\)"),
        ([{**LENGTHS, "size": [20, -30]}], "has run lengths of the size"),
    ],
)
def test_faulty_masks(masks, complaint):
    found = image(masks, scores=np.ones(1)) | {"labels": np.zeros(1, int)}
    with pytest.raises(ValueError, match=f"detections: image 1.*{complaint}"):
        coco_metrics([image(SQUARE)], [found], ["one"], iou_type="segm")


def test_other_faults(tmp_path):
    found = image(SQUARE, scores=np.ones(1))
    without = {key: value for key, value in found.items() if key != "masks"}
    with pytest.raises(ValueError, match='detections: image 1 has no "masks", which iou_type "segm" needs'):
        coco_metrics([image(SQUARE)], [without], ["one"], iou_type="segm")
    with pytest.raises(ValueError, match=r"iou_type must be one of .*not 'mask'"):
        coco_metrics([image(SQUARE)], [found], ["one"], iou_type="mask")
    with pytest.raises(ValueError, match=r"iou_type must be one of .*not 'mask'"):
        write_coco_results([found], tmp_path / "found.json", iou_type="mask")
    with pytest.raises(ValueError, match="image 1 appears more than once"):
        coco_metrics([image(SQUARE)] * 2, [], ["one"], iou_type="segm")
    with pytest.raises(ValueError, match="image 2 is not in the ground truth"):
        coco_metrics([image(SQUARE)], [found | {"image_id": 2}], ["one"], iou_type="segm")
