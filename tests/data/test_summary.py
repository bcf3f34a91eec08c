import json
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdetr_keras.data import load_coco, load_shapes, summarize
from tfdetr_keras.data.record import MASKS_SPEC, RECORD_SPEC


def record(image_id=1, size=(10, 20), labels=(), areas=None, crowds=None):
    """A record with its objects; boxes and pixels do not matter."""
    return {
        "image": np.zeros((*size, 3), np.uint8),
        "image_id": np.int64(image_id),
        "orig_size": np.array(size, np.int32),
        "boxes": np.zeros((len(labels), 4), np.float32),
        "labels": np.array(labels, np.int32),
        "iscrowd": np.array(crowds or [False] * len(labels), bool),
        "area": np.array(areas or [100.0] * len(labels), np.float32),
    }


def records(*made):
    return tf.data.Dataset.from_generator(lambda: iter(made), output_signature=RECORD_SPEC)


def test_coco128_against_its_annotation_file(coco128):
    file = coco128 / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    summary = summarize(*load_coco(coco128 / "images", file))
    single = [entry for entry in content["annotations"] if not entry["iscrowd"]]
    per_image = Counter(entry["image_id"] for entry in single)
    assert summary.images == len(content["images"]) == 128
    assert summary.objects == len(single) == 929
    assert summary.crowds == len(content["annotations"]) - len(single) == 10
    assert summary.empty_images == 128 - len(per_image)
    assert summary.most_objects == max(per_image.values())
    assert summary.mean_objects == pytest.approx(929 / 128)

    categories = sorted(content["categories"], key=lambda category: category["id"])
    of_category = Counter(entry["category_id"] for entry in single)
    assert summary.class_names == tuple(category["name"] for category in categories)
    assert summary.class_counts == tuple(of_category[category["id"]] for category in categories)
    for side in ("height", "width"):
        lengths = [entry[side] for entry in content["images"]]
        assert getattr(summary, f"{side}s") == (min(lengths), np.median(lengths), max(lengths))
    small = sum(entry["area"] < 32**2 for entry in single)
    large = sum(entry["area"] >= 96**2 for entry in single)
    assert summary.size_counts == {"small": small, "medium": 929 - small - large, "large": large}
    assert summary.left_out == {}

    text = str(summary).splitlines()
    assert len(text) <= 40
    assert text[0] == f"images    128, {summary.empty_images} of them without objects"
    assert text[3] == f"objects   929, 7.3 per image, at most {summary.most_objects}"
    ((name, most),) = [(c["name"], of_category[c["id"]]) for c in categories if c["name"] == "person"]
    assert most == max(of_category.values())
    assert text[7].split() == [name, str(most), f"{most / 929:.0%}"]
    assert text[-1] == "left out  nothing"


def test_crowds_are_no_objects_and_sizes_have_cocos_borders():
    made = [
        record(1, (10, 20), [0, 1, 1], areas=[1023.9, 1024, 9215.9], crowds=[False, False, False]),
        record(2, (30, 20), [1, 0], areas=[9216, 5.0], crowds=[False, True]),
        record(3, (40, 50), [0], crowds=[True]),
        record(4, (11, 20)),
    ]
    summary = summarize(records(*made), ["cat", "dog", "cow"])
    assert (summary.images, summary.objects, summary.crowds, summary.empty_images) == (4, 4, 2, 2)
    assert summary.class_counts == (1, 3, 0)
    assert summary.size_counts == {"small": 1, "medium": 2, "large": 1}
    assert summary.heights == (10, 20.5, 40)
    assert summary.widths == (20, 20, 50)
    assert (summary.most_objects, summary.mean_objects) == (3, 1)
    assert summary.left_out is None  # nobody vouches for these records
    text = str(summary)
    assert "crowds    2, which are no targets" in text
    assert "without objects: cow" in text
    assert "left out" not in text


def test_objects_with_masks_are_counted():
    """Crowds are no objects, and an empty mask is none."""
    made = [record(1, labels=[0, 1, 1], crowds=[True, False, False]), record(2), record(3, (5, 5), labels=[0])]
    for one in made:
        one["masks"] = np.zeros((len(one["labels"]), *one["image"].shape[:2]), bool)
    made[0]["masks"][:2, 3, 4] = True
    made[2]["masks"][:] = True
    dataset = tf.data.Dataset.from_generator(lambda: iter(made), output_signature=RECORD_SPEC | {"masks": MASKS_SPEC})
    summary = summarize(dataset, ["cat", "dog"])
    assert (summary.objects, summary.with_masks) == (3, 2)
    assert "masks     2, 1 objects without one" in str(summary).splitlines()
    without = summarize(dataset.map(lambda one: {key: one[key] for key in RECORD_SPEC}), ["cat", "dog"])
    assert without.with_masks is None
    assert "masks" not in str(without)


def test_what_was_left_out_is_told(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 10)).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"no image")
    content = {
        "images": [{"id": i, "file_name": f"{name}.png", "height": 10, "width": 20} for i, name in enumerate("abc")],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 5, 5]},
            {"id": 2, "image_id": 0, "category_id": 1, "bbox": [1, 1, 0, 5]},
            {"id": 3, "image_id": 1, "category_id": 9, "bbox": [1, 1, 5, 5]},
        ],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    summary = summarize(*load_coco(tmp_path, tmp_path / "set.json", on_error="skip"))
    assert (summary.images, summary.objects, summary.empty_images) == (2, 1, 1)
    assert summary.left_out is not None
    assert {kind: len(found) for kind, found in summary.left_out.items()} == {
        "boxes without area inside their image": 1,
        "annotations of unknown categories": 1,
        "unreadable images": 1,  # found only by reading all of them
    }
    text = str(summary)
    assert "1 annotations of unknown categories, e.g. " in text
    assert f"annotations[2] (image 1, {tmp_path / 'b.png'})" in text
    assert str(tmp_path / "c.png") in text

    content["annotations"].pop()
    (tmp_path / "set.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"c\.png is not an image"):
        summarize(*load_coco(tmp_path, tmp_path / "set.json"))


def test_many_classes_and_kinds_of_faults_still_fit_on_a_screen():
    labels = np.repeat(np.arange(100), np.arange(100, 0, -1))
    dataset = records(record(labels=labels.tolist()))
    names = [f"class {label}" for label in range(130)]
    summary = summarize(dataset, names)
    object.__setattr__(summary, "left_out", {f"faults of kind {i}": ["this one"] * i for i in range(1, 30)})
    text = str(summary).splitlines()
    assert len(text) <= 40
    listed = [line.split()[-2] for line in text if line.startswith("          class ")]
    assert [int(count) for count in listed] == list(range(100, 80, -1))
    assert f"          80 more  {sum(range(1, 81))}  64%" in text
    assert f"          without objects: {', '.join(names[100:110])} and 20 more" in text
    assert "left out  1 faults of kind 1, e.g. this one" in text
    assert text[-1] == "          21 more kinds"


def test_progress_is_told_image_by_image():
    told = []
    summarize(*load_shapes(5), progress=told.append)
    assert told == [1, 2, 3, 4, 5]


def test_a_label_without_a_name_and_an_empty_set_are_errors():
    with pytest.raises(ValueError, match=r"image 5 has a label outside 0\.\.1"):
        summarize(records(record(4, labels=[1]), record(5, labels=[0, 2])), ["cat", "dog"])
    with pytest.raises(ValueError, match="the set is empty"):
        summarize(records(), ["cat"])
