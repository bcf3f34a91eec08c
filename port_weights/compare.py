"""Comparing a checkpoint in PyTorch with its port in Keras, stage by stage, on one padded batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from port_weights import hub
from port_weights.families import family_of
from port_weights.pytorch.process import PyTorchMissingError, require
from port_weights.reference import reference_stages
from tfdetr_keras.models.packaged import find_source
from tfdetr_keras.models.presets import PUBLISHED
from tfdetr_keras.models.pretrained import load_model

LOGITS_TOLERANCE = 1e-4
BOXES_TOLERANCE = 1e-5
MASKS_TOLERANCE = 1e-3
OUTPUT_TOLERANCES = {"logits": LOGITS_TOLERANCE, "pred_boxes": BOXES_TOLERANCE, "pred_masks": MASKS_TOLERANCE}
# Of a stage's largest value: float32 rounding, summed over a hundred layers in another order.
STAGE_TOLERANCE = 1e-5
# Of two tokens whose scores are as close as rounding, each side may choose another one as a query, or in another order.
CLEAR_CHOICE, TRIES = 1e-5, 8


@dataclasses.dataclass(frozen=True)
class Row:
    """One stage's comparison: the largest difference, and the largest that counts as equal."""

    stage: str
    difference: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether the difference is within the tolerance; one that is not a number is not."""
        return self.difference <= self.tolerance


def padded_batch(height: int = 224, width: int = 288, seed: int = 0, is_padded: bool = True) -> dict[str, np.ndarray]:
    """Make a batch of two random images: the inputs of a model.

    Args:
        height: of the batch.
        width: of the batch.
        seed: of the pixels.
        is_padded: whether the second image is smaller, and padded to the size of the first.
    """
    pixels = np.random.default_rng(seed).standard_normal((2, height, width, 3)).astype(np.float32)
    mask = np.ones((2, height, width), np.int64)
    if is_padded:
        mask[1, height * 2 // 3 :] = 0
        mask[1, :, width * 4 // 5 :] = 0
    return {"pixel_values": pixels * mask[..., None].astype(np.float32), "pixel_mask": mask}


def compare(source: Any, height: int | None = None, width: int | None = None, **options: Any) -> tuple[list[Row], str]:
    """Run a checkpoint through PyTorch and through its Keras port.

    The images are random numbers: where tokens of the encoder become queries, those of several draws among which the
    model chooses most clearly, since rounding would choose otherwise on each side, and every later stage would differ.

    Args:
        source: a checkpoint as for `load_model`.
        height: height of the batch, pixels; by default 224, of LW-DETR and RF-DETR as the model has it.
        width: width of the batch, pixels; by default 288, likewise.
        **options: of `load_model`.

    Returns:
        One row per stage, from the backbone to the boxes, and how the PyTorch side got its weights.

    Raises:
        PyTorchMissingError: a ValueError; torch and transformers, which the other side needs, are not installed, or
            cannot be imported.
        ValueError: as `load_model`; or the process of the other side failed.
    """
    source = find_source(source)
    try:
        require("torch", "transformers")
        if hub.is_hub_id(source):
            source = hub.fetch(str(source), options.pop("revision", None), known=PUBLISHED)
        model = load_model(source, **options)
        batch, got = _clear_batch(model, height, width)
        expected, origin = reference_stages(source, model, batch)
    except PyTorchMissingError as error:
        raise PyTorchMissingError(
            f"comparing needs the PyTorch side: pip install 'tfdetr-keras[port]' ({error})"
        ) from error
    rows = []
    for stage, value in expected.items():
        difference = float(np.abs(np.asarray(got[stage]) - value).max())
        tolerance = OUTPUT_TOLERANCES.get(stage, STAGE_TOLERANCE * max(1.0, float(np.abs(value).max())))
        rows.append(Row(stage, difference, tolerance))
    return rows, origin


def _clear_batch(model: Any, height: int | None, width: int | None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return a batch, on which the model's choice of queries is clear if it has one, and the model's stages of it."""
    family = family_of(model.config)
    usual = family.compared_size(model.config)
    clearest, found = -1.0, None
    for seed in range(TRIES):
        batch = padded_batch(height or usual[0], width or usual[1], seed, is_padded=model.config.knows_padding)
        stages = model.stages(batch)
        if "proposals.logits" not in stages:
            return batch, stages
        scores = np.asarray(family.scores_of_proposals(np.asarray(stages["proposals.logits"])))
        gap = smallest_gap(scores, model.config.num_queries)
        if gap > clearest:
            clearest, found = gap, (batch, stages)
        if gap > CLEAR_CHOICE:
            break
    assert found is not None
    return found


def smallest_gap(scores: np.ndarray, count: int) -> float:
    """Return the least difference between the best scores of an image, and to the first that is none of them.

    Equal scores are not counted: they are those of positions near the border, which all propose the same.

    Args:
        scores: `(images, tokens)`.
        count: how many are the best.
    """
    best = -np.sort(-scores, axis=-1)[:, : count + 1]
    gaps = -np.diff(best)
    return float(gaps[gaps > 0].min(initial=np.inf))


def table(rows: list[Row]) -> str:
    """Return the rows as text, one stage a line."""
    header = f"{'stage':<18} {'max |Δ|':>10} {'tolerance':>10}  verdict"
    lines = (
        f"{row.stage:<18} {row.difference:>10.2e} {row.tolerance:>10.2e}  {'ok' if row.agrees else 'OUT'}"
        for row in rows
    )
    return "\n".join([header, *lines])
