"""Memory of a process, and of one with its children, as the system shares it out between them."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 0.02


def resident_mib(field: str) -> float:
    """A figure of this process from the system's record of it, e.g. `"VmRSS"`, what is resident now, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}: this benchmark needs Linux")


def peak_mib() -> float:
    """The most memory that this process has had resident since its start, in MiB."""
    return resident_mib("VmHWM")


def settled_mib() -> float:
    """What is resident now, in MiB, with free memory given back to the system and its record of the peak reset."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident_mib("VmRSS")


def peak_of_tree_mib(process: int, run: Callable[[], object]) -> float:
    """The most memory that a process and its children hold while something runs, in MiB.

    The sum of their proportional set sizes, so that a page which several of them map counts once; looked at every 20
    ms. A batch on its way from one to another, in shared memory that neither has mapped, is not seen.

    Args:
        process: its id.
        run: does the work, elsewhere.
    """
    most, done = [_tree_mib(process)], threading.Event()

    def look() -> None:
        while not done.wait(SECONDS_BETWEEN_LOOKS):
            most.append(_tree_mib(process))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return max(most)


def _tree_mib(process: int) -> float:
    kib, processes = 0, [process]
    for one in processes:  # grows on the way
        folder = Path(f"/proc/{one}")
        try:
            processes += [int(child) for task in folder.glob("task/*/children") for child in task.read_text().split()]
            rollup = (folder / "smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        kib += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return kib / 1024
