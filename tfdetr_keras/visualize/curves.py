"""The curves of a training run."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure


def plot_curves(history: Mapping[str, Sequence[float]], path: str | Path) -> None:
    """Writes the curves of a training run as a PNG, one panel a quantity, its validation beside it.

    Args:
        history: name -> value per epoch, as `keras.callbacks.History.history`; "val_x" is drawn with "x", NaN left out.
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
        for name, label in ((panel, "training"), (f"val_{panel}", "validation")):
            if name in history:
                known = [(epoch, value) for epoch, value in enumerate(history[name], start=1) if math.isfinite(value)]
                epochs, values = zip(*known, strict=True) if known else ((), ())
                axis.plot(epochs, values, label=label, marker="." if len(known) < 20 else None)
        axis.set(title=panel, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=120, format="png")
