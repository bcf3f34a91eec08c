"""A picture of a comparison: AP of two models by class, and the differences of COCO's figures with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

MOST_CLASSES = 20  # those that differ most


def draw_comparison(
    comparison: Mapping[str, Any], path: str | Path, names: tuple[str, str] = ("first", "second")
) -> None:
    """Write a PNG: left the differences of the figures, right AP of the classes that differ most.

    Args:
        comparison: from `compare_detections`.
        path: the PNG to write.
        names: of the two models.
    """
    metrics = {name: one for name, one in comparison["metrics"].items() if one["difference"] is not None}
    classes = {name: one for name, one in comparison["classes"].items() if one["difference"] is not None}
    shown = sorted(classes, key=lambda name: -abs(classes[name]["difference"]))[:MOST_CLASSES]
    height = 1.4 + 0.3 * max(len(metrics), len(shown))
    figure = Figure(figsize=(9.2, height), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = np.arange(len(metrics))
    left.axvline(0, color="0.6")
    for place, one in enumerate(metrics.values()):
        if "low" in one:
            left.plot([one["low"], one["high"]], [place, place], color="C0", linewidth=2)
        left.plot(one["difference"], place, "o", color="C0")
    left.set_yticks(places, list(metrics))
    left.invert_yaxis()
    left.set_xlabel(f"{names[1]} less {names[0]}")
    left.set_title("Differences, with intervals of 95 %" if comparison["resamples"] else "Differences", fontsize=10)
    left.grid(axis="x", alpha=0.3)
    places = np.arange(len(shown))
    for shift, key, name in ((-0.2, "first", names[0]), (0.2, "second", names[1])):
        right.barh(places + shift, [classes[one][key] for one in shown], 0.38, label=name)
    right.set_yticks(places, shown)
    right.set_xlim(0, 1)
    right.invert_yaxis()
    more = f", the {MOST_CLASSES} that differ most" if len(classes) > MOST_CLASSES else ""
    right.set_title(f"AP of the classes{more}", fontsize=10)
    right.grid(axis="x", alpha=0.3)
    figure.legend(*right.get_legend_handles_labels(), fontsize=8, loc="outside lower right", ncols=2)
    figure.savefig(path, dpi=130, format="png")
