"""The mask head of a segmentation model, which stands around a detector without a prefix."""

from __future__ import annotations

from port_weights.families.rows import conv, group_norm_conv, linear
from port_weights.tables import Row

MAPS = 3  # of the backbone, finer than the last, that the head looks at

MASK_HEAD: list[Row] = [
    *linear("bbox_attention.q_linear", "mask_attention/query"),
    *linear("bbox_attention.k_linear", "mask_attention/key"),
    *group_norm_conv("mask_head.lay{i}", "mask_head.gn{i}", "mask_head/conv{i}"),
    *conv("mask_head.adapter{i}", "mask_head/adapter{i}"),
    *conv("mask_head.out_lay", "mask_head/output"),
]
MASK_HEAD_IN_MEMORY: list[Row] = [
    *linear("bbox_attention.q_proj", "mask_attention/query"),
    *linear("bbox_attention.k_proj", "mask_attention/key"),
    *(
        row
        for i in (1, 2)
        for row in group_norm_conv(f"mask_head.conv{i}.conv", f"mask_head.conv{i}.norm", f"mask_head/conv{i}")
    ),
    *(
        row
        for i in range(MAPS)
        for row in (
            *conv(f"mask_head.fpn_stages.{i}.fpn_adapter", f"mask_head/adapter{i + 1}"),
            *group_norm_conv(
                f"mask_head.fpn_stages.{i}.refine.conv",
                f"mask_head.fpn_stages.{i}.refine.norm",
                f"mask_head/conv{i + 3}",
            ),
        )
    ),
    *conv("mask_head.output_conv", "mask_head/output"),
]
