"""Files decoded in TensorFlow's graph: the pixels of `decode_image`, or an error that says so."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfdetr_keras.data.images import decode_image
from tfdetr_keras.export.file_decoding import decoded

HEIGHT, WIDTH = 24, 32
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
DEEP = RNG.integers(0, 65536, (HEIGHT, WIDTH, 4)).astype(">u2")
RGB, RGBA, GREY = Image.fromarray(NOISE[..., :3]), Image.fromarray(NOISE), Image.fromarray(NOISE[..., 0])


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(depth, colours, rows):
    """As Pillow does not write it."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colours, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bmp(depth, rows, palette=b"", height=HEIGHT, used=0, compression=0, masks=b""):
    content = rows.tobytes()
    start = 14 + 40 + len(masks) + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, WIDTH, height, 1, depth, compression, len(content), 0, 0, used, 0)
    head = b"BM" + struct.pack("<IHHI", start + len(content), 0, 0, start)
    return head + header + masks + palette + content


PALETTE = RNG.integers(0, 256, 1024, np.uint8).tobytes()
SAME = {
    "jpeg": encoded(RGB, "JPEG"),
    "progressive jpeg": encoded(RGB, "JPEG", progressive=True),
    "jpeg 4:4:4": encoded(RGB, "JPEG", subsampling=0),
    "grey jpeg": encoded(GREY, "JPEG"),
    "cmyk jpeg": encoded(RGB.convert("CMYK"), "JPEG"),
    "png": encoded(RGB, "PNG"),
    "alpha png": encoded(RGBA, "PNG"),
    "grey png": encoded(GREY, "PNG"),
    "grey alpha png": encoded(RGBA.convert("LA"), "PNG"),
    "1 bit png": encoded(GREY.convert("1"), "PNG"),
    "2 bits png": png(2, 0, NOISE[:, :8, 0]),
    "4 bits png": png(4, 0, NOISE[:, :16, 0]),
    "16 bits png": png(16, 0, DEEP[..., 0]),
    "16 bits rgb png": png(16, 2, DEEP[..., :3]),
    "16 bits grey alpha png": png(16, 4, DEEP[..., :2]),
    "16 bits rgba png": png(16, 6, DEEP),
    "palette png": encoded(RGB.quantize(16), "PNG"),
    "palette png with transparency": encoded(RGB.quantize(16), "PNG", transparency=3),
    "png with a transparent colour": encoded(RGB, "PNG", transparency=(1, 2, 3)),
    "animated png": encoded(RGB, "PNG", save_all=True, append_images=[RGB.rotate(180)]),
    "gif": encoded(RGB.quantize(32), "GIF"),
    "gif not interlaced": encoded(RGB.quantize(32), "GIF", interlace=0),
    "grey gif": encoded(GREY, "GIF"),
    "gif with a comment": encoded(RGB.quantize(256), "GIF", comment=b"a comment"),
    "bmp": encoded(RGB, "BMP"),
    "32 bits bmp": bmp(32, NOISE),
    "bmp from the top": bmp(24, NOISE[..., :3], height=-HEIGHT),
    "grey bmp": encoded(GREY, "BMP"),
    "palette bmp": encoded(RGB.quantize(32), "BMP"),
    "palette bmp of 256": bmp(8, NOISE[..., 0], PALETTE),
    "palette bmp of 200": bmp(8, NOISE[..., 0] % 200, PALETTE[:800], used=200),
    "palette bmp from the top": bmp(8, NOISE[..., 0], PALETTE, height=-HEIGHT),
    "webp": encoded(RGB, "WEBP"),
    "lossless webp": encoded(RGB, "WEBP", lossless=True),
    "alpha webp": encoded(RGBA, "WEBP", lossless=True, exact=True),
}


@pytest.fixture(scope="module")
def graph():
    """As an export has it: traced once, for all kinds."""
    return tf.function(decoded, input_signature=[tf.TensorSpec((), tf.string)])


@pytest.mark.parametrize("kind", SAME)
def test_pixels_are_those_of_python(graph, kind):
    np.testing.assert_array_equal(graph(tf.constant(SAME[kind])).numpy(), decode_image(SAME[kind]))


def exif(orientation, big=True):
    order = ">" if big else "<"
    entries = [(0x010F, 2, 4, b"own\0"), (0x0112, 3, 1, struct.pack(order + "HH", orientation, 0))]
    directory = struct.pack(order + "H", len(entries))
    directory += b"".join(struct.pack(order + "HHI", tag, kind, n) + value for tag, kind, n, value in entries)
    return (b"MM\0*" if big else b"II*\0") + struct.pack(order + "I", 8) + directory + bytes(4)


def xmp(orientation):
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


@pytest.mark.parametrize("orientation", range(10))
def test_rotation_notes_are_followed_as_in_python(graph, orientation):
    notes = [{"exif": b"Exif\0\0" + exif(orientation, big)} for big in (True, False)]
    contents = [encoded(RGB, kind, **note) for kind in ("JPEG", "PNG", "WEBP") for note in notes]
    contents += [encoded(RGB, "JPEG", xmp=xmp(orientation)), encoded(RGB, "WEBP", xmp=xmp(orientation))]
    contents += [encoded(RGB, "JPEG", exif=exif(1), xmp=xmp(orientation))]
    contents += [encoded(RGB, "JPEG", icc_profile=bytes(3000), **notes[0])]
    for place, content in enumerate(contents):
        found, wanted = graph(tf.constant(content)).numpy(), decode_image(content)
        assert found.shape == wanted.shape, place
        np.testing.assert_array_equal(found, wanted, err_msg=str(place))


def test_a_damaged_note_turns_nothing(graph):
    """Cut off at every place; Pillow may refuse some, and the others must be the same."""
    whole = b"Exif\0\0" + exif(6)
    for length in range(len(whole)):
        content = encoded(RGB, "JPEG", exif=whole[:length]) if length else encoded(RGB, "JPEG")
        assert graph(tf.constant(content)).shape in ((HEIGHT, WIDTH, 3), (WIDTH, HEIGHT, 3))


REFUSED = {
    "transparent gif": (encoded(RGB.quantize(32), "GIF", transparency=3), "a GIF file has transparent pixels"),
    "4 bits bmp": (bmp(4, NOISE[:, :16, 0], PALETTE[:64]), "a BMP file is compressed, or has other than"),
    "1 bit bmp": (encoded(GREY.convert("1"), "BMP"), "a BMP file is compressed, or has other than"),
    "16 bits bmp": (bmp(16, NOISE[..., :2]), "a BMP file is compressed, or has other than"),
    "bmp with masks": (
        bmp(32, NOISE, compression=3, masks=struct.pack("<III", 0xFF, 0xFF00, 0xFF0000)),
        "a BMP file is compressed, or has other than",
    ),
    "tiff": (encoded(RGB, "TIFF"), "a file is not a JPEG, PNG, WebP, GIF or BMP: convert it"),
    "avif": (encoded(RGB, "AVIF"), "a file is not a JPEG, PNG, WebP, GIF or BMP: convert it"),
    "jpeg xl": (b"\xff\x0a" + bytes(200), "a file is not a JPEG, PNG, WebP, GIF or BMP: convert it"),
    "text": (b"This is a text.", "a file is not a JPEG, PNG, WebP, GIF or BMP: convert it"),
    "nothing": (b"", "a file is not a JPEG, PNG, WebP, GIF or BMP: convert it"),
    "a part as the first frame": (
        SAME["gif not interlaced"].replace(
            b",\0\0\0\0" + struct.pack("<HH", WIDTH, HEIGHT), b",\1\0\1\0" + struct.pack("<HH", WIDTH, HEIGHT)
        ),
        "a first frame that is a part of it",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_be_read_otherwise_is_refused(graph, kind):
    content, complaint = REFUSED[kind]
    with pytest.raises(tf.errors.InvalidArgumentError, match=complaint):
        graph(tf.constant(content))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "bmp", "gif"])
def test_truncated_files_are_refused(graph, kind):
    """In Python they are read and told of; a server has nobody to tell."""
    with pytest.raises(tf.errors.InvalidArgumentError):
        graph(tf.constant(SAME[kind][: len(SAME[kind]) * 9 // 10]))
