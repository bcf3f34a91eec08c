"""Conversion of images of any kind, above all files, to RGB pixels.

- Formats, and how many pixels an image may have: `tfdetr_keras.data.image_formats`. Levels and colours:
  `tfdetr_keras.data.image_levels`. Files that end early: `tfdetr_keras.data.truncated`. Of an animation the first frame
  is read.
- A photograph may carry a note that it was taken with the camera turned (EXIF orientation). Annotations belong to the
  pixels as stored or as turned, and their image size decides: stored pixels are taken if they have that size, and
  turned ones if only they have it. Without a size, pixels are turned upright, as image viewers and annotation tools
  show them. Where both have the same size, the choice is noticed.
"""

import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from tfdetr_keras.data import truncated
from tfdetr_keras.data.image_formats import UnreadableImage, bits_of, open_image
from tfdetr_keras.data.image_levels import Notice, rgb_levels
from tfdetr_keras.data.web import fetch

TIMEOUT = 30  # seconds, for an image on the web, altogether
LARGEST_FILE = 64 << 20  # bytes, of an image on the web
TRUNCATED = "truncated images, which are read as far as they go"
TURNED = "images whose EXIF orientation the size of their annotations does not decide"
_TURNS = range(2, 9)  # EXIF orientations that are not upright
_QUARTER_TURNS = (5, 6, 7, 8)  # those that swap height and width
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://|data:", re.IGNORECASE)


def decode_image(content: bytes, size: tuple[int, int] | None = None, notice: Notice | None = None) -> np.ndarray:
    """Decode an image file.

    Args:
        content: of the file: JPEG, PNG, WebP, GIF, BMP, TIFF, … (`tfdetr_keras.data.image_formats.FORMATS`).
        size: (height, width) that the annotations are for, pixels; None if they do not say.
        notice: called with a kind and a description for an image that is read but may be worth a look; the description
            continues from the file's name. Without it a truncated file is an error.

    Returns:
        `(height, width, 3)` uint8, RGB.

    Raises:
        ValueError: not an image, a damaged one, one of another size, with too many pixels or with levels of unknown
            meaning, or one that is truncated, by more than half or without `notice`; the message begins with "is" or
            "has", so that a file's name can be put before it.
    """
    image, bits = _opened(content)
    stored = (image.height, image.width)
    decoded = _decoded_of(image, content, notice)
    orientation = _orientation(decoded)
    upright = stored[::-1] if orientation in _QUARTER_TURNS else stored
    is_turned = orientation in _TURNS and (size is None or stored != tuple(size))
    pixels = _levels_of(decoded, orientation if is_turned else 1, bits, notice)
    if size is not None and pixels.shape[:2] != tuple(size):
        height, width = pixels.shape[:2]
        raise UnreadableImage(
            f"is {height} x {width} (height x width), but its annotations are for {size[0]} x {size[1]}: they belong "
            "to another version of the image"
        )
    if notice is not None and orientation in _TURNS and stored == upright:
        how = "turned upright, as viewers show it" if is_turned else "as it is stored"
        notice(TURNED, f"has the EXIF orientation {orientation}, and its annotations are taken for the image {how}")
    return pixels


def decode_reduced(content: bytes, most: int, shortest: int, notice: Notice) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode an image file for viewing, at a half, a quarter or an eighth of its size if it is very large.

    Args:
        content: of the file.
        most: pixels; images with no more than these are not reduced.
        shortest: pixels that the shorter side keeps at least.
        notice: as for `decode_image`.

    Returns:
        `(height, width, 3)` uint8, RGB, turned upright, and the (height, width) that it would have in full.

    Raises:
        ValueError: as `decode_image`.
    """
    image, bits = _opened(content)
    size = (image.height, image.width)
    part = next((part for part in (1, 2, 4, 8) if size[0] * size[1] <= most * part**2), 8)
    while part > 1 and min(size) // part < shortest:
        part //= 2
    if part > 1 and image.format in ("JPEG", "MPO"):
        image.draft(
            image.mode, (image.width // part, image.height // part)
        )  # decoded at this size at once, or a larger
        part = max(1, round(part * max(image.size) / max(size)))
    decoded = _decoded_of(image, content, notice)
    orientation = _orientation(decoded)
    if part > 1 and decoded.mode in ("L", "RGB", "RGBA", "CMYK"):
        decoded, part = decoded.reduce(part), 1
    pixels = _levels_of(decoded, orientation, bits, notice)
    if part > 1:
        pixels = np.asarray(Image.fromarray(pixels).reduce(part))
    return pixels, size[::-1] if orientation in _QUARTER_TURNS else size


def as_rgb(image: Any, notice: Notice | None = None) -> np.ndarray:
    """Convert an image that is already decoded to RGB pixels.

    Args:
        image: a PIL image, or an array `(height, width, 3)` or `(height, width)` uint8.
        notice: as for `decode_image`.

    Returns:
        `(height, width, 3)` uint8.

    Raises:
        ValueError: anything else, or a PIL image that cannot be decoded.
    """
    if isinstance(image, Image.Image):
        bits = bits_of(image)
        try:
            return rgb_levels(ImageOps.exif_transpose(image), bits, notice)
        except UnreadableImage as error:
            raise ValueError(f"the PIL image {error}") from None
        except Exception as error:  # it is decoded only now
            raise ValueError(f"the PIL image is damaged: {error}") from None
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise ValueError(
            f"an image is (height, width, 3) or (height, width) uint8, levels 0 … 255, not {pixels.shape} of "
            f"{pixels.dtype}"
        )
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def read_pixels(image: Any, urls: bool = False, notice: Callable[[str], None] | None = None) -> np.ndarray:
    """Read an image given by a user.

    Args:
        image: a path, an array `(height, width, 3)` or `(height, width)` uint8, a PIL image, or, if allowed, a URL.
        urls: whether text that begins with http:// or https:// is fetched.
        notice: called with a sentence on an image that is read but may be worth a look, such as a truncated one.

    Returns:
        `(height, width, 3)` uint8, RGB.

    Raises:
        ValueError: not an image, or one that cannot be read.
    """
    if isinstance(image, str) and (scheme := _SCHEME.match(image.strip())) and not os.path.exists(image):
        if (scheme[1] or "").lower() not in ("http", "https"):
            raise ValueError(f"{_shortened(image)}: only http:// and https:// are fetched")
        if not urls:
            raise ValueError(f"{image}: set urls=True to have it fetched")
        return _decoded(image, fetch(image, TIMEOUT, LARGEST_FILE), notice)
    if isinstance(image, (str, Path)):
        try:
            content = Path(image).read_bytes()
        except OSError as error:
            raise ValueError(f"{image} cannot be read: {error.strerror}") from error
        except ValueError as error:  # a name with a null character
            raise ValueError(f"{image!r} cannot be read: {error}") from None
        return _decoded(image, content, notice)
    return as_rgb(image, lambda _, what: notice(f"the image {what}") if notice is not None else None)


def stored_size(content: bytes) -> tuple[int, int] | None:
    """Return (height, width) of the pixels as an image file stores them, from its header; None if it has none.

    With this size, `decode_image` does not turn the image.
    """
    return _size_in_header(io.BytesIO(content), upright=False)


def upright_size(path: Path) -> tuple[int, int] | None:
    """Return (height, width) of a file's image as `decode_image` returns it without a size; None without a header."""
    try:
        with open(path, "rb") as file:
            return _size_in_header(file, upright=True)
    except OSError:
        return None


def _opened(content: bytes) -> tuple[ImageFile.ImageFile, int | None]:
    """Open an image file without decoding it; return it and the bits that encode white in it."""
    image = open_image(io.BytesIO(content))
    try:
        return image, bits_of(image)
    except Exception as error:  # Pillow lets through whatever a damaged header leads to
        raise UnreadableImage(f"is damaged: {error}") from None


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 if there is none; a PNG may store it behind its pixels."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as above; the pixels may be sound
        return 1
    return orientation if isinstance(orientation, int) and orientation in _TURNS else 1


def _decoded_of(image: ImageFile.ImageFile, content: bytes, notice: Notice | None) -> Image.Image:
    decoded, share = truncated.decode(image, content)
    if share < 1:
        if notice is None:
            raise UnreadableImage(f"is damaged: it is truncated, only {share:.0%} of its rows are there")
        notice(TRUNCATED, f"is truncated: {share:.0%} of its rows are there, the others are of one colour")
    return decoded


def _levels_of(image: Image.Image, orientation: int, bits: int | None, notice: Notice | None) -> np.ndarray:
    try:
        return rgb_levels(image if orientation == 1 else _turned(image, orientation), bits, notice)
    except UnreadableImage:
        raise
    except MemoryError:
        raise UnreadableImage(f"has {image.height} x {image.width} pixels, for which the memory is too small") from None
    except Exception as error:  # as above
        raise UnreadableImage(f"is damaged: {error}") from None


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    """Turn an image as its EXIF orientation says."""
    turn = Image.Transpose
    return image.transpose(
        {
            2: turn.FLIP_LEFT_RIGHT,
            3: turn.ROTATE_180,
            4: turn.FLIP_TOP_BOTTOM,
            5: turn.TRANSPOSE,
            6: turn.ROTATE_270,
            7: turn.TRANSVERSE,
            8: turn.ROTATE_90,
        }[orientation]
    )


def _decoded(name: str | Path, content: bytes, notice: Callable[[str], None] | None) -> np.ndarray:
    def noticed(kind: str, what: str) -> None:
        if notice is not None and kind != TURNED:  # there are no annotations
            notice(f"{_shortened(str(name))} {what}")

    try:
        return decode_image(content, None, noticed if notice is not None else None)
    except ValueError as error:
        raise ValueError(f"{_shortened(str(name))} {error}") from None


def _shortened(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:200]}…"


def _size_in_header(file: IO[bytes], upright: bool) -> tuple[int, int] | None:
    try:
        image = open_image(file)
        turned = upright and _orientation(image) in _QUARTER_TURNS
        return (image.width, image.height) if turned else (image.height, image.width)
    except Exception:  # as above; the error comes with the pixels
        return None
