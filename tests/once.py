"""Doing something once, whichever of the processes of a test run comes first, and keeping what it gave as files."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path


@contextlib.contextmanager
def locked(path):
    """Hold a file's lock, for which other processes wait."""
    with Path(path).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def once(folder, fill):
    """Return a folder that `fill` has filled, in this process or another one.

    Args:
        folder: where; a folder that exists is whole.
        fill: called with an empty folder if there is none yet. Should it fail, nothing is kept.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():
            partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
            try:
                fill(partial)
                os.replace(partial, folder)
            except BaseException:
                shutil.rmtree(partial)
                raise
    return folder
