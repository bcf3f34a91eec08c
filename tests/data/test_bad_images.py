"""Image files as they are met, through every reader: odd ones are read, bad ones are named, or skipped and counted."""

import io
import json
import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdetr_keras.data import from_dataset, load_coco, load_tfrecord, load_voc, load_yolo, prepare, readable_errors
from tfdetr_keras.data.files import MISSING, UNREADABLE
from tfdetr_keras.data.images import TRUNCATED

HEIGHT, WIDTH = 40, 60
BOX = [6, 4, 30, 24]  # xyxy, pixels, of an image that is 60 wide and 40 high
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RGB = Image.fromarray(NOISE[..., :3])
TURNED = Image.Exif()
TURNED[0x112] = 6
GOOD = encoded(RGB, "JPEG")
ODD = {
    "alpha.png": encoded(Image.fromarray(NOISE), "PNG"),
    "grey.jpg": encoded(RGB.convert("L"), "JPEG"),
    "cmyk.jpg": encoded(RGB.convert("CMYK"), "JPEG"),
    "deep.png": encoded(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257), "PNG"),
    "palette.png": encoded(RGB.quantize(16), "PNG", transparency=3),
    "animated.gif": encoded(RGB, "GIF", save_all=True, append_images=[RGB.rotate(180)]),
    "google.webp": encoded(RGB, "WebP"),
    "windows.bmp": encoded(RGB, "BMP"),
    "scanned.tiff": encoded(RGB, "TIFF"),
    "LOUD.JPG": GOOD,
    "misnamed.png": GOOD,
    "with a space.jpg": GOOD,
    "Größe 猫.jpg": GOOD,
}
CUT = {"cut.jpg": GOOD[:-200], "ended early.png": encoded(RGB, "PNG")[:-200]}  # as downloads that were broken off
BAD = {
    "truncated.jpg": GOOD[: len(GOOD) // 2],  # the other half are tables
    "halved.png": encoded(RGB, "PNG")[:3000],
    "empty.jpg": b"",
    "text.jpg": b"<html>404 Not Found</html>",
}


def write_coco(folder, contents, sizes):
    images = [
        {"id": place, "file_name": name, "height": sizes[name][0], "width": sizes[name][1]}
        for place, name in enumerate(contents)
    ]
    objects = [{"image_id": place, "category_id": 1, "bbox": [6, 4, 24, 20]} for place in range(len(contents))]
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "set.json").write_text(json.dumps(content))
    return lambda **options: load_coco(folder / "images", folder / "set.json", **options)[0]


def write_voc(folder, contents, sizes):
    (folder / "annotations").mkdir()
    sides = zip(("xmin", "ymin", "xmax", "ymax"), BOX, strict=True)
    found = "<object><name>cat</name><bndbox>" + "".join(f"<{side}>{x}</{side}>" for side, x in sides)
    for name in contents:
        size = f"<size><height>{sizes[name][0]}</height><width>{sizes[name][1]}</width></size>"
        text = f"<annotation><filename>{name}</filename>{size}{found}</bndbox></object></annotation>"
        (folder / "annotations" / f"{name}.xml").write_text(text, encoding="utf-8")
    return lambda **options: load_voc(folder / "images", folder / "annotations", one_based=False, **options)[0]


def write_yolo(folder, contents, sizes):
    (folder / "labels").mkdir()
    (folder / "classes.txt").write_text("cat")
    for name in contents:
        height, width = sizes[name]
        line = f"0 {18 / width} {14 / height} {24 / width} {20 / height}"
        (folder / "labels" / f"{name.rpartition('.')[0]}.txt").write_text(line)
    return lambda **options: load_yolo(folder, **options)[0]


def write_own(folder, contents, sizes):
    def elements():
        for content in contents.values():
            yield {"image": content, "boxes": [BOX], "labels": [0]}

    signature = {
        "image": tf.TensorSpec((), tf.string),
        "boxes": tf.TensorSpec((None, 4), tf.float32),
        "labels": tf.TensorSpec((None,), tf.int64),
    }
    dataset = tf.data.Dataset.from_generator(elements, output_signature=signature)
    fields = {key: key for key in signature}
    return lambda **options: from_dataset(dataset, fields, ["cat"], "xyxy", relative=False, **options)[0]


def example(place, content, height, width):
    box = np.array(BOX) / [width, height, width, height]
    real = {f"image/object/bbox/{side}": x for side, x in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)}
    whole = {"image/height": height, "image/width": width, "image/object/class/label": 1}
    texts = {"image/encoded": content, "image/source_id": str(place).encode()}
    features = {key: tf.train.Feature(float_list=tf.train.FloatList(value=[value])) for key, value in real.items()}
    features |= {key: tf.train.Feature(int64_list=tf.train.Int64List(value=[value])) for key, value in whole.items()}
    features |= {key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value])) for key, value in texts.items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write_tfrecord(folder, contents, sizes):
    with tf.io.TFRecordWriter(str(folder / "set.tfrecord")) as writer:
        for place, (name, content) in enumerate(contents.items()):
            writer.write(example(place, content, *sizes[name]))
    return lambda **options: load_tfrecord(folder / "set.tfrecord", ["cat"], **options)[0]


FILES = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}
READERS = FILES | {"from_dataset": write_own, "tfrecord": write_tfrecord}


@pytest.fixture
def write(tmp_path):
    """Writes images and a set in a reader's format that has one object in each; gives the reader."""

    def write(reader, contents, missing=(), **sizes):
        (tmp_path / "images").mkdir()
        for name, content in contents.items():
            if name not in missing:
                (tmp_path / "images" / name).write_bytes(content)
        return READERS[reader](tmp_path, contents, dict.fromkeys(contents, (HEIGHT, WIDTH)) | sizes)

    return write


def as_arrays(dataset):
    return list(dataset.as_numpy_iterator())


@pytest.mark.parametrize("reader", READERS)
def test_odd_images_are_read(write, reader):
    load = write(reader, ODD)
    dataset = load()
    records = as_arrays(dataset)
    assert len(records) == len(ODD)
    for record in records:
        assert record["image"].shape == (HEIGHT, WIDTH, 3)
        assert 60 < record["image"].mean() < 200
        np.testing.assert_allclose(record["boxes"], [BOX], atol=1e-4)
    assert dataset.tally.counts() == {}


@pytest.mark.parametrize("reader", READERS)
def test_one_pixel_is_an_image(write, reader):
    load = write(reader, {"one.png": encoded(RGB.crop((0, 0, 1, 1)), "PNG"), "good.jpg": GOOD}, **{"one.png": (1, 1)})
    dataset = load()
    by_size = {record["image"].shape[:2]: record for record in as_arrays(dataset)}
    assert by_size.keys() == {(1, 1), (HEIGHT, WIDTH)}
    assert sum(dataset.tally.counts().values()) == 1 - len(by_size[1, 1]["boxes"])  # a box beside the pixel, if it is


def test_batches_of_odd_images(write):
    contents = ODD | {"one.png": encoded(RGB.crop((0, 0, 1, 1)), "PNG")}
    dataset = write("coco", contents, **{"one.png": (1, 1)})()
    batches = as_arrays(prepare(dataset, 7, training=True, size=(64, 96)))
    assert sum(len(targets["labels"]) for _, targets in batches) == len(contents) == 14
    assert all(np.isfinite(inputs["pixel_values"]).all() for inputs, _ in batches)


@pytest.mark.parametrize("reader", READERS)
def test_a_turned_photograph_stands_upright_unless_the_size_says_otherwise(write, reader):
    """Annotations that state no size belong to what a viewer shows."""
    content = encoded(RGB, "JPEG", exif=TURNED)
    sizes = {"as_stored.jpg": (HEIGHT, WIDTH), "turned.jpg": (WIDTH, HEIGHT)}
    found = [record["image"] for record in as_arrays(write(reader, dict.fromkeys(sizes, content), **sizes)())]
    stored = np.asarray(Image.open(io.BytesIO(content)))
    upright = np.rot90(stored, -1)
    np.testing.assert_array_equal(found[0], stored if reader in ("coco", "voc", "tfrecord") else upright)
    np.testing.assert_array_equal(found[1], upright)


def complaint_of(reader, name, place):
    named = name.replace(".", r"\.") if reader in FILES else rf"image {place}\)?"
    return rf"{named} (is damaged: .*truncated|is not an image that can be read)"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_named(write, reader, name):
    contents = {"a.jpg": GOOD, name: BAD[name], "z.jpg": GOOD}
    dataset = write(reader, contents)()
    with pytest.raises(ValueError, match=complaint_of(reader, name, 1)) as caught, readable_errors():
        as_arrays(dataset)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("reader", READERS)
def test_a_bad_image_is_named_by_prepared_batches_or_skipped_and_counted(write, reader):
    contents = {"a.jpg": GOOD, **BAD, "z.jpg": GOOD}
    load = write(reader, contents)
    with (
        pytest.raises(
            ValueError, match="|".join(complaint_of(reader, *bad) for bad in zip(BAD, range(1, 5), strict=True))
        ),
        readable_errors(),
    ):
        as_arrays(prepare(load(), 2, size=(64, 96)))

    dataset = load(on_error="skip")
    batches = prepare(dataset, 2, training=True, size=(64, 96))
    for _ in range(2):  # epochs, over which nothing is counted twice
        assert sum(len(targets["labels"]) for _, targets in as_arrays(batches)) == 2
        assert dataset.tally.counts() == {UNREADABLE: len(BAD)}
    found = [int(record["image_id"]) for record in as_arrays(dataset)]
    assert len(found) + sum(dataset.tally.counts().values()) == len(contents)
    assert found == [0, sorted(contents).index("z.jpg")]
    for name, place in zip(BAD, range(1, 5), strict=True):
        assert any(
            re.search(complaint_of(reader, name, place), text) for text in dataset.tally.descriptions(UNREADABLE)
        )


@pytest.mark.parametrize("reader", FILES)
def test_a_missing_image_is_named_or_skipped_and_counted(write, reader, tmp_path):
    load = write(reader, {"a.jpg": GOOD, "lost.jpg": GOOD, "z.jpg": GOOD}, missing=["lost.jpg"])
    if reader == "yolo":  # which looks for images rather than for annotations
        with pytest.raises(ValueError, match=r"lost\.txt is the label file of no image"):
            load()
        dataset = load(on_error="skip")
        assert dataset.tally.counts() == {"label files without an image": 1}
    else:
        with pytest.raises(
            ValueError, match=r"lost\.jpg, does not exist; 1 of 3 image files are missing: is the folder"
        ):
            load()
        dataset = load(on_error="skip")
        assert dataset.tally.counts() == {MISSING: 1}
    assert len(as_arrays(dataset)) == 2
    assert "lost" in str(dataset.tally)


@pytest.mark.parametrize("reader", FILES)
def test_an_image_that_vanishes_meanwhile(write, reader, tmp_path):
    load = write(reader, {"a.jpg": GOOD, "b.jpg": GOOD})
    loud, quiet = load(), load(on_error="skip")
    (tmp_path / "images/b.jpg").unlink()
    with pytest.raises(ValueError, match=r"b\.jpg cannot be opened: No such file"), readable_errors():
        as_arrays(loud)
    assert len(as_arrays(quiet)) == 1
    assert quiet.tally.counts() == {UNREADABLE: 1}


@pytest.mark.parametrize("reader", FILES)
def test_no_image_at_all(write, reader):
    load = write(reader, {"lost.jpg": GOOD}, missing=["lost.jpg"])
    with pytest.raises(ValueError, match="the set is empty"):
        load(on_error="skip")


@pytest.mark.parametrize("reader", READERS)
def test_an_image_that_lacks_its_last_bytes_is_read_and_noticed(write, reader):
    dataset = write(reader, CUT | {"whole.jpg": GOOD})()
    records = as_arrays(dataset)
    assert [len(record["boxes"]) for record in records] == [1, 1, 1]
    for record, whole in zip(records[:2], (np.asarray(Image.open(io.BytesIO(GOOD))), NOISE[..., :3]), strict=True):
        np.testing.assert_array_equal(record["image"][:16], whole[:16])
        assert record["image"].shape == (HEIGHT, WIDTH, 3)
    assert dataset.tally.counts() == {TRUNCATED: 2}
    assert dataset.tally.left_out() == {}
    assert "rows are there" in str(dataset.tally)


@pytest.mark.parametrize("reader", READERS)
def test_the_error_says_how_to_go_on(write, reader):
    dataset = write(reader, {"a.jpg": GOOD, "empty.jpg": b""})()
    with pytest.raises(ValueError, match=r'on_error="skip" \(--on-error skip\)'), readable_errors():
        as_arrays(dataset)


@pytest.mark.parametrize("reader", READERS)
def test_every_image_bad(write, reader):
    """An empty epoch, which `fit` itself complains of; the tally tells why."""
    dataset = write(reader, BAD)(on_error="skip")
    assert as_arrays(dataset) == []
    assert dataset.tally.counts() == {UNREADABLE: len(BAD)}


def test_names_that_are_not_utf8(write, tmp_path):
    """As old archives leave them."""
    load = write("yolo", {"a.jpg": GOOD})
    for name, content in ((b"caf\xe9.jpg", GOOD), (b"th\xe9.jpg", b"")):
        with open(bytes(tmp_path / "images") + b"/" + name, "wb") as file:
            file.write(content)
    with pytest.raises(ValueError, match=r"th\\xe9\.jpg is not an image"), readable_errors():
        as_arrays(load())
    dataset = load(on_error="skip")
    assert len(as_arrays(dataset)) == 2
    assert dataset.tally.counts() == {UNREADABLE: 1}
