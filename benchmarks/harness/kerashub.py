"""KerasHub's D-FINE, with the architecture of one of ours."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from harness.peers import peer_folder

PACKAGE = ("keras-hub==0.32.0",)
STRIDES = (8, 16, 32)  # of the backbone's last three stages


def points_of(config: Any) -> list[int]:
    """How many points of each level a head of our decoder looks at."""
    points = config.decoder_points
    return [points] * config.num_feature_levels if isinstance(points, int) else list(points)


def network(config: Any, size: Sequence[int], labels: Sequence[Mapping[str, Any]] | None = None) -> Any:
    """Its network with random weights, all but what its detector does to boxes afterwards (non-maximum suppression).

    Args:
        config: ours, a `DFINEConfig` over an HGNetV2.
        size: height and width of images.
        labels: the objects of the one batch that it can be trained on with denoising queries, by image: `boxes`,
            `(objects, 4)`, and `labels`; without, it has none.
    """
    sys.path.append(str(peer_folder(PACKAGE)))
    from keras_hub.models import DFineBackbone, HGNetV2Backbone

    trunk, levels = config.backbone, config.num_feature_levels
    taps = [f"stage{number}" for number in range(1, len(trunk.channels) + 1)][-levels:]
    stages = zip(
        (trunk.stem_channels[1], *trunk.channels[:-1]),
        trunk.hidden_channels,
        trunk.channels,
        trunk.depths,
        [trunk.block_layers] * len(trunk.depths),
        (3, 3, 5, 5),
        strict=True,
    )
    backbone = HGNetV2Backbone(
        stem_channels=[3, *trunk.stem_channels],
        stackwise_stage_filters=[list(stage) for stage in stages],
        apply_downsample=[False, True, True, True],
        use_lightweight_conv_block=[False, False, True, True],
        depths=list(trunk.depths),
        hidden_sizes=list(trunk.channels),
        embedding_size=trunk.stem_channels[1],
        use_learnable_affine_block=trunk.learnable_affine,
        hidden_act="relu",
        image_shape=(*size, 3),
        out_features=taps,
    )
    return DFineBackbone(
        backbone=backbone,
        decoder_in_channels=[config.encoder_dim] * levels,
        encoder_hidden_dim=config.encoder_dim,
        num_labels=config.num_classes,
        num_denoising=0 if labels is None else config.num_denoising,
        learn_initial_query=False,
        num_queries=config.num_queries,
        anchor_image_size=tuple(size),
        feat_strides=list(STRIDES[-levels:]),
        num_feature_levels=levels,
        hidden_dim=config.d_model,
        encoder_in_channels=list(trunk.channels[-levels:]),
        encode_proj_layers=[levels - 1],
        num_attention_heads=config.encoder_attention_heads,
        encoder_ffn_dim=config.encoder_ffn_dim,
        num_encoder_layers=1,
        hidden_expansion=config.expansion,
        depth_multiplier=config.fusion_blocks / 3,
        eval_idx=-1,
        num_decoder_layers=config.decoder_layers,
        decoder_attention_heads=config.decoder_attention_heads,
        decoder_ffn_dim=config.decoder_ffn_dim,
        decoder_n_points=points_of(config),
        lqe_hidden_dim=config.quality_dim,
        num_lqe_layers=2,
        out_features=taps,
        image_shape=(*size, 3),
        labels=labels,
        seed=0,
    )
