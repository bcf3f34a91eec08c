import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdetr_keras.cli.sources import KINDS, load_source, read_class_names
from tfdetr_keras.data import load_shapes, write_tfrecord

# One image of 20 x 40 (height x width) with a dog; columns 4 to 12, rows 2 to 10.
BOX = [4, 2, 12, 10]
XML = """<annotation><filename>1.png</filename><size><width>40</width><height>20</height></size><object>
<name>dog</name><bndbox><xmin>4</xmin><ymin>2</ymin><xmax>12</xmax><ymax>10</ymax></bndbox></object></annotation>"""


@pytest.fixture
def made(tmp_path):
    """The arguments for each kind of data, of which all but the shapes are written here."""
    for folder in ("images", "images/val", "labels/val", "xml", "records"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(tmp_path / "images/1.png")
    Image.new("RGB", (40, 20)).save(tmp_path / "images/val/1.png")
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 20, "width": 40}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 2, 8, 8]}],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    (tmp_path / "segments").mkdir()
    segment = Image.new("RGB", (40, 20))
    segment.paste((5, 0, 0), tuple(BOX))
    segment.save(tmp_path / "segments/1.png")
    info = [{"id": 5, "category_id": 1, "bbox": [4, 2, 8, 8]}]
    panoptic = content | {"annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": info}]}
    (tmp_path / "panoptic.json").write_text(json.dumps(panoptic))
    (tmp_path / "xml/1.xml").write_text(XML)
    (tmp_path / "labels/val/1.txt").write_text("0 0.2 0.3 0.2 0.4")
    (tmp_path / "classes.txt").write_text("dog\n")
    write_tfrecord(load_shapes(1)[0], tmp_path / "records", ["circle", "square", "triangle"])
    return {
        "coco": {"images": tmp_path / "images", "annotations": tmp_path / "set.json"},
        "coco-panoptic": {
            "images": tmp_path / "images",
            "annotations": tmp_path / "panoptic.json",
            "segments": tmp_path / "segments",
        },
        "voc": {"images": tmp_path / "images", "annotations": tmp_path / "xml", "zero_based": True},
        "yolo": {"images": tmp_path, "split": "val"},
        "tfrecord": {"annotations": str(tmp_path / "records/*.tfrecord")},
        "shapes": {},
    }


@pytest.mark.parametrize("kind", ["coco", "coco-panoptic", "voc", "yolo"])
def test_each_kind_of_files_gives_the_same_record(made, kind):
    dataset, names = load_source(kind, **made[kind])
    (record,) = dataset.as_numpy_iterator()
    assert names == ["dog"]
    np.testing.assert_allclose(record["boxes"], [BOX], rtol=1e-6)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("kind", ["coco", "coco-panoptic"])
def test_cocos_own_category_ids_and_masks(made, kind, masks):
    dataset, names = load_source(kind, **made[kind], masks=masks, category_ids="original")
    (record,) = dataset.as_numpy_iterator()
    assert names == ["N/A", "dog"]
    assert record["labels"].tolist() == [1]
    assert ("masks" in record) == (masks or kind == "coco-panoptic")  # whose records always have them


def test_corners_count_from_one_unless_told(made):
    del made["voc"]["zero_based"]
    (record,) = load_source("voc", **made["voc"])[0].as_numpy_iterator()
    np.testing.assert_array_equal(record["boxes"], [[3, 1, 12, 10]])


def test_records_and_shapes(made):
    (record,) = load_source("tfrecord", **made["tfrecord"])[0].as_numpy_iterator()
    shapes, names = load_source("shapes")
    first = next(shapes.as_numpy_iterator())
    assert names == ["circle", "square", "triangle"]
    np.testing.assert_array_equal(record["image"], first["image"])
    np.testing.assert_array_equal(record["labels"], first["labels"])
    assert load_source("shapes", class_names=["square"])[1] == ["square"]


def test_tensorflow_datasets(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    objects = {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "objects": tfds.features.Sequence(objects)})
    box = tfds.features.BBox(ymin=0.1, xmin=0.1, ymax=0.5, xmax=0.3)
    example = {"image": np.zeros((20, 40, 3), np.uint8), "objects": [{"bbox": box, "label": "dog"}]}
    content = features.serialize_example(features.encode_example(example))
    folder = tmp_path / "pets/1.0.0"
    folder.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(folder / "pets-val.tfrecord-00000-of-00001")) as writer:
        writer.write(content)
    template = tfds.core.ShardedFileTemplate(folder, dataset_name="pets", split="val", filetype_suffix="tfrecord")
    split = tfds.core.SplitInfo(name="val", shard_lengths=[1], num_bytes=len(content), filename_template=template)
    tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=[split])
    dataset, names = load_source("tfds", annotations=folder, split="val")
    (record,) = dataset.as_numpy_iterator()
    assert names == ["cat", "dog"]
    np.testing.assert_allclose(record["boxes"], [BOX], rtol=1e-6)
    with pytest.raises(ValueError, match=r"pets is not the folder of a prepared builder.*the folder of the version"):
        load_source("tfds", annotations=tmp_path / "pets")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("csv", {}, "data must be one of coco, coco-panoptic, .*, not 'csv'"),
        ("coco", {"images": "x"}, "of the kind coco needs --annotations .the JSON file"),
        ("voc", {}, "of the kind voc needs --images .the folder of the images. and --annotations"),
        ("shapes", {"split": "val"}, "of the kind shapes does not use --split, only --class-names"),
        ("coco", {"images": "x", "annotations": "y", "zero_based": True}, "does not use --zero-based"),
        ("coco", {"images": "x", "annotations": "y", "segments": "z"}, "does not use --segments"),
        ("coco-panoptic", {"images": "x", "annotations": "y"}, "needs --segments .the folder of the PNG files"),
        ("yolo", {"images": "x", "category_ids": "original"}, "does not use --category-ids"),
    ],
)
def test_options_must_suit_the_kind(kind, options, message):
    with pytest.raises(ValueError, match=message):
        load_source(kind, **options)


def test_each_kind_says_which_options_it_has():
    names = set(load_source.__annotations__)
    for kind in KINDS.values():
        assert {*kind.needs, *kind.takes} <= names


def test_class_names_of_a_file(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("cat\n traffic light \n\n", encoding="utf-8")
    assert read_class_names(file) == ["cat", "traffic light"]
    for wrong in ("", "cat\n\ndog", "cat\ndog\ncat"):
        file.write_text(wrong)
        with pytest.raises(ValueError, match=r"names\.txt must hold one class name a line"):
            read_class_names(file)
    with pytest.raises(ValueError, match=r"there is no file .*none\.txt of class names"):
        read_class_names(tmp_path / "none.txt")
