"""How fast is the whole loss of RF-DETR's 13 groups of queries? Ours against that of RF-DETR's own package, `rfdetr`.

    python benchmarks/group_loss.py [--repetitions 15] [--groups 13]

The loss of 2 decoder layers and of the encoder's proposals at batch 16, each with 13 groups of 300 queries and 91
classes: matching of every group, forward, and backward to all logits and boxes. Objects are those of `loss.py`, 0 to 25
an image; every group has a query near each of them, the others are spread. Ours is the loss that an `RFDETR` has by
default, as the plain graph that `fit` builds on a CPU, and compiled as a whole by XLA; the other is the package's
criterion with its matcher, made from its settings of RF-DETR Nano, in training mode and eager, as it trains on a CPU.
Every loss by its name and the lengths of all gradients are compared first. All run in turn, once per round; figures are
medians, compilation is not timed.

Peak memory is measured in a process of its own for each contender, which has already run the loss of one group, so that
what is loaded on first use is there. Free memory is given back to the system, its record of the peak is reset, and the
loss of all groups is run a few times: the figure is the peak of resident memory above the level before, of which ours
has its compilation in it, too. The peak of the whole process, from its start, stands beside it. rfdetr and torchvision,
which it imports, are downloaded on the first run into `benchmarks/.peers`, where only its own process looks.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from harness.loads import CLASSES, NOISE_OF_A_TRAINED_MODEL, Scenes, draw_scenes
from harness.memory import resident_mib, settled_mib
from harness.report import print_bar, print_header, print_table, rounded
from harness.rf_detr import PACKAGE, configuration, missing
from harness.workers import Worker, serve, take_turns

LOAD, BATCH, QUERIES = "COCO-like", 16, 300
LAYERS = ("encoder", "first", "last")
GRAPH, XLA, RFDETR = "ours, graph", "ours, XLA", "rfdetr"
LOSSES = ("loss_ce", "loss_bbox", "loss_giou")
# Relative; Σ over 5.7 million logits is rounded in another order.
LOSS_AGREEMENT, GRADIENT_AGREEMENT = 1e-4, 1e-4
MEMORY_RUNS = 3
TIME_BAR, MEMORY_BAR = 0.4, 1.0

Run = Callable[[], tuple[dict[str, float], list[np.ndarray]]]


def draw(groups: int) -> tuple[Scenes, dict[str, np.ndarray]]:
    """Targets, and the logits and boxes of each layer, `(images, groups · queries, …)` float32."""
    scenes, rng = draw_scenes(LOAD, BATCH), np.random.default_rng(1)
    arrays = {}
    for layer in LAYERS:
        logits = rng.normal(-4.6, 1.0, (BATCH, groups, QUERIES, CLASSES))  # around a probability of 0.01
        sides = rng.uniform(0.05, 0.5, (BATCH, groups, QUERIES, 2))
        boxes = np.concatenate([rng.uniform(0.1, 0.9, sides.shape), sides], axis=-1)
        for image, count in enumerate(scenes.counts):
            for group in range(groups):
                own = rng.permutation(QUERIES)[:count]
                logits[image, group, own, scenes.labels[image, :count]] += 4.6
                noise = rng.normal(0, NOISE_OF_A_TRAINED_MODEL, (count, 4))
                boxes[image, group, own] = np.clip(scenes.boxes[image, :count] + noise, 0.01, 0.99)
        arrays[f"{layer} logits"] = logits.reshape(BATCH, -1, CLASSES).astype(np.float32)
        arrays[f"{layer} boxes"] = boxes.reshape(BATCH, -1, 4).astype(np.float32)
    return scenes, arrays


def _ours(groups: int, jit_compile: bool) -> Run:
    import tensorflow as tf

    import tfdetr_keras as td

    scenes, arrays = draw(groups)
    criterion = td.RFDETR.default_criterion()
    # A layer's axis, as the model's outputs have it, but for the last.
    leaves = {name: tf.constant(array if "last" in name else array[:, None]) for name, array in arrays.items()}
    targets = {"labels": tf.constant(scenes.labels), "boxes": tf.constant(scenes.boxes)}
    del arrays

    @tf.function(jit_compile=jit_compile)
    def losses_and_gradients(leaves: Any, targets: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(leaves)
            encoder = {"logits": leaves["encoder logits"], "pred_boxes": leaves["encoder boxes"], "groups": groups}
            outputs = {
                "logits": leaves["last logits"],
                "pred_boxes": leaves["last boxes"],
                "aux_logits": leaves["first logits"],
                "aux_boxes": leaves["first boxes"],
                "groups": groups,
                "prediction_sets": {"encoder": encoder},
            }
            losses = criterion(outputs, targets)
        return losses, tape.gradient(losses["loss"], leaves)

    def run() -> tuple[dict[str, float], list[np.ndarray]]:
        losses, gradients = losses_and_gradients(leaves, targets)
        return {name: float(loss) for name, loss in losses.items()}, [gradients[name].numpy() for name in leaves]

    return run


def _rfdetr(groups: int) -> Run:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    settings = configuration("Nano")
    settings.group_detr = groups
    from rfdetr.models.lwdetr import build_criterion_and_postprocessors

    criterion = build_criterion_and_postprocessors(settings)[0].train()
    scenes, arrays = draw(groups)
    leaves = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
    targets = [
        {"labels": torch.tensor(labels[:count], dtype=torch.int64), "boxes": torch.tensor(boxes[:count])}
        for labels, boxes, count in zip(scenes.labels, scenes.boxes, scenes.counts, strict=True)
    ]
    del arrays
    encoder, first, last = (
        {"pred_logits": leaves[f"{layer} logits"], "pred_boxes": leaves[f"{layer} boxes"]} for layer in LAYERS
    )
    outputs = {**last, "aux_outputs": [first], "enc_outputs": encoder}

    def run() -> tuple[dict[str, float], list[np.ndarray]]:
        losses = criterion(outputs, targets)
        total = sum(losses[name] * weight for name, weight in criterion.weight_dict.items())
        gradients = torch.autograd.grad(total, list(leaves.values()))
        named = {name.replace("_enc", "_encoder_0"): loss.item() for name, loss in losses.items()}
        return named | {"loss": total.item()}, [gradient.numpy() for gradient in gradients]

    return run


def work(contender: str, groups: int) -> None:
    """What a worker process does: runs, times or weighs what it was started for."""

    def make(groups: int) -> Run:
        return _rfdetr(groups) if contender == RFDETR else _ours(groups, jit_compile=contender == XLA)

    runs: list[Run] = []
    of_layers = [name + suffix for name in LOSSES for suffix in ("", "_0", "_encoder_0")]

    def first() -> dict[str, list[float]]:
        runs.append(make(groups))
        losses, gradients = runs[0]()
        lengths = [float(np.linalg.norm(gradient)) for gradient in gradients]
        return {"losses": [losses[name] for name in ("loss", *of_layers)], "gradients": lengths}

    def once() -> float:
        start = time.perf_counter()
        runs[0]()
        return time.perf_counter() - start

    def peaks() -> tuple[float, float]:
        make(1)()
        of_start, run = resident_mib("VmHWM"), make(groups)
        before = settled_mib()
        for _ in range(MEMORY_RUNS):
            run()
        most = resident_mib("VmHWM")
        return most - before, max(most, of_start)

    serve(first=first, once=once, peaks=peaks)


def measure_loss(repetitions: int, groups: int) -> tuple[dict[str, float], float, float]:
    """Median seconds of each contender, and the largest relative differences of their losses and gradients' lengths."""
    workers = {name: Worker(f"{name}; {groups}") for name in (GRAPH, XLA, RFDETR)}
    results = {name: worker.ask("first") for name, worker in workers.items()}
    apart = {
        kind: max(np.abs(np.divide(results[name][kind], results[RFDETR][kind]) - 1).max() for name in (GRAPH, XLA))
        for kind in ("losses", "gradients")
    }
    if not (apart["losses"] <= LOSS_AGREEMENT and apart["gradients"] <= GRADIENT_AGREEMENT):
        raise SystemExit(f"the losses or gradients differ, so the times mean nothing: {results}")
    once = {name: partial(worker.ask, "once") for name, worker in workers.items()}
    seconds = take_turns(once, repetitions, seconds_per_figure=1e6)
    for worker in workers.values():
        worker.close()
    return {name: statistics.median(values) for name, values in seconds.items()}, apart["losses"], apart["gradients"]


def measure_peaks(groups: int) -> dict[str, tuple[float, float]]:
    """MiB of each contender: peak of runs above the level before them, and peak of the whole process."""
    peaks = {}
    for name in (GRAPH, XLA, RFDETR):
        worker = Worker(f"{name}; {groups}")
        peaks[name] = worker.ask("peaks")
        worker.close()
    return peaks


def main() -> None:
    """Measures and prints the table and the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--groups", type=int, default=13)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        contender, _, groups = arguments.worker.partition("; ")
        work(contender, int(groups))
        return

    print_header(
        "The whole loss of groups of queries", ("tfdetr-keras", "tensorflow", "keras", "torch", "scipy", "numpy")
    )
    if reason := missing():
        print(f"rfdetr is {reason}.")
        return
    seconds, losses, gradients = measure_loss(arguments.repetitions, arguments.groups)
    peaks = measure_peaks(arguments.groups)
    print(f"{len(LAYERS) - 1} layers and the encoder, batch {BATCH}, {arguments.groups} groups of {QUERIES} queries,")
    print(f"{CLASSES} classes, {LOAD} targets, forward and backward; n={arguments.repetitions}; peer: {PACKAGE[0]};")
    print(f"losses agree to {losses:.1e}, gradients to {gradients:.1e}.\n")
    columns = ("", "median ms", f"this / {RFDETR}", "peak MiB of runs", "peak MiB of the process")
    print_table(
        columns,
        [
            (name, rounded(1e3 * value), rounded(value / seconds[RFDETR]), *map(rounded, peaks[name]))
            for name, value in seconds.items()
        ],
    )
    print("\nBars:\n")
    for name in (GRAPH, XLA):
        print_bar(f"time of {name} / {RFDETR}", seconds[name] / seconds[RFDETR], at_most=TIME_BAR)
        print_bar(f"peak memory of runs, {name} / {RFDETR}", peaks[name][0] / peaks[RFDETR][0], at_most=MEMORY_BAR)


if __name__ == "__main__":
    main()
