"""Full disks, reported in one sentence: which file, which disk, and how much space it needs."""

from __future__ import annotations

import errno
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Libraries that write files themselves tell it in words: h5py, TensorFlow, safetensors.
_WORDS = re.compile(
    rf"No space left on device|Disk quota exceeded|File too large|\berrno = ({'|'.join(map(str, sorted(_ERRNOS)))})\b"
)


class FullDiskError(OSError):
    """Raised if a file could not be written because its disk has no room, or no room for so large a file."""

    def __str__(self) -> str:
        """Return the sentence, without the error number that programs read."""
        return str(self.args[0])


def is_full_disk(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, says that a disk has no room."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno in _ERRNOS:
            return True
        if isinstance(one, Exception) and _WORDS.search(str(one)):
            return True
        one = one.__cause__ or one.__context__
    return False


@contextmanager
def told_if_full(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn any error of a full disk in the code inside into one readable error.

    Args:
        path: the file that is written, or the folder.
        needed: bytes that it takes, if that is known.

    Raises:
        FullDiskError: there is no room; other errors pass unchanged.
    """
    try:
        yield
    except FullDiskError:
        raise
    except Exception as error:
        if not is_full_disk(error):
            raise
        folder = path if path.is_dir() else path.parent
        free = ""
        with suppress(OSError):
            free = f", {size_in_words(shutil.disk_usage(folder).free)} free"
        wanted = f" of the {size_in_words(needed)} that it needs" if needed else ""
        told = FullDiskError(
            f"{path} could not be written: the disk of {folder.absolute()} has no room{wanted}{free}; make room there "
            "and start again, what was finished before is kept"
        )
        told.errno, told.filename = errno.ENOSPC, str(path)
        raise told from error


def size_in_words(number: float) -> str:
    """Return a number of bytes in readable form, e.g. "1.3 GB"."""
    if number < 1000:
        return f"{number:.0f} bytes"
    step = min(int(math.log10(number)) // 3, 4)
    return f"{number / 1000**step:.1f} {('kB', 'MB', 'GB', 'TB')[step - 1]}"
