import numpy as np
import pytest
import tensorflow as tf

from tfdetr_keras.data import load_coco
from tfdetr_keras.data.photometric import BRIGHTNESS, CONTRAST, HUE, SATURATION, Distortion, distort, random_distortion

LIMITS = {"brightness": BRIGHTNESS, "contrast": CONTRAST, "saturation": SATURATION, "hue": HUE}
SHAPES = [(37, 53), (1, 40), (40, 1), (1, 1), (120, 90)]
KINDS = ["noise", "grey", "black", "white", "smooth"]
distorted = tf.function(
    lambda image, *distortion: distort(image, Distortion(*distortion)),
    input_signature=[
        tf.TensorSpec((None, None, 3), tf.uint8),
        *[tf.TensorSpec(())] * 4,
        tf.TensorSpec((), tf.bool),
        tf.TensorSpec((3,), tf.int32),
    ],
)


def image_of(kind, height, width, rng):
    """Levels of one kind; grey pixels have no hue, and black ones no saturation."""
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    if kind == "grey":
        return rng.integers(0, 256, (height, width, 1)).repeat(3, axis=2).astype(np.uint8)
    if kind == "smooth":
        return np.linspace(0, 255, height * width * 3).reshape(height, width, 3).astype(np.uint8)
    return np.full((height, width, 3), 0 if kind == "black" else 255, np.uint8)


def from_draws(coins, draws, channels):
    """The distortion of torchvision's draws."""
    factors = [
        low + (high - low) * draw if coin < 0.5 else float(name != "hue")
        for (name, (low, high)), coin, draw in zip(LIMITS.items(), coins, draws, strict=False)
    ]
    return *map(np.float32, factors), coins[4] < 0.5, np.int32(channels if coins[5] < 0.5 else range(3))


@pytest.mark.parametrize("kind", [*KINDS, "photograph"])
def test_colours_agree_with_torchvision_to_a_level(kind, torchvision, request):
    rng = np.random.default_rng(KINDS.index(kind) if kind in KINDS else 9)
    if kind == "photograph":
        folder = request.getfixturevalue("coco128")
        records, _ = load_coco(folder / "images", folder / "annotations/instances_train2017.json")
        images = [record["image"].numpy() for record in records.take(4)] * 3
    else:
        images = [image_of(kind, *shape, rng) for shape in SHAPES] * 4
    differing = []
    for place, image in enumerate(images):
        # Every change alone, all of them, and by lot.
        coins = rng.random(6) if place > 7 else np.where(np.arange(6) == place, 0.0, 0.9) * (place < 6)
        draws, channels = rng.random(4), rng.permutation(3).tolist()
        expected = torchvision.call("augmentations:distorted", image, coins.tolist(), draws.tolist(), channels)
        found = distorted(image, *from_draws(coins, draws, channels)).numpy()
        assert found.dtype == np.uint8
        differences = np.abs(found.astype(int) - expected)
        assert differences.max() <= 1, (place, coins)
        differing.append(np.mean(differences > 0))
    assert np.mean(differing) < 0.01


def test_an_image_without_changes_is_itself():
    image = image_of("noise", 30, 40, np.random.default_rng(0))
    neutral = np.float32(1), np.float32(1), np.float32(1), np.float32(0), True, np.arange(3, dtype=np.int32)
    np.testing.assert_array_equal(distorted(image, *neutral), image)


def test_each_change_happens_half_of_the_time_within_its_limits():
    kinds = Distortion(*[tf.float32] * 4, tf.bool, tf.int32)
    draw = tf.function(
        lambda numbers: tf.map_fn(lambda n: random_distortion(tf.stack([n, 3])), numbers, fn_output_signature=kinds)
    )
    drawn = draw(tf.range(2000))
    for name, (low, high) in LIMITS.items():
        values = getattr(drawn, name).numpy()
        changed = values != float(name != "hue")
        assert 0.45 < changed.mean() < 0.55  # 4.5 standard deviations
        assert low <= values[changed].min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values[changed].max() <= high
    assert 0.45 < np.mean(drawn.contrast_comes_first) < 0.55
    orders, counts = np.unique(drawn.channels, axis=0, return_counts=True)
    assert len(orders) == 6
    for order, count in zip(orders, counts, strict=True):
        share = 7 / 12 if (order == range(3)).all() else 1 / 12
        assert abs(count / 2000 - share) < 0.05
    together = np.stack([getattr(drawn, name) != float(name != "hue") for name in LIMITS])
    assert np.abs(np.corrcoef(together) - np.eye(4)).max() < 0.1  # independent of each other
