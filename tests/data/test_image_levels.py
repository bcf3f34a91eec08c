"""Levels of more than 8 bits: the right ones, told of where their white is guessed, never black in silence."""

import io

import numpy as np
import pytest
from PIL import Image

from tfdetr_keras import data
from tfdetr_keras.data.image_levels import DARK, GUESSED_WHITE
from tfdetr_keras.data.images import as_rgb, decode_image

RAMP = np.tile(np.linspace(0, 1, 80), (60, 1))


def encoded(image, kind="TIFF", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(levels, bits, sample_format):
    """A TIFF of one strip, as Pillow does not write it: big-endian, of any depth."""
    height, width = levels.shape
    entries = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, 1)]
    content = levels.tobytes()
    entries += [(273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(content)), (339, 3, sample_format)]
    directory = len(entries).to_bytes(2, "big")
    for tag, kind, value in entries:
        directory += tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + (1).to_bytes(4, "big")
        directory += value.to_bytes(2, "big") + bytes(2) if kind == 3 else value.to_bytes(4, "big")
    return b"MM\0*" + (8 + len(content)).to_bytes(4, "big") + content + directory + bytes(4)


def decoded(content):
    told = []
    levels = decode_image(content, notice=lambda kind, what: told.append((kind, what)))
    assert (levels == levels[..., :1]).all()
    return levels[..., 0].astype(int), [kind for kind, _ in told]


SERVED = {
    "real, 0 to 1": (RAMP.astype("f4"), GUESSED_WHITE),
    "real, 0 to 255": ((RAMP * 255).astype("f4"), GUESSED_WHITE),
    "real, 0 to 65535": ((RAMP * 65535).astype("f4"), GUESSED_WHITE),
    "int32, 0 to 255": ((RAMP * 255).astype("i4"), GUESSED_WHITE),
    "int32, 0 to 65535": ((RAMP * 65535).astype("i4"), GUESSED_WHITE),
    "16 bits": ((RAMP * 65535).astype("u2"), None),
}


@pytest.mark.parametrize("case", SERVED)
def test_levels_become_a_share_of_white(case):
    array, kind = SERVED[case]
    levels, told = decoded(encoded(array))
    np.testing.assert_allclose(levels, RAMP * 255, rtol=0, atol=1)
    assert told == ([kind] if kind else [])
    np.testing.assert_array_equal(as_rgb(Image.fromarray(array))[..., 0], levels)


@pytest.mark.parametrize(
    ("array", "bits", "sample_format"),
    [
        ((RAMP * 65535).astype(">u2"), 16, 1),
        ((RAMP * 65535).astype(">i4"), 32, 2),
        (RAMP.astype(">f4"), 32, 3),
    ],
)
def test_big_endian_ones(array, bits, sample_format):
    levels, told = decoded(tiff(array, bits, sample_format))
    np.testing.assert_allclose(levels, RAMP * 255, rtol=0, atol=1)
    assert told == ([] if bits == 16 else [GUESSED_WHITE])


def test_12_bits():
    """Packed, two levels in three bytes; the file says how many bits they have."""
    levels = np.round(RAMP * 4095).astype(int)
    first, second = levels[:, ::2], levels[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8)
    content = bytearray(tiff(packed.reshape(60, 120), 12, 1))
    place = content.index((256).to_bytes(2, "big") + (3).to_bytes(2, "big"))
    content[place + 8 : place + 10] = (80).to_bytes(2, "big")
    little = b"II*\0" + bytes(content[4:])  # Pillow reads little-endian ones alone
    swapped = bytearray(little)
    swapped[4:8] = little[4:8][::-1]
    start = int.from_bytes(content[4:8], "big")
    swapped[start : start + 2] = content[start : start + 2][::-1]
    for entry in range(10):
        at = start + 2 + 12 * entry
        for length, offset in ((2, 0), (2, 2), (4, 4)):
            swapped[at + offset : at + offset + length] = content[at + offset : at + offset + length][::-1]
        size = 2 if content[at + 3] == 3 else 4
        swapped[at + 8 : at + 8 + size] = content[at + 8 : at + 8 + size][::-1]
    found, told = decoded(bytes(swapped))
    np.testing.assert_allclose(found, RAMP * 255, rtol=0, atol=1)
    assert told == []


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_12_bits_as_16_are_told_of(kind):
    """They become almost black; nothing in the file tells them from a dark image of 16 bits."""
    levels, told = decoded(encoded((RAMP * 4095).astype("u2"), kind))
    assert levels.max() == 15
    assert told == [DARK]


@pytest.mark.parametrize(
    "array",
    [
        RAMP.astype("f4") - 0.5,
        (RAMP * 70000).astype("f4"),
        np.where(RAMP > 0.5, np.nan, RAMP).astype("f4"),
        np.where(RAMP > 0.5, np.inf, RAMP).astype("f4"),
        (RAMP * 100000).astype("i4"),
        (RAMP * 100 - 50).astype("i4"),
    ],
    ids=["negative", "beyond 16 bits", "nan", "inf", "whole beyond 16 bits", "whole negative"],
)
def test_levels_without_a_white_are_refused(array):
    with pytest.raises(ValueError, match=r"^has levels from .*: scale its levels to 0 … 255, and save them as 8 bits"):
        decode_image(encoded(array))
    with pytest.raises(ValueError, match=r"^the PIL image has levels from"):
        as_rgb(Image.fromarray(array))


def test_the_file_is_named_and_counted(tmp_path):
    for name, array in (("a.tif", RAMP.astype("f4")), ("b.tif", RAMP.astype("f4") - 2), ("c.tif", (RAMP * 255))):
        Image.fromarray(array.astype("f4")).save(tmp_path / name)
    records, _ = data.load_images(tmp_path, on_error="skip")
    found = [record["image"].mean() for record in records.as_numpy_iterator()]
    np.testing.assert_allclose(found, [127.5, 127.5], atol=1)
    assert [len(texts) for texts in records.tally.noticed().values()] == [2]
    [left_out] = records.tally.left_out().values()
    assert "b.tif has levels from -2 to -1" in left_out[0]


@pytest.mark.parametrize("mode", ["RGBX", "YCbCr", "HSV", "La", "RGBa", "PA"])
def test_colours_of_other_kinds(mode):
    assert as_rgb(Image.new(mode, (6, 4))).shape == (4, 6, 3)


@pytest.mark.parametrize(("dtype", "sample_format"), [(">f8", 3), (">u8", 1)])
def test_depths_that_pillow_does_not_read_are_refused_with_a_remedy(dtype, sample_format):
    with pytest.raises(ValueError, match="it is a damaged TIFF file, or one of a rare kind: convert it"):
        decode_image(tiff(RAMP.astype(dtype), 64, sample_format))


def test_a_fourth_band_is_left_away():
    """As of aerial images, whose fourth is infrared."""
    bands = np.random.default_rng(0).integers(0, 256, (60, 80, 4), np.uint8)
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(bands))), bands[..., :3])


def test_large_images_are_converted_by_strips(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 4), np.uint8)
    for mode in ("RGB", "RGBA", "L", "CMYK"):
        image = Image.fromarray(pixels).convert("RGB").convert(mode)
        expected = as_rgb(image)
        monkeypatch.setattr("tfdetr_keras.data.image_levels._STRIP", 90)
        np.testing.assert_array_equal(as_rgb(image), expected)
        monkeypatch.undo()
