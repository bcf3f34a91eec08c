"""The smallest detector that there can be, for tests of files that hold one."""

import tfdetr_keras as td

SMALLEST = td.DETRConfig(
    backbone=td.ResNetConfig("basic", (1,), (8,), 8),
    id2label=["cat", "dog"],
    num_classes=2,
    num_queries=3,
    d_model=8,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=8,
    decoder_ffn_dim=8,
)
