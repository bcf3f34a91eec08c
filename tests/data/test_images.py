import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tfdetr_keras.data.images import decode_image, stored_size, upright_size

HEIGHT, WIDTH = 6, 9
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
GREY = PIXELS[..., 0]
NOISE = np.random.default_rng(1).integers(0, 256, (90, 90, 3), np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def palette(transparency):
    image = Image.fromarray(PIXELS).quantize(colors=4)
    return image, encoded(image, transparency=transparency)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WebP"])
def test_every_lossless_kind_gives_the_pixels(kind):
    np.testing.assert_array_equal(
        decode_image(encoded(PIXELS, kind, **{"lossless": True} if kind == "WebP" else {})), PIXELS
    )


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg_is_what_pillow_makes_of_it(options):
    content = encoded(PIXELS, "JPEG", **options)
    np.testing.assert_array_equal(decode_image(content), np.asarray(Image.open(io.BytesIO(content))))


def test_grey_becomes_rgb():
    for image in (GREY, Image.fromarray(GREY).convert("LA")):
        np.testing.assert_array_equal(decode_image(encoded(image)), np.repeat(GREY[..., None], 3, axis=2))
    two = decode_image(encoded(Image.fromarray(GREY > 127)))
    np.testing.assert_array_equal(two[..., 0], np.where(GREY > 127, 255, 0))


def test_alpha_is_left_away():
    alpha = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH, 1)
    np.testing.assert_array_equal(decode_image(encoded(np.concatenate([PIXELS, alpha], axis=2))), PIXELS)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [0, b"\x00\x40\x80\xff"])
def test_a_palette_keeps_its_colours_whatever_is_transparent(transparency):
    image, content = palette(transparency)
    np.testing.assert_array_equal(decode_image(content), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_keep_the_upper_8(kind):
    grey = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 1200
    found = decode_image(encoded(grey, kind))
    assert len(np.unique(found)) > 40  # not cut off at 255
    np.testing.assert_array_equal(found, np.repeat((grey >> 8)[..., None], 3, axis=2))


def test_cmyk():
    flat = Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0))  # no cyan: red
    red = decode_image(encoded(flat, "JPEG", quality=100))
    np.testing.assert_allclose(red, np.broadcast_to([255, 0, 0], red.shape), atol=3)


@pytest.mark.parametrize("kind", ["GIF", "WebP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WebP" else {}
    found = decode_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    np.testing.assert_array_equal(found, np.broadcast_to(np.uint8([255, 0, 0]), (HEIGHT, WIDTH, 3)))


def test_one_pixel():
    assert decode_image(encoded(PIXELS[:1, :1])).shape == (1, 1, 3)


TURNS = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
def test_a_turned_camera(orientation, tmp_path):
    """Upright, unless the annotations' size says that they were made for the pixels as stored."""
    exif = Image.Exif()
    exif[0x112] = orientation
    content, upright = encoded(PIXELS, exif=exif), TURNS[orientation](PIXELS)
    np.testing.assert_array_equal(decode_image(content), upright)
    np.testing.assert_array_equal(decode_image(content, (HEIGHT, WIDTH)), PIXELS)
    if orientation > 4:
        np.testing.assert_array_equal(decode_image(content, (WIDTH, HEIGHT)), upright)
    assert stored_size(content) == (HEIGHT, WIDTH)
    (tmp_path / "a.png").write_bytes(content)
    assert upright_size(tmp_path / "a.png") == upright.shape[:2]


def test_no_size_of_what_is_no_image(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    assert upright_size(tmp_path / "a.png") is None
    assert upright_size(tmp_path / "lost.png") is None
    assert stored_size(b"no image") is None


def test_another_version_of_the_image():
    with pytest.raises(ValueError, match=r"^is 6 x 9 \(height x width\), but its annotations are for 12 x 18"):
        decode_image(encoded(PIXELS), (12, 18))


def huge(side):
    """A PNG that says in its header how large it is."""
    content = bytearray(encoded(PIXELS))
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", r"^is not an image that can be read \(0 bytes\)"),
        (b"This is a text.", r"^is not an image .*15 bytes"),
        (b"<html>404</html>", "^is not an image"),
        (encoded(NOISE, "JPEG")[:-900], "^is damaged: .*truncated"),
        (encoded(NOISE)[:-900], "^is damaged: .*truncated"),
        (encoded(PIXELS)[:20], "^is "),
        (encoded(PIXELS, "JPEG")[:10], "^is "),
        (huge(2**20), "^has too many pixels: .*MAX_IMAGE_PIXELS"),
    ],
    ids=["empty", "text", "html", "jpeg", "png", "png header", "jpeg header", "huge"],
)
def test_what_cannot_be_read_is_explained(content, complaint):
    with pytest.raises(ValueError, match=complaint):
        decode_image(content)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WebP"]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=12),
    st.integers(0, 2000),
)
@pytest.mark.filterwarnings("ignore")
def test_damage_never_surfaces_as_anything_but_a_value_error(kind, changes, cut):
    content = bytearray(encoded(PIXELS, kind))
    for place, value in changes:
        content[place % len(content)] = value
    try:
        found = decode_image(bytes(content[: max(len(content) - cut // 10, 0)]))
    except ValueError as error:
        assert str(error).startswith(("is ", "has "))  # noqa: PT017
    else:
        assert found.dtype == np.uint8
        assert found.shape[2:] == (3,)
