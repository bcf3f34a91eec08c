"""The backbone: resolutions, dilation, and its batch norm against Keras' own at inference."""

import numpy as np
import pytest

from tfdetr_keras.backbones.resnet import ConvNorm, ResNet, ResNetConfig


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("dilation", [False, True])
def test_resolutions(block, dilation):
    """Stride 4, 8, 16, sizes rounded up; dilation keeps the last stage's input resolution."""
    backbone = ResNet(ResNetConfig(block, depths=(1, 2, 2), channels=(8, 16, 32), stem_channels=8, dilation=dilation))
    features = backbone(np.random.default_rng(0).normal(size=(1, 65, 96, 3)).astype(np.float32))
    last = (1, 9, 12, 32) if dilation else (1, 5, 6, 32)
    assert [tuple(x.shape) for x in features] == [(1, 17, 24, 8), (1, 9, 12, 16), last]


def test_dilation_needs_the_same_weights():
    def weights(dilation):
        backbone = ResNet(ResNetConfig("basic", (1, 2), (8, 16), 8, dilation=dilation))
        backbone.build((None, None, None, 3))
        return [(weight.path.split("/", 1)[1], tuple(weight.shape)) for weight in backbone.weights]

    assert weights(False) == weights(True)


def test_dilated_convolutions_see_what_strided_ones_saw():
    """With dilation every second cell of the map is that of the strided backbone: only the sampling differs.

    This holds for one block; in the first one the 3×3 that carried the stride is not dilated.
    """
    plain = ResNet(ResNetConfig("bottleneck", (1, 1), (8, 16), 8, dilation=False))
    dilated = ResNet(ResNetConfig("bottleneck", (1, 1), (8, 16), 8, dilation=True))
    images = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    plain(images), dilated(images)
    dilated.set_weights(plain.get_weights())
    np.testing.assert_allclose(dilated(images)[-1][:, ::2, ::2], plain(images)[-1], rtol=0, atol=1e-5)


def test_frozen_batch_norm_is_keras_batch_norm_at_inference():
    rng = np.random.default_rng(2)
    images = rng.normal(size=(2, 5, 7, 6)).astype(np.float32)
    frozen, ordinary = (ConvNorm(8, 3, stride=2, batch_norm=kind) for kind in ("frozen", "trainable"))
    frozen.build(images.shape)
    ordinary.build(images.shape)
    names = [w.path.split("/", 1)[1] for w in frozen.weights]
    assert names == [w.path.split("/", 1)[1] for w in ordinary.weights]
    kernel = rng.normal(size=(3, 3, 6, 8)) / 7
    values = [kernel, rng.uniform(0.5, 1.5, 8), *rng.normal(size=(2, 8)), rng.uniform(0.5, 1.5, 8)]
    frozen.set_weights(values)
    ordinary.set_weights(values)
    np.testing.assert_allclose(frozen(images), ordinary(images, training=False), rtol=0, atol=2e-6)
    assert [w.path for w in frozen.trainable_weights] == [frozen.convolution.kernel.path]


def test_frozen_batch_norm_keeps_float32_vectors_under_a_mixed_policy():
    layer = ConvNorm(4, 1, batch_norm="frozen", dtype="mixed_bfloat16")
    assert layer(np.ones((1, 2, 2, 3), np.float32)).dtype == "bfloat16"
    assert {weight.dtype for weight in layer.normalization.weights} == {"float32"}
