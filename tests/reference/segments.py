"""Segments of transformers' post-processing, and where they hang on a rounding."""

import numpy as np
import torch
from torch.nn import functional as F
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

from reference.processors import tensors

PROCESSOR = DetrImageProcessorPil()


def instances(outputs, **settings):
    """For each image `segmentation` and `segments_info`."""
    return PROCESSOR.post_process_instance_segmentation(tensors(outputs), **settings)


def panoptic(outputs, fuse, **settings):
    """The same, the segments of the classes in `fuse` being one each."""
    return PROCESSOR.post_process_panoptic_segmentation(tensors(outputs), label_ids_to_fuse=set(fuse), **settings)


def semantic(outputs, target_sizes, margin):
    """For each image the map, and where its class leads by more than `margin` of itself."""
    found = PROCESSOR.post_process_semantic_segmentation(
        tensors(outputs), target_sizes=target_sizes, return_segmentation_scores=True
    )
    pairs = []
    for one in found:
        first, second = one.segmentation_scores.topk(2, dim=0).values
        pairs.append((one.segmentation, first - second > margin * first))
    return pairs


def secure(outputs, target_sizes, threshold, mask_threshold, overlap_mask_area_threshold, margin):
    """For each image where its map hangs on no rounding, `(height, width)` bool; None if its segments may hang on one.

    Args:
        outputs: arrays.
        target_sizes: as for the post-processing, and the thresholds.
        threshold: of scores.
        mask_threshold: of probabilities of masks.
        overlap_mask_area_threshold: of the share of a mask that its segment keeps.
        margin: what two libraries' values may differ by, relative to each other.
    """
    thresholds = threshold, mask_threshold, overlap_mask_area_threshold
    return [
        _secure(logits, masks, None if target_sizes is None else tuple(target_sizes[place]), *thresholds, margin)
        for place, (logits, masks) in enumerate(zip(outputs["logits"], outputs["pred_masks"], strict=True))
    ]


def _secure(logits, masks, size, threshold, mask_threshold, overlap_mask_area_threshold, margin):
    no_object = logits.shape[-1] - 1
    scores, labels = torch.tensor(logits).softmax(-1).max(-1)
    if (scores - threshold).abs().min() < margin:
        return None
    kept = (labels != no_object) & (scores > threshold)
    masks = torch.tensor(masks)[kept].sigmoid()
    size = masks.shape[1:] if size is None else size
    if not kept.any():
        return np.ones(size, bool)
    products = F.interpolate(masks[None], size=size, mode="bilinear")[0] * scores[kept][:, None, None]
    # Copies of a query are ties that no rounding can break, so only the first of them is a rival; and zero is exact.
    _, rivals = np.unique(
        torch.cat([masks.flatten(1), scores[kept][:, None]], dim=1).numpy(), axis=0, return_index=True
    )
    first, second = torch.cat([products[rivals], torch.zeros_like(products[:1])]).topk(2, dim=0).values
    is_secure = (first - second > margin * first) | (first == 0)
    owners = products.argmax(0)
    for row, product in enumerate(products):
        own, unsure = (product >= mask_threshold).sum(), (product - mask_threshold).abs() < margin
        won, slack = (owners == row).sum(), unsure.sum() + (~is_secure).sum()
        if slack and abs(float(won) - overlap_mask_area_threshold * float(own)) <= 2 * slack:
            return None
    return is_secure.numpy()


def crop_on_canvas(masks, canvas, image):
    """Logits of masks such that their probabilities are what `masks` are on the canvas, cropped to the image."""
    probabilities = torch.from_numpy(masks).double().sigmoid()
    cropped = F.interpolate(probabilities, size=canvas, mode="bilinear")[..., : image[0], : image[1]].logit()
    return cropped.numpy().astype(np.float32)


def masks_of_objects(outputs, place, size, threshold, mask_threshold, margin, canvas=None, image=None):
    """Masks of the queries above the threshold at a size, and where they hang on no rounding.

    Args:
        outputs: arrays.
        place: which image of the batch.
        size: (height, width) of the masks.
        threshold: of scores.
        mask_threshold: of probabilities of masks.
        margin: what two libraries' probabilities may differ by.
        canvas: (height, width) of what the model saw, where it was padded: facebookresearch's order is then to the
            canvas, cropped to the image, to its size.
        image: (height, width) of the image on it.
    """
    scores = torch.tensor(outputs["logits"][place]).softmax(-1)[:, :-1].max(-1).values
    logits = torch.tensor(outputs["pred_masks"][[place]])[:, scores > threshold]
    if canvas is not None:
        logits = F.interpolate(logits, size=canvas, mode="bilinear")[..., : image[0], : image[1]]
    probabilities = F.interpolate(logits, size=size, mode="bilinear")[0].sigmoid()
    return probabilities > mask_threshold, (probabilities - mask_threshold).abs() > margin


def masks_of_facebookresearch(masks, canvas, image, size):
    """Masks at a size: logits enlarged to the canvas and cropped, cells enlarged from there; and |probability − ½|."""
    logits = F.interpolate(torch.from_numpy(masks), size=canvas, mode="bilinear")[..., : image[0], : image[1]]
    enlarged = F.interpolate((logits.sigmoid() > 0.5).float(), size=size, mode="nearest").bool()
    return enlarged, (logits.sigmoid() - 0.5).abs()
