"""How long until the command line answers, and until the package is imported? Each start is a fresh process.

    python benchmarks/start.py [--repetitions 7]

All starts are made in turn, with what they read in the system's cache. Beside ours stand the interpreter alone, the
imports of Keras and TensorFlow, which a command that runs a model then needs, and transformers' import and command.
The system counts what this benchmark itself has resident towards the memory of each: less than that is not told.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from harness.report import print_bar, print_header, print_table, rounded

SECONDS = 0.5  # bar of what loads nothing heavy
OURS = [sys.executable, "-m", "tfdetr_keras"]
STARTS = {
    "`python`, nothing else": [sys.executable, "-c", "pass"],
    "`tfdetr --help`": [*OURS, "--help"],
    "`tfdetr --version`": [*OURS, "--version"],
    "`tfdetr train --help`": [*OURS, "train", "--help"],
    "`tfdetr train`, a wrong flag": [*OURS, "train", "--no-such-flag"],
    "`tfdetr evaluate`, a missing file": [*OURS, "evaluate", "--data", "shapes", "--model", "none.keras"],
    "`python -m port_weights --help`": [sys.executable, "-m", "port_weights", "--help"],
    "`import tfdetr_keras`": [sys.executable, "-c", "import tfdetr_keras"],
    "`tfdetr_keras.DETR`, so with Keras and TensorFlow": [sys.executable, "-c", "import tfdetr_keras as t; t.DETR"],
    "`import keras`": [sys.executable, "-c", "import keras"],
    "`import tensorflow`": [sys.executable, "-c", "import tensorflow"],
    "`import transformers`": [sys.executable, "-c", "import transformers"],
    "`transformers --help`": [str(Path(sys.executable).with_name("transformers")), "--help"],
}
LIGHT = [name for name in STARTS if ("tfdetr" in name and "TensorFlow" not in name) or "port_weights" in name]


def start(command: list[str]) -> tuple[float, float]:
    """Runs a command; gives its seconds and the most memory that it had resident, MiB."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, used = os.wait4(process.pid, 0)
    process.returncode = 0
    return time.perf_counter() - begun, used.ru_maxrss / 1024


def main() -> None:
    """Measures and prints the table and the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    repetitions = parser.parse_args().repetitions
    print_header("The start", ("tfdetr-keras", "tensorflow", "keras", "transformers"))
    starts = {name: command for name, command in STARTS.items() if Path(command[0]).is_file()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in starts}
    for command in starts.values():
        start(command)
    for _ in range(repetitions):
        for name, command in starts.items():
            found[name].append(start(command))
    medians = {name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in found.items()}
    print(f"n={repetitions} processes each.\n")
    whole = medians["`import tensorflow`"][0]
    print_table(
        ("", "median s", "this / import of TensorFlow", "peak MiB"),
        [(name, rounded(seconds), rounded(seconds / whole), rounded(mib)) for name, (seconds, mib) in medians.items()],
    )
    print("\nBars:\n")
    for name in LIGHT:
        print_bar(f"{name}, s", medians[name][0], at_most=SECONDS)


if __name__ == "__main__":
    main()
