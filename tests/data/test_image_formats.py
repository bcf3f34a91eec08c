"""Which files are opened at all: no format that runs a program, and none with more pixels than are allowed."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tfdetr_keras.data import image_formats
from tfdetr_keras.data.image_formats import kind_of, open_image, pixel_limit
from tfdetr_keras.data.images import decode_image, read_pixels, stored_size, upright_size

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 20 20
%%EndComments
newpath 0 0 moveto 20 20 lineto stroke
showpage
%%EOF
"""
BINARY_POSTSCRIPT = struct.pack("<4sIIIIIIH", b"\xc5\xd0\xd3\xc6", 32, len(POSTSCRIPT), 0, 0, 0, 0, 0xFFFF)
BINARY_POSTSCRIPT = BINARY_POSTSCRIPT.ljust(32, b"\0") + POSTSCRIPT


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A stand-in for Ghostscript, which leaves a mark; gives the mark's path."""
    mark = tmp_path / "it-ran"
    (tmp_path / "bin").mkdir()
    for name in ("gs", "gswin32c", "gswin64c", "gsc"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ntouch {mark}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # looked for anew
    return mark


def test_the_stand_in_would_run(ghostscript):
    with pytest.raises(Exception, match=r".*"), Image.open(io.BytesIO(POSTSCRIPT)) as image:
        image.load()
    assert ghostscript.exists()


@pytest.mark.parametrize("content", [POSTSCRIPT, BINARY_POSTSCRIPT], ids=["text", "binary"])
def test_no_program_is_run(ghostscript, tmp_path, content):
    (tmp_path / "photo.png").write_bytes(content)
    complaint = "is not an image that can be read, but a PostScript file"
    with pytest.raises(ValueError, match=complaint):
        decode_image(content)
    with pytest.raises(ValueError, match=complaint):
        read_pixels(tmp_path / "photo.png")
    assert stored_size(content) is None
    assert upright_size(tmp_path / "photo.png") is None
    assert not ghostscript.exists()


@pytest.mark.parametrize(
    "kind", ["PDF", "IM", "ICO", "ICNS", "PCX", "TGA", "SGI", "DDS", "SPIDER", "MSP", "XBM", "BLP"]
)
def test_formats_that_are_not_meant(kind):
    buffer = io.BytesIO()
    mode = {"MSP": "1", "XBM": "1", "SPIDER": "F", "BLP": "P"}.get(kind, "RGB")
    Image.fromarray(PIXELS).resize((16, 16)).convert(mode).save(buffer, kind)
    with pytest.raises(ValueError, match=r"^is not an image that can be read"):
        decode_image(buffer.getvalue())


@pytest.mark.parametrize(
    ("prefix", "kind"),
    [
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"%PDF-1.7", "PDF"),
        (b"RIFF....WEBPVP8 ", "WebP"),
        (b"\xff\x0a..", "JPEG XL"),
        (b"hello", None),
        (b"", None),
    ],
)
def test_kinds_by_their_first_bytes(prefix, kind):
    assert kind_of(prefix) == kind


def png(width, height):
    """Black, of one bit a pixel: some hundred bytes for a million."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" * (1 + -(-width // 8))) * height, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_limit_on_pixels_that_can_be_raised(monkeypatch):
    content = png(1000, 1001)
    monkeypatch.setenv("TFDETR_MAX_IMAGE_PIXELS", "1000000")
    with pytest.raises(
        ValueError, match=r"^has too many pixels: 1001 x 1000 .*TFDETR_MAX_IMAGE_PIXELS=1001000"
    ) as told:
        decode_image(content)
    name, _, value = str(told.value).rpartition("variable ")[2].partition("=")
    monkeypatch.setenv(name, value)  # as the message says
    assert decode_image(content).shape == (1001, 1000, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # another one's limit, for other images
    assert decode_image(content).shape == (1001, 1000, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF"])
def test_nothing_is_decoded_beyond_the_limit(monkeypatch, kind):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind)
    monkeypatch.setenv("TFDETR_MAX_IMAGE_PIXELS", "79")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it was decoded"))
    buffer.seek(0)
    with pytest.raises(ValueError, match="has too many pixels: 8 x 10"):
        open_image(buffer)


@pytest.mark.parametrize("text", ["many", "-5", "0", "1e9", "3.5"])
def test_a_limit_that_is_none(monkeypatch, text):
    monkeypatch.setenv("TFDETR_MAX_IMAGE_PIXELS", text)
    with pytest.raises(ValueError, match="TFDETR_MAX_IMAGE_PIXELS must be a number of pixels, not"):
        pixel_limit()


def test_the_default_takes_large_photographs_and_not_much_more(monkeypatch):
    monkeypatch.delenv("TFDETR_MAX_IMAGE_PIXELS", raising=False)
    assert 12000 * 9000 < pixel_limit() == image_formats.MAX_PIXELS < 13000 * 13000
