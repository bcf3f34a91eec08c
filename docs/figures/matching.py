"""Draws the figure of the matcher's page: the boxes of all queries, the costs, and the pairs of least total cost.

    python docs/figures/matching.py [docs/images/matching.png]

The model is `detr-tiny`, the image one of its drawn shapes.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

import tfdetr_keras as td
from tfdetr_keras.boxes import cxcywh_to_xyxy
from tfdetr_keras.matching.matcher import match, matching_cost

SIZE = (64, 64)
SEED = 21
HERE = Path(__file__).parent


def matched():
    """An image, its objects, the boxes of all queries, their costs `(objects, queries)` and each object's query."""
    records, names = td.data.load_shapes(8, seed=SEED, size=SIZE)
    crowded = max(records.as_numpy_iterator(), key=lambda record: len(record["labels"]))
    batches = td.data.prepare(records.filter(lambda record: record["image_id"] == crowded["image_id"]), 1, size=SIZE)
    inputs, targets = next(iter(batches))
    model = td.DETR.from_pretrained("detr-tiny")
    outputs = model(inputs)
    arguments = outputs["logits"][:, None], outputs["pred_boxes"][:, None], targets["labels"], targets["boxes"]
    cost, query = np.asarray(matching_cost(*arguments))[0, 0], np.asarray(match(*arguments))[0, 0]
    labels = [names[label] for label in np.asarray(targets["labels"])[0]]
    boxes = [np.asarray(cxcywh_to_xyxy(relative))[0] for relative in (targets["boxes"], outputs["pred_boxes"])]
    return crowded["image"], labels, *boxes, cost, query


def frame(axes, box, **style):
    """Draws a box of corners in [0, 1] over an image."""
    x1, y1, x2, y2 = box
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **style))


def main(path):
    """Writes the figure."""
    image, labels, true_boxes, query_boxes, cost, query = matched()
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 4.4), width_ratios=[1, 2], layout="constrained", facecolor="white"
    )
    left.imshow(image, extent=(0, 1, 1, 0), aspect=image.shape[0] / image.shape[1])
    for box in query_boxes:
        frame(left, box, color="white", linewidth=0.6, alpha=0.5)
    colours = plt.get_cmap("tab10")(np.arange(len(labels)))
    for colour, box, chosen in zip(colours, true_boxes, query, strict=True):
        frame(left, box, color=colour, linewidth=2, linestyle="--")
        frame(left, query_boxes[chosen], color=colour, linewidth=1.5)
        left.text(*query_boxes[chosen][:2], f" {chosen}", color="white", fontsize=9, va="bottom", weight="bold")
    left.set(xticks=[], yticks=[])
    left.set_title("objects (dashed), their queries (solid)", fontsize=10)

    picture = right.imshow(cost, cmap="viridis_r", aspect="auto")
    for row, (colour, chosen) in enumerate(zip(colours, query, strict=True)):
        right.add_patch(Rectangle((chosen - 0.5, row - 0.5), 1, 1, fill=False, color=colour, linewidth=3))
    right.set_yticks(range(len(labels)), labels)
    right.set_xticks(range(cost.shape[1]))
    right.set(xlabel="query")
    right.set_title(f"cost of each pair; least total: {cost[range(len(labels)), query].sum():.2f}", fontsize=10)
    figure.colorbar(picture, ax=right, label="cost")
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else HERE.parent / "images" / "matching.png")
