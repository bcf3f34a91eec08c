"""What does `recompute` save, and what does it cost? Memory and time of a training step, with it and without.

    python benchmarks/recompute.py [--repetitions 5]

Each contender is a process of its own that trains on one batch in memory, float32, as a plain graph; their steps are
timed in turn. Memory is the process's highest beyond what it holds before the first step, gradients and moments of the
weights and TensorFlow's own included, which are the same on both sides. Weights are random and all are trained but stem
and first stage.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
from harness.memory import peak_mib, resident_mib
from harness.report import print_header, print_table, rounded
from harness.workers import Worker, serve, take_turns

CASES = ("detr-tiny 1 512 512", "detr-resnet-18 4 320 480", "detr-resnet-50 2 480 640", "detr-resnet-50 1 800 1216")
OBJECTS = 8


def work(case: str, recompute: bool) -> None:
    """Serve the steps of one contender."""
    import keras

    import tfdetr_keras as td

    name, *numbers = case.split()
    batch, height, width = map(int, numbers)
    keras.utils.set_random_seed(0)
    model = td.from_preset(name, num_classes=20, frozen="" if name == "detr-tiny" else "stem+stage1")
    model.recompute = recompute
    model.compile(optimizer=td.AdamW(), jit_compile=False)
    rng = np.random.default_rng(0)
    inputs: Any = keras.ops.convert_to_tensor(rng.normal(size=(batch, height, width, 3)), "float32")
    boxes = rng.uniform(0.2, 0.4, (batch, OBJECTS, 4)).astype("float32")
    targets = {"labels": rng.integers(0, 20, (batch, OBJECTS)), "boxes": boxes}
    before = resident_mib("VmRSS")

    def step() -> float:
        start = time.perf_counter()
        model.train_on_batch(inputs, targets)
        return time.perf_counter() - start

    def memory() -> float:
        return peak_mib() - before

    step()
    serve(step=step, memory=memory)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        case, _, recompute = options.worker.rpartition(" ")
        work(case, recompute == "recompute")
        return
    print_header("Layers that are computed again", ("tfdetr-keras", "tensorflow", "keras"))
    rows = []
    for case in CASES:
        workers = [Worker(f"{case} {how}") for how in ("keep", "recompute")]
        steps = {worker.name: lambda worker=worker: worker.ask("step") for worker in workers}
        seconds = take_turns(steps, options.repetitions, seconds_per_figure=120)
        kept, again = (statistics.median(seconds[worker.name]) for worker in workers)
        memory = [worker.ask("memory") for worker in workers]
        for worker in workers:
            worker.close()
        name, batch, height, width = case.split()
        what = f"{name}, {batch} × {height}×{width}"
        figures = [f"{size / 1024:.2f}" for size in memory]
        rows.append(
            (what, *figures, rounded(memory[1] / memory[0]), rounded(kept), rounded(again), rounded(again / kept))
        )
    columns = ("training step", "GiB", "recomputed, GiB", "ratio", "s", "recomputed, s", "ratio")
    print_table(columns, rows)


if __name__ == "__main__":
    main()
