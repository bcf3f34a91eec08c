import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdetr_keras.data import load_tfds, readable_errors
from tfdetr_keras.data.files import UNREADABLE

# But for what tests/data/test_copies.py shows.
IMAGE = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
BOXES = [[1.0, 2.0, 4.0, 6.0], [0.0, 0.0, 10.0, 8.0]]
NAMES = ["cat", "dog"]


def as_arrays(dataset):
    with readable_errors():
        return list(dataset.as_numpy_iterator())


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


def example(image=IMAGE, **more):
    box = {"ymin": 0.25, "xmin": 0.1, "ymax": 0.5, "xmax": 1.0}

    def make(features):
        return {"image": image, "objects": [{"bbox": features.BBox(**box), "label": "dog"}], **more}

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


def test_a_turned_photograph_stays_as_it_is_stored_whoever_decodes_it(make_builder):
    import tensorflow_datasets as tfds

    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x112] = 6
    Image.fromarray(IMAGE).save(buffer, "PNG", exif=exif)
    builder = make_builder(objects, [example(io.BytesIO(buffer.getvalue()))])
    skipping = {"image": tfds.decode.SkipDecoding()}
    for source in (builder, builder.as_dataset("train"), builder.as_dataset("train", decoders=skipping)):
        (record,) = as_arrays(load_tfds(source, class_names=NAMES)[0])
        np.testing.assert_array_equal(record["image"], IMAGE)
        np.testing.assert_allclose(record["boxes"], [[1, 2, 10, 4]], atol=1e-6)


def test_a_bad_image_of_a_builder_is_named_or_skipped_and_counted(make_builder):
    builder = make_builder(objects, [example(), example(io.BytesIO(b"no image"))])
    with pytest.raises(ValueError, match=r"^image [01] is not an image that can be read"):
        as_arrays(load_tfds(builder)[0])
    dataset, _ = load_tfds(builder, on_error="skip")
    assert len(as_arrays(dataset)) == 1
    assert dataset.tally.counts() == {UNREADABLE: 1}


def test_a_builder_without_data(make_builder):
    with pytest.raises(ValueError, match=r"has no split 'train', only \[\]: is its data prepared"):
        load_tfds(make_builder(objects, [], prepare=False))


@pytest.mark.parametrize(
    ("features", "more", "complaint"),
    [
        (
            lambda f: {"image": f.Image(), "label": f.ClassLabel(names=NAMES)},
            {"label": 1},
            "not a detection set: .*no 'objects'",
        ),
        (
            lambda f: {"image": f.Image(), "objects": f.Sequence({"bbox": f.BBoxFeature(), "type": np.int64})},
            {"objects": []},
            r"'objects' must have 'bbox' and 'label', but has \['bbox', 'type'\]: .* use from_dataset",
        ),
        (
            lambda f: {"image": f.Image(), "objects": f.Sequence({"bbox": f.BBoxFeature(), "label": np.int64})},
            {"objects": []},
            "does not state its class names: give class_names$",
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
        (tf.data.Dataset.from_tensors(IMAGE), "not a detection set: its elements have no 'objects'"),
        (tf.data.Dataset.from_tensors((IMAGE, 1)), "not a detection set: its elements have no 'objects'"),
        (tf.data.Dataset.from_tensors({"image": IMAGE, "label": 1}), r"no 'objects', only \['image', 'label'\]"),
        (tf.data.Dataset.from_tensors({"image": IMAGE, "objects": 1}), "not a detection set"),
        (tf.data.Dataset.from_tensors({"image": IMAGE, "objects": {"bbox": BOXES}}), r"but has \['bbox'\]"),
        (tf.data.Dataset.from_tensors({"objects": {"bbox": BOXES, "label": [1]}}), "elements have no 'image', only"),
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
