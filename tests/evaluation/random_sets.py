"""Drawn ground truth and detections with all that makes matching hard: crowds, ties, overlaps, unused classes."""

import numpy as np

SIDE = 160  # pixels


def random_set(seed, images=12, classes=4, masks=False, first_id=3):
    """Returns ground truth and detections, as `coco_metrics` takes them; some images have neither."""
    rng = np.random.default_rng(seed)
    truths, found = [], []
    for image_id in range(first_id, first_id + images):
        count = int(rng.integers(0, 7))
        boxes = _boxes(rng, count)
        labels = rng.integers(0, classes, count)
        truths.append(
            {
                "image_id": image_id,
                "boxes": boxes,
                "labels": labels,
                "iscrowd": rng.random(count) < 0.15,
                "area": (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * rng.uniform(0.5, 1, count),
            }
        )
        # Near the objects, several times, some as another class; and anywhere.
        near = rng.integers(0, count, int(rng.integers(0, 2 * count + 1))) if count else np.zeros(0, int)
        moved = boxes[near] + rng.normal(0, 4, (len(near), 4))
        named = np.where(rng.random(len(near)) < 0.8, labels[near], rng.integers(0, classes, len(near)))
        elsewhere = _boxes(rng, int(rng.integers(0, 4)))
        corners = np.concatenate([moved, elsewhere])
        corners = np.concatenate([np.minimum(corners[:, :2], corners[:, 2:] - 1), corners[:, 2:]], axis=1)
        scores = rng.random(len(corners)).round(1 if seed % 2 else 6)  # with ties, or without
        guessed = rng.integers(0, classes, len(elsewhere))
        found.append(
            {"image_id": image_id, "boxes": corners, "labels": np.concatenate([named, guessed]), "scores": scores}
        )
    if masks:
        for image in (*truths, *found):
            image["masks"] = _filled(image["boxes"])
    return truths, found


def _boxes(rng, count):
    sides = np.exp(rng.uniform(np.log(4), np.log(120), (count, 2)))
    corners = rng.uniform(0, SIDE - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def _filled(boxes):
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.array(
        [(columns >= x) & (columns < right) & (rows >= y) & (rows < below) for x, y, right, below in boxes], bool
    ).reshape(-1, SIDE, SIDE)
