"""What will training cost on other machines? Counted work, first held against what this machine needs for it.

    python benchmarks/planning.py [--repetitions 3]

Counted are, for one image on a canvas of 800×1333: multiplications of convolutions and matrix products, forward and
back to all that is trained, and the bytes of the activations that the way back needs. A machine can multiply so fast
and move so many bytes; each activation crosses the memory's bus about five times: written and read forward, read again
on the way back, and its gradient written and read. The longer of the two times is the least that a step can take (a
"roofline"). For this machine rates are measured in the same run, and so are the steps that the least is compared with.
For the accelerators rates are the makers' (dense bfloat16), and their times are not measured: no step is faster.

Measured steps are `train_on_batch` on a batch in memory, float32, as a plain graph, in a process of their own each;
memory is the process's highest beyond what it holds before the first step, beside the counted bytes of weights'
gradients and moments (12 for each trained weight) and of the activations.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from harness.memory import peak_mib, resident_mib
from harness.multiplications import Work
from harness.multiplications import work as count
from harness.photographs import COCO128
from harness.rate import MATRIX, product
from harness.report import print_header, print_table, rounded
from harness.workers import Worker, serve, take_turns

HEIGHT, WIDTH = 800, 1333
MODELS = ("detr-resnet-50", "detr-resnet-101")
BATCHES = (1, 2)
CROSSINGS = 5  # of the memory's bus by an activation and its gradient
BYTES_OF_STATE = 12  # gradient and two moments of a trained weight
COCO_IMAGES = 118_287
COPIED_MIB = 512
MATMUL, COPY, LOADING = "matmul", "copy", "loading"


class Accelerator(NamedTuple):
    """Of one chip, as its maker states it."""

    chips: int
    flops: float  # dense bfloat16, a second
    gib: float
    bytes_a_second: float  # of its memory
    link: float  # bytes a second between chips


# cloud.google.com/tpu/docs/v5e; nvidia.com, H100 SXM data sheet
ACCELERATORS = {
    "v5e-8": Accelerator(8, 197e12, 16, 819e9, 200e9),
    "8×H100": Accelerator(8, 989e12, 80, 3350e9, 450e9),
}


def _step(name: str, batch: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A training step and an inference, of a model on a batch that stays in memory."""
    import tensorflow as tf

    import tfdetr_keras as td

    model = td.DETR.from_preset(name, num_classes=91, frozen="stem+stage1")
    model.compile(optimizer=td.AdamW(), jit_compile=False)
    rng = np.random.default_rng(0)
    pixels = tf.constant(rng.normal(size=(batch, HEIGHT, WIDTH, 3)), "float32")
    targets = {
        "labels": tf.constant(rng.integers(0, 91, (batch, 7)), "int32"),
        "boxes": tf.constant(rng.uniform(0.2, 0.4, (batch, 7, 4)), "float32"),
    }
    forward = tf.function(lambda pixels: model(pixels, training=False)["logits"])
    return lambda: model.train_on_batch(pixels, targets), lambda: forward(pixels).numpy()


def _machine(what: str) -> Callable[[], Any]:
    if what == MATMUL:
        return product()
    if what == COPY:
        array = np.ones(COPIED_MIB * 2**18, np.float32)
        target = np.empty_like(array)
        return lambda: np.copyto(target, array)
    import tfdetr_keras as td

    records, _ = td.data.load_coco(COCO128 / "images", COCO128 / "annotations/instances_train2017.json")
    batches = td.data.prepare(records, 4, training=True)  # on the canvas of each batch's largest image
    return lambda: [None for _ in batches]


def work(what: str) -> None:
    """What a worker process does."""
    runs: dict[str, Callable[[], Any]] = {}
    before = 0.0

    def first() -> None:
        nonlocal before
        name, _, batch = what.partition(" ")
        if batch:
            runs["training"], runs["inference"] = _step(name, int(batch))
            before = resident_mib("VmRSS")
        else:
            runs["once"] = _machine(name)
        for run in runs.values():
            run()

    def once(run: str) -> float:
        start = time.perf_counter()
        runs[run]()
        return time.perf_counter() - start

    serve(first=first, once=once, grown=lambda: peak_mib() - before)


def _timed(what: str, runs: tuple[str, ...], repetitions: int) -> tuple[dict[str, float], float]:
    """Median seconds of a worker's runs, and the MiB that it needed for them."""
    worker = Worker(what)
    worker.ask("first")
    seconds = take_turns({run: partial(worker.ask, "once", run) for run in runs}, repetitions, seconds_per_figure=1e6)
    grown = worker.ask("grown")
    worker.close()
    return {run: statistics.median(values) for run, values in seconds.items()}, grown


def print_counts(counts: dict[str, Work]) -> None:
    """The table of what an image takes."""
    rows = [
        (
            name,
            rounded(of.inference / 1e9),
            rounded(of.training / 1e9),
            rounded(of.kept / 2**20),
            rounded(of.parameters / 1e6),
            rounded(of.trained * BYTES_OF_STATE / 2**20),
        )
        for name, of in counts.items()
    ]
    columns = (
        *("counted, an image", "inference, G mult.", "training, G mult.", "kept activations, MiB"),
        *("weights, M", "gradients and moments, MiB"),
    )
    print_table(columns, rows)


def print_measured(counts: dict[str, Work], rate: float, bandwidth: float, repetitions: int) -> None:
    """The table of what this machine needs."""
    rows = []
    for name, of in counts.items():
        for batch in BATCHES:
            seconds, grown = _timed(f"{name} {batch}", ("training", "inference"), repetitions)
            by_rate, by_bytes = of.training / rate, CROSSINGS * of.kept / bandwidth
            counted = (of.trained * BYTES_OF_STATE + batch * of.kept) / 2**20
            training, inference = seconds["training"] / batch, seconds["inference"] / batch
            rows.append(
                (
                    f"{name}, batch {batch}",
                    rounded(inference),
                    rounded(inference / (of.inference / rate)),
                    rounded(training),
                    rounded(training / max(by_rate, by_bytes)),
                    rounded(grown),
                    rounded(grown / counted),
                )
            )
    columns = (
        *("measured", "inference, s an image", "of the least", "training, s an image", "of the least"),
        *("MiB of training", "of the counted"),
    )
    print_table(columns, rows)


def print_accelerators(counts: dict[str, Work], images_a_core: float) -> None:
    """The table of what no accelerator can do better than."""
    rows = []
    for machine, chip in ACCELERATORS.items():
        for name, of in counts.items():
            by_rate, by_bytes = 2 * of.training / chip.flops, CROSSINGS * of.kept / 2 / chip.bytes_a_second
            seconds = max(by_rate, by_bytes)
            state = of.parameters * 4 + of.trained * BYTES_OF_STATE
            images = chip.chips / seconds
            reduce = 2 * (chip.chips - 1) / chip.chips * 4 * of.trained / chip.link
            rows.append(
                (
                    f"{machine}, {name}",
                    rounded(1e3 * by_rate),
                    rounded(1e3 * by_bytes),
                    rounded(COCO_IMAGES / images / 60),
                    str(int((0.9 * chip.gib * 2**30 - state) / (of.kept / 2))),
                    rounded(1e3 * reduce),
                    rounded(images),
                    rounded(images / images_a_core),
                )
            )
    columns = (
        *("not measured", "ms an image and chip, by multiplications", "by bytes", "minutes of an epoch of COCO"),
        *("images that fit a chip", "ms to add up gradients", "images/s", "cores that load them"),
    )
    print_table(columns, rows)


def main() -> None:
    """Counts, measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return

    print_header("Planning", ("tfdetr-keras", "tensorflow", "keras", "torch", "transformers"))
    from tfdetr_keras.models import PRESETS

    counts = {name: count(PRESETS[name], HEIGHT, WIDTH) for name in MODELS}
    print(f"Canvas {HEIGHT}×{WIDTH}; stem, first stage and batch normalisation frozen; n={arguments.repetitions}.\n")
    print_counts(counts)
    machine = {what: _timed(what, ("once",), 5)[0]["once"] for what in (MATMUL, COPY, LOADING)}
    rate, bandwidth = MATRIX**3 / machine[MATMUL], 2 * COPIED_MIB * 2**20 / machine[COPY]
    images_a_core = 128 / machine[LOADING] / len(os.sched_getaffinity(0))
    print(
        f"\nThis machine: {rounded(rate / 1e9)} G multiplications and {rounded(bandwidth / 1e9)} GB a second; it "
        f"loads, augments and pads {rounded(images_a_core)} images a second and core.\n"
    )
    print_measured(counts, rate, bandwidth, arguments.repetitions)
    print("\nAt least, and with nothing else in the way:\n")
    print_accelerators(counts, images_a_core)


if __name__ == "__main__":
    main()
