"""Instances, panoptic and semantic maps and masks, against transformers' own post-processing of the same outputs.

Maps are compared pixel by pixel, and segment by segment. Two libraries' exponentials and interpolations differ in the
last bit, so a pixel counts where the highest value leads by more than that; the tests demand that nearly all do, and
skip an image only if such pixels could decide whether it has a segment. Exact ties count: both take the first query.
"""

import functools
import tracemalloc

import keras
import numpy as np
import pytest

from tfdetr_keras.inference.postprocess import post_process
from tfdetr_keras.inference.segments import (
    Segments,
    post_process_instance,
    post_process_masks,
    post_process_panoptic,
    post_process_semantic,
)

CLASSES = 5
MARGIN = 1e-5  # of values relative to each other
STRIDE = 4


@pytest.fixture(scope="session")
def random_outputs(pytorch):
    """Makes outputs of two images."""

    def outputs_of(seed, grid=None, queries=12, copied=False):
        """Smooth masks of a few spots each, so that most queries win a part of the image and some overlap.

        Copied: some queries are copies of others, and most probabilities of masks are 0 or 1 exactly.
        """
        rng = np.random.default_rng(seed)
        grid = tuple(rng.integers(8, 30, 2)) if grid is None else grid
        coarse = rng.normal(-1, 200 if copied else 6, (2, queries, 4, 5))
        masks = pytorch.call("layers:resize", coarse, [int(side) for side in grid], "bicubic")
        logits = rng.normal(scale=2.5, size=(2, queries, CLASSES + 1))
        if copied:
            copies = rng.integers(0, queries, queries)
            masks, logits = masks[:, copies], logits[:, copies]
        if seed % 5 == 0:
            logits[seed // 5 % 2, :, -1] = 50  # an image of nothing
        boxes = rng.uniform(size=(2, queries, 4))
        outputs = {"logits": logits, "pred_masks": masks, "pred_boxes": boxes}
        return {name: value.astype(np.float32) for name, value in outputs.items()}

    return outputs_of


def random_settings(seed):
    """Thresholds, and every third time no target sizes."""
    rng = np.random.default_rng(seed)
    sizes = None if seed % 3 == 0 else rng.integers(8, 130, (2, 2)).tolist()
    thresholds = rng.choice([0.3, 0.5, 0.7]), rng.choice([0.3, 0.5, 0.6]), rng.choice([0.2, 0.5, 0.8])
    names = "threshold", "mask_threshold", "overlap_mask_area_threshold"
    return {"target_sizes": sizes} | dict(zip(names, map(float, thresholds), strict=True))


def assert_same(got, expected, is_secure):
    assert got["segmentation"].dtype == np.int32
    wanted = expected["segmentation"]
    assert got["segmentation"].shape == wanted.shape
    np.testing.assert_array_equal(got["segmentation"][is_secure], wanted[is_secure])
    assert is_secure.mean() > 0.98
    assert len(got["segments_info"]) == len(expected["segments_info"])
    for one, other in zip(got["segments_info"], expected["segments_info"], strict=True):
        assert one | {"score": None} == other | {"score": None}
        assert [type(one[key]) for key in ("id", "label_id", "was_fused", "score")] == [int, int, bool, float]
        assert abs(one["score"] - other["score"]) < 2e-6  # a rounding to 6 digits apart


@pytest.fixture
def compare(pytorch, random_outputs):
    """Compares an image after the other; returns how many were skipped, and how many segments of what kind came out."""
    return functools.partial(compare_images, pytorch, random_outputs)


def compare_images(pytorch, random_outputs, seeds, fuse=(), copied=False):
    counts = dict.fromkeys(("images", "skipped", "empty", "unsegmented", "segments", "fused", "rejected"), 0)
    for seed in seeds:
        outputs = random_outputs(seed, copied=copied)
        settings = random_settings(seed) | ({"target_sizes": None} if copied else {})
        if fuse:
            got = post_process_panoptic(outputs, label_ids_to_fuse=fuse, **settings)
            expected = pytorch.call("segments:panoptic", outputs, fuse, **settings)
        else:
            got = post_process_instance(outputs, **settings)
            expected = pytorch.call("segments:instances", outputs, **settings)
        for place, is_secure in enumerate(pytorch.call("segments:secure", outputs, **settings, margin=MARGIN)):
            counts["images"] += 1
            if is_secure is None:
                counts["skipped"] += 1
                continue
            assert_same(got[place], expected[place], is_secure)
            entries = got[place]["segments_info"]
            counts["empty"] += (got[place]["segmentation"] == -1).all()
            counts["unsegmented"] += not entries and (got[place]["segmentation"] == 0).all()
            counts["segments"] += len(entries)
            counts["fused"] += len(entries) - len({entry["id"] for entry in entries})
            counts["rejected"] += (got[place]["segmentation"] == 0).any()
    return counts


def test_instances_are_those_of_transformers(compare):
    counts = compare(range(100))
    assert counts["skipped"] <= 6, counts
    assert min(counts["empty"], counts["unsegmented"], counts["rejected"]) >= 5, counts
    assert counts["segments"] > 400, counts


def test_panoptic_segments_are_those_of_transformers(compare):
    counts = compare(range(100, 200), fuse=(0, 2, 3))
    assert counts["skipped"] <= 6, counts
    assert min(counts["empty"], counts["fused"], counts["rejected"]) >= 10, counts
    assert counts["segments"] > 400, counts


@pytest.mark.parametrize("fuse", [(), (0, 1, 4)])
def test_copies_of_a_query_lose_to_the_first(fuse, compare):
    """At the masks' own resolution; PyTorch's interpolation of the last few queries differs from that of the others."""
    counts = compare(range(200, 260), fuse, copied=True)
    assert counts["skipped"] <= 12, counts
    assert counts["segments"] > 100, counts


def test_copies_of_a_query_lose_to_the_first_at_any_size(random_outputs):
    for seed in range(1, 10):
        outputs = random_outputs(seed, copied=seed % 2 == 0)
        twice = {name: np.concatenate([value, value], axis=1) for name, value in outputs.items()}
        sizes = [[97, 61], [20, 133]]
        for one, other in zip(post_process_instance(outputs, sizes), post_process_instance(twice, sizes), strict=True):
            np.testing.assert_array_equal(one["segmentation"], other["segmentation"])
            assert one["segments_info"] == other["segments_info"]


@pytest.mark.parametrize("levels", [[-8.0, 8.0], [-2.0, 0.5, 3.0], [-200.0, -120.0, 200.0]])
def test_ties_of_masks_go_to_the_first_query(levels, pytorch):
    """Of equally sure queries, at the masks' own resolution: no pixel hangs on a rounding, so none is left out."""
    rng = np.random.default_rng(0)
    segments = 0
    for _ in range(30):
        logits = np.zeros((1, 4, CLASSES + 1), np.float32)
        logits[..., rng.integers(CLASSES)] = 6
        masks = rng.choice(levels, (1, 4, 6, 7)).astype(np.float32)
        outputs = {"logits": logits, "pred_masks": masks}
        [got] = post_process_instance(outputs, overlap_mask_area_threshold=0.3)
        [expected] = pytorch.call("segments:instances", outputs, overlap_mask_area_threshold=0.3)
        assert_same(got, expected, np.ones((6, 7), bool))
        segments += len(got["segments_info"])
    assert segments >= 30


def test_four_of_five_pixels_are_enough_and_four_of_six_are_not(pytorch):
    """0.8 in float32 is a little more than 0.8; PyTorch's ratio is float32."""
    for own, is_segment in ((5, True), (6, False)):
        masks = np.full((1, 2, 1, 40), -20, np.float32)
        masks[0, 0, 0, :own] = 3
        masks[0, 1, 0, 4:] = 9
        logits = np.zeros((1, 2, CLASSES + 1), np.float32)
        logits[0, 0, 1] = logits[0, 1, 2] = 20
        outputs = {"logits": logits, "pred_masks": masks}
        [got] = post_process_instance(outputs)
        [expected] = pytorch.call("segments:instances", outputs)
        assert_same(got, expected, np.ones((1, 40), bool))
        assert [entry["label_id"] for entry in got["segments_info"]] == ([1, 2] if is_segment else [2])


def test_ids_count_on_from_a_fused_segment_as_in_transformers(pytorch):
    """So the cat gets the dog's id; the docstring warns."""
    sky, dog, cat = range(3)
    logits = np.full((1, 4, CLASSES + 1), -20, np.float32)
    logits[0, range(4), [sky, dog, sky, cat]] = 20
    masks = np.where(np.arange(4)[:, None] == np.arange(4), 9.0, -9.0).astype(np.float32)[None, :, None]
    outputs = {"logits": logits, "pred_masks": masks}
    [got] = post_process_panoptic(outputs, label_ids_to_fuse=[sky])
    [expected] = pytorch.call("segments:panoptic", outputs, [sky])
    assert_same(got, expected, np.ones((1, 4), bool))
    np.testing.assert_array_equal(got["segmentation"], [[1, 2, 1, 2]])
    [apart] = post_process_instance(outputs)
    np.testing.assert_array_equal(apart["segmentation"], [[1, 2, 3, 4]])


def test_semantic_maps_are_those_of_transformers(pytorch, random_outputs):
    shares = []
    for seed in range(100):
        outputs, sizes = random_outputs(seed), random_settings(seed)["target_sizes"]
        expected = pytorch.call("segments:semantic", outputs, sizes, MARGIN)
        for got, (wanted, is_secure) in zip(post_process_semantic(outputs, sizes), expected, strict=True):
            assert got.dtype == np.int32
            assert got.shape == wanted.shape
            np.testing.assert_array_equal(got[is_secure], wanted[is_secure])
            shares.append(is_secure.mean())
    assert min(shares) > 0.95
    assert np.mean(shares) > 0.999


def padded(outputs, canvas, fill=None):
    """The same masks on a larger canvas; its padding continues the image's edge, or holds noise."""
    masks = outputs["pred_masks"]
    margins = [(0, 0), (0, 0), *((0, side // STRIDE - old) for side, old in zip(canvas, masks.shape[2:], strict=True))]
    wider = np.pad(masks, margins, mode="edge")
    if fill is not None:
        noise = np.random.default_rng(fill).normal(scale=9, size=wider.shape)
        noise[..., : masks.shape[2], : masks.shape[3]] = masks
        wider = noise.astype(np.float32)
    return outputs | {"pred_masks": wider}


def mask_of(image, canvas):
    mask = np.zeros((2, *canvas), np.int32)
    mask[:, : image[0], : image[1]] = 1
    return mask


IMAGE, CANVAS = (60, 84), (96, 100)  # pixels
GRID = tuple(side // STRIDE for side in IMAGE)


@pytest.mark.parametrize("sizes", [None, [IMAGE, IMAGE]])
def test_a_padded_image_has_the_segments_that_transformers_finds_in_it_alone(sizes, pytorch, random_outputs):
    skipped = 0
    for seed in range(30):
        outputs = random_outputs(seed, GRID)
        settings = random_settings(seed) | {"target_sizes": [IMAGE, IMAGE]}
        mask = mask_of(IMAGE, CANVAS)
        got = post_process_instance(padded(outputs, CANVAS), pixel_mask=mask, **settings | {"target_sizes": sizes})
        expected = pytorch.call("segments:instances", outputs, **settings)
        for place, is_secure in enumerate(pytorch.call("segments:secure", outputs, **settings, margin=MARGIN)):
            skipped += is_secure is None
            if is_secure is not None:
                assert_same(got[place], expected[place], is_secure)
    assert skipped <= 2


def test_padding_says_nothing_about_the_image(random_outputs):
    """Apart from its last half cell, between whose centre and the padding's first one the masks are interpolated."""
    for seed in range(10):
        outputs = random_outputs(seed, GRID)
        maps = [
            np.stack(post_process_semantic(padded(outputs, canvas, fill), pixel_mask=mask_of(IMAGE, canvas)))
            for canvas, fill in ((IMAGE, None), (CANVAS, 1), (CANVAS, 2), ((60, 120), 3))
        ]
        inside = np.s_[:, : -STRIDE // 2, : -STRIDE // 2]
        for other in maps[1:]:
            np.testing.assert_array_equal(maps[0][inside], other[inside])


def test_masks_reach_their_size_by_way_of_the_canvas(pytorch, random_outputs):
    """Transformers is given what the masks are on the canvas, cropped, as logits; it enlarges them from there."""
    canvas, image, sizes = (101, 118), (71, 118), [(150, 230), (33, 47)]
    skipped = 0
    for seed in range(30):
        outputs = random_outputs(seed, (26, 30))
        settings = random_settings(seed) | {"target_sizes": sizes}
        got = post_process_panoptic(outputs, pixel_mask=mask_of(image, canvas), label_ids_to_fuse=(1, 2), **settings)
        cropped = pytorch.call("segments:crop_on_canvas", outputs["pred_masks"], canvas, image)
        alone = outputs | {"pred_masks": cropped}
        expected = pytorch.call("segments:panoptic", alone, (1, 2), **settings)
        for place, is_secure in enumerate(pytorch.call("segments:secure", alone, **settings, margin=MARGIN)):
            skipped += is_secure is None
            if is_secure is not None:
                assert_same(got[place], expected[place], is_secure)
    assert skipped <= 4


@pytest.mark.parametrize("mask_threshold", [0.5, 0.3])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.999])
def test_masks_of_objects_are_those_of_pytorch(threshold, mask_threshold, pytorch, random_outputs):
    canvas, image, sizes = (101, 118), (71, 118), [(150, 230), (33, 47)]
    for seed in range(10):
        outputs = random_outputs(seed, (26, 30))
        for pixel_mask in (None, mask_of(image, canvas)):
            found = post_process_masks(outputs, sizes, threshold, mask_threshold, pixel_mask)
            plain = post_process(outputs, sizes, threshold)
            for place, (got, detections) in enumerate(zip(found, plain, strict=True)):
                for name, value in detections.items():
                    np.testing.assert_array_equal(got[name], value)
                if not len(got["scores"]):
                    continue
                settings = sizes[place], threshold, mask_threshold, MARGIN
                padding = {} if pixel_mask is None else {"canvas": canvas, "image": image}
                wanted, is_secure = pytorch.call("segments:masks_of_objects", outputs, place, *settings, **padding)
                assert got["masks"].shape == (len(got["scores"]), *sizes[place])
                assert got["masks"].dtype == bool
                np.testing.assert_array_equal(got["masks"][is_secure], wanted[is_secure])
                assert is_secure.mean() > 0.999


def test_masks_of_objects_are_those_of_facebookresearch(pytorch, random_outputs):
    """Exactly at the size that the model saw; elsewhere it enlarges pixels, where we enlarge logits."""
    canvas, image = (101, 118), (71, 118)
    for seed in range(1, 5):
        outputs = random_outputs(seed, (26, 30))
        for size, share in ((image, 1.0), ((150, 230), 0.98)):
            masks, lead = pytorch.call("segments:masks_of_facebookresearch", outputs["pred_masks"], canvas, image, size)
            counts = lead > MARGIN if size == image else np.ones_like(masks)
            found = post_process_masks(outputs, [size, size], 0.0, pixel_mask=mask_of(image, canvas))
            same = np.stack([one["masks"] for one in found]) == masks
            assert same[counts].mean() >= share
            assert counts.mean() > 0.999


def test_masks_at_the_extremes(random_outputs):
    outputs = random_outputs(1)
    for mask_threshold, filled in ((0.0, True), (1.0, False)):
        for found in post_process_masks(outputs, [[9, 9], [9, 9]], mask_threshold=mask_threshold):
            assert (found["masks"] == filled).all()
    nothing = post_process_masks(outputs, [[9, 8], [7, 6]], threshold=1.0)
    assert [found["masks"].shape for found in nothing] == [(0, 9, 8), (0, 7, 6)]


def test_tensors_of_the_backend(random_outputs):
    outputs = random_outputs(1)
    converted = {name: keras.ops.convert_to_tensor(value) for name, value in outputs.items()}
    sizes, mask = [[50, 60], [20, 30]], mask_of((70, 70), (80, 90))
    backend = keras.ops.convert_to_tensor(sizes), keras.ops.convert_to_tensor(mask)
    for function in (post_process_instance, post_process_panoptic, post_process_masks):
        expected = function(outputs, sizes, pixel_mask=mask)
        for one, other in zip(function(converted, backend[0], pixel_mask=backend[1]), expected, strict=True):
            for name, value in other.items():
                np.testing.assert_array_equal(one[name], value)
    for one, other in zip(
        post_process_semantic(converted, *backend), post_process_semantic(outputs, sizes, mask), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("function", [post_process_panoptic, post_process_semantic])
def test_one_enlarged_mask_is_held_at_a_time(function, random_outputs):
    outputs = random_outputs(1, (50, 50), queries=60)
    outputs["logits"][..., 0] = 9
    size = (600, 800)
    tracemalloc.start()
    function(outputs, [size, size])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * 4 * size[0] * size[1]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"pred_masks": None}, {}, r"outputs have no \"pred_masks\", only \['logits', 'pred_boxes'\]"),
        ({"pred_masks": np.zeros((2, 3, 4, 4))}, {}, r"\(batch, queries, h, w\) = \(2, 12, .*not \(2, 3, 4, 4\)"),
        ({"pred_masks": np.zeros((2, 12, 16))}, {}, r"\(batch, queries, h, w\) = \(2, 12, .*not \(2, 12, 16\)"),
        ({}, {"target_sizes": [[9, 9]]}, r"target_sizes must be .* each of the 2 images, not \[\[9, 9\]\]"),
        ({}, {"target_sizes": [[9, 9], [0, 9]]}, r"at least 1 pixel, .* not \[\[9, 9\], \[0, 9\]\]"),
        ({}, {"pixel_mask": np.ones((1, 9, 9))}, r"pixel_mask must be \(batch, .* \(2, …\), not \(1, 9, 9\)"),
        ({}, {"pixel_mask": np.ones((2, 9))}, r"pixel_mask must be \(batch, .* \(2, …\), not \(2, 9\)"),
        ({}, {"pixel_mask": np.eye(9)[None].repeat(2, 0)}, "image 0 of the batch: pixel_mask must be 1 in a rectangle"),
        ({}, {"pixel_mask": np.zeros((2, 9, 9))}, "image 0 of the batch: pixel_mask must be 1 in a rectangle"),
    ],
)
@pytest.mark.parametrize(
    "function", [post_process_instance, post_process_panoptic, post_process_semantic, post_process_masks]
)
def test_what_does_not_fit_is_an_error(function, change, options, message, random_outputs):
    outputs = {name: value for name, value in (random_outputs(1) | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        function(outputs, **{"target_sizes": [[9, 9], [9, 9]]} | options)


def test_segments_are_a_table():
    segmentation = np.zeros((10, 20), np.int32)
    segmentation[:, :4], segmentation[:5, 10:] = 1, 2
    entries = [
        {"id": 1, "label_id": 0, "was_fused": True, "score": 0.7},
        {"id": 2, "label_id": 1, "was_fused": False, "score": 0.876},
        {"id": 1, "label_id": 0, "was_fused": True, "score": 0.9},
    ]
    for class_names in (["sky", "cat"], {0: "sky", 1: "cat"}):
        segments = Segments(segmentation, entries, class_names, np.zeros((10, 20, 3), np.uint8))
        assert len(segments) == 2
        assert list(segments) == [
            {"id": 1, "label": 0, "name": "sky", "score": 0.9, "area": 40},
            {"id": 2, "label": 1, "name": "cat", "score": 0.876, "area": 50},
        ]
        assert str(segments) == "2 segments in 10 × 20 pixels\n0.90  sky  20.0 %\n0.88  cat  25.0 %"
    nothing = Segments(np.full((2, 3), -1, np.int32), [], [], np.zeros((2, 3, 3), np.uint8))
    assert len(nothing) == 0
    assert str(nothing) == "0 segments in 2 × 3 pixels"
