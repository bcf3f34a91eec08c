"""The losses of matched masks: focal and DICE (DETR, section 5, "Training details", and appendix A.2)."""

from __future__ import annotations

from typing import Any

from keras import ops

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0  # Lin et al. 2017, "Focal Loss", section 4.1


def mask_losses(pred_masks: Any, masks: Any, queries: Any, num_boxes: Any) -> dict[str, Any]:
    """Compares each object's mask with that of its query.

    Predictions are enlarged to the size of the masks, bilinearly. With p the probabilities and m the mask, over the n
    pixels of the padded canvas, and N the number of objects of the batch:

    * `loss_mask` = Σ_objects (1 / n) Σ_pixels αₜ (1 − pₜ)^γ (−log pₜ) / N, the focal loss, with pₜ = the probability of
      the right answer and αₜ = 0.25 inside the mask, 0.75 outside;
    * `loss_dice` = Σ_objects (1 − (2 Σ m p + 1) / (Σ m + Σ p + 1)) / N.

    Args:
        pred_masks: `(batch, queries, h, w)` float, logits.
        masks: `(batch, objects, height, width)` bool or 0/1; what padding rows hold is not looked at.
        queries: `(batch, objects)` int, the query of each object, −1 where there is none.
        num_boxes: N, float.

    Returns:
        `{"loss_mask", "loss_dice"}`, float32 scalars.

    Source:
        Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5; Milletari et al. 2016, "V-Net", section 3.
    """
    height, width = ops.shape(masks)[2:4]
    is_pair = queries >= 0
    paired = ops.take_along_axis(pred_masks, ops.maximum(queries, 0)[:, :, None, None], axis=1)
    logits = ops.image.resize(
        ops.cast(paired, "float32"), (height, width), "bilinear", antialias=False, data_format="channels_first"
    )
    true = ops.cast(masks, "float32")
    probability = ops.sigmoid(logits)
    # −log σ(x) = softplus(−x) and −log(1 − σ(x)) = softplus(x) stay finite where the probability rounds to 0 or 1.
    cross_entropy = ops.softplus(logits) - true * logits
    wrong = probability + true - 2 * probability * true  # 1 − pₜ
    alpha = FOCAL_ALPHA * true + (1 - FOCAL_ALPHA) * (1 - true)
    focal = ops.mean(alpha * wrong**FOCAL_GAMMA * cross_entropy, axis=(2, 3))
    overlap, areas = ops.sum(true * probability, axis=(2, 3)), ops.sum(true + probability, axis=(2, 3))
    dice = 1 - (2 * overlap + 1) / (areas + 1)
    return {
        "loss_mask": ops.sum(ops.where(is_pair, focal, 0.0)) / num_boxes,
        "loss_dice": ops.sum(ops.where(is_pair, dice, 0.0)) / num_boxes,
    }
