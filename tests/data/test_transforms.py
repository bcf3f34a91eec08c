import numpy as np
import tensorflow as tf
from PIL import Image

from tfdetr_keras.data import load_coco, load_shapes
from tfdetr_keras.data.sizes import Resize, target_size
from tfdetr_keras.data.transforms import (
    flip_horizontally,
    random_horizontal_flip,
    relative_boxes,
    resize,
)


def test_pixels_agree_with_pil_to_a_level(coco128, pytorch):
    records, _ = load_coco(coco128 / "images", coco128 / "annotations/instances_train2017.json")
    for size in [(800, 1333), (320, 533)]:  # enlarged and shrunk
        for record in records.take(40).shard(8, 0):
            size_of = {"size": {"shortest_edge": size[0], "longest_edge": size[1]}}
            plain = {"do_rescale": False, "do_normalize": False}
            made = pytorch.call("processors:prepare", record["image"].numpy(), **size_of, **plain)
            expected = made["pixel_values"][0].transpose(1, 2, 0)
            new_size = tf.stack(target_size(*record["orig_size"], Resize(*size)))
            differences = np.abs(resize(record, new_size)["image"].numpy().astype(int) - expected)
            assert differences.max() <= 1
            assert differences.mean() < 0.25


def test_decoded_pixels_agree_with_pil(coco128):
    records, _ = load_coco(coco128 / "images", coco128 / "annotations/instances_train2017.json")
    for record in records.shard(4, 0):
        file = coco128 / "images" / f"{record['image_id'].numpy():012d}.jpg"
        np.testing.assert_array_equal(record["image"], Image.open(file).convert("RGB"))


def test_boxes_follow_the_resize():
    for record in load_shapes(5)[0]:
        resized = resize(record, tf.constant([77, 200]))
        before = relative_boxes(record["boxes"], record["orig_size"])
        np.testing.assert_allclose(relative_boxes(resized["boxes"], tf.constant([77, 200])), before, atol=1e-6)
        pixels = tf.cast(tf.reduce_prod(record["orig_size"]), tf.float32)
        np.testing.assert_allclose(resized["area"] / (77 * 200), record["area"] / pixels, rtol=1e-5)


def test_relative_boxes_by_hand():
    boxes = tf.constant([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 100.0, 80.0]])
    found = relative_boxes(boxes, tf.constant([80, 100]))
    np.testing.assert_allclose(found, [[0.2, 0.5, 0.2, 0.5], [0.5, 0.5, 1.0, 1.0]], atol=1e-7)


def test_the_flip_moves_pixels_and_boxes_alike():
    for record in load_shapes(8)[0]:
        flipped = flip_horizontally(record)
        width = record["image"].shape[1]
        for before, after in zip(
            record["boxes"].numpy().astype(int), flipped["boxes"].numpy().astype(int), strict=True
        ):
            assert after[0] == width - before[2]
            crop = record["image"].numpy()[before[1] : before[3], before[0] : before[2]]
            mirrored = flipped["image"].numpy()[after[1] : after[3], after[0] : after[2]]
            np.testing.assert_array_equal(mirrored, crop[:, ::-1])
        again = flip_horizontally(flipped)
        for key in record:
            np.testing.assert_array_equal(again[key], record[key])


def test_the_random_flip_is_a_fair_coin():
    record = {"image": tf.constant([[[0] * 3, [255] * 3]], tf.uint8), "boxes": tf.constant([[0.0, 0.0, 1.0, 1.0]])}
    seeds = tf.data.Dataset.random(3).batch(2).take(400)
    flips = [int(r["boxes"][0, 0]) for r in seeds.map(lambda seed: random_horizontal_flip(record, seed))]
    assert 160 <= sum(flips) <= 240  # 4 standard deviations
