from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from tfdetr_keras.data import load_voc, summarize
from tfdetr_keras.data.files import MISSING
from tfdetr_keras.data.validation import EMPTY_BOX
from tfdetr_keras.data.voc import COUNTED_FROM_ZERO, FAULTY_FILES, SECOND_FILES, UNKNOWN_CLASSES, WITHOUT_ANNOTATIONS

SIZE = "<size><width>40</width><height>20</height><depth>3</depth></size>"


def thing(name="cat", xmin=3, ymin=4, xmax=10, ymax=9):
    sides = {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}
    inner = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items() if value is not None)
    return f"<object><name>{name}</name><difficult>1</difficult><bndbox>{inner}</bndbox></object>"


def page(file_name="a.png", size=SIZE, objects=None):
    objects = thing() if objects is None else objects
    return f"<annotation><filename>{file_name}</filename>{size}{objects}</annotation>"


@pytest.fixture
def write(tmp_path):
    """Writes images of 20 x 40 and annotation files, given as name -> text or bytes."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()

    def write(pages, images=("a.png", "b.png")):
        for name in images:
            (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
            Image.new("RGB", (40, 20)).save(tmp_path / "images" / name)
        for name, text in pages.items():
            (tmp_path / "labels" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "labels" / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path / "images", tmp_path / "labels"

    return write


def as_arrays(dataset):
    return list(dataset.as_numpy_iterator())


def test_bccd_is_complete(bccd):
    """Every box against the XML files; nothing is left out, for the pixel on either side belongs to a box."""
    dataset, names = load_voc(bccd / "JPEGImages", bccd / "Annotations")
    assert dataset.tally.counts() == {}
    assert names == ["Platelets", "RBC", "WBC"]
    records = as_arrays(dataset)
    files = sorted((bccd / "Annotations").iterdir())
    assert len(records) == len(files) == 364
    counts = Counter()
    for place, (file, record) in enumerate(zip(files, records, strict=True)):
        root = ElementTree.parse(file).getroot()
        assert record["image_id"] == place  # the names are no numbers
        assert [names[label] for label in record["labels"]] == [found.text for found in root.iter("name")]
        boxes = [[float(side.text) for side in found] for found in root.iter("bndbox")]
        np.testing.assert_array_equal(record["boxes"], np.reshape(boxes, (-1, 4)) - [1, 1, 0, 0])
        np.testing.assert_array_equal(record["area"], np.prod(record["boxes"][:, 2:] - record["boxes"][:, :2], axis=1))
        assert record["image"].shape == (480, 640, 3)
        counts.update(names[label] for label in record["labels"])
    assert counts == {"RBC": 4155, "WBC": 372, "Platelets": 361}


def test_bccd_counted_from_zero_loses_two_boxes_and_says_so(bccd):
    dataset, _ = load_voc(bccd / "JPEGImages", bccd / "Annotations", one_based=False)
    assert dataset.tally.counts() == {EMPTY_BOX: 2}
    assert [text.split(":")[0].split("/")[-1] for text in dataset.tally.descriptions(EMPTY_BOX)] == [
        "BloodImage_00338.xml",
        "BloodImage_00343.xml",
    ]


@pytest.mark.parametrize(("name", "count"), [("train", 205), ("val", 87), ("test", 72)])
def test_image_sets(bccd, name, count):
    file = bccd / "ImageSets/Main" / f"{name}.txt"
    dataset, _ = load_voc(bccd / "JPEGImages", bccd / "Annotations", file)
    assert dataset.cardinality() == count == len(file.read_text().split())
    assert dataset.tally.counts() == {}


def test_corners(write):
    objects = thing("dog") + thing(xmin=1, ymin=1, xmax=40, ymax=20) + thing(xmin=2.5, ymin="3.25", xmax=9e0, ymax=5)
    folders = write({"a.xml": page(objects=objects)}, images=["a.png"])
    record = as_arrays(load_voc(*folders)[0])[0]
    np.testing.assert_array_equal(record["boxes"], [[2, 3, 10, 9], [0, 0, 40, 20], [1.5, 2.25, 9, 5]])
    np.testing.assert_array_equal(record["labels"], [1, 0, 0])
    np.testing.assert_array_equal(record["area"], [48, 800, 7.5 * 2.75])
    assert not record["iscrowd"].any()
    record = as_arrays(load_voc(*folders, one_based=False, class_names=["dog", "cow", "cat"])[0])[0]
    np.testing.assert_array_equal(record["boxes"], [[3, 4, 10, 9], [1, 1, 40, 20], [2.5, 3.25, 9, 5]])
    np.testing.assert_array_equal(record["labels"], [0, 2, 2])


def test_a_set_that_seems_to_count_from_zero(write):
    folders = write({"a.xml": page(objects=thing(xmin=0))}, images=["a.png"])
    dataset, _ = load_voc(*folders)
    np.testing.assert_array_equal(as_arrays(dataset)[0]["boxes"], [[0, 3, 10, 9]])
    assert dataset.tally.counts() == {COUNTED_FROM_ZERO: 1}
    assert "one_based=False" in str(dataset.tally)
    assert load_voc(*folders, one_based=False)[0].tally.counts() == {}


def test_a_box_that_is_kept_is_not_told_as_left_out(write):
    dataset, names = load_voc(*write({"a.xml": page(objects=thing(xmin=0))}, images=["a.png"]))
    summary = summarize(dataset, names)
    assert summary.objects == 1
    assert summary.left_out == {}
    assert summary.noticed is not None
    assert list(summary.noticed) == [COUNTED_FROM_ZERO]
    *_, left_out, noticed = str(summary).splitlines()
    assert left_out == "left out  nothing"
    assert noticed.startswith(f"noticed   1 {COUNTED_FROM_ZERO}, e.g. ")
    assert str(dataset.tally).startswith(f"nothing left out\nnoticed 1 {COUNTED_FROM_ZERO}, e.g. ")


@pytest.mark.parametrize(
    ("names", "ids"),
    [(("000012", "7"), [12, 7]), (("a1", "b2"), [0, 1]), (("9" * 20, "1"), [1, 0]), (("1", "01"), [1, 0])],
)
def test_image_ids(write, names, ids):
    folders = write({f"{name}.xml": page(f"{name}.png") for name in names}, [f"{name}.png" for name in names])
    dataset, _ = load_voc(*folders)
    found = {int(record["image_id"]) for record in as_arrays(dataset)}
    assert found == set(ids)


@pytest.mark.parametrize(
    ("file_name", "image"),
    [
        ("a.png", "a.png"),
        ("a", "a.png"),
        ("a.v2", "a.v2.png"),
        ("A.PNG", "A.PNG"),
        ("earlier.jpg", "a.png"),
        ("sub/b.png", "sub/b.png"),
        ("sub\\b.png", "sub/b.png"),
        ("C:\\Users\\me\\b.png", "b.png"),
        ("/home/me/b.png", "b.png"),
        ("two words &amp; 猫.png", "two words & 猫.png"),
        ("a[1].png", "a[1].png"),
    ],
)
def test_how_a_file_names_its_image(write, file_name, image):
    folders = write({"a.xml": page(file_name)}, images=[image])
    dataset, _ = load_voc(*folders)
    assert len(as_arrays(dataset)) == 1
    assert dataset.tally.counts() == {}


def test_annotations_beside_their_images(write):
    images, labels = write({"a.xml": page("a"), "b.XML": page("b.png")})
    for file in labels.iterdir():
        file.rename(images / file.name)
    assert len(as_arrays(load_voc(images, images)[0])) == 2


def widths(dataset):
    return [int(record["orig_size"][1]) for record in as_arrays(dataset)]


def test_subfolders(write, tmp_path):
    """Alike names in two of them are kept apart; one is a link, and a link back up ends."""
    pages = {"c.xml": page("c", "", thing() * 3), "y/1.xml": page("1.png", ""), "x/1.xml": page("old.png", "")}
    images, labels = write(pages, ["deep/c.png", "x/1.png", "y/1.png", "y/old.png"])
    for folder in (images, labels):
        (folder / "y").rename(tmp_path / f"{folder.name} elsewhere")
        (folder / "y").symlink_to(tmp_path / f"{folder.name} elsewhere")
        (folder / "y" / "loop").symlink_to(folder)
    for name, width in {"deep/c": 50, "x/1": 60, "y/1": 70}.items():
        Image.new("RGB", (width, 20)).save(images / f"{name}.png")
    dataset, _ = load_voc(images, labels)
    assert widths(dataset) == [50, 60, 70]
    assert dataset.tally.counts() == {WITHOUT_ANNOTATIONS: 1}
    (tmp_path / "set.txt").write_text("y/1\nc")
    assert widths(load_voc(images, labels, tmp_path / "set.txt")[0]) == [70, 50]


def test_an_image_in_one_of_many_folders(write):
    """Only one that is not beside its file and not alone of its name is not known."""
    folders = write({"a.xml": page(), "b.xml": page("b")}, ["x/a.png", "x/a.jpg", "y/b.png"])
    assert len(as_arrays(load_voc(*folders)[0])) == 2
    write({}, ["y/a.png"])
    with pytest.raises(ValueError, match=r"a\.xml does not say which image it is for: .*x/a\.png, .*y/a\.png"):
        load_voc(*folders)
    assert load_voc(*folders, on_error="skip")[0].tally.counts() == {FAULTY_FILES: 1, WITHOUT_ANNOTATIONS: 3}


def test_two_annotation_files_of_one_image(write, tmp_path):
    """a.png was b.png once, and its file still says so; it is in the way of b's, which comes later."""
    folders = write({"a.xml": page("b.png", objects=thing() * 3), "b.xml": page("b.png")})
    with pytest.raises(ValueError, match=r"labels/a\.xml names the image of .*labels/b\.xml, .*images/b\.png; correct"):
        load_voc(*folders)
    dataset, _ = load_voc(*folders, on_error="skip")
    assert dataset.tally.counts() == {SECOND_FILES: 1}
    assert [len(record["labels"]) for record in as_arrays(dataset)] == [1]
    (tmp_path / "set.txt").write_text("b\nb")  # to see it twice is the list's wish
    assert len(as_arrays(load_voc(*folders, tmp_path / "set.txt")[0])) == 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("height", [20, 40])
def test_without_a_size_pixels_are_upright(write, orientation, height):
    """Even where turning them does not change the size."""
    images, labels = write({"a.xml": page(size="", objects=thing(xmin=15, xmax=60, ymax=60))}, ["a.png"])
    stored = np.random.default_rng(0).integers(0, 256, (height, 40, 3), np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(stored).save(images / "a.png", exif=exif)
    (record,) = as_arrays(load_voc(images, labels)[0])
    with Image.open(images / "a.png") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(record["image"], upright)
    np.testing.assert_array_equal(record["boxes"], [[14, 3, upright.shape[1], upright.shape[0]]])


@pytest.mark.parametrize("size", ["", "<size/>", SIZE.replace("40", "0"), SIZE.replace("20", "")])
def test_the_size_need_not_be_stated(write, size):
    objects = thing(xmin=30, xmax=55) + thing(xmin=50, xmax=60)
    folders = write({"a.xml": page(size=size, objects=objects)}, images=["a.png"])
    dataset, _ = load_voc(*folders)
    np.testing.assert_array_equal(as_arrays(dataset)[0]["boxes"], [[29, 3, 40, 9]])
    assert dataset.tally.counts() == {EMPTY_BOX: 1}


@pytest.mark.parametrize(
    "text",
    [
        b'<?xml version="1.0" encoding="ISO-8859-1"?>' + page(objects=thing("größe")).encode("latin1"),
        b"\xef\xbb\xbf" + page(objects=thing("größe")).encode(),
        page(objects=thing("größe")).encode("utf-16"),
        b'<!DOCTYPE annotation SYSTEM "voc.dtd">\r\n' + page(objects=thing("größe")).encode(),
        page(objects=thing("\n  größe ")).encode(),
    ],
    ids=["latin1", "mark", "utf16", "doctype", "spaces"],
)
def test_encodings(write, text):
    assert load_voc(*write({"a.xml": text}, images=["a.png"]))[1] == ["größe"]


def test_image_sets_as_they_are_written(write, tmp_path):
    names = ["a", "b", "two words"]
    folders = write({f"{name}.xml": page(f"{name}.png") for name in names}, [f"{name}.png" for name in names])
    (tmp_path / "set.txt").write_bytes(b"\xef\xbb\xbfb  -1\r\n\r\ntwo words\r\na 1\r\n")
    dataset, _ = load_voc(*folders, tmp_path / "set.txt")
    assert len(as_arrays(dataset)) == 3
    (tmp_path / "set.txt").write_text("b\nlost")
    with pytest.raises(ValueError, match=r"there is no annotation file .*lost\.xml"):
        load_voc(*folders, tmp_path / "set.txt")
    dataset, _ = load_voc(*folders, tmp_path / "set.txt", on_error="skip")
    assert len(as_arrays(dataset)) == 1
    assert dataset.tally.counts() == {FAULTY_FILES: 1}


def test_images_without_annotations_are_counted(write):
    """Nobody said whether they are empty; in an image set they may be another's."""
    dataset, _ = load_voc(*write({"a.xml": page()}, images=["a.png", "b.png", "a.bmp"]))
    assert len(as_arrays(dataset)) == 1
    assert dataset.tally.counts() == {WITHOUT_ANNOTATIONS: 2}


def test_an_image_without_objects_stays(write):
    dataset, _ = load_voc(*write({"a.xml": page(objects=""), "b.xml": page("b.png")}))
    assert [record["boxes"].shape for record in as_arrays(dataset)] == [(0, 4), (1, 4)]


FAULTS = [
    ("", r"b\.xml is not valid XML: no element found", FAULTY_FILES),
    ("<annotation>", r"b\.xml is not valid XML", FAULTY_FILES),
    (page() + "&nbsp;", r"b\.xml is not valid XML", FAULTY_FILES),
    (b"\xff\xfe\xff", r"b\.xml is not valid XML", FAULTY_FILES),
    (page(objects=thing("größe")).encode("latin1"), r"b\.xml is not valid XML: .*invalid token", FAULTY_FILES),
    (b'<?xml version="1.0" encoding="gbk"?>' + page().encode() + b"\xff", r"b\.xml is not valid XML", FAULTY_FILES),
    ('<?xml version="1.0" encoding="klingon"?>' + page(), r"b\.xml is not valid XML", FAULTY_FILES),
    ("<html><body>404</body></html>", r"b\.xml does not name its image", FAULTY_FILES),
    (page(" "), r"b\.xml does not name its image", FAULTY_FILES),
    (page("b.png", objects=thing(xmax=None)), r"b\.xml: object 0 has no name or no bndbox", FAULTY_FILES),
    (page("b.png", objects=thing() + thing(" ")), r"b\.xml: object 1 has no name or no bndbox", FAULTY_FILES),
    (page("b.png", objects=thing(xmax="1,5")), r"b\.xml: could not convert string to float: '1,5'", FAULTY_FILES),
    (page("b.png", objects=thing(xmax="")), r"b\.xml: could not convert string to float: ''", FAULTY_FILES),
    (page("b.png", size=SIZE.replace("40", "wide")), r"b\.xml: could not convert", FAULTY_FILES),
    (page("b.png", size=SIZE.replace("40", "inf")), r"b\.xml: cannot convert float infinity", FAULTY_FILES),
    (page("b.png", objects=thing(xmax="nan")), r"b\.xml: object 0 .*non-finite", "non-finite boxes"),
    (page("b.png", objects=thing(xmin=20)), r"b\.xml: object 0 .*x2 < x1", "inverted boxes"),
    (page("b.png", objects=thing() + thing("cow")), r"b\.xml: object 1 is a 'cow', which is not", UNKNOWN_CLASSES),
]


@pytest.mark.parametrize(("text", "complaint", "kind"), FAULTS)
def test_a_bad_file_is_explained_or_skipped_and_counted(write, text, complaint, kind):
    folders = write({"a.xml": page(), "b.xml": text})
    with pytest.raises(ValueError, match=complaint):
        load_voc(*folders, class_names=["cat"])
    dataset, _ = load_voc(*folders, class_names=["cat"], on_error="skip")
    assert dataset.tally.counts() == {kind: 1}
    assert len(as_arrays(dataset)) + (kind == FAULTY_FILES) == 2


def test_a_missing_image(write):
    folders = write({"a.xml": page(), "b.xml": page("lost.jpg")}, images=["a.png"])
    with pytest.raises(ValueError, match=r"lost\.jpg, does not exist; 1 of 2 image files are missing"):
        load_voc(*folders)
    dataset, _ = load_voc(*folders, on_error="skip")
    assert dataset.tally.counts() == {MISSING: 1}


def test_nothing_to_read(write, tmp_path):
    images, labels = write({})
    with pytest.raises(ValueError, match=r"labels holds no XML file"):
        load_voc(images, labels)
    with pytest.raises(ValueError, match=r"no folder .*lost of annotations"):
        load_voc(images, tmp_path / "lost")
    with pytest.raises(ValueError, match=r"no folder .*lost of images"):
        load_voc(tmp_path / "lost", labels)
    with pytest.raises(ValueError, match=r"no image set .*set\.txt"):
        load_voc(images, labels, tmp_path / "set.txt")
    (tmp_path / "set.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"set\.txt is empty"):
        load_voc(images, labels, tmp_path / "set.txt")
    write({"a.xml": page(objects=""), "b.xml": "<"})
    with pytest.raises(ValueError, match="the set is empty"):
        load_voc(images, labels, on_error="skip")
