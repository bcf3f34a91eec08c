"""What of a folder is listed, by every reader that lists: images and annotations, not what systems leave behind."""

import io

import numpy as np
import pytest
from PIL import Image

from tfdetr_keras import data
from tfdetr_keras.data.image_formats import IMAGE_SUFFIXES
from tfdetr_keras.data.listing import HIDDEN, MISNAMED, OTHER_KIND

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
SYSTEM = (
    ".ipynb_checkpoints/a-checkpoint.{}",
    "sub/.ipynb_checkpoints/a-checkpoint.{}",
    "._a.{}",
    "__MACOSX/images/._a.{}",
    ".Trashes/501/a.{}",
    ".Trash-1000/files/a.{}",
    "@eaDir/a.{}/SYNOPHOTO_THUMB_M.{}",
    "$RECYCLE.BIN/S-1/a.{}",
    "System Volume Information/a.{}",
    ".AppleDouble/a.{}",
    ".git/lfs/a.{}",
)
NOTES = (".DS_Store", "Thumbs.db", "desktop.ini", "sub/.DS_Store")


def encoded(kind="JPEG", **options):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


JPEG = encoded()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def litter(folder, suffix, content):
    for name in SYSTEM:
        write(folder / name.format(suffix, suffix), content)
    for name in NOTES:
        write(folder / name, b"\0\0\0\1Bud1")


@pytest.fixture
def read(tmp_path):
    """By reader: writes a set of one image, with litter among images and annotations, and reads it."""
    images = tmp_path / "images"
    write(images / "a.jpg", JPEG)
    litter(images, "jpg", JPEG)

    def voc():
        box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>15</ymax></bndbox>"
        text = f"<annotation><filename>a.jpg</filename><object><name>cat</name>{box}</object></annotation>".encode()
        write(tmp_path / "xml/a.xml", text)
        litter(tmp_path / "xml", "xml", text)
        return data.load_voc(images, tmp_path / "xml")

    def yolo():
        write(tmp_path / "labels/a.txt", b"0 .5 .5 .2 .2")
        litter(tmp_path / "labels", "txt", b"0 .5 .5 .2 .2")
        write(tmp_path / "classes.txt", b"cat")
        return data.load_yolo(tmp_path)

    return {"voc": voc, "yolo": yolo, "images": lambda: data.load_images(images)}


@pytest.mark.parametrize("reader", ["voc", "yolo", "images"])
def test_what_systems_leave_behind_is_no_part_of_a_set(read, reader):
    records, _ = read[reader]()
    [record] = records.as_numpy_iterator()
    assert len(record["boxes"]) == (reader != "images")
    assert records.tally.counts() == {}


@pytest.mark.parametrize("reader", ["voc", "yolo", "images"])
def test_hidden_images_are_left_out_and_counted(read, reader, tmp_path):
    write(tmp_path / "images/.draft.jpg", JPEG)
    write(tmp_path / "images/.old/b.jpg", JPEG)
    records, _ = read[reader]()
    assert len(list(records)) == 1
    assert records.tally.left_out().keys() == {HIDDEN}
    assert len(records.tally.descriptions(HIDDEN)) == 2


def test_a_hidden_folder_that_is_asked_for_is_read(tmp_path):
    write(tmp_path / ".mine/a.jpg", JPEG)
    records, [path] = data.load_images(tmp_path / ".mine")
    assert path.name == "a.jpg"
    assert records.tally.counts() == {}


READABLE = {
    ".jfif": "JPEG",
    ".jpe": "JPEG",
    ".JPG": "JPEG",
    ".WEBP": "WEBP",
    ".TIFF": "TIFF",
    ".jp2": "JPEG2000",
    ".avif": "AVIF",
    ".ppm": "PPM",
    ".apng": "PNG",
    ".mpo": "MPO",
}


@pytest.mark.parametrize("reader", ["voc", "yolo", "images"])
@pytest.mark.parametrize("suffix", READABLE)
def test_images_of_other_suffixes_are_read(read, reader, suffix, tmp_path):
    name = f"b{suffix}"
    write(tmp_path / "images" / name, encoded(READABLE[suffix]))
    write(tmp_path / "labels/b.txt", b"0 .5 .5 .2 .2")
    text = f"<annotation><filename>{name}</filename><object><name>cat</name><bndbox><xmin>2</xmin><ymin>3</ymin>"
    write(tmp_path / "xml/b.xml", f"{text}<xmax>20</xmax><ymax>15</ymax></bndbox></object></annotation>".encode())
    records, _ = read[reader]()
    found = [record["image"].astype(int) for record in records.as_numpy_iterator()]
    assert len(found) == 2
    exact = suffix not in (".jfif", ".jpe", ".JPG", ".WEBP", ".avif", ".mpo")
    assert np.abs(found[1] - PIXELS).mean() <= (0 if exact else 60)  # of noise
    assert records.tally.counts() == {}


@pytest.mark.parametrize("reader", ["yolo", "images"])
def test_images_that_are_not_read_are_counted_by_their_suffix(read, reader, tmp_path):
    for name in ("b.heic", "c.HEIC", "d.psd", "e.svg", "f.dng", "g.jxl", "h.eps"):
        write(tmp_path / "images" / name, b"....ftypheic")
    write(tmp_path / "images/photo", JPEG)
    write(tmp_path / "images/photo.jpg_large", JPEG)
    write(tmp_path / "images/notes.txt", b"nothing")
    write(tmp_path / "images/unknown.xyz", b"nothing")
    records, _ = read[reader]()
    suffixes = {OTHER_KIND.format(suffix=suffix): 1 for suffix in (".psd", ".svg", ".dng", ".jxl", ".eps")}
    assert records.tally.counts() == suffixes | {OTHER_KIND.format(suffix=".heic"): 2, MISNAMED: 2}
    assert "convert them to JPEG" in str(records.tally)
    assert "register_heif_opener" in str(records.tally)


def test_no_image_that_can_be_read(tmp_path):
    write(tmp_path / "a.heic", b"\0\0\0\x18ftypheic")
    with pytest.raises(ValueError, match=r"holds other files \(\.heic\).*left out: 1 \.heic images"):
        data.load_images(tmp_path)
    complaint = r"a\.heic is not an image that can be read, but a HEIC file: convert it"
    with pytest.raises(ValueError, match=complaint), data.readable_errors():
        list(data.load_images(tmp_path / "a.heic")[0])


def test_suffixes_are_small_letters():
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in IMAGE_SUFFIXES)
