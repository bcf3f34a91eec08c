"""What is written for others is read again, by our readers and by foreign ones, with the same boxes and names."""

import json
import urllib.parse
from pathlib import Path
from xml.etree import ElementTree

import hotcoco
import numpy as np
import pytest
from PIL import Image

from tfdetr_keras.cli.predict import FORMATS
from tfdetr_keras.data import load_coco, load_voc, load_yolo
from tfdetr_keras.data.annotation_formats import WRITERS, LabelledImage

NAMES = ["bolt & nut", "washer <M6>", "Schraube ä"]
FILES = ["a/first photo.jpg", "b/first & + photo#1.jpg", "third.png", "empty.png"]


@pytest.fixture(scope="module")
def images():
    """Four images of odd sizes, one without objects, some in folders, two of one name."""
    rng = np.random.default_rng(0)
    labelled = []
    for file in FILES:
        height, width = rng.integers(50, 2000, 2).tolist()
        count = 0 if file == "empty.png" else 6
        corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1) * [width, height]
        boxes = corners.reshape(count, 4)
        scores = rng.uniform(0, 1, count)
        labelled.append(LabelledImage(file, height, width, boxes, rng.integers(0, len(NAMES), count), scores))
    return labelled


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory):
    """The images as files."""
    folder = tmp_path_factory.mktemp("set")
    for image in images:
        path = folder / "images" / image.file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (image.width, image.height)).save(path)
    return folder


def assert_same(records, names, images, tolerance=1e-3):
    """Boxes are those of the images, in pixels, and so are the names; the order of images is the reader's."""
    found = {(record["image"].shape[:2]): record for record in records.as_numpy_iterator()}
    assert len(found) == len(images)
    for image in images:
        record = found[image.height, image.width]
        np.testing.assert_allclose(record["boxes"], image.boxes.reshape(-1, 4), rtol=0, atol=tolerance)
        assert [names[label] for label in record["labels"]] == [NAMES[label] for label in image.labels]


def test_the_command_knows_each_format():
    assert set(FORMATS) == set(WRITERS)


def test_coco(images, folder):
    WRITERS["coco"](images, NAMES, folder)
    assert_same(*load_coco(folder / "images", folder / "annotations.json"), images)
    scores = [row["score"] for row in json.loads((folder / "annotations.json").read_text())["annotations"]]
    np.testing.assert_allclose(scores, np.concatenate([image.scores for image in images]))


def test_yolo(images, folder):
    WRITERS["yolo"](images, NAMES, folder)
    assert_same(*load_yolo(folder), images)


def test_voc(images, folder):
    WRITERS["voc"](images, NAMES, folder)
    assert_same(*load_voc(folder / "images", folder / "Annotations", class_names=NAMES), images)


def test_cvat_by_a_foreign_reader(images, tmp_path):
    plain = ["bolt", "washer", "screw"]  # this reader does not resolve entities of XML
    images = [image._replace(file=image.file.replace("&", "and")) for image in images]
    WRITERS["cvat"](images, plain, tmp_path)
    read = hotcoco.COCO.from_cvat(str(tmp_path / "annotations.xml"))
    names = {category["id"]: category["name"] for category in read.dataset["categories"]}
    assert sorted(names.values()) == sorted(plain)
    for image in images:
        (listed,) = [one for one in read.dataset["images"] if one["file_name"] == image.file]
        assert (listed["height"], listed["width"]) == (image.height, image.width)
        rows = [one for one in read.dataset["annotations"] if one["image_id"] == listed["id"]]
        boxes = np.array([one["bbox"] for one in rows]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, image.boxes.reshape(-1, 4), rtol=0, atol=1e-3)
        assert [names[one["category_id"]] for one in rows] == [plain[label] for label in image.labels]
    sources = {box.get("source") for box in ElementTree.parse(tmp_path / "annotations.xml").iter("box")}
    assert sources == {"auto"}


def test_names_and_boxes_of_cvat(images, tmp_path):
    WRITERS["cvat"](images, NAMES, tmp_path)
    root = ElementTree.parse(tmp_path / "annotations.xml").getroot()
    assert [label.findtext("name") for label in root.iter("label")] == NAMES
    for listed, image in zip(root.iter("image"), images, strict=True):
        assert listed.get("name") == image.file
        boxes = [[float(box.get(side)) for side in ("xtl", "ytl", "xbr", "ybr")] for box in listed.iter("box")]
        np.testing.assert_allclose(np.reshape(boxes, (-1, 4)), image.boxes.reshape(-1, 4), rtol=0, atol=1e-3)
        assert [box.get("label") for box in listed.iter("box")] == [NAMES[label] for label in image.labels]


@pytest.mark.parametrize("name", ["coco", "yolo"])
def test_supervision_reads_them(name, images, folder):
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    plain = ["bolt", "washer", "screw"]
    flat = [image._replace(file=image.file.replace("/", "-")) for image in images]
    for image in flat:
        path = folder / "flat/images" / image.file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (image.width, image.height)).save(path)
    WRITERS[name](flat, plain, folder / "flat")
    if name == "coco":
        read = supervision.DetectionDataset.from_coco(
            str(folder / "flat/images"), str(folder / "flat/annotations.json")
        )
    else:
        read = supervision.DetectionDataset.from_yolo(
            str(folder / "flat/images"), str(folder / "flat/labels"), str(folder / "flat/data.yaml")
        )
    assert read.classes == plain
    found = {Path(path).name: detections for path, detections in read.annotations.items()}
    for image in flat:
        np.testing.assert_allclose(found[image.file].xyxy, image.boxes.reshape(-1, 4), rtol=0, atol=1e-3)
        np.testing.assert_array_equal(found[image.file].class_id, image.labels)


def test_label_studio(images, tmp_path):
    WRITERS["label-studio"](images, NAMES, tmp_path)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    interface = ElementTree.parse(tmp_path / "label.xml")
    assert [label.get("value") for label in interface.iter("Label")] == NAMES
    names = {one.get("name") for one in interface.iter()}
    for task, image in zip(tasks, images, strict=True):
        address = urllib.parse.urlsplit(task["data"]["image"])
        assert urllib.parse.parse_qs(address.query)["d"] == [image.file]
        (prediction,) = task["predictions"]
        sides = np.array([image.width, image.height])
        for result, box, label, score in zip(
            prediction["result"], image.boxes, image.labels, image.scores, strict=True
        ):
            assert {result["from_name"], result["to_name"]} <= names
            value = result["value"]
            corner, extent = np.array([[value["x"], value["y"]], [value["width"], value["height"]]])
            np.testing.assert_allclose(corner / 100 * sides, box[:2], atol=1e-3)
            np.testing.assert_allclose(extent / 100 * sides, box[2:] - box[:2], atol=1e-3)
            assert result["value"]["rectanglelabels"] == [NAMES[label]]
            assert result["score"] == pytest.approx(score)


@pytest.mark.parametrize("name", WRITERS)
def test_boxes_beyond_the_image_are_clipped(name, tmp_path):
    beyond = LabelledImage("a.png", 40, 60, np.array([[-5, 3, 70.5, 90]]), np.array([0]))
    written = WRITERS[name]([beyond], NAMES, tmp_path)
    text = "".join((tmp_path / file).read_text() for file in written)
    assert "70.5" not in text
    assert "-5" not in text
    assert all((tmp_path / file).is_file() for file in written)


@pytest.mark.parametrize(("name", "file"), [("yolo", "labels/a.txt"), ("coco", "annotations.json")])
def test_crowds(name, file, tmp_path):
    crowd = LabelledImage("a.png", 40, 60, np.array([[5, 3, 7, 9.0]]), np.array([1]), is_crowd=np.array([True]))
    WRITERS[name]([crowd], NAMES, tmp_path)
    text = Path(tmp_path / file).read_text()
    assert text == "" if name == "yolo" else json.loads(text)["annotations"][0]["iscrowd"] == 1
