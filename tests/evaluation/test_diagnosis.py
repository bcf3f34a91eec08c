"""A diagnosis's figures, each computed a second time: by pycocotools, or by a formula written out here."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from random_sets import random_set
from some_slow import some_slow
from test_coco_scorer import refereed

import tfdetr_keras as td
from tfdetr_keras.evaluation.coco import coco_metrics
from tfdetr_keras.evaluation.diagnosis import CROWDING, THRESHOLD, diagnosis_of, thresholds_of
from tfdetr_keras.visualize import verdict

NAMES = ["bolt", "nut", "washer", "screw", "never seen"]
SEEDS = some_slow(range(40), *range(10, 40))


def counted(truths, found, label, threshold):
    """Returns hits, false alarms and misses of one class above a threshold, matched image by image."""
    total = np.zeros(3, int)
    for true, image in zip(truths, found, strict=True):
        above = (image["scores"] > threshold) & (image["labels"] == label)
        own = np.asarray(true["labels"]) == label
        seen = verdict(
            {key: image[key][above] for key in ("boxes", "labels", "scores")},
            {key: np.asarray(true[key])[own] for key in ("boxes", "labels", "iscrowd")},
            threshold=0.0,
        )
        total += [len(seen.hits), len(seen.false_alarms), len(seen.misses)]
    return total


def f1_of(hits, alarms, misses):
    return 2 * hits / max(2 * hits + alarms + misses, 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_thresholds_are_those_of_the_highest_f1(seed):
    truths, found = random_set(seed)
    classes = diagnosis_of(truths, found, NAMES)["classes"]
    for label, name in enumerate(NAMES):
        scores = np.unique(np.concatenate([image["scores"][image["labels"] == label] for image in found]))
        best = max([f1_of(*counted(truths, found, label, at)) for at in [0.0, *scores]], default=0)
        told = classes[name]
        if best == 0:
            assert told["threshold"] is None
            assert told["F1"] is None
            continue
        hits, alarms, misses = counted(truths, found, label, told["threshold"])
        assert f1_of(hits, alarms, misses) == pytest.approx(best, abs=1e-12)
        assert told["F1"] == pytest.approx(best, abs=1e-12)
        assert told["precision"] == pytest.approx(hits / (hits + alarms), abs=1e-12)
        assert told["recall"] == pytest.approx(hits / (hits + misses), abs=1e-12)
        assert told["objects"] == hits + misses


@pytest.mark.parametrize("seed", SEEDS)
def test_curves_are_precision_and_recall_at_each_score(seed):
    truths, found = random_set(seed)
    for label, name in enumerate(NAMES):
        curve = diagnosis_of(truths, found, NAMES)["classes"][name]["curve"]
        for score, precision, recall in list(zip(curve["score"], curve["precision"], curve["recall"], strict=True))[:5]:
            if not score:
                continue  # which no threshold leaves above it
            hits, alarms, misses = counted(truths, found, label, np.nextafter(score, 0))
            assert precision == pytest.approx(hits / max(hits + alarms, 1), abs=1e-12)
            assert recall == pytest.approx(hits / max(hits + misses, 1), abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_metrics_sizes_and_slices_are_pycocotools(seed):
    truths, found = random_set(seed)
    groups = {"early": range(3, 9), "two": [4, 12], "all": range(3, 15)}
    told = diagnosis_of(truths, found, NAMES, groups=groups)
    assert told["metrics"] == coco_metrics(truths, found, NAMES)
    whole = refereed(truths, found, len(NAMES))
    for place, (name, ap, ar) in enumerate((("small", 3, 9), ("medium", 4, 10), ("large", 5, 11)), 1):
        assert [told["sizes"][name]["AP"], told["sizes"][name]["AR"]] == pytest.approx(whole.stats[[ap, ar]], abs=1e-12)
        at_half = whole.eval["precision"][0, :, :, place, -1]
        expected = at_half[at_half > -1].mean() if (at_half > -1).any() else -1
        assert told["sizes"][name]["AP50"] == pytest.approx(expected, abs=1e-12)
    members = Counter({image["image_id"]: int((~image["iscrowd"]).sum()) for image in truths})
    parts = {name: list(ids) for name, ids in groups.items()} | {
        name: [image_id for image_id, count in members.items() if count >= least and (most is None or count <= most)]
        for name, (least, most) in CROWDING.items()
        if name in told["crowding"]
    }
    assert {name: len(ids) for name, ids in parts.items()} == {
        name: one["images"] for kind in ("crowding", "groups") for name, one in told[kind].items()
    }
    for name, one in (told["crowding"] | told["groups"]).items():
        stats = refereed(truths, found, len(NAMES), only=parts[name]).stats
        assert [one["AP"], one["AP50"], one["AR"]] == pytest.approx(stats[[0, 1, 8]], abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_images_are_judged_above_the_thresholds(seed):
    truths, found = random_set(seed)
    told = diagnosis_of(truths, found, NAMES)
    limits = np.array(list(thresholds_of(told).values()))
    mistakes = {}
    for true, image in zip(truths, found, strict=True):
        above = image["scores"] > limits[image["labels"]]
        kept = {key: image[key][above] for key in ("boxes", "labels", "scores")}
        seen = verdict(kept, true, threshold=0.0)
        mistakes[true["image_id"]] = (len(seen.hits), len(seen.misses), len(seen.false_alarms))
    for one in told["worst_images"]:
        assert (one["found"], one["missed"], one["false"]) == mistakes[one["image_id"]]
    wrong = sorted((missed + false for _, missed, false in mistakes.values() if missed + false), reverse=True)
    assert [one["missed"] + one["false"] for one in told["worst_images"]] == wrong[:16]


@pytest.mark.parametrize("seed", SEEDS)
def test_calibration_by_ranges_of_scores(seed):
    truths, found = random_set(seed)
    told = diagnosis_of(truths, found, NAMES)["calibration"]
    rows = []
    for true, image in zip(truths, found, strict=True):
        seen = verdict(image, true, threshold=0.0)
        rows += [(image["scores"][row], 1) for row in seen.hits] + [
            (image["scores"][row], 0) for row in seen.false_alarms
        ]
    scores, right = np.array(rows).reshape(-1, 2).T
    of_bin = np.minimum((scores * 10).astype(int), 9)
    off, counts = [], []
    for place, one in enumerate(told["bins"]):
        own = of_bin == place
        assert one["count"] == own.sum()
        if own.any():
            assert one["score"] == pytest.approx(scores[own].mean(), abs=1e-12)
            assert one["precision"] == pytest.approx(right[own].mean(), abs=1e-12)
            off.append(abs(scores[own].mean() - right[own].mean()))
            counts.append(own.sum())
    assert told["expected_error"] == pytest.approx(np.average(off, weights=counts), abs=1e-12)
    assert told["largest_error"] == pytest.approx(max(off), abs=1e-12)


def one_image(boxes, labels, scores=None):
    image = {"image_id": 1, "boxes": np.array(boxes, float).reshape(-1, 4), "labels": np.array(labels, int)}
    return image | ({} if scores is None else {"scores": np.array(scores, float)})


def test_each_kind_of_error_and_of_confusion():
    truth = one_image(
        [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10], [80, 0, 90, 10]], [0, 0, 1, 1, 2]
    )
    found = one_image(
        [
            [0, 0, 10, 10],  # right
            [0, 0, 10, 9],  # the same again
            [20, 4, 30, 14],  # overlaps too little: 6 / 14
            [40, 0, 50, 10],  # of another class
            [64, 0, 74, 10],  # of another class, and overlaps too little
            [200, 200, 210, 210],  # nothing is there
        ],
        [0, 0, 0, 2, 0, 1],
        [0.9, 0.8, 0.9, 0.9, 0.9, 0.9],
    )
    told = diagnosis_of([truth], [found], NAMES[:3])
    # Above the thresholds: of the second and third class nothing is found, so that theirs is 0.5.
    assert told["classes"]["nut"]["threshold"] is None
    assert thresholds_of(told)["nut"] == THRESHOLD
    counts = {kind: one["count"] for kind, one in told["errors"].items()}
    assert counts == {
        "class": 1,
        "localisation": 1,
        "class and localisation": 1,
        "duplicate": 0,  # its score is below the class's threshold
        "background": 1,
        "missed": 2,
    }
    assert told["confusion"]["names"] == [*NAMES[:3], "nothing"]
    assert told["confusion"]["counts"] == [[1, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1], [2, 1, 0, 0]]
    assert [(one["found"], one["labelled"]) for one in told["suspicious_labels"]].count(("washer", "nut")) == 1


def test_a_class_that_is_not_in_use_is_left_out():
    truths, found = random_set(0, classes=3)
    told = diagnosis_of(truths, found, ["bolt", "nut", "washer", "N/A", "N/A"])
    assert list(told["classes"]) == ["bolt", "nut", "washer"]
    assert told["confusion"]["names"] == ["bolt", "nut", "washer", "nothing"]


def test_masks_are_compared():
    truths, found = random_set(1, masks=True)
    told = diagnosis_of(truths, found, NAMES, "segm")
    assert told["compared"] == "masks"
    assert told["metrics"] == coco_metrics(truths, found, NAMES, "segm")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"night": [3, 99]}, "group 'night': there is no image 99 in the set"),
        ({"none": []}, "group 'none' has no images"),
    ],
)
def test_groups_of_other_images_are_refused(groups, message):
    truths, found = random_set(0)
    with pytest.raises(ValueError, match=message):
        diagnosis_of(truths, found, NAMES, groups=groups)


def test_nothing_found_and_nothing_to_find():
    truths, found = random_set(0)
    bare = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int), "scores": np.zeros(0)}
    told = diagnosis_of(truths, [{"image_id": image["image_id"], **bare} for image in found], NAMES)
    assert {one["threshold"] for one in told["classes"].values()} == {None}
    assert told["worst_images"]
    nothing = {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int), "iscrowd": np.zeros(0, bool)}
    told = diagnosis_of([{"image_id": image["image_id"], **nothing} for image in truths], found, NAMES)
    assert told["objects"] == 0
    assert told["crowding"] == {}


def test_page_figures_and_pictures(tmp_path):
    records, names = td.data.load_shapes(8, seed=2, size=(48, 64))
    told = td.evaluation.diagnose(td.from_pretrained("detr-tiny"), records, names, tmp_path, groups={"two": [0, 1]})
    files = {"report.html", "diagnosis.json", "errors.png", "confusion.png", "precision_recall.png", "f1.png"}
    assert files | {"calibration.png", "slices.png"} <= {path.name for path in tmp_path.iterdir()}
    assert json.loads((tmp_path / "diagnosis.json").read_text()) == told
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png") == len(list(tmp_path.glob("*.png")))
    assert all(f"<td>{name}</td>" in page for name in [*names, "two", "localisation"])


def test_names_are_escaped_on_the_page(tmp_path):
    records, _ = td.data.load_shapes(2, seed=2, size=(48, 64))
    names = ["<b>circle</b>", "sq & are", "triangle"]
    td.evaluation.diagnose(td.from_pretrained("detr-tiny"), records, names, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<b>circle" not in page
    assert "sq &amp; are" in page


BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1366, 390])
def test_the_page_in_a_browser(width, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"there is no browser: none of {', '.join(BROWSERS)}")
    records, names = td.data.load_shapes(8, seed=2, size=(48, 64))
    names = [f"{name} with a name that is longer than most are" for name in names]
    td.evaluation.diagnose(td.from_pretrained("detr-tiny"), records, names, tmp_path, groups={"the first two": [0, 1]})
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        broken = "[...document.images].filter(image => !image.naturalWidth || !image.alt).length"
        assert page.evaluate("document.images.length") >= 6
        assert page.evaluate(broken) == 0
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
