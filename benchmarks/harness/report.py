"""What every benchmark prints around its figures: the machine, a markdown table, and the bars."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


def print_header(title: str, packages: Iterable[str]) -> None:
    """Prints what was measured where, when, with what and by which command."""
    versions = [f"{name} {_version(name)}" for name in packages]
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    print(f"### {title}\n")
    print(
        f"- machine: {_processor()}, {len(os.sched_getaffinity(0))} cores, {_memory_gib():.0f} GiB, {_accelerators()}"
    )
    print(f"- versions: Python {platform.python_version()}, {', '.join(versions)}")
    print(f"- date: {datetime.date.today().isoformat()}")
    print(f"- command: `{command}`\n", flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]] = ()) -> None:
    """Prints a markdown table, its first column to the left and the others to the right."""
    print_row(columns)
    print_row(["---", *["---:"] * (len(columns) - 1)])
    for row in rows:
        print_row(row)


def print_row(cells: Sequence[str]) -> None:
    """Prints one row of a markdown table at once, so that a long run can be watched."""
    print("| " + " | ".join(cells) + " |", flush=True)


def print_bar(claim: str, value: float | None, at_least: float | None = None, at_most: float | None = None) -> None:
    """Prints whether a measured figure clears its bar; None if this run did not measure it."""
    bar = f"≥ {at_least:g}" if at_least is not None else f"≤ {at_most:g}"
    if value is None:
        print(f"- {claim}: not measured, bar {bar}")
        return
    clears = value >= at_least if at_least is not None else value <= at_most
    print(f"- {claim}: {rounded(value)}, bar {bar}: {'ok' if clears else 'MISS'}")


def rounded(value: float) -> str:
    """Three significant digits, and all digits before the point."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value else "0"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _accelerators() -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return f"CUDA devices {visible}" if visible else "CPU only"
