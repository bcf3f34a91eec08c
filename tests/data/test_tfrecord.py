import io

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tfdetr_keras.data import load_shapes, load_tfrecord, readable_errors, write_tfrecord
from tfdetr_keras.data.tensors import FAULTY_RECORDS
from tfdetr_keras.data.tfrecord import LABEL_MAP, _read_label_map

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
    assert ids([first, second, third, fourth]) == [0, 1, 42, 3]
    assert (fourth["area"], fourth["iscrowd"]) == (1.5, True)


FAULTS = [
    (example(image__encoded=None), r"image 1 is not an image that can be read \(0 bytes\)", "unreadable images"),
    (example(BOX | {"xmin": [0.1, 0.2]}), "image 1 has boxes of the shape", FAULTY_RECORDS),
    (example(BOX | {"xmin": [0.1, 0.2, 0.3], "ymin": [], "xmax": []}), "image 1 has boxes of", FAULTY_RECORDS),
    (example(image__object__class__label=[1, 2]), "image 1 has boxes of the shape .* but labels", FAULTY_RECORDS),
    (example(image__object__class__label=None), "image 1 has boxes of the shape .* but labels", FAULTY_RECORDS),
    (example(image__object__class__label=[3]), "image 1, object 0 has a label outside", "labels that are no class"),
    (example(image__object__class__label=[0]), "image 1, object 0 has a label outside", "labels that are no class"),
    (example(BOX | {"xmin": [0.8]}), "image 1, object 0 has a box with x2 < x1", "inverted boxes"),
    (example(BOX | {"xmin": [float("nan")]}), "image 1, object 0 .*non-finite", "non-finite boxes"),
    (
        example({side: values * 2 for side, values in BOX.items()}, image__object__class__label=[1]),
        "image 1 has",
        FAULTY_RECORDS,
    ),
]


@pytest.mark.parametrize(("bad", "complaint", "kind"), FAULTS)
def test_a_bad_example_is_explained_or_skipped_and_counted(write, bad, complaint, kind):
    file = write(example(), bad, example())
    with pytest.raises(ValueError, match=complaint):
        as_arrays(load_tfrecord(file, NAMES)[0])
    dataset, _ = load_tfrecord(file, NAMES, on_error="skip")
    records = as_arrays(dataset)
    assert dataset.tally.counts() == {kind: 1}
    assert sum(len(record["labels"]) for record in records) == 2


@pytest.mark.parametrize("content", [b"no example", example(image__object__class__label=[1.5])])
def test_what_is_no_example_is_no_silent_end(write, content):
    with pytest.raises(tf.errors.OpError):
        as_arrays(load_tfrecord(write(example(), content), NAMES, on_error="skip")[0])


def test_a_damaged_file_is_no_silent_end(write):
    file = write(example(), example())
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(tf.errors.OpError, match="truncated record"):
        as_arrays(load_tfrecord(file, NAMES, on_error="skip")[0])


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
        "item { id: 1 name: 'cat' keypoints { id: 5 label: 'nose' } keypoints { id: 6 } } item { id: 2 name: 'dog' }",
    ],
)
def test_label_maps_as_they_are_written(write, text):
    assert load_tfrecord(write(example(), label_map=text))[1] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not a label map: it has no item"),
        ("cat\ndog\n", "is not a label map"),
        ("item { id: 1 name: 'cat' ", "is not a label map"),
        ("item { id: 1 name: 'cat' } item { id: 2 name: 'dog }", "is not a label map"),
        ("item { id: 0 name: 'background' }", "an item needs an id from 1 on"),
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
    assert _read_label_map(folder / LABEL_MAP) == dict(enumerate(names, 1))


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
