"""Draws the figure of the page on Deformable DETR: AP on drawn shapes over the steps of training, beside DETR's.

    python docs/figures/deformable_detr.py [docs/images]

The logs are those of two runs of `tfdetr train`: of the packaged `detr-tiny`, and `deformable-detr-tiny.csv` beside
this file, of the command that the page gives.
"""

import csv
import sys
from pathlib import Path

from matplotlib import pyplot as plt

HERE = Path(__file__).parent
LOGS = {
    "deformable-detr-tiny": HERE / "deformable-detr-tiny.csv",
    "detr-tiny": HERE.parents[1] / "tfdetr_keras/checkpoints/detr-tiny/metrics.csv",
}
STEPS = 1000  # of an epoch
BAR = 0.769  # AP of the packaged `detr-tiny`


def curve(path):
    """Returns steps and AP, of the epochs after which there was an evaluation."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val_AP"]]
    return [STEPS * int(row["epoch"]) for row in rows], [float(row["val_AP"]) for row in rows]


def main():
    """Writes the figure."""
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained", facecolor="white")
    for (name, path), colour in zip(LOGS.items(), ("#0b6e99", "#c2571a"), strict=True):
        steps, scores = curve(path)
        axes.plot(steps, scores, marker="o", color=colour, label=name)
    axes.axhline(BAR, color="#5b6b82", linewidth=1, linestyle="--")
    axes.annotate(f"{BAR}", (0, BAR), textcoords="offset points", xytext=(4, 4), fontsize=9, color="#5b6b82")
    axes.set(xlabel="steps of 16 images", ylabel="AP on 1,000 images", ylim=(0.2, 0.9), xlim=(0, 15_000))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "images"
    figure.savefig(folder / "deformable-detr-curves.png", dpi=110)


if __name__ == "__main__":
    main()
