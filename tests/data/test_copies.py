"""The same images and boxes in every format: whatever a set is kept in, its records are the same."""

import json
import os
from types import SimpleNamespace
from xml.sax.saxutils import escape

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdetr_keras as td
from tfdetr_keras.data import (
    from_dataset,
    load_coco,
    load_tfds,
    load_tfrecord,
    load_voc,
    load_yolo,
    prepare,
    write_tfrecord,
)

IMAGES = 12
# Levels that TensorFlow's JPEG decoder may differ from Pillow's: it takes a faster inverse DCT, which rounds otherwise.
DECODERS_DIFFER = 24
TOLERANCE = 2e-4  # pixels; measured 3e-5, of relative boxes in float32


def sample(home, files, dataset, names):
    """A sample in its own format: its files, its records, its class names and a folder beside."""
    records = list(dataset.as_numpy_iterator())
    assert len(records) == len(files) == IMAGES
    assert sum(len(record["labels"]) for record in records) > 3 * IMAGES
    return SimpleNamespace(home=home, files=files, records=records, names=names)


@pytest.fixture(scope="session")
def coco_sample(coco128, tmp_path_factory):
    content = json.loads((coco128 / "annotations/instances_train2017.json").read_text())
    crowded = {entry["image_id"] for entry in content["annotations"] if entry["iscrowd"]}
    entries = [entry for entry in content["images"] if entry["id"] not in crowded]
    content["images"] = sorted(entries, key=lambda entry: entry["file_name"])[:IMAGES]
    chosen = {entry["id"] for entry in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in chosen]
    home = tmp_path_factory.mktemp("coco")
    (home / "sample.json").write_text(json.dumps(content))
    files = [coco128 / "images" / entry["file_name"] for entry in content["images"]]
    return sample(home, files, *load_coco(coco128 / "images", home / "sample.json"))


@pytest.fixture(scope="session")
def bccd_sample(bccd, tmp_path_factory):
    home = tmp_path_factory.mktemp("bccd")
    lines = (bccd / "ImageSets/Main/train.txt").read_text().splitlines()[:IMAGES]
    (home / "sample.txt").write_text("\n".join(lines))
    files = [bccd / "JPEGImages" / f"{line}.jpg" for line in lines]
    return sample(home, files, *load_voc(bccd / "JPEGImages", bccd / "Annotations", home / "sample.txt"))


def linked(files, folder):
    folder.mkdir(parents=True)
    for file in files:
        os.symlink(file.resolve(), folder / file.name)
    return folder


def coco_copy(source, folder):
    annotations = [
        {"image_id": int(record["image_id"]), "category_id": 5 + 2 * int(label), "bbox": [x, y, x2 - x, y2 - y]}
        | {"area": float(area), "iscrowd": 0}
        for record in source.records
        for label, area, (x, y, x2, y2) in zip(record["labels"], record["area"], record["boxes"].tolist(), strict=True)
    ]
    images = [
        {"id": int(record["image_id"]), "file_name": f"images/{file.name}"}
        | dict(zip(("height", "width"), record["orig_size"].tolist(), strict=True))
        for record, file in zip(source.records, source.files, strict=True)
    ]
    categories = [{"id": 5 + 2 * label, "name": name} for label, name in enumerate(source.names)]
    linked(source.files, folder / "images")
    content = {"images": images, "annotations": annotations, "categories": categories[::-1]}
    (folder / "set.json").write_text(json.dumps(content))
    return load_coco(folder, folder / "set.json")


def voc_copy(one_based):
    def copy(source, folder):
        linked(source.files, folder / "JPEGImages")
        (folder / "Annotations").mkdir()
        for record, file in zip(source.records, source.files, strict=True):
            objects = "".join(
                f"<object><name>{escape(source.names[label])}</name><bndbox>"
                + "".join(
                    f"<{side}>{value}</{side}>"
                    for side, value in zip(("xmin", "ymin", "xmax", "ymax"), np.float64(box) + shift, strict=True)
                )
                + "</bndbox></object>"
                for label, box in zip(record["labels"], record["boxes"], strict=True)
                for shift in [[1, 1, 0, 0] if one_based else [0, 0, 0, 0]]
            )
            height, width = record["orig_size"]
            size = f"<size><width>{width}</width><height>{height}</height></size>"
            text = f"<annotation><filename>{file.name}</filename>{size}{objects}</annotation>"
            (folder / "Annotations" / f"{file.stem}.xml").write_text(text)
        # Not all classes occur in the sample, and not in alphabetical order.
        return load_voc(folder / "JPEGImages", folder / "Annotations", None, source.names, one_based)

    return copy


def yolo_copy(source, folder):
    linked(source.files, folder / "images/train")
    (folder / "labels/train").mkdir(parents=True)
    for record, file in zip(source.records, source.files, strict=True):
        x, y, x2, y2 = np.float64(record["boxes"]).T
        height, width = record["orig_size"]
        table = np.stack([(x + x2) / 2 / width, (y + y2) / 2 / height, (x2 - x) / width, (y2 - y) / height], axis=1)
        lines = [
            f"{label} " + " ".join(f"{value:.9f}" for value in row)
            for label, row in zip(record["labels"], table, strict=True)
        ]
        if lines:
            (folder / "labels/train" / f"{file.stem}.txt").write_text("\n".join(lines))
    names = json.dumps(dict(enumerate(source.names)))
    (folder / "data.yaml").write_text(f"train: images/train\nnames: {names.replace(chr(34), '')}\n")
    return load_yolo(folder)


def builder_of(source, folder):
    """A builder of TensorFlow Datasets whose data is prepared: the JPEG files as they are."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Sample(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = folder  # where its licence and the like would be

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "image/id": np.int64,
                "objects": tfds.features.Sequence(
                    {
                        "bbox": tfds.features.BBoxFeature(),
                        "label": tfds.features.ClassLabel(names=source.names),
                        "is_crowd": np.bool_,
                        "area": np.float32,
                    }
                ),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for record, file in zip(source.records, source.files, strict=True):
                scale = 1 / np.float64(record["orig_size"])[[0, 1, 0, 1]]
                objects = [
                    {"bbox": tfds.features.BBox(*box), "label": int(label), "is_crowd": False, "area": float(area)}
                    for box, label, area in zip(
                        np.minimum(record["boxes"][:, [1, 0, 3, 2]] * scale, 1),
                        record["labels"],
                        record["area"],
                        strict=True,
                    )
                ]
                yield file.name, {"image": str(file), "image/id": int(record["image_id"]), "objects": objects}

    builder = Sample(data_dir=str(folder / "tfds"))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return builder


def tfds_copy(source, folder):
    return load_tfds(builder_of(source, folder))


def decoded_tfds_copy(source, folder):
    return load_tfds(builder_of(source, folder).as_dataset(split="train"), class_names=source.names)


def tfrecord_copy(shards):
    def copy(source, folder):
        dataset = tf.data.Dataset.from_generator(lambda: iter(source.records), output_signature=spec())
        assert write_tfrecord(dataset, folder, source.names, shards=shards) == IMAGES
        return load_tfrecord(folder / "set-*.tfrecord")

    def spec():
        return td.data.load_shapes(1)[0].element_spec

    return copy


def own_dataset(box_format, relative):
    """Elements with names of their own, the classes by name and the image by its file's bytes."""

    def copy(source, folder):
        def elements():
            for record, file in zip(source.records, source.files, strict=True):
                x, y, x2, y2 = np.float64(record["boxes"]).T
                columns = {
                    "xyxy": [x, y, x2, y2],
                    "yxyx": [y, x, y2, x2],
                    "xywh": [x, y, x2 - x, y2 - y],
                    "cxcywh": [(x + x2) / 2, (y + y2) / 2, x2 - x, y2 - y],
                }
                boxes = np.stack(columns[box_format], axis=1)
                if relative:
                    height, width = record["orig_size"]
                    boxes /= [height, width] * 2 if box_format == "yxyx" else [width, height] * 2
                kinds = np.array([source.names[label] for label in record["labels"]], object)
                yield {"picture": file.read_bytes(), "found": {"where": boxes, "kind": kinds}, "no": record["image_id"]}

        signature = {
            "picture": tf.TensorSpec((), tf.string),
            "found": {"where": tf.TensorSpec((None, 4), tf.float64), "kind": tf.TensorSpec((None,), tf.string)},
            "no": tf.TensorSpec((), tf.int32),
        }
        dataset = tf.data.Dataset.from_generator(elements, output_signature=signature)
        fields = {"image": "picture", "boxes": "found/where", "labels": lambda element: element["found"]["kind"]}
        return from_dataset(dataset, fields | {"image_id": "no"}, source.names, box_format, relative)

    return copy


COPIES = {
    "coco": coco_copy,
    "voc from 0": voc_copy(False),
    "voc from 1": voc_copy(True),
    "yolo": yolo_copy,
    "tfds": tfds_copy,
    "tfds decoded": decoded_tfds_copy,
    "tfrecord": tfrecord_copy(1),
    "tfrecord shards": tfrecord_copy(5),
    **{
        f"{box_format} {'relative' if relative else 'pixels'}": own_dataset(box_format, relative)
        for box_format in ("xyxy", "xywh", "cxcywh", "yxyx")
        for relative in (False, True)
    },
}
WITH_AREA = {"coco", "tfds", "tfds decoded", "tfrecord", "tfrecord shards"}
IN_ANY_ORDER = {"tfds", "tfds decoded"}  # TensorFlow Datasets shuffles what it writes


@pytest.mark.parametrize("name", ["coco_sample", "bccd_sample"])
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind == "tfds" else kind for kind in COPIES]
)
def test_a_copy_has_the_same_records(name, kind, tmp_path, request):
    source = request.getfixturevalue(name)
    dataset, names = COPIES[kind](source, tmp_path)
    found = list(dataset.as_numpy_iterator())
    assert names == source.names
    assert dataset.tally.counts() == {}
    if kind in IN_ANY_ORDER:
        found.sort(key=lambda record: record["image_id"])
    assert [int(record["image_id"]) for record in found] == [int(record["image_id"]) for record in source.records]
    for record, expected in zip(found, source.records, strict=True):
        assert record.keys() == expected.keys()
        assert {key: value.dtype for key, value in record.items()} == {k: v.dtype for k, v in expected.items()}
        levels = np.abs(record["image"].astype(int) - expected["image"])
        assert levels.max() <= (DECODERS_DIFFER if kind == "tfds decoded" else 0)
        assert levels.mean() < 4
        np.testing.assert_allclose(record["boxes"], expected["boxes"], rtol=0, atol=TOLERANCE)
        for key in ("orig_size", "labels", "iscrowd"):
            np.testing.assert_array_equal(record[key], expected[key])
        sides = expected["boxes"][:, 2:] - expected["boxes"][:, :2]
        np.testing.assert_allclose(
            record["area"], expected["area"] if kind in WITH_AREA else sides.prod(axis=1), rtol=1e-4, atol=1e-2
        )


@pytest.fixture(scope="module")
def model():
    backbone = td.ResNetConfig(block="basic", depths=(1, 1), channels=(8, 16), stem_channels=8)
    config = td.DETRConfig(
        backbone=backbone,
        num_classes=80,
        num_queries=40,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        dropout=0.0,
    )
    model = td.DETR(config)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), jit_compile=False)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["coco", "voc from 0", "yolo", "tfds", "tfrecord", "cxcywh relative"])
def test_a_copy_trains(coco_sample, kind, tmp_path, model):
    """All images make one batch, so that its loss is another only by what was learned."""
    dataset, _ = COPIES[kind](coco_sample, tmp_path)
    batches = prepare(dataset, IMAGES, True, (64, 96), pad_to=(96, 96), max_boxes=40, augmentation="none", repeat=True)
    losses = model.fit(batches, epochs=3, steps_per_epoch=1, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert np.abs(np.diff(losses)).min() > 1e-4
