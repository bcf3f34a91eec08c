"""Image files to pixels in TensorFlow's graph, with the same pixels as `tfdetr_keras.data.images.decode_image`.

TensorFlow decodes JPEG, PNG, WebP, GIF and BMP files as Pillow does, with these exceptions: it ignores a
camera's rotation note (EXIF, or XMP), which is applied here; it takes the indices of a BMP's palette for levels of
grey, so the palette is applied here; and it treats transparency and frames of GIF files, and some kinds of BMP files,
differently, which are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

_HEAD = 64  # bytes that tell a file's kind, and what a BMP is like
_NOTES = 1 << 18  # bytes at a JPEG's beginning in which a note is looked for
_ORIENTATION = 0x0112  # the number of the TIFF tag
_MOST_TAGS = 512
_LONG = 4  # TIFF's number of the type; a short one otherwise
_GIF_EXTENSION, _GIF_NOTE = 0x21, 0xF9  # begin an extension, and as its second byte the one that tells transparency
_XMP = b"tiff:Orientation"


def decoded(content: tf.Tensor) -> tf.Tensor:
    """Decode an image file, turned upright as its rotation note says.

    Args:
        content: `()` string, of a JPEG, PNG, WebP, GIF or BMP file.

    Returns:
        `(height, width, 3)` uint8, RGB; those of a JPEG are as exact as Pillow's.

    Raises:
        tf.errors.InvalidArgumentError: a file of another kind, damaged, or of a rare kind that Pillow reads
            differently.
    """
    head = _bytes(tf.strings.join([tf.strings.substr(content, 0, _HEAD), b"\0" * _HEAD]))
    is_jpeg, is_png, is_gif, is_bmp = (_begins(head, sign) for sign in (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM"))
    is_webp = _begins(head, b"RIFF") & _begins(head[8:], b"WEBP")
    known = tf.reduce_any([is_jpeg, is_png, is_gif, is_bmp, is_webp])
    content = _checked(content, known, "a file is not a JPEG, PNG, WebP, GIF or BMP: convert it to one of them")
    image = tf.case(
        [
            (is_jpeg, lambda: tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE")),
            (is_bmp, lambda: _of_bmp(content, head)),
            (is_gif, lambda: _any(_checked_gif(content))),
            (is_webp, lambda: tf.io.decode_image(content, channels=0, expand_animations=False)[..., :3]),
        ],
        default=lambda: _any(content),
        exclusive=True,
    )
    may_be_turned = is_jpeg | is_png | is_webp
    searched = tf.strings.substr(content, 0, tf.where(is_jpeg, _NOTES, tf.int32.max))
    orientation = tf.cond(may_be_turned, lambda: _orientation(_bytes(searched)), lambda: tf.constant(1))
    return tf.ensure_shape(_turned(image, orientation), (None, None, 3))


def _any(content: tf.Tensor) -> tf.Tensor:
    return tf.io.decode_image(content, channels=3, expand_animations=False)


def _checked(content: tf.Tensor, condition: tf.Tensor, complaint: str) -> tf.Tensor:
    """Return the content; raise if a condition is not met."""
    with tf.control_dependencies([tf.debugging.Assert(condition, [complaint])]):
        return tf.identity(content)


def _bytes(content: tf.Tensor) -> tf.Tensor:
    """Return the bytes as `(n,)` int32."""
    return tf.cast(tf.io.decode_raw(content, tf.uint8), tf.int32)


def _begins(numbers: tf.Tensor, sign: bytes) -> tf.Tensor:
    return tf.reduce_all(numbers[: len(sign)] == tf.constant(list(sign)))


def _number(numbers: tf.Tensor, places: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return the little-endian number whose bytes are at `places`; a place beyond the end repeats the last byte."""
    last = tf.size(numbers) - 1
    parts = [tf.gather(numbers, tf.clip_by_value(place, 0, last)) * 256**power for power, place in enumerate(places)]
    return tf.add_n(parts)


def _of_bmp(content: tf.Tensor, head: tf.Tensor) -> tf.Tensor:
    """Decode a BMP of 24 or 32 bits, or of 8 with a palette."""
    header = _number(head, [14, 15, 16, 17])
    depth, compression = _number(head, [28, 29]), _number(head, [30, 31, 32, 33])
    is_usual = (header >= 40) & (compression == 0) & tf.reduce_any(depth == tf.constant([8, 24, 32]))
    complaint = "a BMP file is compressed, or has other than 8, 24 or 32 bits a pixel: convert it to PNG"
    content = _checked(content, is_usual, complaint)

    def of_palette() -> tf.Tensor:
        colours = _number(head, [46, 47, 48, 49])
        colours = tf.where((colours < 1) | (colours > 256), 256, colours)
        table = _bytes(tf.strings.substr(content, 14 + header, 4 * colours))
        table = tf.pad(table, [[0, 4 * 256 - tf.size(table)]])
        rgb = tf.cast(tf.reshape(table, (256, 4))[:, 2::-1], tf.uint8)
        return tf.gather(rgb, tf.cast(_any(content)[..., 0], tf.int32))

    return tf.cond(depth == 8, of_palette, lambda: _any(content))


def _checked_gif(content: tf.Tensor) -> tf.Tensor:
    """Return a GIF; raise unless its first frame fills its image and none of its pixels is transparent."""
    numbers = _bytes(tf.strings.join([tf.strings.substr(content, 0, 4096), b"\0" * _HEAD]))
    flags = numbers[10]
    begin = 13 + tf.where(flags >= 128, 3 * tf.bitwise.left_shift(2, flags % 8), 0)
    frame, is_opaque = _first_frame(numbers, begin)
    sides = [_number(numbers, [place, place + 1]) for place in (6, 8)]
    corner, extent = ([_number(numbers, [frame + at, frame + at + 1]) for at in places] for places in ((1, 3), (5, 7)))
    is_whole = tf.reduce_all([_number(numbers, [frame]) == ord(","), *(one == 0 for one in corner)])
    is_whole &= tf.reduce_all([one == other for one, other in zip(sides, extent, strict=True)])
    complaint = "a GIF file has transparent pixels, or a first frame that is a part of it: convert it to PNG"
    return _checked(content, is_opaque & is_whole, complaint)


def _first_frame(numbers: tf.Tensor, begin: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return where the first frame of a GIF begins, behind its extensions, and whether these make no pixel transparent.

    An extension is two bytes and blocks, each of which begins with its length; an empty one is the last.
    """

    def goes_on(place: tf.Tensor, is_inside: tf.Tensor, is_opaque: tf.Tensor) -> tf.Tensor:
        return (is_inside | (_number(numbers, [place]) == _GIF_EXTENSION)) & (place < tf.size(numbers))

    def step(place: tf.Tensor, is_inside: tf.Tensor, is_opaque: tf.Tensor) -> tuple[tf.Tensor, ...]:
        length = _number(numbers, [place])
        tells = ~is_inside & (_number(numbers, [place + 1]) == _GIF_NOTE)
        is_opaque &= ~tells | (_number(numbers, [place + 3]) % 2 == 0)
        return tf.where(is_inside, place + 1 + length, place + 2), ~is_inside | (length > 0), is_opaque

    place, _, is_opaque = tf.while_loop(goes_on, step, (begin, tf.constant(False), tf.constant(True)))
    return place, is_opaque


def _place_of(numbers: tf.Tensor, sign: bytes) -> tf.Tensor:
    """Return the first place of some bytes; a number far below 0 if they are missing."""
    count = tf.maximum(tf.size(numbers) - len(sign) + 1, 0)
    same = tf.fill([count], True)
    for place, one in enumerate(sign):
        same &= numbers[place : place + count] == one
    places = tf.where(same)[:1, 0]
    return tf.cond(tf.size(places) > 0, lambda: tf.cast(places[0], tf.int32), lambda: tf.constant(-(2**30)))


def _orientation(numbers: tf.Tensor) -> tf.Tensor:
    """Return the EXIF orientation in a file's bytes, 1 if there is none."""
    starts = [_place_of(numbers, b"Exif\0\0") + 6, _place_of(numbers, b"eXIf") + 4, _place_of(numbers, b"EXIF") + 8]
    found = tf.constant(0)
    for start in starts:
        found = tf.where(found > 0, found, _of_exif(numbers, start))
    xmp = _place_of(numbers, _XMP) + len(_XMP)
    attribute = _number(numbers, [xmp, xmp + 1]) == int.from_bytes(b'="', "little")
    digit = _number(numbers, [tf.where(attribute, xmp + 2, xmp + 1)]) - ord("0")
    is_noted = (xmp > 0) & (attribute | (_number(numbers, [xmp]) == ord(">")))
    found = tf.where((found == 0) & is_noted, digit, found)
    return tf.where((found > 1) & (found < 9), found, 1)


def _of_exif(numbers: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Return the orientation in a TIFF directory that begins at a place; 0 if there is none."""
    little = _number(numbers, [start, start + 1]) == int.from_bytes(b"II", "little")
    is_tiff = little | (_number(numbers, [start, start + 1]) == int.from_bytes(b"MM", "little"))

    def number(place: tf.Tensor, size: int) -> tf.Tensor:
        forwards = [place + at for at in range(size)]
        return tf.where(little, _number(numbers, forwards), _number(numbers, forwards[::-1]))

    directory = start + number(start + 4, 4)
    count = tf.clip_by_value(number(directory, 2), 0, _MOST_TAGS)
    entries = directory + 2 + 12 * tf.range(count)
    values = tf.where(number(entries + 2, 2) == _LONG, number(entries + 8, 4), number(entries + 8, 2))
    noted = tf.boolean_mask(values, (number(entries, 2) == _ORIENTATION) & (entries + 12 <= tf.size(numbers)))
    is_sound = (start >= 0) & is_tiff & (directory >= start) & (tf.size(noted) > 0)
    return tf.cond(is_sound, lambda: noted[0], lambda: tf.constant(0))


def _turned(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turn an image as its EXIF orientation says: mirrored at the diagonal, across, and down, each or not."""

    def among(*orientations: int) -> tf.Tensor:
        return tf.reduce_any(orientation == tf.constant(orientations))

    image = tf.cond(orientation > 4, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    image = tf.cond(among(2, 3, 6, 7), lambda: tf.reverse(image, [1]), lambda: image)
    return tf.cond(among(3, 4, 7, 8), lambda: tf.reverse(image, [0]), lambda: image)
