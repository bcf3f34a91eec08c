"""Images of whatever kind, files first of all, to RGB pixels.

- Greyscale, palette and CMYK images become RGB; an alpha channel is left away; 16-bit greyscale keeps its upper 8 bits;
  of an animation the first frame counts.
- A photograph may carry a note that it was taken with the camera turned (EXIF orientation). Annotations belong to the
  pixels as stored or as turned, and their image size tells: stored pixels are taken if they have that size, and turned
  ones if only they have it. Without a size pixels are turned upright, as image viewers and annotation tools show them.
"""

import io
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

TIMEOUT = 30  # seconds, for an image on the web
LARGEST_FILE = 64 << 20  # bytes, of an image on the web
_QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap height and width


def decode_image(content: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes an image file.

    Args:
        content: of the file: JPEG, PNG, GIF, BMP, WebP, TIFF, …
        size: (height, width) that the annotations are for, pixels; None if they do not say.

    Returns:
        `(height, width, 3)` uint8, RGB.

    Raises:
        ValueError: not an image, a damaged or truncated one, or one of another size; the message begins with "is" or
            "has", so that a file's name can be put before it.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(content))
        if size is None or (image.height, image.width) != tuple(size):
            image = ImageOps.exif_transpose(image)
        pixels = np.asarray(_rgb(image))
    except UnidentifiedImageError:
        raise ValueError(f"is not an image that can be read ({len(content)} bytes)") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"has too many pixels: {error} Raise PIL.Image.MAX_IMAGE_PIXELS if it is sound") from None
    except Exception as error:  # Pillow lets through whatever a damaged file leads to: struct.error, TypeError, …
        raise ValueError(f"is damaged: {error}") from None
    if size is not None and pixels.shape[:2] != tuple(size):
        height, width = pixels.shape[:2]
        raise ValueError(
            f"is {height} x {width} (height x width), but its annotations are for {size[0]} x {size[1]}: they belong "
            "to another version of the image"
        )
    return pixels


def as_rgb(image: Any) -> np.ndarray:
    """An image that is decoded already as RGB pixels.

    Args:
        image: a PIL image, or an array `(height, width, 3)` or `(height, width)` uint8.

    Returns:
        `(height, width, 3)` uint8.

    Raises:
        ValueError: anything else.
    """
    if isinstance(image, Image.Image):
        return np.asarray(_rgb(ImageOps.exif_transpose(image)))
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise ValueError(
            f"an image is (height, width, 3) or (height, width) uint8, levels 0 … 255, not {pixels.shape} of "
            f"{pixels.dtype}"
        )
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def read_pixels(image: Any, urls: bool = False) -> np.ndarray:
    """Reads an image that a person hands over.

    Args:
        image: a path, an array `(height, width, 3)` or `(height, width)` uint8, a PIL image, or, if allowed, a URL.
        urls: whether text that begins with http:// or https:// is fetched.

    Returns:
        `(height, width, 3)` uint8, RGB.

    Raises:
        ValueError: it is no image, or cannot be read.
    """
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        if not urls:
            raise ValueError(f"{image}: say urls=True to have it fetched")
        try:
            with urllib.request.urlopen(image, timeout=TIMEOUT) as answer:
                content = answer.read(LARGEST_FILE + 1)
        except (urllib.error.URLError, OSError) as error:
            raise ValueError(f"{image} could not be fetched: {error}") from error
        if len(content) > LARGEST_FILE:
            raise ValueError(f"{image} is larger than {LARGEST_FILE >> 20} MiB")
        return _decoded(image, content)
    if isinstance(image, (str, Path)):
        try:
            return _decoded(image, Path(image).read_bytes())
        except OSError as error:
            raise ValueError(f"{image} cannot be read: {error.strerror}") from error
    return as_rgb(image)


def _decoded(name: str | Path, content: bytes) -> np.ndarray:
    try:
        return decode_image(content)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


def stored_size(content: bytes) -> tuple[int, int] | None:
    """(height, width) of the pixels as an image file stores them, from its header; None if it has none.

    With this size, `decode_image` turns nothing.
    """
    return _size_in_header(io.BytesIO(content), upright=False)


def upright_size(path: Path) -> tuple[int, int] | None:
    """(height, width) of what `decode_image` makes of a file without a size, from its header; None if it has none."""
    return _size_in_header(path, upright=True)


def _size_in_header(file: Path | io.BytesIO, upright: bool) -> tuple[int, int] | None:
    try:
        with Image.open(file) as image:
            turned = upright and image.getexif().get(ExifTags.Base.Orientation) in _QUARTER_TURNS
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception:  # as above; the error comes with the pixels
        return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which PIL's conversion would cut off at 255
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P":
        image = image.convert("RGBA")  # Pillow would warn that a palette's transparency is lost
    return image.convert("RGB")
