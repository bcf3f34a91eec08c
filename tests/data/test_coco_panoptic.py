import copy
import json
import logging

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from tfdetr_keras.data import (
    coco_category_ids,
    coco_things,
    load_coco,
    load_coco_panoptic,
    prepare,
    readable_errors,
    split,
    summarize,
)
from tfdetr_keras.data.coco_json import FAULTY_ANNOTATIONS, REPEATED_ANNOTATIONS, UNKNOWN_CATEGORIES, UNKNOWN_IMAGES
from tfdetr_keras.data.coco_panoptic import (
    FAULTY_MAPS,
    MISSING_MAPS,
    UNLISTED_SEGMENTS,
    WITHOUT_ANNOTATION,
    WITHOUT_PIXELS,
)
from tfdetr_keras.data.files import MISSING, UNREADABLE
from tfdetr_keras.data.panoptic_png import colours_of_ids, ids_of_colours

SKY, GRASS = 187, 193  # COCO's ids of two kinds of stuff
# Segments of a.png: 5 and 70000 things, 300 stuff, and void in the last column.
MAP = np.full((20, 40), 300)
MAP[2:7, 3:9], MAP[10:15, 20:30], MAP[:, 39] = 5, 70000, 0
CONTENT = {
    "images": [
        {"id": 30, "file_name": "a.jpg", "height": 20, "width": 40},
        {"id": 10, "file_name": "b.jpg", "height": 8, "width": 6},
    ],
    "categories": [
        {"id": 7, "name": "dog", "isthing": 1},
        {"id": 2, "name": "cat", "isthing": 1},
        {"id": 9, "name": "sky", "isthing": 0},
    ],
    "annotations": [
        {
            "image_id": 10,
            "file_name": "b.png",
            "segments_info": [{"id": 1, "category_id": 9, "bbox": [0, 0, 6, 8], "area": 48}],
        },
        {
            "image_id": 30,
            "file_name": "a.png",
            "segments_info": [
                {"id": 70000, "category_id": 7, "bbox": [20, 10, 10, 5], "area": 50, "iscrowd": 1},
                {"id": 300, "category_id": 9, "bbox": [0, 0, 39, 20], "area": 700, "iscrowd": 0},
                {"id": 5, "category_id": 2, "bbox": [2.5, 1.5, 7, 6], "area": 30.5},
            ],
        },
    ],
}


@pytest.fixture
def write(tmp_path):
    """Writes images and segments, and a JSON file after a change to its content."""
    for entry in CONTENT["images"]:
        Image.new("L", (entry["width"], entry["height"]), 77).save(tmp_path / entry["file_name"])
    (tmp_path / "segments").mkdir()
    for name, ids in (("a.png", MAP), ("b.png", np.ones((8, 6), int))):
        Image.fromarray(colours_of_ids(ids)).save(tmp_path / "segments" / name)

    def write(change=lambda content: None):
        content = copy.deepcopy(CONTENT)
        change(content)
        (tmp_path / "set.json").write_text(json.dumps(content))
        return tmp_path, tmp_path / "set.json", tmp_path / "segments"

    return write


def test_a_small_set_by_hand(write):
    dataset, names = load_coco_panoptic(*write())
    assert names == ["cat", "dog", "sky"]
    first, second = dataset.as_numpy_iterator()
    assert [int(record["image_id"]) for record in (first, second)] == [30, 10]
    assert first["image"].shape == (20, 40, 3)
    np.testing.assert_array_equal(first["masks"], [MAP == 70000, MAP == 300, MAP == 5])
    np.testing.assert_array_equal(first["boxes"], [[20, 10, 30, 15], [0, 0, 39, 20], [2.5, 1.5, 9.5, 7.5]])
    np.testing.assert_array_equal(first["labels"], [1, 2, 0])
    np.testing.assert_array_equal(first["iscrowd"], [True, False, False])
    np.testing.assert_array_equal(first["area"], [50, 700, 30.5])
    assert second["masks"].shape == (1, 8, 6)
    assert second["masks"].all()
    assert dataset.tally.counts() == {}


@pytest.fixture(scope="module")
def panoptic128(coco128, tmp_path_factory):
    """A dozen images of COCO128, those with crowds first: what their polygons cover as things, above it stuff."""
    folder = tmp_path_factory.mktemp("panoptic128")
    api = COCO(coco128 / "annotations/instances_train2017.json")
    chosen = sorted({entry["image_id"] for entry in api.dataset["annotations"] if entry["iscrowd"]})[:6]
    chosen += [image_id for image_id in api.getImgIds() if image_id not in chosen][: 12 - len(chosen)]
    rng = np.random.default_rng(0)
    annotations, maps = [], {}
    for image in api.loadImgs(chosen):
        ids = np.zeros((image["height"], image["width"]), np.int64)
        ids[: image["height"] // 2, 5:] = sky = int(rng.integers(1, 2**24))
        categories, crowds = {sky: SKY}, set()
        for entry in api.loadAnns(api.getAnnIds(image["id"])):
            segment = int(rng.integers(1, 2**24))
            ids[api.annToMask(entry) == 1] = segment
            categories[segment] = entry["category_id"]
            crowds |= {segment} if entry["iscrowd"] else set()
        segments_info = []
        for segment in np.unique(ids[ids > 0]).tolist():
            ys, xs = np.nonzero(ids == segment)
            left, top = int(xs.min()), int(ys.min())
            bbox = [left, top, int(xs.max()) - left + 1, int(ys.max()) - top + 1]
            entry = {"id": segment, "category_id": categories[segment], "iscrowd": int(segment in crowds)}
            segments_info.append(entry | {"bbox": bbox, "area": len(xs)})
        name = image["file_name"].replace(".jpg", ".png")
        Image.fromarray(colours_of_ids(ids)).save(folder / name)
        annotations.append({"image_id": image["id"], "file_name": name, "segments_info": segments_info})
        maps[image["id"]] = ids
    categories = [category | {"isthing": 1} for category in api.dataset["categories"]]
    categories += [{"id": SKY, "name": "sky-other", "isthing": 0}, {"id": GRASS, "name": "grass", "isthing": 0}]
    content = {"images": api.loadImgs(chosen), "annotations": annotations[::-1], "categories": categories}
    (folder / "panoptic.json").write_text(json.dumps(content))
    return coco128 / "images", folder / "panoptic.json", folder, content, maps


def test_records_are_what_transformers_reads(panoptic128, pytorch):
    """But for its boxes, which end at the last pixel's left and upper edge."""
    *arguments, folder, content, _ = panoptic128
    dataset, names = load_coco_panoptic(*arguments, folder, category_ids="original")
    assert len(names) == GRASS + 1
    own = {entry["image_id"]: entry for entry in content["annotations"]}
    records = list(dataset.as_numpy_iterator())
    assert [int(record["image_id"]) for record in records] == [entry["id"] for entry in content["images"]]
    for record in records:
        annotation = own[int(record["image_id"])]
        theirs = pytorch.call("processors:panoptic_annotation", record["image"], annotation, folder)
        np.testing.assert_array_equal(record["masks"], theirs["masks"].astype(bool))
        np.testing.assert_array_equal(record["labels"], theirs["class_labels"])
        np.testing.assert_array_equal(record["iscrowd"], theirs["iscrowd"].astype(bool))
        np.testing.assert_array_equal(record["area"], theirs["area"])
        np.testing.assert_array_equal(record["orig_size"], theirs["orig_size"])
        np.testing.assert_array_equal(record["boxes"], theirs["boxes"] + [0, 0, 1, 1])
        assert record["masks"].sum(axis=0).max() == 1
    assert sum(record["iscrowd"].sum() for record in records) >= 3
    assert dataset.tally.counts() == {}


def test_boxes_and_areas_come_from_masks_where_they_are_missing(panoptic128, tmp_path):
    images, file, folder, content, _ = panoptic128
    content = copy.deepcopy(content)
    segments = [segment for entry in content["annotations"] for segment in entry["segments_info"]]
    for row, segment in enumerate(segments):
        if row % 3 == 0:
            del segment["bbox"], segment["area"]
        elif row % 3 == 1:
            segment["bbox"] = None
        else:
            segment["area"], segment["bbox"][2] = None, 0
    (tmp_path / "bare.json").write_text(json.dumps(content))
    bare, _ = load_coco_panoptic(images, tmp_path / "bare.json", folder)
    whole, _ = load_coco_panoptic(images, file, folder)
    for one, other in zip(bare.as_numpy_iterator(), whole.as_numpy_iterator(), strict=True):
        for key, value in other.items():
            np.testing.assert_array_equal(one[key], value, err_msg=key)
    assert bare.tally.counts() == {}


def test_the_rest_of_the_package_takes_the_records(panoptic128):
    dataset, names = load_coco_panoptic(*panoptic128[:3])
    assert summarize(dataset, names).images == 12
    training, held_out = split(dataset, 0.25)
    assert 0 < len(list(held_out)) < len(list(training)) == 12 - len(list(held_out))
    _, targets = next(iter(prepare(dataset, batch_size=2, size=(64, 96))))
    assert targets["masks"].dtype == tf.bool
    assert targets["masks"].shape[:2] == targets["labels"].shape
    crowds = sum(int(record["iscrowd"].sum()) for record in dataset.take(2).as_numpy_iterator())
    present = sum(len(record["labels"]) for record in dataset.take(2).as_numpy_iterator())
    assert (targets["labels"].numpy() >= 0).sum() == present - crowds


def test_the_spec_is_that_of_load_coco_with_masks(write, coco128):
    ours = load_coco_panoptic(*write())[0].element_spec
    theirs = load_coco(coco128 / "images", coco128 / "annotations/instances_train2017.json", masks=True)[0].element_spec
    assert ours == theirs


def test_things_and_the_way_back_to_coco_ids(write, panoptic128):
    _, file, _ = write()
    assert coco_category_ids(file) == [2, 7, 9]
    assert coco_things(file) == [True, True, False]
    assert coco_things(file, "original") == [False, False, True, *[False] * 4, True, False, False]
    content = panoptic128[3]
    ids, things = coco_category_ids(panoptic128[1]), coco_things(panoptic128[1])
    assert {ids[label] for label, thing in enumerate(things) if not thing} == {SKY, GRASS}
    assert len(things) == len(content["categories"])
    assert load_coco_panoptic(*write(), category_ids="original")[1] == [
        *["N/A"] * 2,
        "cat",
        *["N/A"] * 4,
        "dog",
        "N/A",
        "sky",
    ]


@pytest.mark.parametrize("isthing", [None, "1", 2])
def test_a_category_that_does_not_tell_whether_it_is_a_thing(write, isthing):
    _, file, _ = write(lambda content: content["categories"][1].update(isthing=isthing))
    with pytest.raises(ValueError, match=r"set\.json: categories\[1\] has isthing .*is it a panoptic file"):
        coco_things(file)


def test_an_unknown_numbering(write):
    with pytest.raises(ValueError, match="contiguous"):
        load_coco_panoptic(*write(), category_ids="sparse")
    with pytest.raises(ValueError, match="contiguous"):
        coco_things(write()[1], "sparse")


def annotation(row, **changes):
    return lambda content: content["annotations"][row].update(changes)


def segment(row, **changes):
    return lambda content: content["annotations"][1]["segments_info"][row].update(changes)


def without(key, row=None):
    entry = (lambda a: a) if row is None else (lambda a: a["segments_info"][row])
    return lambda content: entry(content["annotations"][1]).pop(key)


def repeated(content):
    content["annotations"].append({**content["annotations"][1], "segments_info": []})


def same_id(content):
    content["annotations"][1]["segments_info"].append({"id": 5, "category_id": 7})


# A change, a complaint at the call, what it counts as, how many images are left of two, and how many objects of four.
IN_FRONT = [
    (
        annotation(0, image_id=31),
        r"annotations\[0\] \(image 31\) has image 31, which is not listed",
        UNKNOWN_IMAGES,
        1,
        3,
    ),
    (annotation(1, image_id="30"), r"annotations\[1\] \(image '30'\) has image '30'", UNKNOWN_IMAGES, 1, 1),
    (lambda content: content["annotations"].pop(), r"image 30, .* has no annotation", WITHOUT_ANNOTATION, 1, 1),
    (without("segments_info"), r"annotations\[1\] \(image 30, .*\) has no segments_info", FAULTY_ANNOTATIONS, 1, 1),
    (without("file_name"), r"annotations\[1\] \(image 30, .*\) has no file_name", FAULTY_ANNOTATIONS, 1, 1),
    (annotation(1, file_name=None), "has the file_name None, not a text", FAULTY_ANNOTATIONS, 1, 1),
    (annotation(1, segments_info={}), r"has the segments_info {}, not a list", FAULTY_ANNOTATIONS, 1, 1),
    (lambda content: content["annotations"].append(7), r"annotations\[2\] has no file_name", FAULTY_ANNOTATIONS, 2, 4),
    (repeated, r"annotations\[2\] .*has the image of annotations\[1\]", REPEATED_ANNOTATIONS, 2, 4),
    (annotation(1, file_name="lost.png"), r"lost\.png, does not exist; 1 of 2", MISSING_MAPS, 1, 1),
    (lambda content: content["images"][0].update(file_name="lost.jpg"), r"lost\.jpg", MISSING, 1, 1),
    (
        annotation(1, segments_info=[None]),
        r"annotations\[1\]\.segments_info\[0\] \(image 30, .*\) has no category_id, id",
        FAULTY_ANNOTATIONS,
        2,
        1,
    ),
    (without("id", 0), r"segments_info\[0\] \(image 30, .*\) has no id", FAULTY_ANNOTATIONS, 2, 3),
    (
        segment(0, id=0),
        r"segments_info\[0\] .*has the id 0, not a whole number from 1 to 16777215",
        FAULTY_ANNOTATIONS,
        2,
        3,
    ),
    (segment(0, id=2**24), r"has the id 16777216, not a whole number", FAULTY_ANNOTATIONS, 2, 3),
    (segment(0, id="5"), r"has the id '5', not a whole number", FAULTY_ANNOTATIONS, 2, 3),
    (same_id, r"segments_info\[3\] .*has the id 5 of segments_info\[2\]", REPEATED_ANNOTATIONS, 2, 4),
    (without("category_id", 0), r"segments_info\[0\] .*has no category_id", FAULTY_ANNOTATIONS, 2, 3),
    (segment(0, category_id=3), r"segments_info\[0\] .*has category 3, which is not listed", UNKNOWN_CATEGORIES, 2, 3),
    (segment(0, bbox=[1, 2, 3]), r"has the bbox \[1, 2, 3\]", FAULTY_ANNOTATIONS, 2, 3),
    (segment(0, bbox=[1, 2, "3", 4]), r"has the bbox", FAULTY_ANNOTATIONS, 2, 3),
    (segment(0, bbox=[1, 2, float("nan"), 4]), r"segments_info\[0\] .*non-finite", "non-finite boxes", 2, 3),
    (segment(0, bbox=[1, 2, float("inf"), 4]), r"segments_info\[0\] .*non-finite", "non-finite boxes", 2, 3),
    (segment(0, bbox=[9, 2, -3, 4]), r"segments_info\[0\] .*x2 < x1", "inverted boxes", 2, 3),
    (segment(0, area=-1), r"has the area -1", FAULTY_ANNOTATIONS, 2, 3),
    (segment(0, iscrowd="0"), r"has iscrowd '0'", FAULTY_ANNOTATIONS, 2, 3),
]


@pytest.mark.parametrize(("change", "complaint", "kind", "images", "objects"), IN_FRONT)
def test_a_bad_annotation_is_explained_or_skipped_and_counted(write, change, complaint, kind, images, objects):
    arguments = write(change)
    with pytest.raises(ValueError, match=rf"(set\.json|the (segment )?file of).*{complaint}"):
        load_coco_panoptic(*arguments)
    dataset, _ = load_coco_panoptic(*arguments, on_error="skip")
    records = list(dataset.as_numpy_iterator())
    counts = dataset.tally.counts()
    # Pixels of what has no id that could be read are of nobody, and an image can lose its annotation by its image_id.
    consequences = {UNLISTED_SEGMENTS, WITHOUT_ANNOTATION}
    assert counts.pop(kind) == 1
    assert not set(counts) - consequences, counts
    assert len(records) == images
    assert sum(len(record["labels"]) for record in records) == objects
    for record in records:
        assert len(record["masks"]) == len(record["boxes"]) == len(record["labels"]) == len(record["area"])


def test_pixels_of_a_segment_that_is_left_out_are_no_second_fault(write):
    dataset, _ = load_coco_panoptic(*write(segment(1, category_id=3)), on_error="skip")
    first, _ = dataset.as_numpy_iterator()
    np.testing.assert_array_equal(first["masks"], [MAP == 70000, MAP == 5])
    np.testing.assert_array_equal(first["labels"], [1, 0])
    assert dataset.tally.counts() == {UNKNOWN_CATEGORIES: 1}


def listed_but_not_drawn(folder):
    Image.fromarray(colours_of_ids(np.where(MAP == 70000, 0, MAP))).save(folder / "segments/a.png")


def drawn_but_not_listed(folder):
    ids = np.where(MAP == 0, 6 + np.arange(20)[:, None], MAP)
    Image.fromarray(colours_of_ids(ids)).save(folder / "segments/a.png")


def of_another_size(folder):
    Image.fromarray(colours_of_ids(MAP.T)).save(folder / "segments/a.png")


def cut_off(folder):
    content = (folder / "segments/a.png").read_bytes()
    (folder / "segments/a.png").write_bytes(content[: len(content) // 2])


def no_image(folder):
    (folder / "segments/a.png").write_bytes(b"\x89PNG")


def gone_since(folder):
    (folder / "segments/a.png").unlink()


@pytest.mark.parametrize(
    ("damage", "complaint", "kind", "objects"),
    [
        (listed_but_not_drawn, r"a\.png \(image 30\) has no pixel of segment 70000", WITHOUT_PIXELS, [2, 1]),
        (drawn_but_not_listed, r"a\.png .*pixels of segment 6, 7, 8, 9, 10, 11, 12, 13, …", UNLISTED_SEGMENTS, [3, 1]),
        (of_another_size, r"a\.png is 40 x 20 .* annotations are for 20 x 40", FAULTY_MAPS, [1]),
        (cut_off, r"a\.png is damaged", FAULTY_MAPS, [1]),
        (no_image, r"a\.png is not an image", FAULTY_MAPS, [1]),
        (gone_since, r"a\.png cannot be opened", FAULTY_MAPS, [1]),
    ],
)
def test_a_bad_segment_file_is_explained_or_skipped_while_it_is_read(write, damage, complaint, kind, objects):
    arguments = write()
    strict, _ = load_coco_panoptic(*arguments)
    lenient, _ = load_coco_panoptic(*arguments, on_error="skip")
    damage(arguments[0])
    with pytest.raises(ValueError, match=complaint), readable_errors():
        list(strict)
    for _ in range(2):  # each thing is counted once, however often it is read
        records = list(lenient.as_numpy_iterator())
        assert [len(record["labels"]) for record in records] == objects
        assert lenient.tally.counts() == {kind: 1}
    if len(objects) == 2:
        left = [(70000, 50), (300, 700), (5, 30.5)][kind == WITHOUT_PIXELS :]
        np.testing.assert_array_equal(records[0]["masks"], [number == MAP for number, _ in left])
        np.testing.assert_array_equal(records[0]["area"], [area for _, area in left])


def test_an_image_that_cannot_be_read_is_one_fault(write):
    arguments = write()
    (arguments[0] / "a.jpg").write_bytes(b"no image")
    gone_since(arguments[0])
    (arguments[2] / "a.png").write_bytes(b"neither")
    dataset, _ = load_coco_panoptic(*arguments, on_error="skip")
    assert [int(record["image_id"]) for record in dataset.as_numpy_iterator()] == [10]
    assert dataset.tally.counts() == {UNREADABLE: 1}


def test_nothing_is_left(write, caplog):
    arguments = write(lambda content: content.update(annotations=[]))
    with pytest.raises(ValueError, match=r"image 30, .* has no annotation"):
        load_coco_panoptic(*arguments)
    with pytest.raises(ValueError, match="the set is empty"), caplog.at_level(logging.ERROR):
        load_coco_panoptic(*arguments, on_error="skip")
    with pytest.raises(ValueError, match=r"no annotation file .*other\.json"):
        load_coco_panoptic(arguments[0], arguments[0] / "other.json", arguments[2])


def test_an_image_without_segments_stays(write):
    dataset, _ = load_coco_panoptic(*write(annotation(0, file_name="void.png", segments_info=[])), on_error="skip")
    assert dataset.tally.counts() == {MISSING_MAPS: 1}
    folder, *_ = arguments = write(annotation(0, file_name="void.png", segments_info=[]))
    Image.new("RGB", (6, 8)).save(folder / "segments" / "void.png")
    dataset, _ = load_coco_panoptic(*arguments)
    _, second = dataset.as_numpy_iterator()
    assert second["masks"].shape == (0, 8, 6)
    assert second["boxes"].shape == (0, 4)


def test_file_names_with_backslashes_and_an_alpha_channel(write):
    folder, *_ = arguments = write(annotation(1, file_name="sub\\a.png"))
    (folder / "segments/sub").mkdir()
    pixels = np.dstack([colours_of_ids(MAP), np.full(MAP.shape, 9, np.uint8)])
    Image.fromarray(pixels, "RGBA").save(folder / "segments/sub/a.png")
    first = next(load_coco_panoptic(*arguments)[0].as_numpy_iterator())
    np.testing.assert_array_equal(first["masks"], [MAP == 70000, MAP == 300, MAP == 5])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=30))
def test_colours_and_ids(ids):
    """Against the formula of COCO's format, pixel by pixel."""
    colours = colours_of_ids(np.array([ids]))
    assert colours.dtype == np.uint8
    assert [int(r) + 256 * int(g) + 256**2 * int(b) for r, g, b in colours[0]] == ids
    np.testing.assert_array_equal(ids_of_colours(colours), [ids])
