import copy
import json
import logging
import time
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from tfdetr_keras.data import coco_category_ids, files, load_coco, readable_errors
from tfdetr_keras.data.coco import WITHOUT_MASK
from tfdetr_keras.data.coco_json import FAULTY_ANNOTATIONS, REPEATED_ANNOTATIONS, UNKNOWN_CATEGORIES, UNKNOWN_IMAGES
from tfdetr_keras.data.files import FAULTY_MASKS, MISSING, UNREADABLE
from tfdetr_keras.data.images import decode_image
from tfdetr_keras.data.segmentations import rasterise
from tfdetr_keras.data.validation import EMPTY_BOX, WITHOUT_BOXES

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
    assert caplog.text.count("leaving out") == 1  # the first of the kind
    assert dataset.tally.counts() == {EMPTY_BOX: 2}
    assert "annotations[3] (image 30, " in dataset.tally.descriptions(EMPTY_BOX)[0]
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
    """Every count against the JSON file itself. No box is left out: all of its 939 have an area inside their image."""
    file = coco128 / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    with caplog.at_level(logging.WARNING, logger="tfdetr_keras"):
        dataset, names = load_coco(coco128 / "images", file)
    assert not caplog.records
    assert dataset.tally.counts() == {}
    by_id = sorted((category["id"], category["name"]) for category in content["categories"])
    assert names == [name for _, name in by_id]
    assert len(names) == 80
    records = list(dataset.as_numpy_iterator())
    assert len(records) == len(content["images"]) == 128
    assert sum(len(record["labels"]) for record in records) == len(content["annotations"]) == 939
    assert sum(record["iscrowd"].sum() for record in records) == 10
    assert sum((~record["iscrowd"]).sum() for record in records) == 929
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


# What cannot be left out, for the rest would hang in the air.
FILE_FAULTS = [
    (lambda content: content.pop("categories"), "no list 'categories'"),
    (without("images", 1, "height"), r"images\[1\] has no height"),
    (lambda content: content["images"].append(7), r"images\[3\] has no file_name, height, id, width"),
    (lambda content: content.update(images=[]), "lists no images"),
    (lambda content: content.update(annotations=None), "no list 'annotations'"),
    (lambda content: content.update(categories=[]), "categories must have"),
    (entry("categories", 0, id=2), "categories must have different ids"),
    (entry("categories", 0, id="7"), r"categories\[0\] has the id '7', not a whole number"),
    (entry("images", 0, id="0030"), r"images\[0\] has the id '0030', not a whole number"),
    (entry("images", 0, id=None), r"images\[0\] has the id None, not a whole number"),
    (entry("images", 0, id=[30]), r"images\[0\] has the id \[30\], not a whole number"),
    (entry("images", 0, id=2**63), r"images\[0\] has the id 9223372036854775808, not a whole number"),
    (entry("images", 2, id=30), r"images\[0\] and images\[2\] have the same id, 30"),
    (entry("images", 0, height=None), r"images\[0\] has the height None, not a number of pixels"),
    (entry("images", 0, width="40"), r"images\[0\] has the width '40', not a number of pixels"),
    (entry("images", 0, width=0), r"images\[0\] has the width 0, not a number of pixels"),
    (entry("images", 0, file_name=None), r"images\[0\] has the file_name None, not a text"),
]
# What can be left out: a change, a complaint, what it counts as, and how many objects are left of three.
FAULTS = [
    (entry("images", 2, file_name="lost.png"), r"image 20, .*lost\.png, does not exist", MISSING, 3),
    (without("annotations", 2, "bbox"), r"annotations\[2\] \(image 10, .*b\.jpg\) has no bbox", FAULTY_ANNOTATIONS, 2),
    (lambda content: content["annotations"].append(None), r"annotations\[5\] has no bbox", FAULTY_ANNOTATIONS, 3),
    (entry("annotations", 1, image_id=31), r"annotations\[1\] .*has image 31, which is not", UNKNOWN_IMAGES, 2),
    (entry("annotations", 1, image_id="30"), r"annotations\[1\] .*has image '30', which is not", UNKNOWN_IMAGES, 2),
    (entry("annotations", 1, image_id=None), r"annotations\[1\] .*has image None", UNKNOWN_IMAGES, 2),
    (entry("annotations", 1, image_id=[30]), r"annotations\[1\] .*has image \[30\]", UNKNOWN_IMAGES, 2),
    (
        entry("annotations", 1, category_id=3),
        r"annotations\[1\] \(image 30, .*\.png\) has category 3",
        UNKNOWN_CATEGORIES,
        2,
    ),
    (
        entry("annotations", 1, category_id={}),
        r"annotations\[1\] \(image 30, .*\.png\) has category \{",
        UNKNOWN_CATEGORIES,
        2,
    ),
    (entry("annotations", 1, bbox=[1, 2, 3]), r"annotations\[1\] .*has the bbox \[1, 2, 3\]", FAULTY_ANNOTATIONS, 2),
    (entry("annotations", 1, bbox=None), r"annotations\[1\] .*has the bbox None", FAULTY_ANNOTATIONS, 2),
    (entry("annotations", 1, bbox=[1, 2, "3", 4]), r"annotations\[1\] .*has the bbox", FAULTY_ANNOTATIONS, 2),
    (entry("annotations", 1, bbox=[1, 2, None, 4]), r"annotations\[1\] .*has the bbox", FAULTY_ANNOTATIONS, 2),
    (entry("annotations", 1, bbox=[1, 2, 10**400, 4]), r"annotations\[1\] .*has the bbox", FAULTY_ANNOTATIONS, 2),
    (entry("annotations", 1, area="5"), r"annotations\[1\] .*has the area '5'", FAULTY_ANNOTATIONS, 2),
    (entry("annotations", 1, area=-5), r"annotations\[1\] .*has the area -5", FAULTY_ANNOTATIONS, 2),
    (entry("annotations", 1, area=1e39), r"annotations\[1\] .*has the area 1e\+39", FAULTY_ANNOTATIONS, 2),
    (entry("annotations", 1, area=float("nan")), r"annotations\[1\] .*has the area nan", FAULTY_ANNOTATIONS, 2),
    (entry("annotations", 1, iscrowd="0"), r"annotations\[1\] .*has iscrowd '0', not 0 or 1", FAULTY_ANNOTATIONS, 2),
    (entry("annotations", 1, id=[1]), r"annotations\[1\] .*has the id \[1\]", FAULTY_ANNOTATIONS, 2),
    (
        lambda content: (
            content["annotations"].extend([content["annotations"][1] | {"id": 4}] * 2)
            or [a.update(id=row) for row, a in enumerate(content["annotations"][:5], 5)]
        ),
        r"annotations\[6\] .*is annotations\[5\] once more, with the same id 4",
        REPEATED_ANNOTATIONS,
        4,
    ),
    (entry("annotations", 2, bbox=[1, 2, float("nan"), 3]), r"annotations\[2\] .*non-finite", "non-finite boxes", 2),
    (entry("annotations", 2, bbox=[1, 2, float("inf"), 3]), r"annotations\[2\] .*non-finite", "non-finite boxes", 2),
    (entry("annotations", 2, bbox=[1e308, 2, 1e308, 3]), r"annotations\[2\] .*non-finite", "non-finite boxes", 2),
    (entry("annotations", 2, bbox=[9, 2, -3, 3]), r"annotations\[2\] .*x2 < x1.* format", "inverted boxes", 2),
]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(("change", "complaint"), FILE_FAULTS)
def test_a_bad_file_is_explained(write, change, complaint, on_error):
    folder, file = write(change)
    with pytest.raises(ValueError, match=rf"set\.json.*{complaint}"):
        load_coco(folder, file, on_error=on_error)


@pytest.mark.parametrize(("change", "complaint", "kind", "left"), FAULTS)
def test_a_bad_annotation_is_explained_or_skipped_and_counted(write, change, complaint, kind, left):
    folder, file = write(change)
    with pytest.raises(ValueError, match=rf"(set\.json|the file of).*{complaint}"):
        load_coco(folder, file)
    dataset, _ = load_coco(folder, file, on_error="skip")
    assert dataset.tally.counts() == {kind: 1, EMPTY_BOX: 2}
    records = list(dataset.as_numpy_iterator())
    assert sum(len(record["labels"]) for record in records) == left
    assert len(records) == 3 - (kind == MISSING)


def test_what_is_null_counts_as_not_there(write):
    def change(content):
        for annotation in content["annotations"]:
            annotation.update(id=None, area=None, iscrowd=None)

    first, second, _ = load_coco(*write(change))[0].as_numpy_iterator()
    np.testing.assert_array_equal(first["area"], [20.5 * 50])
    np.testing.assert_array_equal(second["area"], [12, 480])
    np.testing.assert_array_equal(second["iscrowd"], [False, False])


def test_file_names_with_folders_and_backslashes(write):
    def change(content):
        for image, name in zip(content["images"], ("sub/a.png", "sub\\b.jpg", "c.bmp"), strict=True):
            image["file_name"] = name

    folder, file = write(change)
    (folder / "sub").mkdir()
    for name in ("a.png", "b.jpg"):
        (folder / name).rename(folder / "sub" / name)
    assert len(list(load_coco(folder, file)[0])) == 3


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(ValueError, match=r"no annotation file .*set\.json"):
        load_coco(tmp_path, tmp_path / "set.json")
    for content in (b"{", b"\xff\xfe\x00", b"[1]", b"", b"[" * 100_000):
        (tmp_path / "set.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"set\.json is not"):
            load_coco(tmp_path, tmp_path / "set.json")


def test_a_byte_order_mark(write):
    folder, file = write()
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(list(load_coco(folder, file)[0])) == 3


def test_an_unknown_numbering(write):
    with pytest.raises(ValueError, match="contiguous"):
        load_coco(*write(), category_ids="sparse")


def test_another_version_of_the_image_is_refused(write):
    dataset, _ = load_coco(*write(entry("images", 0, height=40, width=20)))
    with pytest.raises(ValueError, match=r"a\.png is 20 x 40 .* annotations are for 40 x 20"), readable_errors():
        next(iter(dataset))
    dataset, _ = load_coco(*write(entry("images", 0, height=40, width=20)), on_error="skip")
    assert [int(record["image_id"]) for record in dataset.as_numpy_iterator()] == [10, 20]
    assert dataset.tally.counts() == {EMPTY_BOX: 2, UNREADABLE: 1}


def test_the_spec_is_the_record_format(write):
    from tfdetr_keras.data.record import RECORD_SPEC

    spec = load_coco(*write())[0].element_spec
    assert {key: (value.dtype, value.shape.as_list()) for key, value in spec.items()} == {
        key: (value.dtype, value.shape.as_list()) for key, value in RECORD_SPEC.items()
    }
    assert isinstance(spec["boxes"], tf.TensorSpec)


@pytest.mark.slow
def test_the_way_back_to_coco_ids(coco128, write):
    _, file = write()
    assert coco_category_ids(file) == [2, 7]
    content = json.loads((coco128 / "annotations/instances_train2017.json").read_text())
    expected = sorted(category["id"] for category in content["categories"])
    assert coco_category_ids(coco128 / "annotations/instances_train2017.json") == expected
    assert max(expected) == 90


def test_masks_are_those_of_pycocotools(coco128, tmp_path):
    """Polygons and uncompressed run lengths as they are in the file, and all of them compressed."""
    file = coco128 / "annotations/instances_train2017.json"
    api = COCO(file)
    chosen = sorted({entry["image_id"] for entry in api.dataset["annotations"] if entry["iscrowd"]})
    chosen += [image_id for image_id in api.getImgIds() if image_id not in chosen][:20]
    content = {
        "images": api.loadImgs(chosen),
        "annotations": api.loadAnns(api.getAnnIds(chosen)),
        "categories": api.dataset["categories"],
    }
    (tmp_path / "plain.json").write_text(json.dumps(content))
    expected = {entry["id"]: api.annToMask(entry).astype(bool) for entry in content["annotations"]}
    for entry in content["annotations"]:
        entry["segmentation"] = api.annToRLE(entry) | {"counts": api.annToRLE(entry)["counts"].decode()}
    (tmp_path / "compressed.json").write_text(json.dumps(content))
    for name in ("plain.json", "compressed.json"):
        dataset, _ = load_coco(coco128 / "images", tmp_path / name, masks=True)
        for record in dataset.as_numpy_iterator():
            own = [entry for entry in content["annotations"] if entry["image_id"] == record["image_id"]]
            assert record["masks"].dtype == bool
            assert record["masks"].shape == (len(own), *record["image"].shape[:2])
            for mask, entry in zip(record["masks"], own, strict=True):
                np.testing.assert_array_equal(mask, expected[entry["id"]])
        assert dataset.tally.counts() == {}


SQUARE = [2, 3, 10, 3, 10, 9, 2, 9]


def test_masks_by_hand(write):
    def change(content):
        content["annotations"][0]["segmentation"] = {"counts": [0, 30 * 16], "size": [30, 16]}
        content["annotations"][1]["segmentation"] = [SQUARE, [20, 10, 30, 10, 30, 15, 20, 15]]

    dataset, _ = load_coco(*write(change), masks=True)
    first, second, third = dataset.as_numpy_iterator()
    expected = np.zeros((20, 40), bool)
    expected[3:9, 2:10] = expected[10:15, 20:30] = True
    np.testing.assert_array_equal(first["masks"], [expected])
    assert second["masks"][0].all()
    assert not second["masks"][1].any()
    assert third["masks"].shape == (0, 8, 8)
    assert dataset.tally.counts() == {EMPTY_BOX: 2, WITHOUT_MASK: 1}
    assert "masks" not in next(iter(load_coco(*write(change))[0]))


@pytest.mark.parametrize(
    ("segmentation", "complaint"),
    [
        ([[1, 2, 3, 4]], r"has a polygon that is not \[x, y, x, y, x, y, …\]"),
        ([SQUARE, SQUARE[:7]], "has a polygon that is not"),
        (SQUARE, "has a polygon that is not"),
        ([["1", *SQUARE[1:]]], "has a polygon with a coordinate"),
        ([[None, *SQUARE[1:]]], "has a polygon with a coordinate"),
        ([[float("nan"), *SQUARE[1:]]], "has a polygon with a coordinate"),
        ([[1e12, *SQUARE[1:]]], "has a polygon with a coordinate"),
        ("polygon", "is neither polygons nor run lengths"),
        ({"size": [20, 40]}, "is neither polygons nor run lengths"),
        ({"counts": [800], "size": [40, 20]}, r"has run lengths of the size \[40, 20\], but its image has \[20, 40\]"),
        ({"counts": [799], "size": [20, 40]}, "has run lengths that add up to 799, not to 20 x 40"),
        ({"counts": [-1, 801], "size": [20, 40]}, "has run lengths that are neither"),
        ({"counts": "0P", "size": [20, 40]}, "has run lengths that are neither"),
        ({"counts": None, "size": [20, 40]}, "has run lengths that are neither"),
    ],
)
def test_a_bad_segmentation(write, segmentation, complaint):
    change = entry("annotations", 1, segmentation=segmentation)
    with pytest.raises(ValueError, match=rf"annotations\[1\] \(image 30, .*\.png\) .*{complaint}"):
        load_coco(*write(change), masks=True)
    dataset, _ = load_coco(*write(change), masks=True, on_error="skip")
    assert dataset.tally.counts() == {FAULTY_ANNOTATIONS: 1, EMPTY_BOX: 2, WITHOUT_MASK: 2}
    assert [len(record["masks"]) for record in dataset.as_numpy_iterator()] == [0, 2, 0]
    dataset, _ = load_coco(*write(change))  # not asked for
    assert [len(record["labels"]) for record in dataset.as_numpy_iterator()] == [1, 2, 0]


def test_compressed_lengths_are_checked_where_they_are_read(write):
    change = entry("annotations", 1, segmentation={"counts": "11", "size": [20, 40]})
    dataset, _ = load_coco(*write(change), masks=True)
    with pytest.raises(ValueError, match=r"a\.png, object 0 has run lengths that add up to 2, not"), readable_errors():
        list(dataset)
    dataset, _ = load_coco(*write(change), masks=True, on_error="skip")
    first = next(dataset.as_numpy_iterator())
    assert first["masks"].shape == (1, 20, 40)
    assert not first["masks"].any()
    assert dataset.tally.counts()[FAULTY_MASKS] == 1


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=9) | st.fixed_dictionaries({"counts": inner, "size": st.just([4, 5])}),
    )
)
def test_whatever_a_segmentation_is_it_never_crashes(segmentation):
    try:
        mask = rasterise(segmentation, 4, 5)
    except ValueError as error:
        assert str(error).startswith("has ")  # noqa: PT017
    else:
        assert mask.shape == (4, 5)
        assert mask.dtype == bool


@pytest.mark.slow
def test_a_large_set_costs_little_before_it_is_read(tmp_path, monkeypatch):
    count, per_image = 20_000, 4
    Image.new("RGB", (64, 48)).save(tmp_path / "one.png")
    images = [{"id": n, "file_name": f"{n}.png", "height": 48, "width": 64} for n in range(count)]
    for n in range(count):
        (tmp_path / f"{n}.png").symlink_to(tmp_path / "one.png")
    objects = [{"image_id": n, "category_id": 1, "bbox": [1, 2, 3, 4]} for n in range(count) for _ in range(per_image)]
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "set.json").write_text(json.dumps(content))
    del images, objects, content
    decoded = []
    monkeypatch.setattr(files, "decode_image", lambda *args: decoded.append(1) or decode_image(*args))
    tracemalloc.start()
    began = time.perf_counter()
    dataset, _ = load_coco(tmp_path, tmp_path / "set.json")
    records = list(dataset.take(10).as_numpy_iterator())
    seconds = time.perf_counter() - began
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [len(record["labels"]) for record in records] == [per_image] * 10
    assert len(decoded) < 200  # the ten, and those that were read ahead of them
    assert held < count * 1000  # bytes; a decoded image alone would be 9,216
    assert seconds < 30


def test_a_set_of_which_no_box_is_left(tmp_path):
    """As where boxes have another origin, or are relative to something else than is thought."""
    Image.new("RGB", (30, 40)).save(tmp_path / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 30}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [400, 500, 20, 20]}] * 3,
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"none of 3 boxes has an area inside its image, e\.g\. .*relative boxes taken"
    ):
        load_coco(tmp_path, tmp_path / "set.json")
    dataset, _ = load_coco(tmp_path, tmp_path / "set.json", on_error="skip")
    assert dataset.tally.counts() == {EMPTY_BOX: 3, WITHOUT_BOXES: 1}
