"""Small drawn sets, batches of them and a DETR that trains on them in moments."""

import keras
import pytest

import tfdetr_keras as td

SIZE = (64, 64)


@pytest.fixture(scope="module")
def held_out():
    return td.data.load_shapes(12, seed=4, size=(40, 64))


@pytest.fixture(scope="module")
def batches():
    records, _ = td.data.load_shapes(8, seed=5, size=(40, 64))
    return td.data.prepare(records, 4, training=True, size=SIZE, pad_to=SIZE, max_boxes=8, augmentation="none")


@pytest.fixture(scope="session")
def compiled():
    """Makes a compiled model for given class names; the same weights each time."""

    def make(names=("circle", "square", "triangle"), learning_rate=1e-3, changes=None, **options):
        keras.utils.set_random_seed(0)
        config = td.DETRConfig(
            backbone=td.ResNetConfig(block="basic", depths=(1,), channels=(8,), stem_channels=8),
            id2label=dict(enumerate(names)),
            num_classes=len(names),
            num_queries=6,
            d_model=8,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=1,
            decoder_attention_heads=1,
            encoder_ffn_dim=8,
            decoder_ffn_dim=8,
            **changes or {},
        )
        model = td.DETR(config)
        model.compile(optimizer=td.AdamW(learning_rate, **options), jit_compile=False)
        return model

    return make
