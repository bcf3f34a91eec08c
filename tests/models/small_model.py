"""A configuration so small that a test of it takes moments."""

from tfdetr_keras import DETRConfig, ResNetConfig

CONFIG = DETRConfig(
    backbone=ResNetConfig(block="basic", depths=(1, 1), channels=(8, 16), stem_channels=8),
    num_classes=3,
    num_queries=5,
    d_model=16,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=4,
    encoder_ffn_dim=24,
    decoder_ffn_dim=20,
    dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
)
