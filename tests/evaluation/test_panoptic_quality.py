"""Panoptic quality against the definition written out over sets of pixels, and against another evaluator's."""

import json

import numpy as np
import pytest
from hotcoco.panoptic import pq_compute
from PIL import Image

from tfdetr_keras.data import load_coco_panoptic
from tfdetr_keras.evaluation.panoptic_quality import PanopticQuality, panoptic_quality
from tfdetr_keras.evaluation.panoptic_results import number_segments, panoptic_truth, write_coco_panoptic

NAMES = ["person", "dog", "car", "sky", "grass"]
THINGS = [True, True, True, False, False]
CATEGORY_IDS = [1, 18, 3, 187, 193]


def scene(rng, image_id, size, crowds=1):
    """Rectangles over each other, some pixels of none; at most that many crowds of a class."""
    segmentation = np.zeros(size, np.int64)
    entries = []
    for segment in rng.choice(2**24 - 1, rng.integers(0, 9), replace=False) + 1:
        (top, left), (height, width) = rng.integers(0, size), rng.integers(2, size)
        segmentation[top : top + height, left : left + width] = segment
        entries.append({"id": int(segment), "label_id": int(rng.integers(5))})
    entries = [entry for entry in entries if (segmentation == entry["id"]).any()]
    left_over = dict.fromkeys(range(5), crowds)
    for entry in entries:
        entry["iscrowd"] = rng.random() < 0.3 and left_over[entry["label_id"]] > 0
        left_over[entry["label_id"]] -= entry["iscrowd"]
    return {"image_id": image_id, "segmentation": segmentation, "segments_info": entries}


def prediction(rng, truth):
    """The truth, moved and with some labels changed, segments without label and pixels without segment; or else."""
    size = truth["segmentation"].shape
    if rng.random() < 0.2:
        return scene(rng, truth["image_id"], size, crowds=0)
    segmentation = np.roll(truth["segmentation"], rng.integers(-2, 3, 2), (0, 1))
    segmentation[rng.random(size) < 0.1] = rng.integers(-1, 1)
    entries = []
    for entry in truth["segments_info"]:
        kept = rng.random() < 0.9 and (segmentation == entry["id"]).any()
        if not kept:
            segmentation[segmentation == entry["id"]] = 0
            continue
        label = entry["label_id"] if rng.random() < 0.8 else int(rng.integers(5))
        entries.append({"id": entry["id"], "label_id": label, "score": 0.9})
    free = segmentation <= 0
    if free.any() and rng.random() < 0.5:  # a segment where there is none, mostly in void
        segmentation[free] = 2**24 - 1
        entries = [entry for entry in entries if entry["id"] != 2**24 - 1]
        entries.append({"id": 2**24 - 1, "label_id": int(rng.integers(5))})
    return {"image_id": truth["image_id"], "segmentation": segmentation, "segments_info": entries}


def a_set(seed, images=4, crowds=1):
    rng = np.random.default_rng(seed)
    truths = [scene(rng, number, tuple(rng.integers(6, 30, 2).tolist()), crowds) for number in range(images)]
    return truths, [prediction(rng, truth) for truth in truths]


def by_definition(truths, predictions):
    """Section 4.1 of the paper, over sets of pixels: per class (PQ, SQ, RQ), or None where there is nothing."""
    found = []
    for label in range(len(NAMES)):
        ious, false_positives, false_negatives = [], 0, 0
        for truth, guess in zip(truths, predictions, strict=True):
            owned = set(np.flatnonzero(np.isin(truth["segmentation"], [e["id"] for e in truth["segments_info"]])))
            void = set(range(truth["segmentation"].size)) - owned
            segments, crowds = [], set()
            for entry in truth["segments_info"]:
                pixels = set(np.flatnonzero(truth["segmentation"] == entry["id"]))
                if entry["label_id"] == label and entry["iscrowd"]:
                    crowds |= pixels
                elif entry["label_id"] == label:
                    segments.append(pixels)
            guesses = [
                set(np.flatnonzero(guess["segmentation"] == entry["id"]))
                for entry in guess["segments_info"]
                if entry["label_id"] == label
            ]
            for pixels in guesses:
                inside = pixels - void
                overlaps = [len(inside & other) / len(inside | other) for other in segments]
                matched = [place for place, overlap in enumerate(overlaps) if overlap > 0.5]
                if matched:
                    (place,) = matched
                    ious.append(overlaps[place])
                elif len(pixels & (void | crowds)) <= len(pixels) / 2:
                    false_positives += 1
            false_negatives += len(segments)
        false_negatives -= len(ious)
        weight = len(ious) + false_positives / 2 + false_negatives / 2
        quality = sum(ious) / len(ious) if ious else 0
        found.append((sum(ious) / weight, quality, len(ious) / weight) if weight else None)
    return found


def assert_quality(result, per_class):
    for name, values in zip(NAMES, per_class, strict=True):
        np.testing.assert_allclose([*result["per_class"][name].values()], values or [-1] * 3, atol=1e-12, err_msg=name)
        assert list(result["per_class"][name]) == ["PQ", "SQ", "RQ"]
    for ending, wanted in (("", (True, False)), ("_things", (True,)), ("_stuff", (False,))):
        chosen = [values for values, thing in zip(per_class, THINGS, strict=True) if values and thing in wanted]
        expected = np.mean(chosen, axis=0) if chosen else [-1] * 3
        np.testing.assert_allclose([result[f"{key}{ending}"] for key in ("PQ", "SQ", "RQ")], expected, atol=1e-12)


def test_it_is_the_definition_written_out():
    matches = ignored = 0
    for seed in range(400):
        truths, predictions = a_set(seed)
        quality = PanopticQuality(NAMES, THINGS)
        for truth, guess in zip(truths, predictions, strict=True):
            quality.add(truth, guess)
        assert_quality(quality.result(), by_definition(truths, predictions))
        assert quality.result() == panoptic_quality(iter(truths), iter(predictions), NAMES, THINGS)
        _, true_positives, false_positives, _ = quality.sums.sum(axis=0)
        matches += true_positives
        ignored += sum(len(guess["segments_info"]) for guess in predictions) - true_positives - false_positives
    assert matches > 500  # the cases are worth something
    assert ignored > 50


def write_truth(truths, path):
    """COCO's files of a ground truth, written with nothing of the package."""
    path.with_suffix("").mkdir(parents=True)
    annotations, images = [], []
    for truth in truths:
        ids, image_id = truth["segmentation"], truth["image_id"]
        colours = np.zeros((*ids.shape, 3), np.uint8)
        for channel, base in enumerate((1, 256, 65536)):
            colours[..., channel] = ids // base % 256
        Image.fromarray(colours).save(path.with_suffix("") / f"{image_id}.png")
        height, width = ids.shape
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "height": height, "width": width})
        info = [
            {
                "id": entry["id"],
                "category_id": CATEGORY_IDS[entry["label_id"]],
                "iscrowd": int(entry["iscrowd"]),
                "area": int((ids == entry["id"]).sum()),
            }
            for entry in truth["segments_info"]
        ]
        annotations.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": info})
    categories = [
        {"id": number, "name": name, "isthing": int(thing)}
        for number, name, thing in zip(CATEGORY_IDS, NAMES, THINGS, strict=True)
    ]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


@pytest.mark.parametrize("crowds", [0, 1, 3])
def test_another_evaluator_finds_the_same_in_the_files(tmp_path, crowds):
    """By way of PNG and JSON files: what was written of the predictions is read, and worth as much."""
    for seed in range(60):
        truths, predictions = a_set(1000 * crowds + seed, crowds=crowds)
        folder = tmp_path / str(seed)
        write_truth(truths, folder / "truth.json")
        write_coco_panoptic(iter(predictions), folder / "found.json", CATEGORY_IDS)
        theirs = pq_compute(folder / "truth.json", folder / "found.json")
        ours = panoptic_quality(truths, predictions, NAMES, THINGS)
        for group, ending in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
            for key in ("pq", "sq", "rq"):
                assert ours[f"{key.upper()}{ending}"] == pytest.approx(theirs[group][key], abs=1e-12), (
                    seed,
                    group,
                    key,
                )
        for name, number in zip(NAMES, CATEGORY_IDS, strict=True):
            values = theirs["per_class"].get(number, {})
            if values and values["tp"] + values["fp"] + values["fn"]:
                expected = [values[key] for key in ("pq", "sq", "rq")]
                np.testing.assert_allclose([*ours["per_class"][name].values()], expected, atol=1e-12)
            else:
                assert ours["per_class"][name] == {"PQ": -1, "SQ": -1, "RQ": -1}


def test_written_files_come_back(tmp_path):
    _, predictions = a_set(5, images=12)
    write_coco_panoptic(predictions, tmp_path / "found.json", CATEGORY_IDS)
    content = json.loads((tmp_path / "found.json").read_text())
    assert set(content) == {"annotations"}
    assert len(list((tmp_path / "found").iterdir())) == 12
    for entry, guess in zip(content["annotations"], predictions, strict=True):
        assert entry["image_id"] == guess["image_id"]
        assert entry["file_name"] == f"{guess['image_id']:012d}.png"
        with Image.open(tmp_path / "found" / entry["file_name"]) as image:
            assert image.mode == "RGB"
            ids = np.asarray(image, np.int64) @ [1, 256, 65536]
        np.testing.assert_array_equal(ids, np.maximum(guess["segmentation"], 0))
        expected = {(own["id"], CATEGORY_IDS[own["label_id"]]) for own in guess["segments_info"]}
        assert {(own["id"], own["category_id"]) for own in entry["segments_info"]} == expected


def test_records_of_a_set_are_its_truth(tmp_path):
    """Written, read by `load_coco_panoptic`, and measured against itself: whatever is no crowd is found."""
    truths, _ = a_set(7, images=8)
    write_truth(truths, tmp_path / "truth.json")
    content = json.loads((tmp_path / "truth.json").read_text())
    for image in content["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(tmp_path / image["file_name"])
    dataset, names = load_coco_panoptic(tmp_path, tmp_path / "truth.json", tmp_path / "truth", "original")
    things = [name in NAMES[:3] for name in names]
    read = [panoptic_truth(record) for record in dataset.as_numpy_iterator()]
    labelled = [
        {**truth, "segments_info": [e | {"label_id": CATEGORY_IDS[e["label_id"]]} for e in truth["segments_info"]]}
        for truth in truths
    ]
    for one, other in zip(read, labelled, strict=True):
        ours, theirs = number_segments(one, "read"), number_segments(other, "drawn")
        np.testing.assert_array_equal(ours.numbers, theirs.numbers)
        for key in ("labels", "iscrowd", "areas"):
            np.testing.assert_array_equal(getattr(ours, key), getattr(theirs, key))
    result = panoptic_quality(read, labelled, names, things)
    assert result["PQ"] == result["SQ_stuff"] == result["RQ_things"] == 1
    assert "N/A" not in result["per_class"]
    assert set(result["per_class"]) == set(NAMES)


def square(segmentation, *entries, **others):
    info = [{"id": number, "label_id": label} for number, label in entries]
    return {"segmentation": np.array(segmentation), "segments_info": info, **others}


def test_by_hand():
    """One dog of six pixels, one of which the prediction misses while it takes one of the sky and one of nobody."""
    truth = square([[1, 1, 1, 2], [1, 1, 1, 2], [0, 0, 2, 2]], (1, 1), (2, 3))
    guess = square([[7, 7, 7, 7], [7, 7, 4, 4], [7, -1, 4, 4]], (7, 1), (4, 3))
    result = panoptic_quality([truth], [guess], NAMES, THINGS)
    assert result["per_class"]["dog"] == pytest.approx({"PQ": 5 / 7, "SQ": 5 / 7, "RQ": 1})
    assert result["per_class"]["sky"] == pytest.approx({"PQ": 3 / 5, "SQ": 3 / 5, "RQ": 1})
    assert result["PQ"] == pytest.approx((5 / 7 + 3 / 5) / 2)
    assert result["per_class"]["car"] == {"PQ": -1, "SQ": -1, "RQ": -1}


def test_an_iou_of_a_half_is_no_match():
    truth, guess = square([[1, 1, 0, 2, 2, 2]], (1, 0), (2, 1)), square([[1, 2, 2, 3, 3, 3]], (1, 0), (2, 2), (3, 1))
    result = panoptic_quality([truth], [guess], NAMES, THINGS)
    assert result["per_class"]["person"] == {"PQ": 0, "SQ": 0, "RQ": 0}
    assert result["per_class"]["dog"] == {"PQ": 1, "SQ": 1, "RQ": 1}
    assert result["per_class"]["car"] == {"PQ": 0, "SQ": 0, "RQ": 0}  # half of it is void: not more than half


def test_a_label_that_is_not_in_use_counts_in_no_mean():
    truth, guess = square([[1, 1, 1, 2]], (1, 0), (2, 2)), square([[1, 1, 1, 5]], (1, 0), (5, 1))
    result = panoptic_quality([truth], [guess], ["person", "N/A", "car"], [True, False, False])
    assert (result["PQ"], result["PQ_things"], result["PQ_stuff"]) == (0.5, 1, 0)
    assert set(result["per_class"]) == {"person", "car"}


def test_nothing_at_all():
    for images in ([], [square([[0, 0]])], [square([[-1, -1]])]):
        result = panoptic_quality(images, images, NAMES, THINGS)
        per_class = result.pop("per_class")
        assert set(result.values()) == {-1}
        assert [list(values.values()) for values in per_class.values()] == [[-1] * 3] * 5


def test_sums_of_parts_add_up():
    truths, predictions = a_set(11, images=6)
    whole, parts = PanopticQuality(NAMES, THINGS), [PanopticQuality(NAMES, THINGS) for _ in range(2)]
    for place, pair in enumerate(zip(truths, predictions, strict=True)):
        whole.add(*pair)
        parts[place % 2].add(*pair)
    parts[0].sums += parts[1].sums
    assert parts[0].result()["PQ"] == pytest.approx(whole.result()["PQ"], abs=1e-12)


def test_entries_of_a_fused_segment_are_one():
    truth = square([[1, 1, 2]], (1, 3), (2, 0))
    guess = square([[1, 1, 2]], (1, 3), (1, 3), (2, 0))
    assert panoptic_quality([truth], [guess], NAMES, THINGS)["PQ"] == 1


@pytest.mark.parametrize(
    ("guess", "complaint"),
    [
        (square([[1, 1], [0, 0]], (1, 0), image_id=4), r"1 x 2 pixels .*\(height x width\), but 2 x 2 in the"),
        (square([[1, 2]], (1, 0), image_id=4), "predictions: image 4: segmentation has pixels of segment 2, which"),
        (square([[1, 0]], (1, 0), (2, 1)), "predictions: segmentation has no pixel of segment 2, which segments_info"),
        (square([[1, 1]], (1, 5)), "segment 1 has label 5, but there are 5 classes"),
        (square([[1, 1]], (1, -1)), "segment 1 has label -1, but"),
        (square([[1, 1]], (1, 0), (1, 2)), "segment 1 has two labels, 0 and 2"),
        (square([[0, 0]], (0, 1)), "segments_info has the id 0; ids begin at 1"),
        (square([[1.0, 1.0]], (1, 0)), r"segmentation must be .*whole numbers, not \(1, 2\) of float64"),
        (square([1, 1], (1, 0)), r"segmentation must be .*, not \(2,\)"),
        (square([[1, 1]], (1, 0), image_id=5), "the ground truth is of image 4, but the prediction of image 5"),
    ],
)
def test_faulty_predictions(guess, complaint):
    with pytest.raises(ValueError, match=complaint):
        panoptic_quality([square([[1, 1]], (1, 0), image_id=4)], [guess], NAMES, THINGS)


def test_other_faults():
    one = square([[1, 1]], (1, 0))
    with pytest.raises(ValueError, match="ground truth: segmentation has pixels of segment 1"):
        panoptic_quality([square([[1, 1]])], [one], NAMES, THINGS)
    with pytest.raises(ValueError, match="predictions: there are more images than in the ground truth"):
        panoptic_quality([one], [one, one], NAMES, THINGS)
    with pytest.raises(ValueError, match="ground truth: there are more images than in the predictions"):
        panoptic_quality([one], [], NAMES, THINGS)
    with pytest.raises(ValueError, match="there are 5 class names, but things has 4 values"):
        panoptic_quality([one], [one], NAMES, THINGS[1:])


def test_what_cannot_be_written(tmp_path):
    one = square([[1, 1]], (1, 2), image_id=3)
    write_coco_panoptic([one], tmp_path / "labels.json")
    assert json.loads((tmp_path / "labels.json").read_text())["annotations"][0]["segments_info"] == [
        {"id": 1, "category_id": 2}
    ]
    for predictions, arguments, complaint in (
        ([one], {"path": tmp_path / "found"}, r"found does not end in \.json"),
        ([one, one], {}, "image 3 appears more than once"),
        ([one], {"category_ids": [7, 8]}, "image 3: segment 1 has label 2, but there are 2 classes"),
        ([square([[2**24, 0]], (2**24, 0), image_id=3)], {}, "has the segment 16777216, but .*up to 16777215"),
        ([square([[1, 2]], (1, 0), image_id=3)], {}, "image 3: segmentation has pixels of segment 2"),
        ([square([[1, 1]], (1, -1), image_id=3)], {}, "has label -1, but labels begin at 0"),
    ):
        with pytest.raises(ValueError, match=complaint):
            write_coco_panoptic(predictions, **{"path": tmp_path / "found.json", **arguments})
        assert not (tmp_path / "found.json").exists()


def test_masks_that_are_no_panoptic_set():
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :2], masks[1, 1:] = True, True
    record = {"image_id": 9, "masks": masks, "labels": np.array([0, 1]), "iscrowd": np.array([False, False])}
    with pytest.raises(ValueError, match="image 9: the mask of object 1 overlaps an earlier one"):
        panoptic_truth(record)
    with pytest.raises(ValueError, match="image 9: the mask of object 0 is empty"):
        panoptic_truth(record | {"masks": np.zeros_like(masks)})
    with pytest.raises(ValueError, match="image 9 has no masks: read the set with load_coco_panoptic"):
        panoptic_truth({key: value for key, value in record.items() if key != "masks"})
