"""Supported image files: their formats, the suffixes of their names, and their largest number of pixels.

Pillow knows some forty formats, and for one of them, PostScript, it runs another program. So files are opened here
with a fixed list of formats, and their number of pixels is checked before any of them is decoded.
"""

import os
from typing import IO

from PIL import Image, ImageFile

# HEIF only where the program has registered it: `pillow_heif.register_heif_opener()`.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
_READ = ".apng .avif .bmp .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .jpx .mpo .pbm .pgm .png .pnm .ppm .tif .tiff .webp"
_NOT_READ = (  # whether or not Pillow could; of camera makers' raw files the usual ones
    ".ai .arw .cr2 .cr3 .cur .dcm .dds .dib .djvu .dng .emf .eps .exr .fits .hdr .icns .ico .j2c .jpc .jxl .jxr .nef "
    ".orf .pcx .pdf .pef .pfm .pic .ps .psd .qoi .raf .raw .rw2 .sgi .sr2 .srw .svg .tga .wmf .xbm .xcf .xpm"
)
IMAGE_SUFFIXES = frozenset(_READ.split())
HEIF_SUFFIXES = frozenset((".heic", ".heics", ".heif", ".heifs", ".hif"))
OTHER_SUFFIXES = HEIF_SUFFIXES | frozenset(_NOT_READ.split())
MAX_PIXELS = 2**27  # 16384 × 8192: the largest photographs of telephones; their RGB takes 400 MB
VARIABLE = "TFDETR_MAX_IMAGE_PIXELS"
_PREFIX = 32  # bytes that tell a file's kind
_BITS_PER_SAMPLE = 258  # TIFF's number of the tag
_PNG_DEPTH = 24  # the place of the byte that tells a PNG's bits
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC", b"hevc": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF"}
_BRANDS |= {b"avif": "AVIF", b"avis": "AVIF"}
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "BigTIFF"),
    (b"MM\0+", "BigTIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"<svg", "SVG"),
    (b"version https://git-lfs", "Git LFS pointer"),
)
_KINDS_READ = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "JPEG 2000", "AVIF")
_REMEDIES = {
    "Git LFS pointer": "fetch the image itself with git lfs pull",
    "HEIC": "convert it to JPEG, or install pillow-heif and call pillow_heif.register_heif_opener() first",
}
_REMEDIES["HEIF"] = _REMEDIES["HEIC"]


class UnreadableImage(ValueError):
    """An image file that is refused; its message begins with "is" or "has", to follow the file's name."""


def pixel_limit() -> int:
    """Return how many pixels an image file may have: TFDETR_MAX_IMAGE_PIXELS of the environment, or else `MAX_PIXELS`.

    Raises:
        ValueError: the variable is not a whole number from 1 on.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return MAX_PIXELS
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"the environment variable {VARIABLE} must be a number of pixels, not {text!r}")
    return int(text)


def check_pixels(height: int, width: int) -> None:
    """Raise an `UnreadableImage` if an image has more pixels than are allowed."""
    if height * width > (limit := pixel_limit()):
        raise UnreadableImage(
            f"has too many pixels: {height} x {width} (height x width), more than {limit}; if the image is sound, set "
            f"the environment variable {VARIABLE}={height * width}"
        )


def open_image(file: IO[bytes]) -> ImageFile.ImageFile:
    """Open an image file of one of the supported formats, without decoding its pixels.

    `Image.open` would do the same with `formats=`, but it warns of large images and refuses larger ones by a limit that
    holds for the whole process.

    Args:
        file: at its beginning.

    Raises:
        UnreadableImage: not an image, a damaged one, or one with more pixels than `pixel_limit`.
    """
    Image.init()
    prefix = file.read(_PREFIX)
    faults = []
    for name in FORMATS:
        if name not in Image.OPEN:  # this Pillow was built without
            continue
        factory, accept = Image.OPEN[name]
        try:
            accepted = accept is None or accept(prefix[:16])
            if not accepted or isinstance(accepted, str):  # a text says what Pillow was built without
                continue
            file.seek(0)
            image = factory(file, "")
        except Exception as error:  # Pillow lets through whatever a damaged file leads to: struct.error, TypeError, …
            faults.append(str(error))
            continue
        check_pixels(image.height, image.width)
        return image
    raise UnreadableImage(_complaint(prefix, faults, file.seek(0, os.SEEK_END)))


def kind_of(prefix: bytes) -> str | None:
    """Return the kind of file that begins with these bytes, such as "HEIC"; None if it is not known."""
    if prefix[4:8] == b"ftyp":
        return _BRANDS.get(prefix[8:12])
    if prefix[:4] == b"RIFF" and prefix[8:12] == b"WEBP":
        return "WebP"
    return next((kind for signature, kind in _SIGNATURES if prefix.startswith(signature)), None)


def is_read(suffix: str) -> bool:
    """Return whether files with this suffix are read as images."""
    suffix = suffix.lower()
    return suffix in IMAGE_SUFFIXES or (suffix in HEIF_SUFFIXES and "HEIF" in Image.OPEN)


def bits_of(image: Image.Image) -> int | None:
    """Return how many bits encode white in an image: from its file's header where it says so, 8 by default.

    Return None for whole levels of 32 bits and for real ones, where nothing says it. Call it before the image is
    decoded.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        return None
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, 8)
        return int(max(bits) if isinstance(bits, tuple) else bits)
    if image.format == "PNG" and (file := getattr(image, "fp", None)) is not None:
        place = file.tell()
        file.seek(0)
        header = file.read(_PNG_DEPTH + 1)
        file.seek(place)
        return header[_PNG_DEPTH]
    return 16 if image.mode.startswith("I") else 8


def _complaint(prefix: bytes, faults: list[str], size: int) -> str:
    complaint, kind = "is not an image that can be read", kind_of(prefix)
    if kind is None:
        return f"{complaint} ({size} bytes)"
    if kind in _KINDS_READ:
        reason = next(filter(None, faults), "no data")
        return f"{complaint}: it is a damaged {kind} file, or one of a rare kind: convert it to PNG or JPEG ({reason})"
    return f"{complaint}, but a {kind} file: {_REMEDIES.get(kind, 'convert it to PNG or JPEG')}"
