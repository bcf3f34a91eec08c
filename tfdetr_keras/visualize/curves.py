"""The curves of a training run."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

FEW = 30  # values, up to which each has a dot
KINDS = {"": ("training", "C0"), "val_": ("validation", "C1")}  # prefix of a name -> what it is of, and its colour
# Average precision and recall, panoptic quality and accuracy are shares, from 0 to 1; COCO writes -1 for "no objects".
_SHARE = re.compile(r"(mask_)?(AP|AR)[0-9a-z]*|[PSR]Q\w*|\w*accuracy")
_TOPS = (0.1, 0.25, 0.5, 1.0)  # of their axes, of which the lowest with room is taken


def plot_curves(history: Mapping[str, Sequence[float]], path: str | Path) -> None:
    """Write the curves of a training run as a PNG: one panel per quantity, for training and validation together.

    Axes begin at 0. Those of AP and other fractions end at 1, or lower where all values are low.

    Args:
        history: name -> values per epoch, like `keras.callbacks.History.history`; "val_x" is drawn with "x", NaN is
            left out.
        path: the PNG to write.

    Raises:
        ValueError: the history is empty.
    """
    panels = list(dict.fromkeys(name.removeprefix("val_") for name in history))
    if not panels:
        raise ValueError("the history is empty: there is no curve to draw")
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.5 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, panel, history)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=120, format="png")


def _draw_panel(axis: Axes, panel: str, history: Mapping[str, Sequence[float]]) -> None:
    """Draw one quantity for training and validation."""
    is_share, drawn = _SHARE.fullmatch(panel) is not None, []
    for prefix, (label, colour) in KINDS.items():
        values = history.get(f"{prefix}{panel}", ())
        known = [
            (epoch, value)
            for epoch, value in enumerate(values, start=1)
            if math.isfinite(value) and not (is_share and value < 0)
        ]
        if known:
            dots = "o" if len(known) <= FEW else None
            # Above the frame and beyond it, so that a curve along 0 is seen.
            epochs, heights = zip(*known, strict=True)
            axis.plot(epochs, heights, label=label, color=colour, marker=dots, markersize=4, clip_on=False, zorder=3)
            drawn += [value for _, value in known]
    axis.set_title(panel)
    axis.set_xlabel("epoch")
    axis.set_xlim(0.5, max([1, *(len(history.get(f"{prefix}{panel}", ())) for prefix in KINDS)]) + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axis.grid(alpha=0.3)
    if not drawn:
        axis.text(0.5, 0.5, "nothing measured", transform=axis.transAxes, ha="center", va="center", color="grey")
        axis.set_yticks([])
        return
    if min(drawn) >= 0:
        highest = max(drawn)
        if is_share and highest <= 1:
            tops = [top for top in _TOPS if highest and highest <= 0.95 * top]
            axis.set_ylim(0, tops[0] if tops else 1.0)
        else:
            axis.set_ylim(0, 1.08 * highest or 1)
    if panel == "learning_rate":
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
    else:  # the schedule is nobody's but training's
        axis.legend()


def power_of_ten(value: float) -> str:
    """Return a number in short form: 0.0001 is "1e-4"."""
    if not value:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
