"""Outputs of a D-FINE in training, drawn at random, in plain NumPy: wherever a loss is computed they are the same."""

from typing import NamedTuple

import numpy as np

BINS, UP = 32, 0.5


class Case(NamedTuple):
    """What is drawn.

    Attributes:
        counts: objects of each image.
        queries: of an image.
        layers: of the decoder.
        reg_scale: see `tfdetr_keras.layers.distance_bins`.
        logits: the standard deviation of all logits, of classes and of bins.
        largest: what logits beyond ±3 become, if anything; in between float32 cannot tell costs of the matching apart.
        shift: the standard deviation of what boxes are moved by; much makes widths negative, and boxes lie outside.
        seed: of the draws; those of `CASES` leave no query of the union with two objects that are equally frequent.
    """

    counts: tuple[int, ...] = (4, 2)
    queries: int = 7
    layers: int = 3
    reg_scale: float = 4.0
    logits: float = 1.5
    largest: float | None = None
    shift: float = 0.04
    seed: int = 0


CLASSES, DENOISING = 5, 8


def drawn(case):
    """Return outputs in float64 and targets, whose rows beyond an image's objects are padding."""
    rng = np.random.default_rng(case.seed)
    batch, rows = len(case.counts), max(*case.counts, 1)
    is_object = np.arange(rows) < np.array(case.counts)[:, None]
    labels = np.where(is_object, rng.integers(0, CLASSES, is_object.shape), -1).astype(np.int32)
    boxes = np.concatenate([rng.uniform(0.3, 0.7, (batch, rows, 2)), rng.uniform(0.1, 0.5, (batch, rows, 2))], -1)
    boxes[~is_object] = 0
    bounds = np.array(case.counts)[:, None]

    def predicted(layers, targets, bins=False):
        """Layers that predict boxes around the same ones, a little off each time."""
        shape = batch, layers, targets.shape[1]

        def logits(*last):
            values = rng.normal(0, case.logits, (*shape, *last))
            return (
                values if case.largest is None else np.where(np.abs(values) > 3, np.sign(values) * case.largest, values)
            )

        found = {"logits": logits(CLASSES), "pred_boxes": targets[:, None] + rng.normal(0, case.shift, (*shape, 4))}
        return found | ({"corners": logits(4 * (BINS + 1))} if bins else {})

    def around(places):
        """Boxes around the objects of rows, and anywhere for the rows that are none."""
        anywhere = rng.uniform(0.2, 0.6, (*places.shape, 4))
        there = np.take_along_axis(boxes, np.minimum(places, rows - 1)[..., None], axis=1)
        return np.where((places < bounds)[..., None], there, anywhere)

    of_queries = around(rng.integers(0, rows + 1, (batch, case.queries)))
    decoder = predicted(case.layers, of_queries, bins=True)
    outputs = {
        **{"logits": decoder["logits"][:, -1], "pred_boxes": decoder["pred_boxes"][:, -1]},
        **{"aux_logits": decoder["logits"][:, :-1], "aux_boxes": decoder["pred_boxes"][:, :-1]},
        "corners": decoder["corners"],
        "references": of_queries + rng.normal(0, 0.02, of_queries.shape),
    }
    # M positives, then M negatives, in each group; and slots that this batch does not need.
    most, slots = max(case.counts), 2 * max(DENOISING, *case.counts)
    slot = np.arange(slots)
    group, within = slot // (2 * max(most, 1)), slot % (2 * max(most, 1))
    mask = (group < max(DENOISING // max(most, 1), 1)) & (most > 0)
    row = np.broadcast_to(within % max(most, 1), (batch, slots))
    is_pair = mask & (within < most) & (row < bounds)
    of_slots = around(row)
    pairs = {
        "queries": np.broadcast_to(np.where(is_pair, slot, -1)[:, None], (batch, case.layers, slots)),
        "objects": np.where(row < bounds, row, rows).astype(np.int32),
        "query_mask": mask,
    }
    outputs["prediction_sets"] = {
        "pre": predicted(1, of_queries),
        "encoder": predicted(1, of_queries),
        "denoising": {
            **predicted(case.layers, of_slots, bins=True),
            "references": of_slots + rng.normal(0, 0.02, of_slots.shape),
            **pairs,
        },
        "denoising_pre": {**predicted(1, of_slots), **pairs, "queries": pairs["queries"][:, :1]},
    }
    return outputs, {"labels": labels, "boxes": boxes}


def trained(outputs):
    """Yield path and array of what has a gradient."""
    for name, value in outputs.items():
        if name == "prediction_sets":
            for of_set, one in value.items():
                yield from (((name, of_set, key), x) for key, x in one.items() if key in TRAINED)
        elif name in TRAINED:
            yield (name,), value


TRAINED = ("logits", "pred_boxes", "aux_logits", "aux_boxes", "corners")
CASES = {
    "two images": Case(seed=1),
    "an image without objects": Case((3, 0), seed=106),
    "no objects": Case((0, 0), layers=2, seed=200),
    "more objects than queries": Case((9, 3), queries=5, layers=2, seed=315),
    "reg_scale 8": Case((3, 2), layers=2, reg_scale=8.0, seed=400),
    "boxes out of range": Case((3, 2), layers=2, shift=0.5, seed=502),
    "large logits": Case((3, 2), layers=2, logits=5.0, largest=110.0, seed=600),
}
