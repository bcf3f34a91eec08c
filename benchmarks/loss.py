"""How fast is the whole loss? Ours against Hugging Face's, and the matching's share of a training step.

    python benchmarks/loss.py [--repetitions 25]

The loss of all 6 decoder layers at batch 16, matching included, forward and backward to the logits and boxes of every
layer, on the same numbers, of which the losses and the lengths of the gradients are compared first. Ours runs as the
plain graph that `fit` builds on a CPU, and compiled as a whole by XLA. All run in turn, once per round; figures are
medians, compilation is not timed.

Peak memory is measured in a process of its own for each contender, which has already run the loss once. Free memory is
given back to the system (`malloc_trim`), the system's record of the peak is reset (`/proc/self/clear_refs`), and the
loss is run once more: the figure is the peak of resident memory during that run above the level before it. The peak of
the whole process, from its start to the end of its first run, so with imports and compilation, stands beside it.

The training step is that of DETR with ResNet-50 at batch 2, one call of `train_on_batch` after the first. The matching
is timed alone, as a graph, on what the model predicts for the same batch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from harness.loads import CLASSES, Scenes, draw_scenes
from harness.memory import resident_mib, settled_mib
from harness.report import print_bar, print_header, print_table, rounded
from harness.workers import Worker, serve, take_turns

LOAD, BATCH, LAYERS = "COCO-like", 16, 6
GRAPH, XLA, TRANSFORMERS = "ours, graph", "ours, XLA", "transformers"
STEP, MATCHING = "training step", "matching"
STEP_BATCH, STEP_SIZE = 2, (480, 640)
# Relative; the gradients carry the rounding of Σ w over 1,600 queries, which float32 sums in another order.
LOSS_AGREEMENT, GRADIENT_AGREEMENT = 1e-5, 1e-4
MEMORY_RUNS = 5


def _outputs(scenes: Scenes) -> dict[str, np.ndarray]:
    logits, boxes = np.log(np.maximum(scenes.probabilities, 1e-6)), scenes.pred_boxes
    return {
        "logits": logits[:, -1],
        "pred_boxes": boxes[:, -1],
        "aux_logits": logits[:, :-1],
        "aux_boxes": boxes[:, :-1],
    }


def _ours(jit_compile: bool) -> Callable[[], list[np.ndarray]]:
    import tensorflow as tf

    from tfdetr_keras.losses.criterion import SetCriterion

    scenes, criterion = draw_scenes(LOAD, BATCH, LAYERS), SetCriterion()
    outputs = {name: tf.constant(value) for name, value in _outputs(scenes).items()}
    targets = {"labels": tf.constant(scenes.labels), "boxes": tf.constant(scenes.boxes)}

    @tf.function(jit_compile=jit_compile)
    def losses_and_gradients(outputs: Any, targets: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            loss = criterion(outputs, targets)["loss"]
        return loss, tape.gradient(loss, outputs)

    def run() -> list[np.ndarray]:
        loss, gradients = losses_and_gradients(outputs, targets)
        return [loss.numpy(), *(gradients[name].numpy() for name in outputs)]

    return run


def _transformers() -> Callable[[], list[np.ndarray]]:
    import torch
    from transformers import DetrConfig
    from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

    scenes, config = draw_scenes(LOAD, BATCH, LAYERS), DetrConfig(num_labels=CLASSES, auxiliary_loss=True)
    leaves = {name: torch.tensor(value, requires_grad=True) for name, value in _outputs(scenes).items()}
    targets = [
        {"class_labels": torch.tensor(labels[:count], dtype=torch.int64), "boxes": torch.tensor(boxes[:count])}
        for labels, boxes, count in zip(scenes.labels, scenes.boxes, scenes.counts, strict=True)
    ]

    def run() -> list[np.ndarray]:
        # It leaves out the last of the layers' outputs, which it gets on its own.
        logits, boxes = leaves["logits"], leaves["pred_boxes"]
        layers = [*leaves["aux_logits"].unbind(1), logits], [*leaves["aux_boxes"].unbind(1), boxes]
        loss, _, _ = ForObjectDetectionLoss(logits, targets, logits.device, boxes, config, *layers)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        return [loss.detach().numpy(), *(gradient.numpy() for gradient in gradients)]

    return run


def _training_step() -> dict[str, Callable[[], Any]]:
    import keras
    import tensorflow as tf

    from tfdetr_keras.matching.matcher import match
    from tfdetr_keras.models.detr import DETR

    keras.utils.set_random_seed(0)
    model = DETR.from_preset("detr-resnet-50")
    model.compile(optimizer=keras.optimizers.AdamW(1e-4))
    pixels = np.random.default_rng(0).normal(size=(STEP_BATCH, *STEP_SIZE, 3)).astype(np.float32)
    inputs = {"pixel_values": pixels, "pixel_mask": np.ones((STEP_BATCH, *STEP_SIZE), np.int32)}
    scenes = draw_scenes(LOAD, STEP_BATCH)
    targets = {"labels": scenes.labels, "boxes": scenes.boxes}

    outputs = model(inputs, training=True)
    logits = tf.concat([outputs["aux_logits"], outputs["logits"][:, None]], axis=1)
    boxes = tf.concat([outputs["aux_boxes"], outputs["pred_boxes"][:, None]], axis=1)
    arguments = logits, boxes, tf.constant(scenes.labels), tf.constant(scenes.boxes)
    matching = tf.function(match)
    return {
        STEP: lambda: model.train_on_batch(inputs, targets),
        MATCHING: lambda: [matching(*arguments).numpy()],
    }


def work(process: str) -> None:
    """What a worker process does: runs, times or weighs what it was started for."""
    if process == STEP:
        runs = _training_step()
    elif process == TRANSFORMERS:
        runs = {TRANSFORMERS: _transformers()}
    else:
        runs = {GRAPH: _ours(jit_compile=False), XLA: _ours(jit_compile=True)}

    def first(contender: str) -> list[float]:
        return [float(np.linalg.norm(result)) for result in runs[contender]()]

    def once(contender: str) -> float:
        start = time.perf_counter()
        runs[contender]()
        return time.perf_counter() - start

    def peaks(contender: str) -> tuple[float, float]:
        first(contender)
        of_process, growths = resident_mib("VmHWM"), []
        for _ in range(MEMORY_RUNS):
            before = settled_mib()
            runs[contender]()
            growths.append(resident_mib("VmHWM") - before)
        return statistics.median(growths), of_process

    serve(first=first, once=once, peaks=peaks)


def measure_loss(repetitions: int) -> tuple[dict[str, float], float, float]:
    """Median seconds of each contender, and the largest relative differences of their losses and gradients' lengths."""
    ours, theirs = Worker("ours"), Worker(TRANSFORMERS)
    workers = {GRAPH: ours, XLA: ours, TRANSFORMERS: theirs}
    results = {name: np.array(worker.ask("first", name)) for name, worker in workers.items()}
    differences = np.abs(np.array([results[GRAPH], results[XLA]]) / results[TRANSFORMERS] - 1).max(axis=0)
    loss, gradients = differences[0], differences[1:].max()
    if not (loss <= LOSS_AGREEMENT and gradients <= GRADIENT_AGREEMENT):
        raise SystemExit(f"the losses or gradients differ, so the times mean nothing: {results}")
    seconds = take_turns({name: partial(worker.ask, "once", name) for name, worker in workers.items()}, repetitions)
    ours.close()
    theirs.close()
    return {name: statistics.median(values) for name, values in seconds.items()}, loss, gradients


def measure_peaks() -> dict[str, tuple[float, float]]:
    """MiB of each contender: peak of one run above the level before it, and peak of the whole process."""
    peaks = {}
    for name in (GRAPH, XLA, TRANSFORMERS):
        worker = Worker(name)
        peaks[name] = worker.ask("peaks", name)
        worker.close()
    return peaks


def measure_step(repetitions: int) -> dict[str, float]:
    """Median seconds of a training step and of its matching."""
    worker = Worker(STEP)
    for name in (MATCHING, STEP):
        worker.ask("first", name)
    seconds = take_turns({name: partial(worker.ask, "once", name) for name in (MATCHING, STEP)}, repetitions)
    worker.close()
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Measures and prints the tables and the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=25)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return

    print_header("The whole loss", ("tfdetr-keras", "tensorflow", "keras", "torch", "transformers", "scipy", "numpy"))
    seconds, loss, gradients = measure_loss(arguments.repetitions)
    peaks = measure_peaks()
    print(f"{LAYERS} layers, batch {BATCH}, {LOAD} targets, forward and backward; n={arguments.repetitions}; ", end="")
    print(f"losses agree to {loss:.1e}, gradients to {gradients:.1e}.\n")
    columns = ("", "median ms", f"{TRANSFORMERS} / this", "peak MiB of a run", "peak MiB of the process")
    print_table(
        columns,
        [
            (name, rounded(1e3 * value), rounded(seconds[TRANSFORMERS] / value), *map(rounded, peaks[name]))
            for name, value in seconds.items()
        ],
    )
    step = measure_step(arguments.repetitions)
    share = 100 * step[MATCHING] / step[STEP]
    print(f"\nDETR with ResNet-50, batch {STEP_BATCH}, {STEP_SIZE[0]}×{STEP_SIZE[1]}:\n")
    print_table(
        ("training step, ms", "matching, ms", "share, %"),
        [(rounded(1e3 * step[STEP]), rounded(1e3 * step[MATCHING]), rounded(share))],
    )
    print("\nBars:\n")
    for name in (GRAPH, XLA):
        print_bar(f"time of {TRANSFORMERS} / {name}", seconds[TRANSFORMERS] / seconds[name], at_least=3)
        print_bar(f"peak memory of a run, {name} / {TRANSFORMERS}", peaks[name][0] / peaks[TRANSFORMERS][0], at_most=1)
    print_bar("matching in the training step, %", share, at_most=1)


if __name__ == "__main__":
    main()
