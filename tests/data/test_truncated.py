"""Image files that end early or have other bytes: right pixels, told of, or a ValueError; Pillow's switches stay."""

import io
import random
import threading

import numpy as np
import pytest
from PIL import Image, ImageFile

from tfdetr_keras.data.images import TRUNCATED, decode_image

HEIGHT, WIDTH = 96, 128
_Y, _X = np.mgrid[:HEIGHT, :WIDTH]
SMOOTH = np.stack([_X * 2, _Y * 2, (_X + _Y) % 256], axis=-1).astype(np.uint8)
NOISY = (SMOOTH.astype(int) + np.random.default_rng(0).integers(-20, 20, SMOOTH.shape)).clip(1, 255).astype(np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RGB = Image.fromarray(NOISY)
FILES = {
    "jpeg": encoded(RGB, "JPEG", quality=90),
    "progressive": encoded(RGB, "JPEG", quality=90, progressive=True),
    "grey jpeg": encoded(RGB.convert("L"), "JPEG"),
    "cmyk jpeg": encoded(RGB.convert("CMYK"), "JPEG"),
    "png": encoded(RGB, "PNG"),
    "palette png": encoded(RGB.quantize(64), "PNG"),
    "16 bits": encoded(Image.fromarray(NOISY[..., 0].astype(np.uint16) * 257), "PNG"),
    "gif": encoded(RGB.quantize(64), "GIF", interlace=0),
    "bmp": encoded(RGB, "BMP"),
    "tiff": encoded(RGB, "TIFF"),
    "lzw tiff": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "ppm": encoded(RGB, "PPM"),
    "webp": encoded(RGB, "WEBP"),
}
RECOVERED = ("jpeg", "grey jpeg", "cmyk jpeg", "png", "palette png", "16 bits", "gif", "tiff", "ppm")


def decoded(content):
    told = []
    return decode_image(content, notice=lambda kind, what: told.append((kind, what))), told


@pytest.mark.parametrize("kind", RECOVERED)
@pytest.mark.parametrize("share", [0.7, 0.97])
def test_what_is_there_is_read(kind, share):
    """Rows come from the top; those that are there are those of the whole file."""
    content = FILES[kind]
    whole = decode_image(content)
    found, [(noticed, what)] = decoded(content[: int(len(content) * share)])
    assert found.shape == whole.shape
    same = (found == whole).all(axis=(1, 2))
    rows = HEIGHT if same.all() else int(same.argmin())
    assert rows >= (share - 0.25) * HEIGHT  # a JPEG's tables take bytes, too, and its rows come by sixteens
    assert noticed == TRUNCATED
    assert what.startswith("is truncated: ")


def test_a_bmps_rows_come_from_the_bottom():
    content = FILES["bmp"]
    found, [_] = decoded(content[: len(content) * 3 // 4])
    np.testing.assert_array_equal(found[HEIGHT // 4 + 1 :], NOISY[HEIGHT // 4 + 1 :])


@pytest.mark.parametrize("lost", [1, 2, 10, 400])
def test_a_progressive_jpeg_that_lacks_its_end_is_whole_but_coarser(lost):
    content = FILES["progressive"]
    whole = decode_image(content).astype(int)
    found, [_] = decoded(content[:-lost])
    assert np.abs(found - whole).mean() < 8
    assert np.abs(found[-16:] - whole[-16:]).mean() < 8


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_jpeg_without_its_last_marker_has_all_its_pixels_but_a_block(lost):
    """As tutorial sets have them: of the last bytes most are of the end's marker."""
    content = FILES["jpeg"]
    found, told = decoded(content[:-lost])
    whole = decode_image(content)
    other = (found != whole).any(axis=-1)
    assert not other[:-17].any()
    assert not other[:, :-33].any()  # one block of 16 × 16 at most, and what smoothing spreads of it
    assert [kind for kind, _ in told] == [TRUNCATED]


@pytest.mark.parametrize("kind", FILES)
def test_hardly_anything_is_refused(kind):
    content = FILES[kind]
    for length in (1, 10, len(content) // 20):
        with pytest.raises(ValueError, match=r"^is "):
            decoded(content[:length])


@pytest.mark.parametrize("kind", RECOVERED)
def test_without_somebody_to_tell_it_is_an_error(kind):
    """As for the segments of a panoptic set, where missing pixels would be of no segment."""
    with pytest.raises(ValueError, match=r"^is damaged: .*truncated"):
        decode_image(FILES[kind][: len(FILES[kind]) * 9 // 10])


def test_pillows_switches_stay_as_they_are(monkeypatch):
    """They are the process': another thread's files would be read otherwise meanwhile."""
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    seen, stop = set(), threading.Event()

    def watch():
        while not stop.is_set():
            seen.add((ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for kind in RECOVERED:
        decoded(FILES[kind][: len(FILES[kind]) * 9 // 10])
    stop.set()
    watcher.join()
    assert seen == {before}


@pytest.mark.filterwarnings("ignore")
def test_a_thousand_damaged_files():
    """Cut off: the rows before the cut are right, or all is refused. Other bytes: pixels or a ValueError."""
    lots = random.Random(0)
    wholes = {kind: decode_image(content) for kind, content in FILES.items()}
    counts = {"read": 0, "refused": 0}
    for number in range(1000):
        kind = lots.choice(list(FILES))
        content = bytearray(FILES[kind])
        cut = number % 2 == 0
        if cut:
            del content[lots.randrange(len(content)) :]
        else:
            for _ in range(lots.randint(1, 4)):
                content[lots.randrange(len(content))] ^= 1 << lots.randrange(8)
        try:
            found, told = decoded(bytes(content))
        except ValueError as error:
            assert str(error).startswith(("is ", "has "))  # noqa: PT017
            counts["refused"] += 1
            continue
        counts["read"] += 1
        assert found.dtype == np.uint8
        assert found.shape[2:] == (3,)
        if cut:
            whole = wholes[kind]
            assert found.shape == whole.shape
            right = (found == whole).all(axis=(1, 2))
            if kind == "progressive":
                assert np.abs(found.astype(int) - whole).mean() < 40
            elif not right.all():
                assert [noticed for noticed, _ in told] == [TRUNCATED]
                assert right.mean() > 0.3, kind
    assert counts["read"] > 200, counts
    assert counts["refused"] > 200, counts
