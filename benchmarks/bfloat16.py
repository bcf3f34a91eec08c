"""What does computing in bfloat16 cost in AP? Inference with the published `detr-tiny`, and its training.

    python benchmarks/bfloat16.py [--images 1000] [--epochs 5] [--seeds 3]

The data are drawn shapes, prepared as the weights have it (`model.preprocessing`). Inference measures one set of
weights in float32 and in `mixed_bfloat16`, as they are and with batch normalisation folded, on the weights' own
classes. Training starts from them with three new classes, by `fit_detector`, in either precision from the same seeds;
AP is that of the last epoch, measured in the precision of the training. How much AP differs between seeds of one
precision says what a difference between precisions means. Times are not compared here: `inference.py` does that.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from typing import Any

import numpy as np
from harness.report import print_header, print_table

NEW_CLASSES = ("star", "cross", "ring")
RATE = 4e-4
BATCH = 16
TRAINING_SEED, VALIDATION_SEED = 11, 2  # the second as in docs/evaluate.md
PRECISIONS = ("float32", "mixed_bfloat16")


def _model(precision: str) -> Any:
    import keras

    import tfdetr_keras as td

    keras.config.set_dtype_policy(precision)
    try:
        return td.DETR.from_pretrained("detr-tiny")
    finally:
        keras.config.set_dtype_policy("float32")


def inference(images: int) -> list[tuple[str, ...]]:
    """Rows of the first table."""
    import tfdetr_keras as td

    records, names = td.data.load_shapes(images, seed=VALIDATION_SEED)
    evaluator = td.evaluation.Evaluator(records, names, batch_size=BATCH)
    reference = _model("float32")
    inputs, _ = next(td.data.prepare(records, BATCH, preprocessing=reference.preprocessing).as_numpy_iterator())
    pixels = inputs["pixel_values"]
    expected = {key: np.array(value) for key, value in reference(pixels).items()}
    first: dict[str, Any] = {}
    rows = []
    for precision in PRECISIONS:
        for folded in (False, True):
            model = _model(precision)
            model = model.fold() if folded else model
            metrics = evaluator(model)
            first = first or metrics
            found = model(pixels)
            apart = [np.abs(np.array(found[key]) - expected[key]).max() for key in ("logits", "pred_boxes")]
            difference = 100 * (metrics["AP"] - first["AP"])
            figures = (f"{100 * metrics['AP']:.2f}", f"{difference:+.2f}", f"{100 * metrics['AP50']:.2f}")
            name = precision + (", folded" if folded else "")
            rows.append((name, *figures, ", ".join(f"{value:.1e}" for value in apart)))
    return rows


def training(images: int, epochs: int, seeds: int) -> dict[str, list[float]]:
    """AP of each seed, by precision."""
    import tfdetr_keras as td

    records, names = td.data.load_shapes(images, classes=NEW_CLASSES, seed=TRAINING_SEED)
    validation, _ = td.data.load_shapes(images // 2, classes=NEW_CLASSES, seed=VALIDATION_SEED)
    found: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for seed in range(seeds):
        for precision in PRECISIONS:
            with tempfile.TemporaryDirectory() as folder:
                run = td.fit_detector(
                    records,
                    names,
                    folder,
                    validation,
                    "detr-tiny",
                    epochs=epochs,
                    batch_size=BATCH,
                    max_boxes=16,
                    augmentation="flip",
                    evaluate_every=epochs,
                    learning_rate=RATE,
                    precision=precision,
                    seed=seed,
                )
                found[precision].append(100 * float(run.metrics["AP"]))
    return found


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()

    print_header("bfloat16 and AP", ("tfdetr-keras", "tensorflow", "keras", "numpy"))
    from tfdetr_keras import PRESETS

    print(f"`detr-tiny` on {arguments.images} images of drawn shapes; {PRESETS['detr-tiny'].preprocessing}.\n")
    columns = ("inference", "AP, %", "to float32", "AP50, %", f"logits, boxes apart ({BATCH} images)")
    print_table(columns, inference(arguments.images))
    print(f"\nTraining on {arguments.images} others, {arguments.epochs} epochs, with three new classes; measured on")
    print(f"{arguments.images // 2} images; seeds 0 … {arguments.seeds - 1}.\n")
    found = training(arguments.images, arguments.epochs, arguments.seeds)
    means = {precision: statistics.mean(values) for precision, values in found.items()}
    rows = [
        (
            precision,
            ", ".join(f"{value:.2f}" for value in values),
            f"{means[precision]:.2f}",
            f"{means[precision] - means['float32']:+.2f}",
        )
        for precision, values in found.items()
    ]
    print_table(("training", "AP of each seed, %", "mean", "to float32"), rows)


if __name__ == "__main__":
    main()
