"""Where does the time of a training step go, and what is the least it could take?

    python benchmarks/where_time_goes.py [--repetitions 5]

The loads are those of `training_step.py`, ours as a plain graph. The least is the counted multiplications, forward and
back to all that is trained, over the rate of the product of two large matrices; a step also has to read its images. The
tables say how long each kind of operation took in one epoch under TensorFlow's profiler, a step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from harness.multiplications import work
from harness.operations import operations
from harness.rate import MATRIX, product
from harness.report import print_header, print_table, rounded
from training_step import LOADS, ours

ROWS = 12


def _median_seconds(run: Callable[[], object], repetitions: int) -> float:
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()

    print_header("Where the time of a training step goes", ("tfdetr-keras", "tensorflow", "keras", "torch"))
    from tfdetr_keras.models import PRESETS

    multiply = product()
    for name, load in LOADS.items():
        _, epoch = ours(name, jit_compile=False)
        epoch()  # traces
        seconds = _median_seconds(epoch, arguments.repetitions) / load.steps
        kinds = operations(epoch)
        least = (
            load.batch
            * work(PRESETS[name], load.side, load.side).training
            * _median_seconds(multiply, repetitions=5)
            / MATRIX**3
        )
        print(f"#### {name}, {load.side}×{load.side}, batch {load.batch}\n")
        print(
            f"A step: {rounded(1e3 * seconds)} ms; its multiplications at the machine's rate: {rounded(1e3 * least)} "
            f"ms, {rounded(100 * least / seconds)} % of it.\n"
        )
        rows = [
            (kind, rounded(of.calls / load.steps), rounded(1e3 * of.seconds / load.steps))
            for kind, of in list(kinds.items())[:ROWS]
        ]
        print_table(("operation", "a step", "ms a step"), rows)
        print()


if __name__ == "__main__":
    main()
