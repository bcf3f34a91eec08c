"""What do the checkpoints inside the package find, and in what time? All beside `detr-tiny`.

    python benchmarks/packaged.py [--images 1000] [--repetitions 200]

Each is measured on the same drawn shapes, prepared as its weights have it (`model.preprocessing`, 64×64 pixels). Times
are those of the network from pixels in memory, with batch normalisation folded, as `predict` runs it: in a plain graph,
and in one compiled by XLA. All run in turn in one process; figures are medians, and ratios those of the faster graphs
of each. A second table has the AP of one of them in fewer bits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from harness.report import print_bar, print_header, print_table, rounded
from harness.workers import take_turns

NAMES = ("detr-tiny", "rt-detr-tiny", "rf-detr-tiny", "d-fine-tiny")
SEED, SIZES = 2, (48, 64)  # of the drawn images, as in the checkpoints' cards
BATCHES = (1, 16)
GRAPHS = {"graph": False, "XLA": True}
IN_FEWER_BITS = "rf-detr-tiny"


def average_precision(images: int) -> dict[str, dict[str, Any]]:
    """COCO metrics of each checkpoint."""
    import tfdetr_keras as td

    records, names = td.data.load_shapes(images, seed=SEED, size=SIZES)
    return {name: td.evaluation.evaluate_detections(td.from_pretrained(name), records, names) for name in NAMES}


def in_fewer_bits(images: int) -> dict[str, dict[str, Any]]:
    """COCO metrics of a checkpoint in each precision."""
    import keras

    import tfdetr_keras as td

    records, names = td.data.load_shapes(images, seed=SEED, size=SIZES)
    found = {}
    for precision in ("mixed_float16", "mixed_bfloat16", "int8"):
        keras.config.set_dtype_policy("float32" if precision == "int8" else precision)
        model = td.from_pretrained(IN_FEWER_BITS)
        keras.config.set_dtype_policy("float32")
        if precision == "int8":
            model.quantize("int8")
        found[precision] = td.evaluation.evaluate_detections(model, records, names)
    return found


def times(batch: int, repetitions: int) -> dict[str, float]:
    """Median milliseconds of "checkpoint, graph"."""
    import tensorflow as tf

    import tfdetr_keras as td

    records, _ = td.data.load_shapes(batch, seed=SEED, size=SIZES)
    runs = {}
    for name in NAMES:
        model = td.from_pretrained(name).fold()
        model.auxiliary_outputs = False
        prepared = td.data.prepare(records, batch, preprocessing=model.preprocessing)
        inputs = {key: tf.constant(value) for key, value in next(prepared.as_numpy_iterator())[0].items()}
        for graph, jit_compile in GRAPHS.items():
            forward = tf.function(lambda inputs, model=model: model(inputs, training=False), jit_compile=jit_compile)
            runs[f"{name}, {graph}"] = partial(_seconds, forward, inputs)
            runs[f"{name}, {graph}"]()  # which traces and compiles it
    return {name: 1e3 * statistics.median(seconds) for name, seconds in take_turns(runs, repetitions).items()}


def _seconds(forward: Callable[..., Any], inputs: dict[str, Any]) -> float:
    started = time.perf_counter()
    forward(inputs)["logits"].numpy()
    return time.perf_counter() - started


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=200)
    arguments = parser.parse_args()

    print_header("Packaged checkpoints", ("tfdetr-keras", "tensorflow", "keras", "numpy"))
    print(f"{arguments.images} images of drawn shapes.\n")
    found = average_precision(arguments.images)
    rows = [(name, *(f"{found[name][metric]:.3f}" for metric in ("AP", "AP50", "AP75"))) for name in NAMES]
    print_table(("", "AP", "AP50", "AP75"), rows)
    print(f"\n{IN_FEWER_BITS} in fewer bits.\n")
    fewer = {"float32": found[IN_FEWER_BITS], **in_fewer_bits(arguments.images)}
    rows = [(name, *(f"{metrics[metric]:.4f}" for metric in ("AP", "AP50"))) for name, metrics in fewer.items()]
    print_table(("", "AP", "AP50"), rows)
    print("\nMedian ms a batch.\n")
    ratios, rows = {}, []
    for batch in BATCHES:
        taken = times(batch, arguments.repetitions)
        fastest = {name: min(taken[f"{name}, {graph}"] for graph in GRAPHS) for name in NAMES}
        ratios[batch] = fastest["rt-detr-tiny"] / fastest["detr-tiny"]
        for name in NAMES:
            cells = (*(taken[f"{name}, {graph}"] for graph in GRAPHS), fastest[name] / fastest["detr-tiny"])
            rows.append((f"{batch}, {name}", *map(rounded, cells)))
    print_table(("batch", *GRAPHS, "fastest / detr-tiny"), rows)
    print()
    print_bar("AP of rt-detr-tiny", found["rt-detr-tiny"]["AP"], at_least=0.85)
    print_bar("AP of d-fine-tiny", found["d-fine-tiny"]["AP"], at_least=round(found["rt-detr-tiny"]["AP"], 3))
    for batch, ratio in ratios.items():
        print_bar(f"rt-detr-tiny / detr-tiny, batch {batch}", ratio, at_most=2)


if __name__ == "__main__":
    main()
