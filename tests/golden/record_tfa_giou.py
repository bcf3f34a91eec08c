"""Record what the GIoU loss of TensorFlow Addons returns, so that ours can be compared with it wherever it cannot run.

TensorFlow Addons reached its end of life in 2024; its last release, 0.23, needs TensorFlow 2.15 and Python 3.11 or
older. This script runs in a scratch environment of its own and imports nothing of this project:

    python3.11 -m venv scratch
    scratch/bin/pip install tensorflow-cpu==2.15.1 tensorflow-addons==0.23.0
    scratch/bin/python tests/golden/record_tfa_giou.py

Written beside this file, `tfa_giou.json`:
    versions: of Python, numpy, TensorFlow and TensorFlow Addons.
    box_format: the order of the four coordinates.
    cases: a list of
        name: what the pairs have in common.
        y_true, y_pred: float32 boxes, `(pairs, 4)`.
        giou, iou: `tfa.losses.giou_loss(y_true, y_pred, mode)` of each pair, `(pairs,)`: 1 - GIoU and 1 - IoU.
        giou_mean, iou_mean: the scalar of `tfa.losses.GIoULoss(mode)(y_true, y_pred)` with its default reduction.
"""

import json
import platform
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa

SEED = 20
PAIRS = 16
MODES = ("giou", "iou")


def random_boxes(rng, pairs, lowest=0.0, highest=1.0, smallest=0.02):
    """Boxes y1x1y2x2 of positive area within [lowest, highest]."""
    corner = rng.uniform(lowest, highest - smallest, (pairs, 2))
    size = rng.uniform(smallest, highest - corner)
    return np.concatenate([corner, corner + size], axis=-1).astype(np.float32)


def cases(rng):
    """Yield (name, y_true, y_pred)."""
    yield "random, relative coordinates", random_boxes(rng, 48), random_boxes(rng, 48)
    yield "random, pixel coordinates", random_boxes(rng, 48, 0, 640, 1), random_boxes(rng, 48, 0, 640, 1)

    boxes = random_boxes(rng, PAIRS)
    yield (
        "overlapping",
        boxes,
        np.sort((boxes + rng.normal(0, 0.03, boxes.shape)).reshape(-1, 2, 2), axis=1).reshape(-1, 4),
    )
    yield "identical", boxes, boxes

    # Multiples of 1/64 are exact in float32, so edges that should coincide do.
    grid = np.round(random_boxes(rng, PAIRS, 0.0, 0.5, 0.1) * 64) / 64
    height, width = (grid[:, 2:] - grid[:, :2]).T
    none = np.zeros_like(width)
    yield "touching along an edge", grid, grid + np.stack([none, width, none, width], axis=-1)
    yield "touching at a corner", grid, grid + np.stack([height, width, height, width], axis=-1)
    yield "disjoint on both axes", grid, grid + np.stack([height, width, height, width], axis=-1) + np.float32(0.25)

    inner = np.concatenate(
        [boxes[:, :2] * 0.75 + boxes[:, 2:] * 0.25, boxes[:, :2] * 0.25 + boxes[:, 2:] * 0.75], axis=-1
    )
    yield "prediction inside the target", boxes, inner
    yield "target inside the prediction", inner, boxes

    point = np.concatenate([boxes[:, :2], boxes[:, :2]], axis=-1)
    line = np.concatenate([boxes[:, :2], boxes[:, 2:3], boxes[:, 1:2]], axis=-1)
    yield "prediction is a point on the target's corner", boxes, point
    yield "prediction is a line on the target's edge", boxes, line
    yield "prediction is a point elsewhere", boxes, point[::-1]
    yield "both are the same point", point, point
    yield "both are the same line", line, line
    yield "both are points, apart", point, point[::-1]


def record(name, y_true, y_pred):
    """Run the library on one case."""
    y_true, y_pred = np.asarray(y_true, np.float32), np.asarray(y_pred, np.float32)
    row = {"name": name, "y_true": y_true.tolist(), "y_pred": y_pred.tolist()}
    for mode in MODES:
        row[mode] = tfa.losses.giou_loss(tf.constant(y_true), tf.constant(y_pred), mode).numpy().tolist()
        row[f"{mode}_mean"] = float(tfa.losses.GIoULoss(mode)(tf.constant(y_true), tf.constant(y_pred)))
    return row


def shortest(value):
    """The shortest decimals that read back as the same float32."""
    if isinstance(value, list):
        return [shortest(item) for item in value]
    return float(str(np.float32(value))) if isinstance(value, float) else value


def main():
    """Write the JSON file, one case a line."""
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "tensorflow": tf.__version__,
        "tensorflow_addons": tfa.__version__,
    }
    rows = []
    for case in cases(np.random.default_rng(SEED)):
        row = {key: shortest(value) for key, value in record(*case).items()}
        rows.append(json.dumps(row))
        print(f"{len(row['y_true']):3d} pairs  giou {row['giou_mean']:.6f}  iou {row['iou_mean']:.6f}  {row['name']}")
    head = json.dumps({"versions": versions, "box_format": "y1x1y2x2", "seed": SEED})[:-1]
    text = head + ', "cases": [\n' + ",\n".join(rows) + "\n]}\n"
    path = Path(__file__).with_name("tfa_giou.json")
    path.write_text(text)
    print(f"{path.name}: {len(text) / 1024:.1f} KiB")


if __name__ == "__main__":
    main()
