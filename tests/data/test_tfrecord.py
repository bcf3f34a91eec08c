import io
import os
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tfdetr_keras.cli import main
from tfdetr_keras.data import load_shapes, load_tfrecord, prepare, readable_errors, write_tfrecord
from tfdetr_keras.data.areas import NOT_BELIEVED
from tfdetr_keras.data.files import UNREADABLE
from tfdetr_keras.data.tensors import FAULTY_RECORDS
from tfdetr_keras.data.tfrecord import LABEL_MAP, OPEN_FILES, _read_label_map, compression_of
from tfdetr_keras.data.tfrecord_example import ELEMENT_SPEC, parse_example
from tfdetr_keras.data.validation import EMPTY_BOX, WITHOUT_BOXES
from tfdetr_keras.evaluation.coco import Evaluator

BUFFER = io.BytesIO()
Image.new("RGB", (40, 20)).save(BUFFER, "PNG")
BOX = {"xmin": [0.25], "ymin": [0.5], "xmax": [0.75], "ymax": [1.0]}  # (10, 10, 30, 20) of 40 x 20


def feature(values):
    if not values:
        return tf.train.Feature()
    if isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if any(isinstance(value, float) for value in values):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def example(sides=BOX, **more):
    """An example of one object; a value of None takes a feature away."""
    features = {f"image/object/bbox/{side}": values for side, values in sides.items()}
    features |= {"image/encoded": [BUFFER.getvalue()], "image/object/class/label": [2]}
    features |= {key.replace("__", "/"): values for key, values in more.items()}
    kept = {key: feature(values) for key, values in features.items() if values is not None}
    return tf.train.Example(features=tf.train.Features(feature=kept)).SerializeToString()


@pytest.fixture
def write(tmp_path):
    def write(*examples, name="set.tfrecord", label_map=None):
        with tf.io.TFRecordWriter(str(tmp_path / name)) as writer:
            for content in examples:
                writer.write(content)
        if label_map is not None:
            (tmp_path / LABEL_MAP).write_bytes(label_map if isinstance(label_map, bytes) else label_map.encode())
        return tmp_path / name

    return write


def as_arrays(dataset):
    with readable_errors():
        return list(dataset.as_numpy_iterator())


NAMES = ["cat", "dog"]


def ids(records):
    return [int(record["image_id"]) for record in records]


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_what_is_written_is_read(tmp_path, shards):
    dataset, names = load_shapes(5, seed=4)
    expected = [{key: np.array(value) for key, value in record.items()} for record in dataset.as_numpy_iterator()]
    expected[1]["iscrowd"][:] = True
    expected[2]["area"][:] = 7.25
    expected[3] |= {key: expected[3][key][:0] for key in ("boxes", "labels", "iscrowd", "area")}
    expected[4]["image_id"] = np.int64(-12)
    changed = tf.data.Dataset.from_generator(lambda: iter(expected), output_signature=dataset.element_spec)
    assert write_tfrecord(changed, tmp_path / "new/folder", names, "train", shards) == 5
    files = sorted(file.name for file in (tmp_path / "new/folder").iterdir())
    assert files == [LABEL_MAP, *(f"train-{shard:05d}-of-{shards:05d}.tfrecord" for shard in range(shards))]
    for pattern in ("*", "train-*", "train-*-of-?????.tfrecord"):
        found, found_names = load_tfrecord(tmp_path / "new/folder" / pattern)
        assert found_names == names
        assert ids(as_arrays(found)) == ids(expected)
    for record, own in zip(as_arrays(found), expected, strict=True):
        for key in ("image", "image_id", "orig_size", "labels", "iscrowd", "area"):
            np.testing.assert_array_equal(record[key], own[key])
        np.testing.assert_allclose(record["boxes"], own["boxes"], atol=1e-4)


def test_a_list_of_files(write):
    files = [write(example(image__source_id=[f"{n}".encode()]), name=f"{n}.record") for n in range(3)]
    dataset, _ = load_tfrecord(files[1:], NAMES)
    assert ids(as_arrays(dataset)) == [1, 2]
    dataset, _ = load_tfrecord([files[0], str(files[0].parent / "?.record")], NAMES)
    assert ids(as_arrays(dataset)) == [0, 1, 2]  # each file once


def test_a_path_that_exists_is_no_pattern(write, tmp_path):
    (tmp_path / "a[1]").mkdir()
    for name in ("a[1]/t.tfrecord", "t?.tfrecord", "tx.tfrecord"):
        file = write(example(image__source_id=[b"7"]), name=name, label_map="item { id: 2 name: 'dog' }")
    (tmp_path / "a[1]" / LABEL_MAP).write_text("item { id: 2 name: 'dog' }")
    assert ids(as_arrays(load_tfrecord(tmp_path / "a[1]/t.tfrecord")[0])) == [7]
    assert ids(as_arrays(load_tfrecord(tmp_path / "t?.tfrecord")[0])) == [7]
    file.with_name("t?.tfrecord").unlink()
    assert ids(as_arrays(load_tfrecord(tmp_path / "t?.tfrecord")[0])) == [7]


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files as Linux tells them")
def test_many_files_are_not_all_opened_at_once(write):
    count, length = 5 * OPEN_FILES, 6  # long enough for a file to stay open
    for number in range(count):
        content = example(image__source_id=[str(number).encode()])
        file = write(*[content] * length, name=f"{number:03d}.tfrecord")
    before, most, found = open_files(), 0, []
    for record in load_tfrecord(file.parent / "*", NAMES)[0].as_numpy_iterator():
        found.append(int(record["image_id"]))
        most = max(most, open_files() - before)
    assert sorted(found) == sorted([*range(count)] * length)
    assert most < 4 * OPEN_FILES  # TensorFlow opens twice as many ahead


@pytest.mark.parametrize("shards", [OPEN_FILES, OPEN_FILES + 1])
def test_the_order_comes_back_from_as_many_shards_as_are_open(tmp_path, shards):
    dataset, names = load_shapes(2 * shards, size=(16, 16))
    write_tfrecord(dataset, tmp_path, names, shards=shards)
    found = ids(as_arrays(load_tfrecord(tmp_path / "set-*")[0]))
    expected = [int(record["image_id"]) for record in dataset.as_numpy_iterator()]
    assert (found == expected) == (shards <= OPEN_FILES)
    assert sorted(found) == expected


def test_what_an_example_may_leave_out(write):
    empty = {side: None for side in BOX}
    file = write(
        example(),
        example(empty, image__object__class__label=None),
        example(image__source_id=[b"000000000042"]),
        example(image__source_id=[b"a.jpg"], image__object__area=[1.5], image__object__is_crowd=[1]),
    )
    first, second, third, fourth = as_arrays(load_tfrecord(file, NAMES)[0])
    np.testing.assert_allclose(first["boxes"], [[10, 10, 30, 20]])
    np.testing.assert_array_equal(first["labels"], [1])
    np.testing.assert_allclose(first["area"], [200])
    assert second["boxes"].shape == (0, 4)
    assert ids([first, second, third, fourth]) == [-1, -2, 42, -4]
    assert (fourth["area"], fourth["iscrowd"]) == (1.5, True)


def test_image_ids_are_different_whatever_they_are_called(write):
    names = [b"1", b"cat.jpg", b"", b"0", b"2", b"0012", b"1e3", b"9" * 19]
    found = ids(as_arrays(load_tfrecord(write(*(example(image__source_id=[name]) for name in names)), NAMES)[0]))
    assert found == [1, -2, -3, 0, 2, 12, -7, -8]


def test_the_stated_size_tells_whether_boxes_are_for_pixels_as_stored_or_as_turned(write):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    sizes = [(20, 40), (40, 20), (None, None), (20, None), (0, 0), (21, 40)]
    stated = [
        {"image__height": None if height is None else [height], "image__width": None if width is None else [width]}
        for height, width in sizes
    ]
    file = write(*(example(image__encoded=[buffer.getvalue()], **size) for size in stated))
    with pytest.raises(ValueError, match=r"record 5 \(image -6\) is 40 x 20 .* but its annotations are for 21 x 40"):
        as_arrays(load_tfrecord(file, NAMES)[0])
    dataset, _ = load_tfrecord(file, NAMES, on_error="skip")
    stored, *turned = as_arrays(dataset)
    np.testing.assert_array_equal(stored["image"], pixels)
    np.testing.assert_allclose(stored["boxes"], [[10, 10, 30, 20]])
    assert len(turned) == 4
    for record in turned:
        np.testing.assert_array_equal(record["image"], np.rot90(pixels, -1))
        np.testing.assert_allclose(record["boxes"], [[5, 20, 15, 40]])
    assert dataset.tally.counts() == {UNREADABLE: 1}


FAULTS = [
    (example(image__encoded=None), r"is not an image that can be read \(0 bytes\)", "unreadable images"),
    (example(BOX | {"xmin": [0.1, 0.2]}), "has boxes of the shape", FAULTY_RECORDS),
    (example(BOX | {"xmin": [0.1, 0.2, 0.3], "ymin": [], "xmax": []}), "has boxes of", FAULTY_RECORDS),
    (example(image__object__class__label=[1, 2]), "has boxes of the shape .* but labels", FAULTY_RECORDS),
    (example(image__object__class__label=None), "has boxes of the shape .* but labels", FAULTY_RECORDS),
    (example(image__object__class__label=[3]), "object 0 has a label outside", "labels that are no class"),
    (example(image__object__class__label=[0]), "object 0 has a label outside", "labels that are no class"),
    (example(BOX | {"xmin": [0.8]}), "object 0 has a box with x2 < x1", "inverted boxes"),
    (example(BOX | {"xmin": [float("nan")]}), "object 0 .*non-finite", "non-finite boxes"),
    (
        example({side: values * 2 for side, values in BOX.items()}, image__object__class__label=[1]),
        "has",
        FAULTY_RECORDS,
    ),
]


@pytest.mark.parametrize(("bad", "complaint", "kind"), FAULTS)
def test_a_bad_example_is_explained_or_skipped_and_counted(write, bad, complaint, kind):
    file = write(example(), bad, example())
    with pytest.raises(ValueError, match=rf"^record 1 \(image -2\),? {complaint}"):
        as_arrays(load_tfrecord(file, NAMES)[0])
    dataset, _ = load_tfrecord(file, NAMES, on_error="skip")
    records = as_arrays(dataset)
    assert dataset.tally.counts() == {kind: 1}
    assert sum(len(record["labels"]) for record in records) == 2


TYPES = [
    (b"no example", "is not a tf.train.Example"),
    (
        example(image__object__class__label=[1.5]),
        "has image/object/class/label as numbers with fractions",
    ),
    (example(image__object__class__label=[b"dog"]), "has image/object/class/label as texts, not as whole numbers"),
    (example(BOX | {"xmin": [b"0.1"]}), "has image/object/bbox/xmin as texts, not as numbers with fractions"),
    (example(image__encoded=[1]), r"has image/encoded as whole numbers \(int64\), not as texts"),
    (example(image__encoded=[b"a", b"b"]), "has 2 values of image/encoded, not one"),
    (example(image__height=[1.5]), "has image/height as numbers with fractions"),
    (example(image__source_id=[7]), "has image/source_id as whole numbers"),
    (example(image__object__area=[1.5, 2.5]), "has 2 values of image/object/area for 1 objects"),
    (example(image__object__is_crowd=[0, 1]), "has 2 values of image/object/is_crowd for 1 objects"),
]


@pytest.mark.parametrize(("bad", "complaint"), TYPES)
def test_features_of_another_type_are_named_with_their_file_and_record(write, bad, complaint):
    file = write(example(), bad, example())
    with pytest.raises(ValueError, match=rf"^record 1 \(image -2\) {complaint}.* \(record 1 of .*set\.tfrecord\)$"):
        as_arrays(load_tfrecord(file, NAMES)[0])
    dataset, _ = load_tfrecord(file, NAMES, on_error="skip")
    assert ids(as_arrays(dataset)) == [-1, -3]
    assert dataset.tally.counts() == {FAULTY_RECORDS: 1}


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60) | st.tuples(st.integers(0, 10**4), st.integers(0, 255)))
def test_whatever_an_example_is_it_is_read_or_explained(change):
    """Bytes at random, and an example of which one is another."""
    content = change
    if isinstance(change, tuple):
        content = bytearray(example(image__encoded=[b"x"], image__source_id=[b"7"]))
        content[change[0] % len(content)] = change[1]
    found = parse_example(np.int64(3), b"a.tfrecord", np.int64(1), bytes(content), {1: 0, 2: 1}, {})
    assert found.keys() == ELEMENT_SPEC.keys()
    for key, spec in ELEMENT_SPEC.items():
        value = np.asarray(found[key])
        assert value.dtype.kind == "S" if spec.dtype == tf.string else value.dtype == spec.dtype.as_numpy_dtype
        assert spec.shape.is_compatible_with(value.shape)
    assert not found["fault"] or found["fault"].endswith(b" (record 1 of a.tfrecord)")


def test_whole_numbers_are_numbers_too(write):
    sides = {"xmin": [0], "ymin": [0], "xmax": [1], "ymax": [1]}
    (record,) = as_arrays(load_tfrecord(write(example(sides, image__object__area=[700])), NAMES)[0])
    assert (record["boxes"].tolist(), record["area"].tolist()) == ([[0, 0, 40, 20]], [700])


def test_a_group_is_a_crowd(write):
    two = {side: values * 2 for side, values in BOX.items()}
    content = example(two, image__object__class__label=[1, 2], image__object__group_of=[0, 1])
    (record,) = as_arrays(load_tfrecord(write(content), NAMES)[0])
    assert record["iscrowd"].tolist() == [False, True]


@pytest.mark.parametrize("kinds", [("GZIP",), ("ZLIB",), ("GZIP", "", "ZLIB")])
def test_compressed_files(tmp_path, kinds):
    for number, kind in enumerate(kinds):
        with tf.io.TFRecordWriter(str(tmp_path / f"{number}.tfrecord"), kind) as writer:
            writer.write(example(image__source_id=[f"{number}".encode()]))
    assert ids(as_arrays(load_tfrecord(tmp_path / "*", NAMES)[0])) == list(range(len(kinds)))


@pytest.mark.parametrize("mark", [b"\x1f\x8b\x08", b"\x78\x9c", b"\x78\x01", b"\x78\xda"])
def test_a_length_that_looks_like_a_compressed_files_mark(write, mark):
    length = int.from_bytes(mark, "little")
    image = b""
    while (missing := length - len(example(image__encoded=[image]))) > 0:
        image += b"x" * max(1, missing - 8 if missing > 8 else missing)
    content = example(image__encoded=[image])
    if len(content) == length:  # by luck of the lengths' own length
        file = write(content)
        assert file.read_bytes().startswith(mark)
    else:
        file = write(b"x" * length)
    assert compression_of(str(file)) == ""


def pixels(**more):
    return example({"xmin": [10.0], "ymin": [10.0], "xmax": [30.0], "ymax": [20.0]}, **more)


LOST = r"none of \d+ boxes has an area inside its image, e\.g\. .*; are relative boxes taken for pixels"


def test_a_set_all_of_whose_boxes_are_lost_is_an_error_before_it_is_trained_on(write, tmp_path):
    """Pixels where relative boxes are meant: in training, at the end of a pass, and on the command line."""
    file = write(*[pixels(image__source_id=[f"{n}".encode()]) for n in range(3)])
    dataset, _ = load_tfrecord(file, NAMES)
    with pytest.raises(ValueError, match=LOST):
        as_arrays(dataset)
    for on_error in ("raise", "skip"):
        dataset, _ = load_tfrecord(file, NAMES, on_error=on_error)
        with pytest.raises(ValueError, match=LOST):
            prepare(dataset, 1, training=True, size=(32, 64))
        with pytest.raises(ValueError, match=LOST):
            Evaluator(dataset, NAMES)
    assert len(as_arrays(dataset)) == 3  # skipped, and told
    assert dataset.tally.counts()[WITHOUT_BOXES] == 1
    (tmp_path / "names.txt").write_text("cat\ndog")
    command = ["inspect-data", "--data", "tfrecord", "--annotations", str(file), "--out", str(tmp_path / "look.png")]
    assert main([*command, "--class-names", str(tmp_path / "names.txt")]) != 0


def test_labels_that_are_all_no_class_are_no_set_to_train_on(write):
    dataset, _ = load_tfrecord(write(*[example(image__object__class__label=[9])] * 2), NAMES, on_error="skip")
    # Records are read in parallel: either may be the first.
    with pytest.raises(ValueError, match=r"none of \d objects can be used, e\.g\. record \d .*label outside 0\.\.1"):
        prepare(dataset, 1, training=True, size=(32, 64))


def test_one_box_that_is_left_makes_a_set(write):
    dataset, _ = load_tfrecord(write(pixels(), pixels(), example(), pixels()), NAMES)
    assert len(list(prepare(dataset, 2, training=True, size=(32, 64), augmentation="none"))) == 2
    assert sum(len(record["labels"]) for record in as_arrays(dataset)) == 1
    assert dataset.tally.counts() == {EMPTY_BOX: 3}


def test_a_set_without_any_object_is_honest(write):
    empty = example({side: None for side in BOX}, image__object__class__label=None)
    dataset, _ = load_tfrecord(write(empty, empty), NAMES)
    assert len(as_arrays(dataset)) == 2
    assert len(list(prepare(dataset, 2, training=True, size=(32, 64)))) == 1


def test_an_area_of_zero_is_that_of_the_box(write):
    areas = [0.0, 1e-3, 1e9, 150.0]
    dataset, _ = load_tfrecord(write(*(example(image__object__area=[area]) for area in areas)), NAMES)
    assert [record["area"].tolist() for record in as_arrays(dataset)] == [[200], [200], [200], [150]]
    assert len(dataset.tally.noticed()[NOT_BELIEVED]) == 3


def test_an_image_id_that_repeats_is_named_before_a_model_runs(write):
    file = write(*(example(image__source_id=[name]) for name in (b"7", b"8", b"", b"7")))
    dataset, names = load_tfrecord(file, NAMES)
    with pytest.raises(ValueError, match="records 0 and 3 have the same image id, 7"):
        Evaluator(dataset, names)


def test_a_damaged_file_is_no_silent_end(write):
    file = write(example(), example())
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(tf.errors.OpError, match="truncated record"):
        as_arrays(load_tfrecord(file, NAMES, on_error="skip")[0])


def test_what_is_left_out_is_counted_though_image_ids_repeat(write):
    bad = [example(image__source_id=[b"7"], image__object__class__label=[3])] * 3
    dataset, _ = load_tfrecord(write(*bad), NAMES, on_error="skip")
    as_arrays(dataset)
    assert dataset.tally.counts() == {"labels that are no class": 3}


def test_labels_by_name(write):
    """Where an example has no numbers."""
    two = {side: values * 2 for side, values in BOX.items()}
    names = {"image__object__class__label": None, "image__object__class__text": [b"dog", b"cat"]}
    column = {"image__object__area": [1.5, 2.5], "image__object__is_crowd": [1, 0]}
    files = [
        example(two, **names, **column),
        example(two, **names | {"image__object__class__label": [1, 1]}),  # numbers go before names
        example(image__object__class__label=None, image__object__class__text=[b"cow"]),
    ]
    dataset, _ = load_tfrecord(write(*files), NAMES, on_error="skip")
    first, second, third = as_arrays(dataset)
    np.testing.assert_array_equal(first["labels"], [1, 0])
    np.testing.assert_array_equal(first["area"], [1.5, 2.5])
    np.testing.assert_array_equal(first["iscrowd"], [True, False])
    np.testing.assert_array_equal(second["labels"], [0, 0])
    assert third["labels"].shape == (0,)
    assert dataset.tally.counts() == {"labels that are no class": 1}


@pytest.mark.parametrize("text", ["/m/0bt9lr", "dog"])
def test_labels_by_any_name_of_a_label_map(write, text):
    label_map = "item { id: 3 name: '/m/0bt9lr' display_name: 'dog' } item { id: 1 name: 'cat' }"
    changes = {"image__object__class__label": None, "image__object__class__text": [text.encode()]}
    dataset, names = load_tfrecord(write(example(**changes), label_map=label_map))
    assert names == ["cat", "dog"]
    assert as_arrays(dataset)[0]["labels"].tolist() == [1]


def test_sparse_ids_of_a_label_map(write):
    label_map = "item {\n  id: 18\n  name: 'dog'\n}\nitem {\n  name: 'cat'\n  id: 2\n}\n"
    examples = [example(image__object__class__label=[number]) for number in (2, 18, 3)]
    file = write(*examples, label_map=label_map)
    dataset, names = load_tfrecord(file, on_error="skip")
    assert names == ["cat", "dog"]
    assert [record["labels"].tolist() for record in as_arrays(dataset)] == [[0], [1], []]
    assert dataset.tally.counts() == {"labels that are no class": 1}


@pytest.mark.parametrize(
    "text",
    [
        'item { id: 1 name: "cat" } item { id: 2 name: "dog" }',
        "item{id:1 name:'cat'}item{id:2 name:'dog'}",
        'item: { name: "/m/01yrx" id: 1 display_name: "cat" }\nitem: { name: "/m/0bt9lr" id: 2 display_name: "dog" }',
        b"\xef\xbb\xbfitem {\r\n  id: 1\r\n  name: 'cat'\r\n}\r\nitem {\r\n  id: 2\r\n  name: 'dog'\r\n}\r\n",
        "# the user's classes {\nitem {\n  # id: 7\n  id: 1\n  name: 'cat'\n}\nitem { id: 2 name: 'dog' }",
        "# the user's\nitem { id: 1 name: 'cat' } # it's furry\nitem { # { id: 9\n id: 2 # dog's\n name: 'dog' } # }",
        "item { id: 0 name: 'background' } item { id: 1 name: 'cat' } item { id: 2 name: 'dog' }",
        "item { id: 0 name: '0' display_name: 'background' } item { id: 1 name: 'cat' } item { id: 2 name: 'dog' }",
        "item { id: 1 name: 'cat' keypoints { id: 5 label: 'nose' } keypoints { id: 6 } } item { id: 2 name: 'dog' }",
    ],
)
def test_label_maps_as_they_are_written(write, text):
    assert load_tfrecord(write(example(), label_map=text))[1] == ["cat", "dog"]


def test_a_name_may_hold_a_number_sign(write):
    text = "item { id: 1 name: 'C#' } item { id: 2 name: \"# it's\" } # 'C'"
    assert load_tfrecord(write(example(), label_map=text))[1] == ["C#", "# it's"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not a label map: it has no item"),
        ("cat\ndog\n", "is not a label map"),
        ("item { id: 1 name: 'cat' ", "is not a label map"),
        ("item { id: 1 name: 'cat' } item { id: 2 name: 'dog }", "is not a label map"),
        ("item { id: 0 name: 'background' }", r"is not a label map: it has no item .* of a class"),
        ("item { id: 0 name: 'cat' } item { id: 1 name: 'dog' }", "an item needs an id from 1 on"),
        ("item { name: 'cat' }", "an item needs an id from 1 on"),
        ("item { id: 1 }", "an item needs an id from 1 on that no other has, and a name"),
        ("item { id: 1 name: 'id: 2' } item { id: 1 name: 'b' }", "that no other has"),
        (b"item { id: 1 name: '\xff' }", "is not UTF-8"),
    ],
)
def test_a_bad_label_map(write, text, complaint):
    with pytest.raises(ValueError, match=rf"label_map\.pbtxt.* {complaint}"):
        load_tfrecord(write(example(), label_map=text))


NONE = load_shapes(1)[0].take(0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1).filter(lambda text: text.isprintable()), min_size=1, max_size=4))
def test_a_label_map_holds_every_name(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("map")
    write_tfrecord(NONE, folder, names)
    assert _read_label_map(folder / LABEL_MAP) == {number: (name,) for number, name in enumerate(names, 1)}


def test_names_that_come_from_nowhere_or_two_places(write, tmp_path):
    file = write(example())
    with pytest.raises(ValueError, match=r"holds 0 label maps \(\*\.pbtxt\), not one: give label_map or class_names"):
        load_tfrecord(file)
    for name in ("a.pbtxt", "b.pbtxt"):
        (tmp_path / name).write_text("item { id: 2 name: 'dog' }")
    with pytest.raises(ValueError, match="holds 2 label maps"):
        load_tfrecord(file)
    dataset, names = load_tfrecord(file, label_map=tmp_path / "b.pbtxt")
    assert names == ["dog"]
    assert as_arrays(dataset)[0]["labels"].tolist() == [0]
    with pytest.raises(ValueError, match=r"there is no label map .*c\.pbtxt"):
        load_tfrecord(file, label_map=tmp_path / "c.pbtxt")


def test_nothing_to_read(write, tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*lost\*"):
        load_tfrecord(tmp_path / "lost*", NAMES)
    with pytest.raises(ValueError, match="there is no file"):
        load_tfrecord(tmp_path, NAMES)
    with pytest.raises(ValueError, match=r"the set is empty: .*set\.tfrecord holds no record"):
        load_tfrecord(write(), NAMES)


def test_what_cannot_be_written(tmp_path):
    dataset, names = load_shapes(3)
    with pytest.raises(ValueError, match="shards must be at least 1, not 0"):
        write_tfrecord(dataset, tmp_path, names, shards=0)
    with pytest.raises(ValueError, match=r"image \d+ has the label \d, which class_names does not name"):
        write_tfrecord(load_shapes(9)[0], tmp_path / "half", names[:1])
    assert not list((tmp_path / "half").glob("*.tfrecord"))

    write_tfrecord(dataset, tmp_path, names, shards=2)
    write_tfrecord(dataset, tmp_path, names, shards=2)  # once more
    write_tfrecord(dataset, tmp_path, names, "val", shards=1)
    with pytest.raises(ValueError, match=r"already .*set-00000-of-00002\.tfrecord of another number of files"):
        write_tfrecord(dataset, tmp_path, names, shards=3)
    with pytest.raises(ValueError, match=r"label_map\.pbtxt has other classes"):
        write_tfrecord(dataset, tmp_path, names[::-1], "test")
    assert len(as_arrays(load_tfrecord(tmp_path / "set-*")[0])) == 3
