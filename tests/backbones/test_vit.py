"""Vision transformers in windows: which tokens see each other, stochastic depth, blocks that nothing learns from."""

import keras
import numpy as np
import pytest
from keras import ops

from tfdetr_keras.backbones.dinov2 import DINOv2, DINOv2Config
from tfdetr_keras.backbones.lw_vit import LWViT, LWViTConfig
from tfdetr_keras.backbones.vit import ViTBlock, in_windows, joined

SMALL = {"width": 12, "depth": 4, "heads": 3, "patch_size": 4, "windows": 2, "table_side": 3}
KINDS = {
    "DINOv2": lambda **changes: DINOv2Config(**SMALL | {"taps": (1, 3)} | changes),
    "LWViT": lambda **changes: LWViTConfig(**SMALL | {"taps": (1, 3), "windowed": (0, 2)} | changes),
}


def made(kind, **changes):
    keras.utils.set_random_seed(0)
    config = KINDS[kind](**changes)
    backbone = config.make(name="backbone")
    backbone.build((None, None, None, 3))
    return backbone


def block(**options):
    keras.utils.set_random_seed(1)
    one = ViTBlock(12, 3, **{"windows": 4, "is_global": False, "scale": 0.7} | options)
    one.build((None, None, 12))
    return one


@pytest.mark.parametrize("side", [1, 2, 3])
def test_windows_stand_behind_each_other_row_by_row_image_by_image(side):
    maps = np.random.default_rng(0).normal(size=(2, 6, 12, 5)).astype("float32")
    windows = np.asarray(in_windows(maps, side))
    high, wide = 6 // side, 12 // side
    assert windows.shape == (2 * side * side, high * wide, 5)
    for image in range(2):
        for row in range(side):
            for column in range(side):
                part = maps[image, row * high : (row + 1) * high, column * wide : (column + 1) * wide]
                np.testing.assert_array_equal(windows[(image * side + row) * side + column], part.reshape(-1, 5))
    np.testing.assert_array_equal(joined(windows, side, 6, 12), maps)


def test_a_global_block_joins_the_windows_of_an_image_and_of_no_other():
    of_windows, of_images = block(is_global=True), block(is_global=True, windows=1)
    of_images.set_weights(of_windows.get_weights())
    tokens = np.random.default_rng(0).normal(size=(2 * 4, 5, 12)).astype("float32")
    found = np.reshape(of_windows(tokens), (2, 20, 12))
    np.testing.assert_allclose(found, of_images(tokens.reshape(2, 20, 12)), rtol=0, atol=1e-6)
    apart = np.asarray(block()(tokens)).reshape(2, 20, 12)
    assert np.abs(found - apart).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_of_a_windowed_block_sees_its_window_alone(kind):
    """The first tap lies behind block 0 alone, whose attention has windows; the last behind a global one."""
    backbone, pixels = made(kind), np.random.default_rng(0).normal(size=(1, 24, 24, 3)).astype("float32")
    changed = pixels.copy()
    changed[:, 12:, 12:] += 1  # the last window
    before, after = backbone(pixels), backbone(changed)
    moved = np.abs(np.asarray(before[0]) - np.asarray(after[0])).max(axis=(0, 3)) > 1e-7
    assert moved[3:, 3:].all()
    assert moved.sum() == 9
    assert (np.abs(np.asarray(before[1]) - np.asarray(after[1])).max(axis=(0, 3)) > 1e-9).all()


def test_blocks_behind_a_tap_are_global():
    assert [one.is_global for one in made("DINOv2", depth=4, taps=(1, 3)).blocks] == [False, True, False, True]
    assert [one.is_global for one in made("LWViT").blocks] == [False, True, False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_any_size_of_whole_windows(kind):
    """Rectangles, and smaller and larger grids than the table's, with a size that only the graph knows as well."""
    backbone = made(kind)
    compiled = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Lambda(lambda x: backbone(x)[1])])
    for height, width in ((16, 16), (24, 24), (16, 40)):
        pixels = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype("float32")
        maps = backbone(pixels)
        assert [tuple(one.shape) for one in maps] == [(2, height // 4, width // 4, 12)] * 2
        np.testing.assert_allclose(compiled.predict(pixels, verbose=0), maps[1], rtol=0, atol=1e-5)


def test_stochastic_depth_leaves_out_whole_branches():
    """Of each window a branch is left out, or counts twice for a share of a half; in inference it counts once."""
    dropping, whole = block(drop_path=0.5), block()
    for one in (dropping, whole):
        one.feed_forward_scale.assign(np.zeros(12))
    dropping.set_weights([*whole.get_weights(), *dropping.get_weights()[len(whole.weights) :]])
    tokens = np.random.default_rng(0).normal(size=(200, 5, 12)).astype("float32")
    branch = np.asarray(whole(tokens)) - tokens
    np.testing.assert_allclose(dropping(tokens), tokens + branch, rtol=0, atol=1e-6)
    np.testing.assert_allclose(whole(tokens, training=True), tokens + branch, rtol=0, atol=1e-6)
    found = np.asarray(dropping(tokens, training=True)) - tokens
    left_out = np.abs(found).max(axis=(1, 2)) < 1e-6
    np.testing.assert_allclose(found[~left_out], 2 * branch[~left_out], rtol=0, atol=1e-5)
    assert 60 < left_out.sum() < 140  # six deviations around a half


@pytest.mark.parametrize("kind", KINDS)
def test_stochastic_depth_rises_from_block_to_block(kind):
    rates = [one.drop_path.rate for one in made(kind, drop_path=0.3).blocks]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_that_nothing_learns_from_stay_as_they_are(kind):
    """Behind the last tap; whatever is frozen and set free again."""
    backbone = made(kind, taps=(1, 2))
    assert [one.is_used for one in backbone.blocks] == [True, True, False, False]
    unused = {weight.path for one in backbone.blocks[2:] for weight in one.weights}
    assert len(unused) == 2 * len(backbone.blocks[0].weights)
    for trainable in (True, False, True):
        backbone.trainable = trainable
        for one in backbone.blocks:
            one.trainable = trainable
        trained = {weight.path for weight in backbone.trainable_weights}
        assert not trained & unused
        assert bool(trained) == trainable
    assert {weight.path for weight in backbone.blocks[0].weights} <= trained
    before = np.asarray(backbone(np.ones((1, 16, 16, 3), "float32"))[-1])
    for one in backbone.blocks[2:]:
        for weight in one.weights:
            weight.assign(ops.ones_like(weight) * np.nan)
    np.testing.assert_array_equal(backbone(np.ones((1, 16, 16, 3), "float32"))[-1], before)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("DINOv2", {"taps": ()}, "taps must be numbers of blocks"),
        ("DINOv2", {"taps": (3, 1)}, r"taps must rise from 1 to at most depth=4, not \(3, 1\)"),
        ("DINOv2", {"taps": (1, 5)}, "taps must rise from 1 to at most depth=4"),
        ("DINOv2", {"heads": 5}, "width=12 is not divisible by heads=5"),
        ("DINOv2", {"windows": 0}, "windows must be at least 1"),
        ("DINOv2", {"drop_path": 1.5}, "drop_path must be a number from 0 to 1"),
        ("LWViT", {"windowed": (4,)}, "windowed must be numbers of blocks, from 0 to 3"),
        ("LWViT", {"windowed": 1}, "windowed must be numbers of blocks"),
        ("LWViT", {"table_side": 2.5}, "table_side must be a whole number"),
    ],
)
def test_configurations_that_cannot_be(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        KINDS[kind](**changes)


def test_the_kinds_make_their_networks():
    assert {name: type(made(name)) for name in KINDS} == {"DINOv2": DINOv2, "LWViT": LWViT}
