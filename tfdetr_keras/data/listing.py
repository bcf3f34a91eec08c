"""The files of a folder that belong to a set: no leftovers of systems and programs, and only readable kinds of images.

Systems and programs leave files of their own beside a user's: `.ipynb_checkpoints` with copies of images, `._a.jpg`
of macOS beside every `a.jpg`, thumbnails in `@eaDir`, deleted files in `.Trashes`. They are never listed. Other hidden
images, and images of unsupported kinds, are left out and counted.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from tfdetr_keras.data.image_formats import HEIF_SUFFIXES, IMAGE_SUFFIXES, OTHER_SUFFIXES, is_read, kind_of
from tfdetr_keras.data.validation import Validation

HIDDEN = "hidden images (their name or that of their folder begins with a dot)"
OTHER_KIND = "{suffix} images, which are not read: convert them to JPEG or PNG"
MISNAMED = "images whose name does not end as that of an image does, as in .jpg"
# Names, in small letters, of what systems and programs leave in a person's folders.
_SYSTEM = (
    "._*",
    ".appledouble",
    ".ds_store",
    ".documentrevisions-v100",
    ".fseventsd",
    ".spotlight-v100",
    ".temporaryitems",
    ".thumbnails",
    ".trash",
    ".trash-*",
    ".trashes",
    ".@__thumb",
    ".ipynb_checkpoints",
    ".git",
    ".dvc",
    ".svn",
    ".hg",
    ".cache",
    ".picasaoriginals",
    ".sync*",
    ".stfolder",
    ".stversions",
    "__macosx",
    "@eadir",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "recycler",
    "system volume information",
    "lost+found",
    "thumbs.db",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "desktop.ini",
    "~$*",
)
# Of files that stand beside images and are none, whose content need not be looked at.
_BESIDE = (
    ".txt .xml .json .jsonl .yaml .yml .csv .tsv .md .html .htm .py .ipynb .zip .tar .gz .npy .npz .names .data .cfg "
    ".log .mp4 .avi .mov .mkv .doc .docx .xls .xlsx .db .cache .tfrecord .record .pbtxt .pt .pth .keras .h5 .onnx .pkl "
    ".mat .lock .sh .toml .ini .rst .lst .aae .xmp .thm .lnk .url .sha256 .md5"
)
_OTHER_FILES = frozenset(_BESIDE.split())


def files_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders, in any order; follow links, except back to a folder `above`.

    Hidden files and leftovers of systems are not among them, except for the folder itself.
    """
    for path, hidden in _walk(folder, above, False):
        if not hidden:
            yield path


def entries_of(folder: Path) -> list[Path]:
    """Return the entries of a folder, without hidden ones and leftovers of systems; none if there is no folder."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return [path for path in entries if not _is_of_system(path) and not _is_hidden(path)]


def images_below(folder: Path, validation: Validation) -> list[Path]:
    """Return the images of a folder and its subfolders, sorted.

    Args:
        folder: to look in.
        validation: counts the images that are left out: hidden ones, and those whose names show that they cannot be
            read.
    """
    found = []
    for path, hidden in _walk(folder, frozenset(), False):
        suffix = path.suffix.lower()
        if hidden:
            if suffix in IMAGE_SUFFIXES | OTHER_SUFFIXES:
                validation.leave_out(HIDDEN, str(path))
        elif is_read(suffix):
            found.append(path)
        elif suffix in OTHER_SUFFIXES:
            validation.leave_out(OTHER_KIND.format(suffix=suffix), str(path) + _remedy(suffix))
        elif suffix not in _OTHER_FILES and (kind := _kind_inside(path)) is not None:
            validation.leave_out(MISNAMED, f"{path}, which is a {kind} file")
    return sorted(found)


def _walk(folder: Path, above: frozenset[Path], hidden: bool) -> Iterator[tuple[Path, bool]]:
    """Yield each file, and whether it is hidden or in a hidden folder."""
    place = folder.resolve()
    if place in above:
        return
    for path in folder.iterdir():
        if _is_of_system(path):
            continue
        if path.is_dir():
            yield from _walk(path, above | {place}, hidden or _is_hidden(path))
        else:
            yield path, hidden or _is_hidden(path)


def _is_of_system(path: Path) -> bool:
    name = path.name.lower()
    return any(fnmatchcase(name, pattern) for pattern in _SYSTEM)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _kind_inside(path: Path) -> str | None:
    """Return the kind of image that a file's first bytes show."""
    try:
        with open(path, "rb") as file:
            prefix = file.read(32)
    except OSError:
        return None
    kind = kind_of(prefix)
    return kind if kind != "BMP" or prefix[6:10] == bytes(4) else None  # two letters are soon met by chance


def _remedy(suffix: str) -> str:
    if suffix in HEIF_SUFFIXES:
        return " (or install pillow-heif, and call pillow_heif.register_heif_opener() first)"
    return ""
