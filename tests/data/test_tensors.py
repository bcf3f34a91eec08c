import numpy as np
import pytest
import tensorflow as tf

from tfdetr_keras.data import from_dataset, load_tfds, readable_errors
from tfdetr_keras.data.border import EMPTY_BOX
from tfdetr_keras.data.tensors import FAULTY_RECORDS

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


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_channels(channels):
    image = IMAGE[..., 0] if channels is None else np.concatenate([IMAGE, IMAGE], axis=2)[..., :channels]
    (record,) = as_arrays(read(tf.data.Dataset.from_tensors(element(image=image))))
    expected = IMAGE if channels in (3, 4) else np.repeat(IMAGE[..., :1], 3, axis=2)
    np.testing.assert_array_equal(record["image"], expected)


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
    assert dataset.tally.counts() == {"unreadable images": 1}


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
        ({"name": np.array([b"0", b"1"])}, {"iscrowd": "name"}, "'iscrowd' must be true or false, not string"),
        ({"name": np.array([b"0", b"1"])}, {"area": "name"}, "'area' must be numbers, not string"),
        ({}, {"boxes": "bbox"}, r"elements have no 'bbox', only \['boxes', 'image', 'labels'\]"),
        ({}, {"boxes": "boxes/deep"}, r"elements have no 'deep', only"),
        ({}, {"masks": "boxes"}, "fields must name"),
    ],
)
def test_elements_that_cannot_be_records(changes, fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        read(tf.data.Dataset.from_tensors(element(**changes)), fields)


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


# TensorFlow Datasets, but for what tests/data/test_copies.py shows.


def tfds_element(**changes):
    return {"image": IMAGE, "objects": {"bbox": np.float32([[0, 0.1, 0.5, 1]]), "label": np.array([1])}} | changes


@pytest.fixture(scope="module")
def make_builder(tmp_path_factory):
    tfds = pytest.importorskip("tensorflow_datasets")

    def make(features, examples, prepare=True):
        class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.0.0")
            pkg_dir_path = tmp_path_factory.mktemp("package")

            def _info(self):
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features(tfds.features)))

            def _split_generators(self, manager):
                return {"train": self._generate_examples(), "test": self._generate_examples()}

            def _generate_examples(self):
                yield from enumerate(examples)

        builder = Made(data_dir=str(tmp_path_factory.mktemp("data")))
        if prepare:
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        return builder

    return make


def objects(features, **more):
    label = features.ClassLabel(names=NAMES)
    return {
        "image": features.Image(),
        "objects": features.Sequence({"bbox": features.BBoxFeature(), "label": label}),
        **more,
    }


def example(**more):
    box = {"ymin": 0.25, "xmin": 0.1, "ymax": 0.5, "xmax": 1.0}

    def make(features):
        return {"image": IMAGE, "objects": [{"bbox": features.BBox(**box), "label": "dog"}], **more}

    import tensorflow_datasets as tfds

    return make(tfds.features)


def test_a_builder(make_builder):
    builder = make_builder(objects, [example() for _ in range(4)])
    dataset, names = load_tfds(builder, "train[:50%]")
    assert names == NAMES
    first, second = as_arrays(dataset)
    assert (first["image_id"], second["image_id"]) == (0, 1)  # it has no ids
    np.testing.assert_array_equal(first["image"], IMAGE)
    np.testing.assert_allclose(first["boxes"], [[1, 2, 10, 4]], atol=1e-6)
    np.testing.assert_array_equal(first["labels"], [1])
    assert load_tfds(builder, "test", class_names=["a", "b"])[1] == ["a", "b"]
    with pytest.raises(ValueError, match=r"the builder made has no split 'val', only \['test', 'train'\]"):
        load_tfds(builder, "val")


def test_a_builder_whose_ids_are_names(make_builder):
    builder = make_builder(
        lambda features: objects(features, **{"image/id": features.Text()}), [example(**{"image/id": "a"})]
    )
    assert as_arrays(load_tfds(builder)[0])[0]["image_id"] == 0


def test_a_builder_without_data(make_builder):
    with pytest.raises(ValueError, match=r"has no split 'train', only \[\]: is its data prepared"):
        load_tfds(make_builder(objects, [], prepare=False))


@pytest.mark.parametrize(
    ("features", "more", "complaint"),
    [
        (
            lambda f: {"image": f.Image(), "label": f.ClassLabel(names=NAMES)},
            {"label": 1},
            "no detection set: .*no 'objects'",
        ),
        (
            lambda f: {"image": f.Image(), "objects": f.Sequence({"bbox": f.BBoxFeature(), "type": np.int64})},
            {"objects": []},
            "does not know its class names",
        ),
        (
            lambda f: {"image": f.Image(), "objects": f.Sequence({"bbox": f.BBoxFeature(), "label": np.int64})},
            {"objects": []},
            "does not know its class names",
        ),
    ],
    ids=["classification", "no labels", "no names"],
)
def test_a_builder_of_something_else(make_builder, features, more, complaint):
    builder = make_builder(features, [{"image": IMAGE} | more])
    with pytest.raises(ValueError, match=complaint):
        load_tfds(builder)


@pytest.mark.parametrize(
    ("dataset", "complaint"),
    [
        (tf.data.Dataset.from_tensors(IMAGE), "no detection set: its elements have no 'objects'"),
        (tf.data.Dataset.from_tensors((IMAGE, 1)), "no detection set: its elements have no 'objects'"),
        (tf.data.Dataset.from_tensors({"image": IMAGE, "label": 1}), r"no 'objects', they are \['image', 'label'\]"),
        (tf.data.Dataset.from_tensors({"image": IMAGE, "objects": 1}), "no detection set"),
        (tf.data.Dataset.from_tensors({"image": IMAGE, "objects": {"bbox": BOXES}}), "elements have no 'label', only"),
        (tf.data.Dataset.from_tensors(tfds_element()).batch(2), "images must be single"),
    ],
)
def test_a_dataset_of_something_else(dataset, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_tfds(dataset, class_names=NAMES)


def test_a_dataset_does_not_know_its_names():
    dataset = tf.data.Dataset.from_tensors(tfds_element())
    with pytest.raises(ValueError, match="give class_names, or the builder instead"):
        load_tfds(dataset)
    (record,) = as_arrays(load_tfds(dataset, class_names=NAMES)[0])
    np.testing.assert_allclose(record["boxes"], [[1, 0, 10, 4]], atol=1e-6)
    for source in ("coco/2017", [tfds_element()], None):
        with pytest.raises(TypeError, match="source must be a builder"):
            load_tfds(source)
