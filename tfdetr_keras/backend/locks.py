"""Locks between processes. The system releases one when its process ends, so a killed process leaves none behind."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)


class HeldError(Exception):
    """Raised if another process holds a lock; its argument is the text that this process wrote into the file, or ""."""


class Lock:
    """A lock on a file, which exists while the lock is held and is removed with it.

    If the file system does not support locks (some network drives, Windows), everybody gets the lock, and
    `is_real` is False.

    Args:
        path: of the file; its folder must exist.

    Raises:
        HeldError: it is held already, by this process or another one.
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        while True:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                locked = _lock(self._descriptor)
                if locked is None:
                    raise HeldError(os.pread(self._descriptor, 100, 0).decode("utf-8", "replace"))
                if _is_at(path, self._descriptor):
                    break
            except BaseException:
                os.close(self._descriptor)
                raise
            os.close(self._descriptor)  # its last holder removed the file in between: this lock shuts nobody out
        self.is_real = locked
        os.ftruncate(self._descriptor, 0)
        with contextlib.suppress(OSError):  # of a full disk: the lock holds without a word in it
            os.pwrite(self._descriptor, f"process {os.getpid()}".encode(), 0)

    def release(self) -> None:
        """Remove the file and release the lock."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        os.close(self._descriptor)


@contextlib.contextmanager
def held(path: Path) -> Iterator[Lock]:
    """Hold the lock of a file while it is open; see `Lock`."""
    lock = Lock(path)
    try:
        yield lock
    finally:
        lock.release()


def _lock(descriptor: int) -> bool | None:
    """Lock an open file; return None if another holds it, False if the file system has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return None if error.errno in _HELD_BY_ANOTHER else False
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
