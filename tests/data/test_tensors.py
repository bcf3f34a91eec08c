import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdetr_keras.data import from_dataset, readable_errors
from tfdetr_keras.data.files import UNREADABLE
from tfdetr_keras.data.tensors import FAULTY_RECORDS
from tfdetr_keras.data.validation import EMPTY_BOX

FIELDS = {"image": "image", "boxes": "boxes", "labels": "labels"}
IMAGE = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
BOXES = [[1.0, 2.0, 4.0, 6.0], [0.0, 0.0, 10.0, 8.0]]
NAMES = ["cat", "dog"]


def element(**changes):
    return {"image": IMAGE, "boxes": np.float32(BOXES), "labels": np.array([1, 0])} | changes


def dataset_of(*elements):
    """A dataset whose elements may differ in every size."""
    spec = {
        key: tf.TensorSpec([None] * np.ndim(value), tf.as_dtype(np.asarray(value).dtype))
        for key, value in elements[0].items()
    }
    return tf.data.Dataset.from_generator(lambda: iter(elements), output_signature=spec)


def read(dataset, fields=None, box_format="xyxy", relative=False, **options):
    return from_dataset(dataset, FIELDS | (fields or {}), NAMES, box_format, relative, **options)[0]


def as_arrays(dataset):
    with readable_errors():
        return list(dataset.as_numpy_iterator())


def test_what_is_not_given_is_made_up():
    first, second = as_arrays(
        read(dataset_of(element(), element(boxes=np.zeros((0, 4), "f4"), labels=np.array([], int))))
    )
    assert (first["image_id"], second["image_id"]) == (0, 1)
    np.testing.assert_array_equal(first["image"], IMAGE)
    np.testing.assert_array_equal(first["boxes"], BOXES)
    np.testing.assert_array_equal(first["area"], [12, 80])
    assert not first["iscrowd"].any()
    assert second["boxes"].shape == (0, 4)
    assert second["labels"].shape == (0,)


def test_what_is_given_is_taken():
    more = {"image_id": np.int32(77), "iscrowd": np.array([0, 1]), "area": np.array([3.5, -1])}
    (record,) = as_arrays(read(dataset_of(element(**more)), {key: key for key in more}))
    assert record["image_id"] == 77
    np.testing.assert_array_equal(record["iscrowd"], [False, True])
    np.testing.assert_array_equal(record["area"], [3.5, 80])  # below 0: not known


@pytest.mark.parametrize("unknown", [-1.0, np.nan, np.inf, -np.inf, 1e300])
def test_an_area_that_is_not_known_is_the_box_s(unknown):
    (record,) = as_arrays(read(dataset_of(element(area=np.array([3.5, unknown]))), {"area": "area"}))
    np.testing.assert_array_equal(record["area"], [3.5, 80])


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_channels(channels):
    image = IMAGE[..., 0] if channels is None else np.concatenate([IMAGE, IMAGE], axis=2)[..., :channels]
    (record,) = as_arrays(read(tf.data.Dataset.from_tensors(element(image=image))))
    expected = IMAGE if channels in (3, 4) else np.repeat(IMAGE[..., :1], 3, axis=2)
    np.testing.assert_array_equal(record["image"], expected)


def png(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
@pytest.mark.parametrize("rank_is_known", [False, True])
def test_channels_that_only_the_pixels_tell(channels, rank_is_known):
    image = IMAGE[..., 0] if channels is None else np.concatenate([IMAGE, IMAGE], axis=2)[..., :channels]
    spec = {key: tf.TensorSpec(None, tf.as_dtype(np.asarray(value).dtype)) for key, value in element().items()}
    if rank_is_known:
        spec["image"] = tf.TensorSpec([None] * image.ndim, tf.uint8)
    dataset = tf.data.Dataset.from_generator(lambda: iter([element(image=image)]), output_signature=spec)
    (record,) = as_arrays(read(dataset))
    expected = IMAGE if channels in (3, 4) else np.repeat(IMAGE[..., :1], 3, axis=2)
    np.testing.assert_array_equal(record["image"], expected)


def test_images_that_tensorflow_decodes():
    """Whose number of channels, and with animations that of axes, is not known before."""
    files = [png(IMAGE), png(IMAGE[..., 0]), png(np.concatenate([IMAGE, IMAGE[..., :1]], axis=2))]
    dataset = tf.data.Dataset.from_tensor_slices(files).map(
        lambda file: element(image=tf.io.decode_image(file, expand_animations=False))
    )
    colour, grey, alpha = (record["image"] for record in as_arrays(read(dataset)))
    for found in (colour, alpha):
        np.testing.assert_array_equal(found, IMAGE)
    np.testing.assert_array_equal(grey, np.repeat(IMAGE[..., :1], 3, axis=2))


@pytest.mark.parametrize("shape", [(), (5,), (8, 10, 2), (8, 10, 0), (2, 8, 10, 3)])
def test_pixels_that_are_no_image_are_named_or_skipped_and_counted(shape):
    spec = dataset_of(element()).element_spec | {"image": tf.TensorSpec(None, tf.uint8)}
    elements = [element(), element(image=np.zeros(shape, np.uint8)), element()]
    dataset = tf.data.Dataset.from_generator(lambda: iter(elements), output_signature=spec)
    with pytest.raises(ValueError, match=r"^image 1 has the shape \(.*\), not \(height, width, 1, 3 or 4 channels\)"):
        as_arrays(read(dataset))
    quiet = read(dataset, on_error="skip")
    assert [int(record["image_id"]) for record in as_arrays(quiet)] == [0, 2]
    assert quiet.tally.counts() == {UNREADABLE: 1}


def test_the_size_tells_whether_boxes_are_for_pixels_as_stored_or_as_turned():
    exif = Image.Exif()
    exif[0x112] = 6
    sizes = [(8, 10), (10, 8), (0, 0), (0, 10), (9, 9)]
    elements = [element(image=png(IMAGE, exif=exif), size=size) for size in sizes]
    dataset = read(dataset_of(*elements), {"size": "size"}, on_error="skip")
    stored, *turned = (record["image"] for record in as_arrays(dataset))
    np.testing.assert_array_equal(stored, IMAGE)
    assert len(turned) == 3
    for found in turned:
        np.testing.assert_array_equal(found, np.rot90(IMAGE, -1))
    assert dataset.tally.counts() == {UNREADABLE: 1}
    with pytest.raises(ValueError, match=r"^image 0 is 10 x 8 .* but its annotations are for 9 x 9"):
        as_arrays(read(dataset_of(elements[-1]), {"size": "size"}))
    with pytest.raises(ValueError, match="the field 'size' is for image files"):
        read(dataset_of(element(size=(8, 10))), {"size": "size"})


@pytest.mark.parametrize("kind", ["sparse", "ragged"])
def test_other_kinds_of_tensors(kind):
    """As parsers of TFRecord files give them."""

    def change(found):
        if kind == "sparse":
            return found | {"labels": tf.sparse.from_dense(found["labels"] + 1)}
        return found | {"boxes": tf.RaggedTensor.from_tensor(found["boxes"])}

    labels = (lambda found: tf.sparse.to_dense(found["labels"]) - 1) if kind == "sparse" else "labels"
    dataset = tf.data.Dataset.from_tensors(element()).map(change)
    (record,) = as_arrays(read(dataset, {"labels": labels}))
    np.testing.assert_array_equal(record["boxes"], BOXES)
    np.testing.assert_array_equal(record["labels"], [1, 0])
    if kind == "sparse":
        dataset = tf.data.Dataset.from_tensors(element(labels=np.array([1, 1]))).map(
            lambda found: found | {"labels": tf.sparse.from_dense(found["labels"])}
        )
        np.testing.assert_array_equal(as_arrays(read(dataset))[0]["labels"], [1, 1])


def test_places_may_be_nested_or_keys_with_a_slash_or_functions():
    nested = {
        "image/encoded": IMAGE,
        "objects": {"deep": {"bbox": np.float32(BOXES)}},
        "kinds": np.array([b"dog", b"cat"]),
    }
    fields = {
        "image": "image/encoded",
        "boxes": "objects/deep/bbox",
        "labels": lambda found: tf.strings.lower(tf.strings.upper(found["kinds"])),
    }
    (record,) = as_arrays(read(tf.data.Dataset.from_tensors(nested), fields))
    np.testing.assert_array_equal(record["labels"], [1, 0])


FAULTS = [
    ({"labels": np.array([1, 2])}, r"image 1, object 1 has a label outside 0\.\.1", "labels that are no class"),
    ({"boxes": np.float32([[4, 2, 1, 6], BOXES[1]])}, "image 1, object 0 has a box with x2 < x1", "inverted boxes"),
    ({"boxes": np.float32([[4, 2, np.nan, 6], BOXES[1]])}, "image 1, object 0 .*non-finite", "non-finite boxes"),
    (
        {"labels": np.array([1])},
        r"image 1 has boxes of the shape \(2, 4\) but labels of the shape \(1,\)",
        FAULTY_RECORDS,
    ),
    ({"boxes": np.zeros((2, 5), "f4")}, r"image 1 has boxes of the shape \(2, 5\), not", FAULTY_RECORDS),
    ({"boxes": np.zeros((2, 0), "f4")}, r"image 1 has boxes of the shape \(2, 0\), not", FAULTY_RECORDS),
    ({"boxes": np.zeros((0, 4), "f4")}, r"image 1 has boxes of the shape \(0, 4\) but labels", FAULTY_RECORDS),
    ({"image": IMAGE[:0]}, r"image 1 is 0 x 10 \(height x width\): it has no pixels", FAULTY_RECORDS),
]


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(("changes", "complaint", "kind"), FAULTS)
def test_a_bad_element_is_explained_or_skipped_and_counted(changes, complaint, kind, relative):
    elements = [element(), element(**changes), element()]
    if relative:
        scale = np.float32([10, 8, 10, 8])
        for found in elements:
            found["boxes"] = found["boxes"] / scale if found["boxes"].shape[1] == 4 else found["boxes"]
    for found in elements:
        found["image"] = found["image"].astype(np.uint8)
    with pytest.raises(ValueError, match=complaint):
        as_arrays(read(dataset_of(*elements), relative=relative))
    dataset = read(dataset_of(*elements), relative=relative, on_error="skip")
    records = as_arrays(dataset)
    assert dataset.tally.counts() == {kind: 1}
    if kind == FAULTY_RECORDS:
        assert [int(record["image_id"]) for record in records] == [0, 2]
    else:
        assert [len(record["labels"]) for record in records] == [2, 1, 2]


@pytest.mark.parametrize(("changes", "complaint", "kind"), FAULTS)
def test_what_is_left_out_is_counted_though_image_ids_repeat(changes, complaint, kind):
    elements = [element(image_id=7), element(**changes, image_id=7), element(**changes, image_id=7)]
    fields = {"image_id": "image_id"}
    with pytest.raises(ValueError, match=complaint.replace("image 1", r"^record 1 \(image 7\)")):
        as_arrays(read(dataset_of(*elements), fields))
    dataset = read(dataset_of(*elements), fields, on_error="skip")
    for _ in range(2):  # epochs, over which nothing is counted twice
        as_arrays(dataset)
        assert dataset.tally.counts() == {kind: 2}


def test_an_unknown_name_is_told():
    bad = element(labels=np.array(["dog", "cöw"], object))
    with pytest.raises(ValueError, match=r"image 0, object 1 \('cöw'\) has a label outside 0\.\.1"):
        as_arrays(read(dataset_of(bad)))


def test_boxes_outside_are_counted():
    dataset = read(dataset_of(element(boxes=np.float32([[11, 0, 12, 5], [-3, -3, 99, 99]]))))
    np.testing.assert_array_equal(as_arrays(dataset)[0]["boxes"], [[0, 0, 10, 8]])
    assert dataset.tally.counts() == {EMPTY_BOX: 1}


def test_nothing_of_an_unreadable_image_is_counted_but_itself():
    dataset = read(dataset_of(element(image=b"no image", labels=np.array([9, 9]))), on_error="skip")
    assert as_arrays(dataset) == []
    assert dataset.tally.counts() == {UNREADABLE: 1}


@pytest.mark.parametrize(
    ("changes", "fields", "complaint"),
    [
        ({"image": IMAGE / 255}, {}, "'image' must be uint8 levels 0 .. 255 or the bytes of a file, not float64"),
        ({"image": np.stack([IMAGE, IMAGE])}, {}, r"images must be single, \(height, width, 1, 3 or 4 channels\), not"),
        ({"image": np.zeros((8, 10, 2), np.uint8)}, {}, "images must be single"),
        ({"image": np.array([b"a", b"b"])}, {}, "elements must be single images, not batches"),
        ({"labels": np.array([0.0, 1.0])}, {}, "'labels' must be whole numbers or names, not float64"),
        ({"boxes": np.array(["a"])}, {}, "'boxes' must be numbers, not string"),
        ({"name": np.array(b"a.jpg")}, {"image_id": "name"}, "'image_id' must be whole numbers, not string"),
        ({"name": np.array([b"8", b"9"])}, {"size": "name"}, "'size' must be whole numbers, not string"),
        ({"name": np.array([b"0", b"1"])}, {"iscrowd": "name"}, "'iscrowd' must be true or false, not string"),
        ({"name": np.array([b"0", b"1"])}, {"area": "name"}, "'area' must be numbers, not string"),
        ({}, {"boxes": "bbox"}, r"elements have no 'bbox', only \['boxes', 'image', 'labels'\]"),
        ({}, {"boxes": "boxes/deep"}, r"elements have no 'deep', only"),
        ({}, {"masks": "boxes"}, "fields must name"),
        (
            {"inner": {"boxes": np.float32(BOXES)}},
            {"boxes": "inner"},
            r"must be a tensor, not a dict of \['boxes'\], whose",
        ),
        ({}, {"area": lambda found: None}, "'area' must be a tensor, not a NoneType"),
    ],
)
def test_elements_that_cannot_be_records(changes, fields, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        read(tf.data.Dataset.from_tensors(element(**changes)), fields)
    assert len(str(caught.value).splitlines()) == 1  # nothing of TensorFlow's


def test_what_a_function_of_your_own_raises_comes_as_it_is():
    def boxes(found):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError) as caught:
        read(dataset_of(element()), {"boxes": boxes})
    assert str(caught.value) == "mine"


def test_arguments_that_cannot_work():
    dataset = dataset_of(element())
    with pytest.raises(ValueError, match="box_format must be one of"):
        read(dataset, box_format="ltrb")
    with pytest.raises(ValueError, match="fields must name"):
        from_dataset(dataset, {"image": "image"}, NAMES, "xyxy", False)
    with pytest.raises(ValueError, match="on_error must be"):
        read(dataset, on_error="ignore")
    with pytest.raises(ValueError, match="the set is empty"):
        read(tf.data.Dataset.from_tensors(element()).take(0))
    with pytest.raises(TypeError, match=r"must be a tf\.data\.Dataset, not list"):
        read([element()])
    tuples = dataset.map(lambda found: (found["image"], found["boxes"], found["labels"]))
    with pytest.raises(ValueError, match="elements have no 'image', only tuple"):
        read(tuples)
    fields = {"image": lambda found: found[0], "boxes": lambda found: found[1], "labels": lambda found: found[2]}
    assert len(as_arrays(read(tuples, fields))) == 1


def test_records_are_read_while_they_are_asked_for():
    made = []

    def elements():
        for number in range(100_000):
            made.append(number)
            yield element()

    spec = dataset_of(element()).element_spec
    dataset = read(tf.data.Dataset.from_generator(elements, output_signature=spec))
    assert made == []
    assert len(list(dataset.take(5))) == 5
    assert len(made) < 500
