import copy
import json
import logging

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdetr_keras.data import load_coco, readable_errors

CONTENT = {
    "images": [
        {"id": 30, "file_name": "a.png", "height": 20, "width": 40},
        {"id": 10, "file_name": "b.jpg", "height": 30, "width": 16},
        {"id": 20, "file_name": "c.bmp", "height": 8, "width": 8},
    ],
    "categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"image_id": 10, "category_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": 1, "area": 5.5},
        {"image_id": 30, "category_id": 2, "bbox": [-5, 10, 20.5, 50]},
        {"image_id": 10, "category_id": 2, "bbox": [0, 0, 16, 30], "iscrowd": 0, "area": 400},
        {"image_id": 30, "category_id": 2, "bbox": [40, 3, 5, 5]},
        {"image_id": 30, "category_id": 7, "bbox": [4, 3, 0, 5]},
    ],
}


@pytest.fixture
def write(tmp_path):
    """Writes the images, and a JSON file after a change to its content."""
    for entry in CONTENT["images"]:
        Image.new("L", (entry["width"], entry["height"]), 77).save(tmp_path / entry["file_name"])

    def write(change=lambda content: None):
        content = copy.deepcopy(CONTENT)
        change(content)
        (tmp_path / "set.json").write_text(json.dumps(content))
        return tmp_path, tmp_path / "set.json"

    return write


def test_a_small_set_by_hand(write, caplog):
    with caplog.at_level(logging.WARNING, logger="tfdetr_keras"):
        dataset, names = load_coco(*write())
    assert names == ["cat", "dog"]
    assert "left out 2 of 5 boxes" in caplog.text
    first, second, third = dataset.as_numpy_iterator()
    assert [int(record["image_id"]) for record in (first, second, third)] == [30, 10, 20]
    assert first["image"].shape == (20, 40, 3)
    assert second["image"].shape == (30, 16, 3)
    assert (first["image"] == 77).all()
    assert first["orig_size"].tolist() == [20, 40]
    np.testing.assert_array_equal(first["boxes"], [[0, 10, 15.5, 20]])
    np.testing.assert_array_equal(first["area"], [20.5 * 50])  # as the file has it: no area there, so the box's
    np.testing.assert_array_equal(second["boxes"], [[1, 2, 4, 6], [0, 0, 16, 30]])
    np.testing.assert_array_equal(second["labels"], [1, 0])
    np.testing.assert_array_equal(second["iscrowd"], [True, False])
    np.testing.assert_array_equal(second["area"], [5.5, 400])
    assert third["boxes"].shape == (0, 4)


def test_original_ids_leave_gaps(write):
    dataset, names = load_coco(*write(), category_ids="original")
    assert names == ["N/A", "N/A", "cat", "N/A", "N/A", "N/A", "N/A", "dog"]
    assert [record["labels"].tolist() for record in dataset.as_numpy_iterator()] == [[2], [7, 2], []]


def test_coco128_is_complete(coco128, caplog):
    """Every count against the JSON file itself. No box is dropped: all of its 939 have an area inside their image."""
    file = coco128 / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    with caplog.at_level(logging.WARNING, logger="tfdetr_keras"):
        dataset, names = load_coco(coco128 / "images", file)
    assert not caplog.records
    by_id = sorted((category["id"], category["name"]) for category in content["categories"])
    assert names == [name for _, name in by_id]
    assert len(names) == 80
    records = list(dataset.as_numpy_iterator())
    assert len(records) == len(content["images"]) == 128
    assert sum(len(record["labels"]) for record in records) == len(content["annotations"]) == 939
    assert sum(record["iscrowd"].sum() for record in records) == 10
    assert sum(len(record["labels"]) == 0 for record in records) == 2
    ids = [category_id for category_id, _ in by_id]
    for entry, record in zip(content["images"], records, strict=True):
        assert record["image_id"] == entry["id"]
        assert record["image"].shape == (entry["height"], entry["width"], 3)
        own = [annotation for annotation in content["annotations"] if annotation["image_id"] == entry["id"]]
        assert [ids[label] for label in record["labels"]] == [annotation["category_id"] for annotation in own]
        np.testing.assert_allclose(record["area"], [annotation["area"] for annotation in own], rtol=1e-6)
        corners = record["boxes"].reshape(-1, 4)
        sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        # COCO's boxes stick out of their image by rounding, 0.01 pixels at most here.
        np.testing.assert_allclose(sides, np.reshape([a["bbox"] for a in own], (-1, 4)), atol=0.011)


def entry(part, row, **changes):
    return lambda content: content[part][row].update(changes)


def without(part, row, key):
    return lambda content: content[part][row].pop(key)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda content: content.pop("categories"), "no list 'categories'"),
        (without("images", 1, "height"), r"images\[1\] has no height"),
        (without("annotations", 2, "bbox"), r"annotations\[2\] has no bbox"),
        (lambda content: content.update(images=[]), "lists no images"),
        (lambda content: content.update(categories=[]), "categories must have"),
        (entry("categories", 0, id=2), "categories must have different ids"),
        (entry("images", 2, id=30), r"images\[0\] and images\[2\] have the same id, 30"),
        (entry("images", 2, file_name="lost.png"), r"image 20, .*lost\.png, does not exist"),
        (entry("annotations", 1, image_id=31), r"annotations\[1\] belongs to image 31"),
        (entry("annotations", 1, category_id=3), r"annotations\[1\] \(image 30\) has category 3"),
        (entry("annotations", 1, bbox=[1, 2, 3]), r"annotations\[1\] \(image 30\) has the bbox \[1, 2, 3\]"),
        (entry("annotations", 2, bbox=[1, 2, float("nan"), 3]), r"image 10, row 2 .*non-finite"),
        (entry("annotations", 2, bbox=[1, 2, float("inf"), 3]), r"image 10, row 2 .*non-finite"),
    ],
)
def test_a_bad_file_is_explained(write, change, complaint):
    folder, file = write(change)
    with pytest.raises(ValueError, match=rf"set\.json.*{complaint}"):
        load_coco(folder, file)


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(ValueError, match=r"no annotation file .*set\.json"):
        load_coco(tmp_path, tmp_path / "set.json")
    for content in (b"{", b"\xff\xfe\x00", b"[1]"):
        (tmp_path / "set.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"set\.json is not"):
            load_coco(tmp_path, tmp_path / "set.json")


def test_an_unknown_numbering(write):
    with pytest.raises(ValueError, match="contiguous"):
        load_coco(*write(), category_ids="sparse")


def test_another_version_of_the_image_is_refused(write):
    dataset, _ = load_coco(*write(entry("images", 0, height=40, width=20)))
    with pytest.raises(ValueError, match=r"a\.png is 20 x 40 .* says 40 x 20"), readable_errors():
        next(iter(dataset))


def test_the_spec_is_the_record_format(write):
    from tfdetr_keras.data.record import RECORD_SPEC

    spec = load_coco(*write())[0].element_spec
    assert {key: (value.dtype, value.shape.as_list()) for key, value in spec.items()} == {
        key: (value.dtype, value.shape.as_list()) for key, value in RECORD_SPEC.items()
    }
    assert isinstance(spec["boxes"], tf.TensorSpec)
