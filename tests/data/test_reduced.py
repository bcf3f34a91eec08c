"""Very large images for a look at them: decoded at a part of their size; Pillow's own box filter is the oracle."""

import io

import numpy as np
import pytest
from PIL import Image

from tfdetr_keras.data.images import decode_image, decode_reduced

HEIGHT, WIDTH = 600, 840
_Y, _X = np.mgrid[:HEIGHT, :WIDTH]
RGB = Image.fromarray(np.stack([_X % 256, _Y % 256, (_X // 4 + _Y // 4) % 256], axis=-1).astype(np.uint8))
TURNED = Image.Exif()
TURNED[0x112] = 6


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


FILES = {
    "jpeg": encoded(RGB, "JPEG", quality=95),
    "turned jpeg": encoded(RGB, "JPEG", quality=95, exif=TURNED),
    "png": encoded(RGB, "PNG"),
    "palette": encoded(RGB.quantize(64), "PNG"),
    "alpha": encoded(RGB.convert("RGBA"), "PNG"),
    "grey": encoded(RGB.convert("L"), "PNG"),
    "1 bit": encoded(RGB.convert("1"), "PNG"),
    "16 bits": encoded(Image.fromarray((_X % 256 * 256).astype(np.uint16)), "PNG"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    ("most", "shortest", "part"), [(10**6, 10, 1), (200_000, 10, 2), (40_000, 10, 4), (40_000, 200, 2), (1, 400, 1)]
)
def test_a_part_of_the_size(kind, most, shortest, part):
    whole = decode_image(FILES[kind])
    found, size = decode_reduced(FILES[kind], most, shortest, lambda *_: pytest.fail("nothing is to be said"))
    assert size == whole.shape[:2]
    assert found.shape[:2] == (size[0] // part, size[1] // part)
    expected = np.asarray(Image.fromarray(whole).reduce(part)).astype(int)
    assert np.abs(found - expected).mean() < (1.5 if "jpeg" in kind else 1)
    if part == 1:
        np.testing.assert_array_equal(found, whole)
