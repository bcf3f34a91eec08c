"""Conversion of levels of any depth and colours of any kind to RGB of 8 bits.

- Greyscale, palette, CMYK, YCbCr and HSV images become RGB; an alpha channel and further bands are dropped.
- Whole levels of 16 bits keep their upper 8, of 12 bits likewise. An image that becomes dark is noticed: often 12 bits
  are stored as 16.
- For levels of 32 bits, whole or real, the file does not say which level is white. It is derived from their largest
  level: real ones up to 1 are fractions of white, levels up to 255 are taken as they are, and levels up to 65535 keep
  their upper 8 bits of 16; all of these are noticed. Other levels, negative and non-finite ones are refused.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from tfdetr_keras.data.image_formats import UnreadableImage

Notice = Callable[[str, str], None]
"""Called with a kind and a description, which continues from the file's name, of an image that may be worth a look."""

GUESSED_WHITE = "images of 32 bits a level, whose white is taken from their largest level"
DARK = "images of more than 8 bits a level that become almost black"
DARKEST = 16  # of 255: what uses 12 of 16 bits stays below
_REMEDY = "scale its levels to 0 … 255, and save them as 8 bits"
_STRIP = 2**22  # pixels that are converted at a time: the whole image need not be in memory thrice


def rgb_levels(image: Image.Image, bits: int | None, notice: Notice | None = None) -> np.ndarray:
    """Convert an image to RGB.

    Args:
        image: decoded, of any of Pillow's modes.
        bits: that encode white, from `bits_of`.
        notice: called for an image that may look different from what was meant.

    Returns:
        `(height, width, 3)` uint8, RGB.

    Raises:
        UnreadableImage: levels without a known white, or colours of another kind.
    """
    if image.mode.startswith("I") or image.mode == "F":
        levels = np.repeat(_eight_bits(image, bits, notice)[..., None], 3, axis=2)
    else:
        levels = np.empty((image.height, image.width, 3), np.uint8)
        rows = max(1, _STRIP // image.width)
        for top in range(0, image.height, rows):
            below = min(top + rows, image.height)
            strip = image if rows >= image.height else image.crop((0, top, image.width, below))
            levels[top:below] = np.asarray(_rgb(strip))
    if bits is not None and bits > 8 and notice is not None and (largest := int(levels.max())) < DARKEST:
        notice(DARK, f"has {bits} bits a level, and its brightest level becomes {largest} of 255: {_REMEDY}")
    return levels


def _eight_bits(image: Image.Image, bits: int | None, notice: Notice | None) -> np.ndarray:
    levels = np.asarray(image)
    if bits is not None:
        return (levels >> max(bits - 8, 0)).clip(0, 255).astype(np.uint8)
    lowest, largest = levels.min(), levels.max()
    described = f"has levels from {lowest:g} to {largest:g}"
    if not (np.isfinite(lowest) and np.isfinite(largest) and lowest >= 0 and largest <= 65535):
        raise UnreadableImage(f"{described}, and nothing says which of them is white: {_REMEDY}")
    if image.mode == "F" and largest <= 1:
        white, found = "1", np.round(levels * 255)
    elif largest <= 255:
        white, found = "255", np.round(levels)
    else:
        white, found = "65535", np.floor(levels / 256)
    if notice is not None:
        notice(GUESSED_WHITE, f"{described}: {white} is taken for white")
    return found.astype(np.uint8)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("P", "PA", "La"):
        # Pillow would warn that a palette's transparency is lost, and knows no way from La to RGB.
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode == "RGBa":
        image = image.convert("RGBA")
    try:
        return image.convert("RGB")
    except ValueError:
        raise UnreadableImage(f"has colours of the unsupported kind {image.mode}: convert it to RGB") from None
