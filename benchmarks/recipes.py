"""Does the recipe of modern detectors find more than DETR's own in the same time? Blood cells, from `detr-tiny`.

    python benchmarks/recipes.py [--minutes 7] [--seeds 2] [--curves FILE.png]

Both train on the 205 training images of BCCD for the same time, the plain one as docs/fine-tuning.md has it: images
mirrored, a warm-up, a cosine. The strong one adds what RT-DETR and D-FINE do: colours, zoom and crops around objects,
several sizes, plain epochs at the end, averages of all state with a ramp, and no decay of normalisations and biases.
Learning rates, batch size and canvas are the same. How long an epoch takes is measured first; each gets as many as fit.
The best model by the AP of the validation images is measured on the 72 test images. The runs of both follow one another
in turn, and how much two seeds of one recipe differ says what a difference between the recipes means.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from harness.report import print_header, print_table

SHARED = {
    **{"source": "detr-tiny", "freeze": "", "num_queries": 50, "size": (192, 256), "pad_to": (192, 256)},
    **{"max_boxes": 60, "batch_size": 8, "learning_rate": 5e-4, "backbone_multiplier": 0.5, "warmup_steps": 50},
}
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {"augmentation": "flip"},
    "strong": {
        **{"augmentation": "strong", "multiscale": True, "plain_epochs": None},
        **{"ema_momentum": 0.99, "ema_ramp_steps": 50, "weight_decay_exclude": ("norms", "biases")},
    },
}
PLAIN_SHARE = 5  # the last fifth of the strong run is plain
MEASUREMENTS = 8  # of AP in a run


def _data() -> dict[str, Any]:
    import tfdetr_keras as td

    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TFDETR_DATA", default), "bccd", "BCCD")
    parts = {}
    for name in ("train", "val", "test"):
        images, annotations = folder / "JPEGImages", folder / "Annotations"
        records, names = td.data.load_voc(images, annotations, folder / "ImageSets" / "Main" / f"{name}.txt")
        parts[name] = records.cache()
    return {**parts, "names": names}


def _run(recipe: str, seed: int, epochs: int, data: dict[str, Any], folder: Path, **changes: Any) -> tuple[Any, float]:
    """Train; return the run and the seconds that it took, measurements included."""
    import tfdetr_keras as td

    settings = {**SHARED, **RECIPES[recipe], "seed": seed, "epochs": epochs, **changes}
    if "plain_epochs" in settings:
        settings["plain_epochs"] = epochs // PLAIN_SHARE
    start = time.monotonic()
    settings.setdefault("evaluate_every", max(1, epochs // MEASUREMENTS))
    run = td.fit_detector(data["train"], data["names"], folder, data["val"], **settings)
    return run, time.monotonic() - start


def _seconds_of_an_epoch(recipe: str, data: dict[str, Any], folder: Path) -> tuple[float, float]:
    """Return what an epoch takes, and what a run takes besides: tracing and a measurement."""
    once = {"warmup_steps": 0, "evaluate_every": 4}
    short, long = (_run(recipe, 0, epochs, data, folder / f"{recipe}-{epochs}", **once)[1] for epochs in (1, 4))
    each = (long - short) / 3
    return each, short - each


def main() -> None:
    """Train all, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=7.0, help="of each run")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--curves", type=Path, metavar="FILE", help="where to draw AP over time")
    options = parser.parse_args()
    print_header("The recipe of modern detectors beside DETR's", ("tfdetr-keras", "tensorflow", "keras"))

    data = _data()
    from tfdetr_keras.evaluation import evaluate_detections

    rows, curves, found = [], [], {name: [] for name in RECIPES}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        times = {recipe: _seconds_of_an_epoch(recipe, data, folder) for recipe in RECIPES}
        for seed in range(options.seeds):
            for recipe in list(RECIPES) if seed % 2 == 0 else list(RECIPES)[::-1]:
                each, besides = times[recipe]
                epochs = max(2, round((60 * options.minutes - besides) / each))
                run, seconds = _run(recipe, seed, epochs, data, folder / f"{recipe}-{seed}-long")
                metrics = evaluate_detections(run.load_model(), data["test"], data["names"])
                found[recipe].append(metrics["AP"])
                aps = run.metrics["AP"], metrics["AP"], metrics["AP50"]
                rows.append((recipe, str(seed), str(epochs), f"{seconds / 60:.1f}", *(f"{ap:.3f}" for ap in aps)))
                curves.append((recipe, seed, seconds, _measured(run)))
    print_table(("recipe", "seed", "epochs", "minutes", "validation AP", "test AP", "test AP50"), rows)
    print()
    print_table(
        ("recipe", "mean test AP", "between seeds"),
        [(name, f"{statistics.mean(aps):.3f}", f"{max(aps) - min(aps):.3f}") for name, aps in found.items()],
    )
    if options.curves is not None:
        _draw(curves, options.curves)


def _measured(run: Any) -> list[tuple[float, float]]:
    """Return (share of the run, validation AP) of each epoch that was measured."""
    import csv

    with (run.path / "metrics.csv").open() as file:
        logs = list(csv.DictReader(file))
    return [((place + 1) / len(logs), float(log["val_AP"])) for place, log in enumerate(logs) if log.get("val_AP")]


def _draw(curves: list[tuple[str, int, float, list[tuple[float, float]]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for recipe, seed, seconds, points in curves:
        minutes, aps = zip(*((share * seconds / 60, ap) for share, ap in points), strict=True)
        color, dashes = ("tab:blue", "tab:orange")[list(RECIPES).index(recipe)], ("-", "--", ":", "-.")[seed % 4]
        axes.plot(minutes, aps, dashes, color=color, marker="o", markersize=3, label=f"{recipe}, seed {seed}")
    axes.set(xlabel="minutes", ylabel="AP of the validation images")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
