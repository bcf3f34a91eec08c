"""The losses of matched masks: focal and DICE (DETR, section 5, "Training details", and appendix A.2)."""

from __future__ import annotations

from typing import Any

from keras import ops

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0  # Lin et al. 2017, "Focal Loss", section 4.1


def mask_losses(pred_masks: Any, masks: Any, is_pair: Any, num_boxes: Any) -> dict[str, Any]:
    """Compare each object's mask with that of its query.

    Predictions are enlarged to the size of the masks, bilinearly. With p the probabilities and m the mask, over the n
    pixels of the padded canvas, and N the number of objects of the batch:

    * `loss_mask` = Σ_objects (1 / n) Σ_pixels αₜ (1 − pₜ)^γ (−log pₜ) / N, the focal loss, with pₜ = the probability of
      the right answer and αₜ = 0.25 inside the mask, 0.75 outside;
    * `loss_dice` = Σ_objects (1 − (2 Σ m p + 1) / (Σ m + Σ p + 1)) / N.

    Args:
        pred_masks: `(batch, objects, h, w)` float, logits of each object's query.
        masks: `(batch, objects, height, width)` bool or 0/1.
        is_pair: `(batch, objects)` bool, False for padding rows and objects without a query, which are ignored.
        num_boxes: N, float.

    Returns:
        `{"loss_mask", "loss_dice"}`, float32 scalars.

    Source:
        Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5; Milletari et al. 2016, "V-Net", section 3.
    """
    height, width = ops.shape(masks)[2:4]
    logits = ops.image.resize(
        ops.cast(pred_masks, "float32"), (height, width), "bilinear", antialias=False, data_format="channels_first"
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
