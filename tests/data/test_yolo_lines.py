"""Which box a label line has, against files that are made of known ones."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tfdetr_keras.cli import main
from tfdetr_keras.data import load_yolo
from tfdetr_keras.data.yolo import FAULTY_LINES, PASSED_OVER
from tfdetr_keras.data.yolo_lines import Line, boxes_of, parse_line

KINDS = ("boxes", "confidences", "tracks", "confidences and tracks", "keypoints", "polygons", "turned boxes", "mixed")


def number(value):
    return f"{value:.6g}"


def made_line(kind, rng, count):
    """A line of a kind, and its box xyxy; `count` is that of keypoints or corners."""
    centre, size = rng.uniform(0.05, 0.95, 2), rng.uniform(0.01, 0.6, 2)
    size = np.minimum(size, 2 * np.minimum(centre, 1 - centre))
    box = np.concatenate([centre - size / 2, centre + size / 2])
    values = [*centre, *size]
    confidence, track = [rng.uniform()], [int(rng.integers(0, 4))]
    if kind == "confidences":
        values += confidence
    elif kind == "tracks":
        values += track
    elif kind == "confidences and tracks":
        values += [*confidence, *track]
    elif kind.startswith("keypoints"):
        points = rng.uniform(box[:2], box[2:], (count, 2))
        hidden = rng.uniform(size=count) < 0.2
        points[hidden] = 0
        seen = np.where(hidden, 0, rng.integers(1, 3, count))
        third = {"keypoints": [], "keypoints 3": [seen[:, None]], "keypoints sure": [rng.uniform(size=(count, 1))]}[
            kind
        ]
        values += np.concatenate([points, *third], axis=1).ravel().tolist()
    elif kind == "polygons":
        angles = np.sort(rng.uniform(0, 2 * np.pi, count))
        radii = rng.uniform(0.5, 1, count)
        points = centre + size / 2 * radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points = np.array([[float(number(value)) for value in point] for point in points])
        values, box = points.ravel().tolist(), np.concatenate([points.min(axis=0), points.max(axis=0)])
    elif kind == "turned boxes":
        angle = rng.uniform(0, np.pi)
        along = np.array([np.cos(angle), np.sin(angle)]) * size.min() / 3
        across = np.array([-along[1], along[0]]) * rng.uniform(0.1, 1)
        points = np.stack([centre + along + across, centre + along - across, centre - along - across])
        points = np.concatenate([points, [centre - along + across]])
        values, box = points.ravel().tolist(), np.concatenate([points.min(axis=0), points.max(axis=0)])
    words = [str(value) if isinstance(value, int) else number(value) for value in values]
    return f"{rng.integers(0, 3)} {' '.join(words)}", box


def made_set(kind, rng, lines):
    """Lines of a kind, with their boxes; of skeletons all have the same number of points."""
    count = int(rng.integers(1, 20))
    kinds = [kind] * lines
    if kind == "keypoints":
        kinds = [str(rng.choice(["keypoints", "keypoints 3", "keypoints sure"]))] * lines
    if kind == "mixed":
        kinds = rng.choice(["boxes", "confidences and tracks", "polygons"], lines).tolist()
    return [made_line(one, rng, int(rng.integers(3, 60)) if one == "polygons" else count) for one in kinds]


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 2**32), st.integers(1, 12))
def test_each_line_has_its_box_or_is_refused(kind, seed, count):
    made = made_set(kind, np.random.default_rng(seed), count)
    lines = [Line(place // 3, place % 3, *parse_line(text)) for place, (text, _) in enumerate(made)]
    for (text, box), found in zip(made, boxes_of(lines), strict=True):
        if isinstance(found, str):
            assert kind != "boxes", text
        else:
            np.testing.assert_allclose(found, box, atol=2e-5, err_msg=text)
    of_polygons = kind in ("polygons", "turned boxes")
    told = boxes_of(lines, "polygons" if of_polygons else "boxes")
    if kind != "mixed":
        np.testing.assert_allclose(told, [box for _, box in made], atol=2e-5)


@settings(max_examples=500, deadline=None)
@given(st.text("0123456789.-+einfa \t", max_size=60), st.sampled_from(["auto", "boxes", "polygons"]))
def test_whatever_a_line_is_it_is_read_or_explained(text, lines_are):
    try:
        parsed = parse_line(text)
    except ValueError:
        return
    (found,) = boxes_of([Line(0, 1, *parsed)], lines_are)
    assert isinstance(found, str) or len(found) == 4


def coco_outlines(coco128):
    """COCO's polygons as lines of a segmentation set, with the boxes of their points, by image."""
    content = json.loads((coco128 / "annotations/instances_train2017.json").read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    by_image = {}
    for entry in content["annotations"]:
        if isinstance(entry["segmentation"], list):
            points = np.reshape(list(itertools.chain(*entry["segmentation"])), (-1, 2)) / sizes[entry["image_id"]]
            text = " ".join(map(number, points.ravel()))
            box = np.concatenate([points.min(axis=0), points.max(axis=0)])
            by_image.setdefault(entry["image_id"], []).append((f"0 {text}", box))
    return by_image


def test_a_segmentation_set_is_read_without_a_word(coco128):
    made = list(itertools.chain(*coco_outlines(coco128).values()))
    lines = [Line(0, place, *parse_line(text)) for place, (text, _) in enumerate(made)]
    np.testing.assert_allclose(boxes_of(lines), [box for _, box in made], atol=2e-6)


def test_of_few_outlines_none_is_misread_and_most_are_read(coco128):
    """Each image of COCO as a set of its own."""
    read = []
    for made in coco_outlines(coco128).values():
        lines = [Line(0, place, *parse_line(text)) for place, (text, _) in enumerate(made)]
        for (_, box), found in zip(made, boxes_of(lines), strict=True):
            read.append(not isinstance(found, str))
            if read[-1]:
                np.testing.assert_allclose(found, box, atol=2e-6)
    assert np.mean(read) > 0.9


BOX = [0.4, 0.4, 0.6, 0.6]
TRACKED = ["0 0.5 0.5 0.2 0.2 0.9 1", "0 0.5 0.5 0.2 0.2 0.8 7"]


def boxes(*texts, **options):
    return boxes_of([Line(0, row, *parse_line(text)) for row, text in enumerate(texts, 1)], **options)


def test_a_track_is_no_corner():
    np.testing.assert_allclose(boxes(*TRACKED), [BOX, BOX])
    assert all("may be a polygon, or a box" in found for found in boxes(TRACKED[0]))
    np.testing.assert_allclose(boxes(TRACKED[0], lines_are="boxes"), [BOX])
    np.testing.assert_allclose(boxes(TRACKED[0], lines_are="polygons"), [[0.2, 0.2, 0.9, 1]])


def test_visible_keypoints_are_no_corners():
    line = "0 0.5 0.5 0.2 0.2 0.45 0.45 {} 0.55 0.55 1"
    np.testing.assert_allclose(boxes(line.format(2), line.format(1)), [BOX, BOX])
    assert isinstance(boxes(line.format(1))[0], str)


@pytest.fixture
def folder(tmp_path):
    """Writes a set of one image and its lines."""

    def folder(*lines):
        for name in ("images", "labels"):
            (tmp_path / name).mkdir(exist_ok=True)
        Image.new("RGB", (40, 20)).save(tmp_path / "images/a.png")
        (tmp_path / "labels/a.txt").write_text("\n".join(lines))
        (tmp_path / "classes.txt").write_text("a")
        return tmp_path

    return folder


def test_what_is_passed_over_is_told(folder):
    dataset, _ = load_yolo(folder(*TRACKED))
    np.testing.assert_allclose(next(dataset.as_numpy_iterator())["boxes"], [[16, 8, 24, 12]] * 2, atol=1e-5)
    assert dataset.tally.noticed().keys() == {PASSED_OVER}
    assert len(dataset.tally.descriptions(PASSED_OVER)) == 2
    assert load_yolo(folder(*TRACKED), lines="boxes")[0].tally.counts() == {}


def test_what_is_open_names_its_line_and_what_to_say(folder, capsys):
    open_line = "0 0.5 0.5 0.2 0.2 0.45 0.45 0.55 0.55"
    path = folder("0 0.5 0.5 0.2 0.2", open_line)
    with pytest.raises(ValueError, match=r'a\.txt, line 2: .* may be a polygon, .*lines="polygons" or lines="boxes"'):
        load_yolo(path)
    assert load_yolo(path, on_error="skip")[0].tally.counts() == {FAULTY_LINES: 1}
    with pytest.raises(ValueError, match=r"lines must be one of .*, not 'keypoints'"):
        load_yolo(path, lines="keypoints")
    command = ["inspect-data", "--data", "yolo", "--images", str(path), "--out", str(path / "look.png")]
    assert main(command) != 0
    assert "--lines" in capsys.readouterr().err
    assert main([*command, "--lines", "boxes"]) == 0
    assert "objects   2," in capsys.readouterr().out


def test_five_numbers_name_the_remedy(folder):
    with pytest.raises(ValueError, match=r'line 1: .* is neither .*; where a confidence, .* set lines="boxes"'):
        load_yolo(folder("0 0.5 0.5 0.2 0.2 0.9"))
    assert len(next(load_yolo(folder("0 0.5 0.5 0.2 0.2 0.9"), lines="boxes")[0].as_numpy_iterator())["boxes"]) == 1
