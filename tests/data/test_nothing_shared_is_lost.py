"""Images that share a file, a name or a label file, annotations that share an id, and areas that say nothing."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

from tfdetr_keras.cli import main
from tfdetr_keras.data import load_coco, load_voc, load_yolo
from tfdetr_keras.data.areas import NOT_BELIEVED, not_believed, segmentation_area
from tfdetr_keras.data.coco import SHARED_IDS
from tfdetr_keras.data.coco_json import REPEATED_ANNOTATIONS, REPEATED_FILES
from tfdetr_keras.data.voc import WITHOUT_ANNOTATIONS
from tfdetr_keras.data.yolo import SHARED_LABELS

CONTENT = {
    "images": [
        {"id": 30, "file_name": "a.png", "height": 20, "width": 40},
        {"id": 10, "file_name": "b.png", "height": 30, "width": 16},
    ],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 30, "category_id": 1, "bbox": [5, 10, 20.5, 50]},
        {"id": 2, "image_id": 10, "category_id": 1, "bbox": [1, 2, 3, 4]},
        {"id": 3, "image_id": 10, "category_id": 1, "bbox": [0, 0, 16, 30]},
    ],
}
LINE = "1 0.5 0.5 0.5 0.25"


@pytest.fixture
def coco(tmp_path):
    """Writes images and the JSON file after a change to its content."""

    def coco(change):
        content = copy.deepcopy(CONTENT)
        for entry in content["images"]:
            Image.new("L", (entry["width"], entry["height"])).save(tmp_path / entry["file_name"])
        change(content)
        (tmp_path / "set.json").write_text(json.dumps(content))
        return tmp_path, tmp_path / "set.json"

    return coco


def as_arrays(dataset):
    return list(dataset.as_numpy_iterator())


def counts(dataset):
    return [len(record["labels"]) for record in as_arrays(dataset)]


@pytest.mark.parametrize("ids", [[0] * 3, [1, 1, 2], ["a"] * 3, [0, 0, None]])
def test_annotations_that_share_an_id_are_all_there(coco, ids):
    def change(content):
        for annotation, own_id in zip(content["annotations"], ids, strict=True):
            annotation["id"] = own_id

    dataset, _ = load_coco(*coco(change))
    assert counts(dataset) == [1, 2]
    assert set(dataset.tally.noticed()) == {SHARED_IDS}
    assert "annotations[1] (image 10, " in dataset.tally.descriptions(SHARED_IDS)[0]


def test_an_annotation_that_is_listed_twice(coco):
    files = coco(lambda content: content["annotations"].append(content["annotations"][1]))
    with pytest.raises(ValueError, match=r"annotations\[3\] .*is annotations\[1\] once more, with the same id 2"):
        load_coco(*files)
    dataset, _ = load_coco(*files, on_error="skip")
    assert counts(dataset) == [1, 2]
    assert dataset.tally.counts() == {REPEATED_ANNOTATIONS: 1}


TRIANGLE = [[2, 2, 14, 2, 2, 22]]  # 120 pixels²


@pytest.mark.parametrize(
    ("area", "segmentation", "expected", "told"),
    [
        (0, None, 480, True),
        (0.0, TRIANGLE, 120, True),
        (0, {"counts": [7, 473], "size": [30, 16]}, 473, True),
        (0, {"counts": [0, 7, 473], "size": [30, 16]}, 7, True),
        (0, [], 480, True),
        (0, "no segmentation", 480, True),
        (0, {"counts": "11", "size": [30, 16]}, 480, True),
        (0.002, TRIANGLE, 120, True),  # a share of the image
        (640 * 480, TRIANGLE, 120, True),
        (640 * 480, [[2, 2, 1000, 2, 2, 1000]], 480, True),
        (None, TRIANGLE, 480, False),
        (1, None, 1, False),
        (500, None, 500, False),  # a mask may be a pixel wider than its box
    ],
)
def test_an_area_that_cannot_be_believed_is_measured(coco, area, segmentation, expected, told):
    change = {"area": area, "segmentation": segmentation}
    dataset, _ = load_coco(*coco(lambda content: content["annotations"][2].update(change)))
    np.testing.assert_allclose(as_arrays(dataset)[1]["area"], [12, expected])
    found = dataset.tally.noticed().get(NOT_BELIEVED, [])
    assert len(found) == told
    assert all("annotations[2] (image 10, " in text and f"taken for {expected:g} pixels" in text for text in found)


def test_the_areas_of_real_objects_are_all_believed(coco128):
    """And the area of a segmentation is what COCO states, but for pixels at its edge."""
    content = json.loads((coco128 / "annotations/instances_train2017.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    boxes = np.array([entry["bbox"] for entry in content["annotations"]])
    areas = np.array([entry["area"] for entry in content["annotations"]])
    assert not not_believed(areas, np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)).any()
    for one in content["annotations"]:
        if not one["iscrowd"]:
            own = segmentation_area(one["segmentation"], *sizes[one["image_id"]])
            np.testing.assert_allclose(own, one["area"], rtol=0.02, atol=2)


@pytest.mark.parametrize("name", ["a.png", "./a.png", "sub/../a.png"])
def test_two_images_of_one_file_are_named_or_joined(coco, name):
    change = {"file_name": name, "height": 20, "width": 40}
    folder, file = coco(lambda content: content["images"][1].update(change))
    (folder / "sub").mkdir()
    with pytest.raises(ValueError, match=r"images\[0\] \(id 30\) and images\[1\] \(id 10\) are one file, .*a\.png; "):
        load_coco(folder, file)
    dataset, _ = load_coco(folder, file, on_error="skip")
    assert [(int(record["image_id"]), len(record["labels"])) for record in as_arrays(dataset)] == [(30, 3)]
    assert dataset.tally.counts() == {REPEATED_FILES: 1}


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("sub/a.png", "sub/a.PNG", "sub/a.bmp")])
def test_images_that_share_a_label_file_are_named(write, names):
    labels = f"labels/{names[0].rsplit('.', 1)[0]}.txt"
    folder = write(**{f"images/{name}": Image for name in names}, **{labels: LINE, "classes.txt": "a\nb"})
    with pytest.raises(ValueError, match=r"/a\..* and .*/a\..* have one label file, .*a\.txt; remove or"):
        load_yolo(folder)
    dataset, _ = load_yolo(folder, on_error="skip")
    assert counts(dataset) == [1]
    assert dataset.tally.counts() == {SHARED_LABELS: len(names) - 1}
    write(**{"images/b.png": Image, "labels/b.txt": LINE})
    (folder / labels).unlink()  # without objects, they may have one stem
    assert len(as_arrays(load_yolo(folder)[0])) == len(names) + 1


def page(file_name, name="cat"):
    sides = "".join(f"<{side}>{value}</{side}>" for side, value in {"xmin": 3, "ymin": 4, "xmax": 9, "ymax": 9}.items())
    thing = f"<object><name>{name}</name><bndbox>{sides}</bndbox></object>"
    return f"<annotation><filename>{file_name}</filename>{thing}</annotation>"


@pytest.mark.parametrize("file_name", ["a", "earlier.jpg"])
def test_two_images_that_a_file_may_be_of_are_named(write, file_name):
    folder = write(**{"images/a.png": Image, "images/a.jpg": Image, "labels/a.xml": page(file_name)})
    with pytest.raises(ValueError, match=r"a\.xml does not say which image it is for: .*a\.jpg, .*a\.png"):
        load_voc(folder / "images", folder / "labels")
    write(**{"labels/a.xml": page("a.jpg")})
    assert load_voc(folder / "images", folder / "labels")[0].tally.counts() == {WITHOUT_ANNOTATIONS: 1}


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        *((encoding, "行人") for encoding in ("gb2312", "GBK", "gb18030", "big5", "utf-16")),
        *(("Shift_JIS", "歩行者"), ("euc-jp", "歩行者"), ("euc-kr", "사람"), ("windows-1251", "люди")),
    ],
)
def test_the_encoding_that_an_xml_file_declares(write, encoding, name):
    text = f'<?xml version="1.0" encoding="{encoding}"?>\r\n{page("a.png", name)}'
    folder = write(**{"images/a.png": Image, "labels/a.xml": text.encode(encoding)})
    dataset, names = load_voc(folder / "images", folder / "labels")
    assert names == [name]
    assert counts(dataset) == [1]


@pytest.mark.parametrize("encoding", ["gbk", "klingon", "hex", "zlib", "shift_jis"])
def test_a_wrong_encoding_names_the_remedy(write, encoding):
    text = f'<?xml version="1.0" encoding="{encoding}"?>{page("a.png", "ÿ")}'
    folder = write(**{"images/a.png": Image, "labels/a.xml": text.encode("latin1")})
    with pytest.raises(ValueError, match=r"a\.xml is not valid XML: .*save it as UTF-8, or let its first line name"):
        load_voc(folder / "images", folder / "labels")


def test_no_entity_grows_in_any_encoding(write):
    entities = '<!ENTITY a0 "aaaaaaaaaa">'
    entities += "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 9))
    text = f'<?xml version="1.0" encoding="gbk"?><!DOCTYPE a [{entities}]>{page("a.png", "&a8;人")}'
    folder = write(**{"images/a.png": Image, "labels/a.xml": text.encode("gbk")})
    with pytest.raises(ValueError, match=r"a\.xml is not valid XML: limit on input amplification"):
        load_voc(folder / "images", folder / "labels")


CVAT = {
    "obj.data": "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
    "obj.names": "cat\ndog\n",
    "train.txt": "data/obj_train_data/sub/a.png\ndata/obj_train_data/b.png\n",
    "obj_train_data/sub/a.png": Image,
    "obj_train_data/sub/a.txt": f"{LINE}\n",
    "obj_train_data/b.png": Image,
    "obj_train_data/b.txt": "",
}


@pytest.mark.parametrize("without", [(), ("obj.data",)])
@pytest.mark.parametrize("split", [None, "train"])
def test_cvats_export(write, without, split):
    folder = write(**{name: content for name, content in CVAT.items() if name not in without})
    dataset, names = load_yolo(folder, split)
    assert names == ["cat", "dog"]
    assert counts(dataset) == [0, 1]
    assert dataset.tally.counts() == {}
    with pytest.raises(ValueError, match=r"has no split 'val'; its splits are: train$"):
        load_yolo(folder, "val")


def test_cvats_names_that_only_its_description_tells(write):
    files = {name: content for name, content in CVAT.items() if name != "obj.names"} | {"lists/my.names": "cat\ndog"}
    files["obj.data"] = files["obj.data"].replace("obj.names", "lists/my.names")
    assert load_yolo(write(**files))[1] == ["cat", "dog"]


@pytest.mark.parametrize("above", ["set", "images/mine"])
def test_the_flat_folder_of_labelimg(write, above):
    files = {"a.png": Image, "a.txt": LINE, "b.JPG": Image, "b.txt": "", "classes.txt": "cat\ndog\n"}
    folder = write(**{f"{above}/{name}": content for name, content in files.items()}) / above
    dataset, names = load_yolo(folder)
    assert names == ["cat", "dog"]
    assert counts(dataset) == [1, 0]
    assert dataset.tally.counts() == {}
    write(**{f"{above}/stray.txt": LINE})
    with pytest.raises(ValueError, match=r"stray\.txt is the label file of no image"):
        load_yolo(folder)


def test_flat_folders_of_splits(write):
    """Roboflow's Darknet export."""
    files = {"train/a.png": Image, "train/a.txt": LINE, "train/_darknet.labels": "cat\ndog\n", "valid/b.png": Image}
    folder = write(**files, **{"valid/b.txt": LINE})
    for split in ("train", "valid", "val"):
        dataset, names = load_yolo(folder, split)
        assert names == ["cat", "dog"]
        assert counts(dataset) == [1]


def test_the_command_line_reads_them_too(write, tmp_path, capsys):
    for name, files in {"cvat": CVAT, "flat": {"a.png": Image, "a.txt": LINE, "classes.txt": "cat\ndog"}}.items():
        write(**{f"{name}/{file}": content for file, content in files.items()})
        command = ["inspect-data", "--data", "yolo", "--images", str(tmp_path / name)]
        assert main([*command, "--out", str(tmp_path / f"{name}.png")]) == 0
        assert "objects   1," in capsys.readouterr().out


def test_a_folder_that_is_not_understood_says_what_was_looked_for_and_what_is_there(write):
    folder = write(**{"pictures/a.png": Image, "classes.txt": "cat", "notes.md": "x"})
    with pytest.raises(
        ValueError,
        match=r"its splits are: none; looked for .*obj\.data.* images in images, the folder itself, train\.txt; "
        r"the folder holds classes\.txt, notes\.md, pictures/$",
    ):
        load_yolo(folder)
    with pytest.raises(ValueError, match=r"images in images/val, val/images, val, val\.txt, images/valid.*holds"):
        load_yolo(folder, "val")
