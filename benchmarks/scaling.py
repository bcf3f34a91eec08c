"""How does time grow? Against batch, image size, queries, decoder layers and targets, beside what theory says.

    python benchmarks/scaling.py [--repetitions 5]

Inference of DETR with ResNet-50 as a plain graph, of which one quantity grows while the others stay; and the loss of
all 6 decoder layers, forward and backward, against the number of targets. Points of one table are measured in turn, all
once per round; figures are medians. A slope is that of a least-squares line through the logarithms of quantity and
time; theory's is the same line through the counted multiplications of convolutions and matrix products. For the
targets the counted work is that of the cost matrix, ∝ targets × queries; the assignment itself needs up to targets² ×
queries. A measured slope below theory's means that something else than the multiplications takes part of the time;
above it, that something grows faster than they do.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from harness.loads import draw_scenes
from harness.multiplications import multiplications
from harness.report import print_header, print_table, rounded
from harness.workers import Worker, serve, take_turns

SIDE, QUERIES, LAYERS = 384, 100, 6
MODEL = {
    "batch": (1, 2, 4, 8),
    "side of the image": (256, 384, 512, 768, 1024),
    "queries": (50, 100, 200, 400, 800),
    "decoder layers": (1, 2, 4, 8),
}
TARGETS = "targets an image"
LOSS_TARGETS, LOSS_BATCH = (5, 10, 25, 50, 100), 16


def _case(quantity: str, value: int) -> tuple[Any, int, int]:
    """Configuration, side and batch of a point."""
    from tfdetr_keras.models import PRESETS

    config = dataclasses.replace(PRESETS["detr-resnet-50"], num_queries=QUERIES, auxiliary_outputs=False)
    changes = {"queries": "num_queries", "decoder layers": "decoder_layers"}
    if quantity in changes:
        config = dataclasses.replace(config, **{changes[quantity]: value})
    return config, value if quantity == "side of the image" else SIDE, value if quantity == "batch" else 1


def _inference(quantity: str, value: int) -> Callable[[], Any]:
    import tensorflow as tf

    from tfdetr_keras.models import DETR

    config, side, batch = _case(quantity, value)
    model = DETR(config)
    forward = tf.function(lambda pixels: model(pixels, training=False)["logits"])
    pixels = tf.random.stateless_normal((batch, side, side, 3), (0, 0))
    return lambda: forward(pixels).numpy()


def _loss(targets: int) -> Callable[[], Any]:
    import tensorflow as tf

    from tfdetr_keras.losses.criterion import SetCriterion

    scenes, criterion = draw_scenes("crowded", LOSS_BATCH, LAYERS), SetCriterion()
    logits, boxes = tf.math.log(tf.maximum(scenes.probabilities, 1e-6)), tf.constant(scenes.pred_boxes)
    outputs = {"logits": logits[:, -1], "pred_boxes": boxes[:, -1], "aux_logits": logits[:, :-1]}
    outputs["aux_boxes"] = boxes[:, :-1]
    rng = np.random.default_rng(0)
    centres, sides = rng.uniform(0.2, 0.8, (LOSS_BATCH, targets, 2)), rng.uniform(0.05, 0.3, (LOSS_BATCH, targets, 2))
    truth = {
        "labels": tf.constant(rng.integers(0, 91, (LOSS_BATCH, targets)), tf.int32),
        "boxes": tf.constant(np.concatenate([centres, sides], axis=-1), tf.float32),
    }

    @tf.function
    def run() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            loss = criterion(outputs, truth)["loss"]
        return tape.gradient(loss, outputs)["logits"]

    return lambda: run().numpy()


def work(quantity: str) -> None:
    """What a worker process does: all points of one quantity."""
    runs: dict[int, Callable[[], Any]] = {}

    def first(value: int) -> None:
        runs[value] = _loss(value) if quantity == TARGETS else _inference(quantity, value)
        runs[value]()

    def once(value: int) -> float:
        start = time.perf_counter()
        runs[value]()
        return time.perf_counter() - start

    serve(first=first, once=once)


def measure(quantity: str, values: Sequence[int], repetitions: int) -> dict[int, float]:
    """Median seconds of each point."""
    worker = Worker(quantity)
    for value in values:
        worker.ask("first", value)
    seconds = take_turns(
        {str(value): partial(worker.ask, "once", value) for value in values}, repetitions, seconds_per_figure=1e6
    )
    worker.close()
    return {value: statistics.median(seconds[str(value)]) for value in values}


def slope(points: Mapping[int, float]) -> float:
    """Of the logarithms."""
    return float(np.polyfit(np.log(list(points)), np.log(list(points.values())), 1)[0])


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return

    print_header("Scaling", ("tfdetr-keras", "tensorflow", "keras", "numpy"))
    print(
        f"DETR with ResNet-50, {SIDE}×{SIDE}, batch 1, {QUERIES} queries, {LAYERS} decoder layers unless said ", end=""
    )
    print(f"otherwise; loss at batch {LOSS_BATCH}; n={arguments.repetitions}.\n")
    rows = []
    for quantity, values in (*MODEL.items(), (TARGETS, LOSS_TARGETS)):
        measured = measure(quantity, values, arguments.repetitions)
        counted = {}
        for value in values:
            if quantity == TARGETS:
                counted[value] = float(value)
            else:
                config, side, batch = _case(quantity, value)
                counted[value] = float(batch * multiplications(config, side, side))
        points = ", ".join(f"{value}: {rounded(1e3 * seconds)}" for value, seconds in measured.items())
        rows.append((quantity, points, f"{slope(measured):.2f}", f"{slope(counted):.2f}"))
    print_table(("", "median ms", "slope of time", "slope of the counted work"), rows)


if __name__ == "__main__":
    main()
