"""Denoising queries of transformers' RT-DETR, made out of given random numbers."""

from unittest import mock

import numpy as np
import torch
from transformers.models.rt_detr import modeling_rt_detr

from reference.losses import targets_of_images


def queries(targets, num_classes, num_queries, num_denoising, draws, label_noise_ratio, box_noise_scale):
    """What transformers makes of a batch: classes, logits of boxes, who sees whom, and the slots that are to be mended.

    Args:
        targets: as for Keras.
        num_classes: real classes.
        num_queries: of the other queries.
        num_denoising: objects of all groups together.
        draws: arrays of more slots than are needed: `flip`, `label`, `sign` and `part`.
        label_noise_ratio: as in its configuration.
        box_noise_scale: likewise.

    Returns:
        None without any object; or a dict of `labels` `(batch, slots)`, `logits` of boxes `(batch, slots, 4)`, `sees`
        `(slots + queries, slots + queries)` bool, `positive` (of each image the slots), and `groups`, their number.
    """
    turned = [draws["flip"], draws["label"], (np.asarray(draws["sign"]) + 1) / 2, draws["part"]]
    given = iter(turned)

    def like(tensor, *limits, dtype=None):
        values = np.ascontiguousarray(next(given)[:, : tensor.shape[1]])
        return torch.from_numpy(values).to(dtype or tensor.dtype)

    # Embedded in itself: a row of the embedding is the number of its class.
    table = torch.nn.Embedding.from_pretrained(torch.arange(num_classes + 1.0)[:, None])
    with mock.patch.multiple(torch, rand_like=like, randint_like=like):
        embedded, boxes, mask, meta = modeling_rt_detr.get_contrastive_denoising_training_group(
            targets=targets_of_images(targets),
            num_classes=num_classes,
            num_queries=num_queries,
            class_embed=table,
            num_denoising_queries=num_denoising,
            label_noise_ratio=label_noise_ratio,
            box_noise_scale=box_noise_scale,
        )
    if embedded is None:
        return None
    return {
        "labels": embedded[..., 0].long(),
        "logits": boxes,
        "sees": ~torch.isinf(mask) if mask.dtype.is_floating_point else ~mask,
        "positive": [indices.tolist() for indices in meta["dn_positive_idx"]],
        "groups": meta["dn_num_group"],
    }
