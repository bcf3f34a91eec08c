"""Charts of a diagnosis: what `tfdetr_keras.evaluation.diagnosis` computes, one PNG for each question."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LINES = 10  # classes that have a line and a name of their own
NUMBERED = 16  # names up to which the confusion matrix has its counts written in
NAMED = 40  # names up to which it has all of them beside it
LONGEST_NAME = 18  # letters
DPI = 150
GREY = "0.8"
RECALLS = np.linspace(0, 1, 101)  # COCO's


def draw_confusion(diagnosis: Mapping[str, Any], path: str | Path) -> None:
    """Write the confusion matrix as a PNG: a row for each true class, shaded by shares of the row.

    Args:
        diagnosis: from `diagnosis_of`.
        path: the PNG to write.
    """
    names, counts = diagnosis["confusion"]["names"], np.asarray(diagnosis["confusion"]["counts"], np.float64)
    side = min(9.0, 2.6 + 0.42 * len(names))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axis = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= NUMBERED:
        for row, column in np.ndindex(counts.shape):
            if counts[row, column]:
                colour = "white" if shares[row, column] > 0.6 else "black"
                text = _count(float(counts[row, column]))
                axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    places = range(len(names)) if len(names) <= NAMED else range(0, len(names), math.ceil(len(names) / NAMED))
    short = [_shortened(names[place]) for place in places]
    axis.set_xticks(list(places), short, rotation=90, fontsize=8)
    axis.set_yticks(list(places), short, fontsize=8)
    axis.set_xlabel("found as")
    axis.set_ylabel("labelled")
    _save(figure, path)


def draw_precision_recall(diagnosis: Mapping[str, Any], path: str | Path) -> None:
    """Write precision by recall at an IoU of 0.5 as a PNG: the mean, and the classes with the lowest AP50 by name.

    Args:
        diagnosis: from `diagnosis_of`.
        path: the PNG to write.
    """
    figure, axis = _plain("recall", "precision")
    known = {name: one for name, one in diagnosis["classes"].items() if one["objects"]}
    lines = {name: (RECALLS, one["precision_by_recall"]["0.5"]) for name, one in known.items()}
    _lines(axis, lines, {name: one["AP50"] for name, one in known.items()}, "AP50")
    if lines:
        mean = np.mean([heights for _, heights in lines.values()], axis=0)
        axis.plot(RECALLS, mean, color="black", linewidth=2, label=f"mean {mean.mean():.2f}")
    _legend(axis)
    _save(figure, path)


def draw_f1(diagnosis: Mapping[str, Any], path: str | Path) -> None:
    """Write F1 by the score from which detections count as a PNG, with each class's best.

    Args:
        diagnosis: from `diagnosis_of`.
        path: the PNG to write.
    """
    figure, axis = _plain("score from which a detection counts", "F1")
    known = {name: one for name, one in diagnosis["classes"].items() if one["objects"] and one["curve"]["score"]}
    lines = {name: (one["curve"]["score"], one["curve"]["F1"]) for name, one in known.items()}
    named = _lines(axis, lines, {name: one["F1"] or 0.0 for name, one in known.items()}, "best")
    for name in named:
        if known[name]["threshold"] is not None:
            axis.plot(known[name]["threshold"], known[name]["F1"], "o", color=named[name], markersize=5)
    _legend(axis)
    _save(figure, path)


def draw_errors(diagnosis: Mapping[str, Any], path: str | Path) -> None:
    """Write what mending each kind of error would add to AP50 as a PNG.

    Args:
        diagnosis: from `diagnosis_of`.
        path: the PNG to write.
    """
    figure = Figure(figsize=(4.4, 2.8), layout="constrained")
    axis = figure.subplots()
    kinds = list(diagnosis["errors"])
    gains = [diagnosis["errors"][kind]["AP50"] for kind in kinds]
    bars = axis.barh(range(len(kinds)), gains, color="C0")
    axis.bar_label(bars, [f"{gain:.3f}" for gain in gains], padding=3, fontsize=8)
    axis.set_yticks(range(len(kinds)), kinds, fontsize=9)
    axis.set_xlim(0, max(0.01, 1.2 * max(gains)))
    axis.invert_yaxis()
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.set_xlabel("AP50 that mending it would add")
    axis.grid(axis="x", alpha=0.3)
    _save(figure, path)


def draw_calibration(diagnosis: Mapping[str, Any], path: str | Path) -> None:
    """Write by ranges of scores how many detections are right as a PNG; calibrated ones lie on the diagonal.

    Args:
        diagnosis: from `diagnosis_of`.
        path: the PNG to write.
    """
    figure, axis = _plain("score", "share of right detections")
    axis.plot([0, 1], [0, 1], color=GREY, linestyle="--")
    bins = [one for one in diagnosis["calibration"]["bins"] if one["count"]]
    widths = [one["to"] - one["from"] for one in bins]
    axis.bar([one["from"] for one in bins], [one["precision"] for one in bins], widths, align="edge", alpha=0.35)
    axis.plot([one["score"] for one in bins], [one["precision"] for one in bins], "o", color="C0", clip_on=False)
    for one in bins:
        height = min(one["precision"] + 0.03, 0.95)
        axis.text((one["from"] + one["to"]) / 2, height, _count(one["count"]), ha="center", fontsize=7)
    _save(figure, path)


def draw_slices(diagnosis: Mapping[str, Any], path: str | Path) -> None:
    """Write AP and AP50 by the size of objects, by the number of objects in an image, and by group, as a PNG.

    Args:
        diagnosis: from `diagnosis_of`.
        path: the PNG to write.
    """
    parts = [(kind, diagnosis[kind]) for kind in ("sizes", "crowding", "groups") if diagnosis[kind]]
    rows = [(name, one) for _, slices in parts for name, one in slices.items()]
    figure = Figure(figsize=(4.4, 1.0 + 0.36 * len(rows)), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(rows))
    for shift, metric, colour in ((-0.2, "AP50", "C0"), (0.2, "AP", "C1")):
        values = [max(one[metric], 0) for _, one in rows]
        bars = axis.barh(places + shift, values, 0.38, color=colour, label=metric)
        axis.bar_label(
            bars, ["–" if one[metric] < 0 else f"{one[metric]:.2f}" for _, one in rows], padding=2, fontsize=7
        )
    texts = [
        f"{_shortened(name)} ({_count(one['objects'])} objects)"
        if "objects" in one
        else f"{_shortened(name)} ({_count(one['images'])} images)"
        for name, one in rows
    ]
    axis.set_yticks(places, texts, fontsize=8)
    axis.set_xlim(0, 1.12)
    axis.invert_yaxis()
    for place in np.cumsum([len(slices) for _, slices in parts])[:-1]:
        axis.axhline(place - 0.5, color=GREY)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(loc="lower right", fontsize=8)
    _save(figure, path)


def _plain(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.4, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.02)
    axis.grid(alpha=0.3)
    return figure, axis


def _lines(
    axis: Axes,
    lines: Mapping[str, tuple[Any, Any]],
    values: Mapping[str, float],
    said: str,
) -> dict[str, str]:
    """Draw a line for each class, those of the lowest values with their names; return the colours of these."""
    lowest = set(sorted(lines, key=lambda name: values[name])[:LINES])
    named = {name: f"C{place % LINES}" for place, name in enumerate(name for name in lines if name in lowest)}
    for name, (across, up) in lines.items():
        if name not in named:
            axis.plot(across, up, color=GREY, linewidth=0.8, zorder=1)
    for name, colour in named.items():
        across, up = lines[name]
        axis.plot(across, up, color=colour, linewidth=1.2, label=f"{_shortened(name)} {said} {values[name]:.2f}")
    return named


def _legend(axis: Axes) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, loc="lower left")


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _count(number: float) -> str:
    """Return a count in at most four letters, such as 950, 12k and 1.2M."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if number >= limit:
            scaled = number / limit
            return f"{scaled:.1f}{unit}" if scaled < 10 else f"{scaled:.0f}{unit}"
    return f"{number:.0f}"


def _save(figure: Figure, path: str | Path) -> None:
    figure.savefig(path, dpi=DPI, format="png")
