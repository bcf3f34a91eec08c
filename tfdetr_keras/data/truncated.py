"""Decoder of image files that lack their last bytes: what is there is decoded, as browsers and OpenCV do.

Pillow has a switch for this, `ImageFile.LOAD_TRUNCATED_IMAGES`, but it holds for the whole process. What a decoder has
written before it ran out of bytes stays in the image, though, and a JPEG is continued by the marker of its end, as
libjpeg itself does with a file that ends early.
"""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile

from tfdetr_keras.data.image_formats import UnreadableImage, open_image

ENOUGH = 0.5  # of the rows: less is refused
_JPEG_END = b"\xff\xd9"
_JPEG_TABLES, _JPEG_SCAN = b"\xff\xc4", b"\xff\xda"  # markers of the segments between a progressive file's scans
_JPEG_FILL = 128  # the level of a JPEG's blocks without a byte; inks are stored the other way round, 255 − 128


def decode(image: ImageFile.ImageFile, content: bytes) -> tuple[Image.Image, float]:
    """Decode an image, or as much of it as there is.

    Args:
        image: the result of `open_image`.
        content: of its file.

    Returns:
        The decoded image, and the share of its rows that were there, 1 if the file is complete.

    Raises:
        UnreadableImage: less than half of it can be decoded, or the file is damaged in another way.
    """
    interlaced = _is_interlaced(image)
    try:
        image.load()
        return image, 1.0
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"has too many pixels: {error} Raise PIL.Image.MAX_IMAGE_PIXELS, too") from None
    except MemoryError:
        raise UnreadableImage(f"has {image.height} x {image.width} pixels, for which the memory is too small") from None
    except Exception as error:
        if "truncated" not in str(error):
            raise UnreadableImage(f"is damaged: {error}") from None
        complaint = str(error)
    if interlaced:  # the rows that are missing lie between the others
        raise UnreadableImage(f"is damaged: {complaint}")
    found, share = _continued(content) if content.startswith(b"\xff\xd8") else _begun(image)
    if found is None or share < ENOUGH:
        raise UnreadableImage(f"is damaged: {complaint}, and only {share:.0%} of its rows are there")
    return found, min(share, 0.99)


def _is_interlaced(image: ImageFile.ImageFile) -> bool:
    if image.format == "GIF" and image.tile:
        arguments = image.tile[0][3]
        return isinstance(arguments, tuple) and bool(arguments[1])
    return bool(image.info.get("interlace"))


def _continued(content: bytes) -> tuple[Image.Image | None, float]:
    """Decode a JPEG file as if it ended where it is cut off."""
    for whole in _with_end(content):
        try:
            image = open_image(io.BytesIO(whole))
            image.load()
        except Exception:
            continue
        return image, _share_of_rows(image, 255 - _JPEG_FILL if image.mode == "CMYK" else _JPEG_FILL)
    return None, 0.0


def _with_end(content: bytes) -> Iterator[bytes]:
    yield content + _JPEG_END
    begun = max(content.rfind(_JPEG_TABLES), content.rfind(_JPEG_SCAN))  # may be cut off itself
    if begun > 0:
        yield content[:begun] + _JPEG_END


def _begun(image: ImageFile.ImageFile) -> tuple[Image.Image, float]:
    """Return what the decoder has written."""
    image.tile = []  # nothing more is to be decoded
    fill = image.info.get("transparency", 0) if image.format == "GIF" else 0
    return image, _share_of_rows(image, fill)


def _share_of_rows(image: Image.Image, fill: int) -> float:
    """Return the share of rows in which anything differs from the fill level."""
    levels = np.asarray(image)
    return float((levels != fill).reshape(len(levels), -1).any(axis=1).mean())
