import keras
import numpy as np
import pytest
import tensorflow as tf
from dense_model import DenseModel

from tfdetr_keras import Preprocessing
from tfdetr_keras.data import MULTISCALE, load_shapes, prepare
from tfdetr_keras.data.multiscale import STEP, MultiScale, rescaled, scaled_side
from tfdetr_keras.data.record import MASKS_SPEC, RECORD_SPEC

CANVAS = (96, 128)
FACTORS = (0.5, 0.75, 1.0, 1.5)
PLAIN = {"training": True, "size": (64, 96), "augmentation": "none"}


def as_arrays(dataset):
    return list(dataset.as_numpy_iterator())


def sizes(batches):
    return [inputs["pixel_values"].shape[1:3] for inputs, _ in batches]


def order(batches):
    return [targets["image_id"].tolist() for _, targets in batches]


def with_masks(count):
    """Records of a coloured rectangle each, with its mask."""
    rng = np.random.default_rng(count)
    made = []
    for image_id in range(count):
        mask = np.zeros((1, 40, 60), bool)
        mask[0, 4 : 8 + image_id, 10:30] = True
        record = {
            "image": rng.integers(0, 256, (40, 60, 3)),
            "image_id": image_id,
            "orig_size": (40, 60),
            "boxes": [[10, 4, 30, 8 + image_id]],
            "labels": [image_id],
            "iscrowd": [False],
            "area": [1.0],
            "masks": mask,
        }
        spec = RECORD_SPEC | {"masks": MASKS_SPEC}
        made.append({key: np.asarray(value, spec[key].dtype.as_numpy_dtype) for key, value in record.items()})
    return tf.data.Dataset.from_generator(lambda: iter(made), output_signature=spec)


def test_the_factors_of_rt_detr():
    assert sorted({round(640 * factor) for factor in MULTISCALE}) == list(range(480, 801, 32))
    assert [round(640 * factor) for factor in MULTISCALE].count(640) == 3
    assert sorted(scaled_side(640, factor, 32) for factor in set(MULTISCALE)) == list(range(480, 801, 32))
    assert [scaled_side(100, factor, 32) for factor in (1, 1.0001, 0.15, 0.17)] == [100, 96, 0, 32]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_a_batch_is_resized_as_torch_does(interpolation, pytorch):
    records = with_masks(6)
    plain = as_arrays(prepare(records, 2, pad_to=CANVAS, **PLAIN))
    scaled = as_arrays(
        prepare(records, 2, pad_to=CANVAS, multiscale=FACTORS, multiscale_interpolation=interpolation, seed=0, **PLAIN)
    )
    assert len(set(sizes(scaled))) > 1
    for (inputs, targets), (new_inputs, new_targets) in zip(plain, scaled, strict=True):
        size = new_inputs["pixel_values"].shape[1:3]
        expected = pytorch.call("augmentations:interpolated", inputs["pixel_values"], size, interpolation)
        if size == CANVAS:
            np.testing.assert_array_equal(new_inputs["pixel_values"], inputs["pixel_values"])
        np.testing.assert_allclose(new_inputs["pixel_values"], expected, atol=1e-5 * (interpolation == "bilinear"))
        flat = {"pixel_mask": inputs["pixel_mask"][..., None], "masks": targets["masks"].transpose(0, 2, 3, 1)}
        nearest = {
            key: pytorch.call("augmentations:interpolated", value.astype(np.float32), size, "nearest")
            for key, value in flat.items()
        }
        np.testing.assert_array_equal(new_inputs["pixel_mask"], nearest["pixel_mask"][..., 0])
        np.testing.assert_array_equal(new_targets["masks"].transpose(0, 2, 3, 1), nearest["masks"])
        assert new_inputs["pixel_mask"].dtype == np.int32
        assert new_targets["masks"].dtype == bool
        assert targets.keys() == new_targets.keys()
        for key in targets.keys() - {"masks"}:
            np.testing.assert_array_equal(new_targets[key], targets[key])


def test_every_size_of_torchs_nearest_pixels(pytorch):
    """Also where in / out is no short number: the rounding of the product decides."""
    mask = np.arange(97 * 131, dtype=np.int32).reshape(1, 97, 131)
    inputs = {"pixel_values": np.float32(mask[..., None] * [1, 2, 3]), "pixel_mask": mask}
    targets = {"labels": np.zeros((1, 1), np.int32), STEP: np.zeros((1, 2), np.int64)}
    batch = tf.data.Dataset.from_tensors((inputs, targets))
    for factor in np.linspace(0.2, 3, 12):
        ((found, _),) = as_arrays(rescaled(batch, MultiScale((factor,), "nearest", 1, 0, None, True)))
        size = found["pixel_mask"].shape[1:]
        assert size == tuple(scaled_side(side, factor, 1) for side in (97, 131))
        expected = pytorch.call("augmentations:interpolated", inputs["pixel_values"], size, "nearest")
        np.testing.assert_array_equal(found["pixel_values"], expected)
        np.testing.assert_array_equal(found["pixel_mask"], expected[..., 0])


def test_factors_of_one_leave_a_batch_as_it_is():
    """Also where the sides are no multiples."""
    dataset = load_shapes(6)[0]
    options = {"training": True, "size": (64, 96), "seed": 3}
    for canvas in ({"pad_to": (97, 101)}, {}):
        batches, plain = (prepare(dataset, 2, multiscale=factors, **canvas, **options) for factors in ([1, 1.0], None))
        assert batches.element_spec == plain.element_spec
        tf.nest.map_structure(np.testing.assert_array_equal, as_arrays(batches), as_arrays(plain))


def test_a_fixed_canvas_has_one_size_for_each_factor_drawn_by_its_weight():
    dataset = load_shapes(4, size=(32, 40))[0]
    factors = [0.5, 1, 1, 1]
    options = {"size": (32, 40), "pad_to": (64, 64), "augmentation": "none", "repeat": True}
    batches = prepare(dataset, 1, True, multiscale=factors, **options)
    assert batches.element_spec[0]["pixel_values"].shape.as_list() == [1, None, None, 3]
    found = sizes(as_arrays(batches.take(200)))
    assert set(found) == {(32, 32), (64, 64)}
    assert abs(np.mean([size == (64, 64) for size in found]) - 0.75) < 0.12  # 4 standard deviations
    for single, side in (([0.5], 32), ([0.5, 0.49], 32)):  # one size: static
        batches = prepare(dataset, 1, True, multiscale=single, **options)
        assert batches.element_spec[0]["pixel_values"].shape == (1, side, side, 3)
        assert batches.element_spec[0]["pixel_mask"].shape == (1, side, side)


def test_sides_are_multiples_of_the_models():
    """Those of the preprocessing, where it has any; canvases too small for a factor get one."""
    dataset = load_shapes(6, size=(40, 64))[0]
    own = Preprocessing(size=(56, 84), multiple_of=14)
    found = sizes(
        as_arrays(prepare(dataset, 1, True, multiscale=[0.01, 0.6, 1.4], preprocessing=own, repeat=True).take(20))
    )
    assert {side % 14 for size in found for side in size} == {0}
    assert min(map(min, found)) == 14
    found = sizes(as_arrays(prepare(dataset, 1, True, (64, 96), multiscale=[0.6, 1.4])))
    assert {side % 32 for size in found for side in size} == {0}


@pytest.mark.parametrize(("pad_to", "repeat"), [([(64, 64), (64, 96), (96, 64), (96, 96)], True), ("buckets", False)])
def test_buckets_are_resized_each_by_itself(pad_to, repeat):
    dataset = load_shapes(16, size=(48, 64))[0]
    batches = prepare(dataset, 2, multiscale=[0.5, 1], pad_to=pad_to, repeat=repeat, **PLAIN)
    for inputs, targets in as_arrays(batches.take(8)):
        height, width = inputs["pixel_mask"].shape[1:]
        assert {height, width} <= {32, 64, 96, 48}
        assert inputs["pixel_values"].shape == (2, height, width, 3)
        assert set(targets) == {"labels", "boxes", "image_id", "orig_size"}


@pytest.mark.parametrize(
    ("count", "shards"),  # epochs of whole batches, and batches that reach into the next epoch
    [(13, 3), *[pytest.param(*case, marks=pytest.mark.slow) for case in [(12, 1), (12, 2), (12, 3), (13, 1), (13, 2)]]],
)
def test_the_size_depends_on_the_epoch_and_the_batch_alone(count, shards):
    dataset = load_shapes(count, seed=2, size=(32, 40))[0]
    options = {"multiscale": FACTORS, "pad_to": (96, 96), "seed": 4} | PLAIN
    in_epoch, taken = count // (2 * shards), 4 * (count // (2 * shards))

    def drawn(**changes):
        return sizes(as_arrays(prepare(dataset, 2, repeat=True, **options | changes).take(taken)))

    parts = [drawn(shard=(shards, index)) for index in range(shards)]
    assert all(part == parts[0] for part in parts)
    assert len(set(parts[0])) > 2
    assert parts[0] != drawn(shard=(shards, 0), seed=5)
    # Passes, which are epochs of whole batches; the second run begins at the second epoch.
    passes = prepare(dataset, 2, shard=(shards, shards - 1), **options)
    epochs = [sizes(as_arrays(passes)) for _ in range(3)]
    assert [len(epoch) for epoch in epochs] == [in_epoch] * 3
    resumed = prepare(dataset, 2, shard=(shards, 0), first_epoch=1, **options)
    assert [sizes(as_arrays(resumed)) for _ in range(2)] == epochs[1:]
    assert epochs[0] == parts[0][:in_epoch]
    if count == 12:
        assert [size for epoch in epochs for size in epoch] == parts[0][: 3 * in_epoch]
        assert drawn(shard=(shards, 0), first_epoch=2)[:in_epoch] == epochs[2]


@pytest.mark.parametrize(
    ("augmentation", "repeat"),
    [
        pytest.param("strong", False, marks=pytest.mark.slow),
        ("none", True),
        pytest.param("strong", True, marks=pytest.mark.slow),
        pytest.param("paper", False, marks=pytest.mark.slow),
        (lambda record, seed: record, True),
    ],
)
def test_plain_epochs(augmentation, repeat):
    """As if they had no augmentation but the flip, and no several sizes; until then as if there were none of them."""
    dataset = load_shapes(6, seed=2, size=(32, 40))[0]
    options = {"size": (48, 64), "pad_to": (64, 64), "max_boxes": 9, "seed": 3, "repeat": repeat, "training": True}
    augmented = {"augmentation": augmentation, "color_jitter": True, "multiscale": FACTORS}

    def epochs(**changes):
        batches = prepare(dataset, 2, **options | changes)
        if repeat:
            batches = as_arrays(batches.take(9))
            return [batches[:3], batches[3:6], batches[6:]]
        return [as_arrays(batches) for _ in range(3)]

    found = epochs(plain_from=1, **augmented)
    first, *_ = epochs(**augmented)
    _, *plain = epochs(augmentation="none" if augmentation == "none" else "flip")
    tf.nest.map_structure(np.testing.assert_array_equal, found, [first, *plain])
    later = epochs(plain_from=1, first_epoch=1, **augmented)
    tf.nest.map_structure(np.testing.assert_array_equal, later[:2], plain)
    assert set(sizes(first)) != {(64, 64)}


@pytest.mark.slow
@pytest.mark.parametrize("repeat", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_same_batches_whatever_the_parallelism(repeat):
    """Strong, several sizes and plain epochs; by one thread, again, and shard by shard."""
    dataset = load_shapes(12, seed=5)[0]
    options = {"training": True, "size": (64, 96), "color_jitter": True, "repeat": repeat, "pad_to": (96, 96)}
    options |= {"augmentation": "strong", "multiscale": FACTORS, "plain_from": 1, "max_boxes": 8}
    single = tf.data.Options()
    single.threading.private_threadpool_size = 1
    single.autotune.enabled = False

    def two_epochs(batches, count):
        return as_arrays(batches.take(2 * count)) if repeat else [*as_arrays(batches), *as_arrays(batches)]

    expected = two_epochs(prepare(dataset, 4, **options), 3)
    tf.nest.map_structure(np.testing.assert_array_equal, two_epochs(prepare(dataset, 4, **options), 3), expected)
    again = two_epochs(prepare(dataset, 4, **options).with_options(single), 3)
    tf.nest.map_structure(np.testing.assert_array_equal, again, expected)
    parts = [two_epochs(prepare(dataset, 2, shard=(2, index), **options), 3) for index in range(2)]
    for whole, *halves in zip(expected, *parts, strict=True):
        # Every other record of the batch is one worker's.
        together = tf.nest.map_structure(lambda *pair: np.stack(pair, axis=1).reshape(4, *pair[0].shape[1:]), *halves)
        tf.nest.map_structure(np.testing.assert_array_equal, together, whole)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="counts the traces of a TensorFlow function")
def test_fit_traces_the_step_once_for_all_sizes():
    traces = []

    class Counting(DenseModel):
        def call(self, inputs, **kwargs):
            traces.append(inputs["pixel_values"].shape)
            return super().call(inputs, **kwargs)

    dataset = load_shapes(12, size=(32, 40))[0]
    options = {"size": (32, 40), "pad_to": (64, 64), "max_boxes": 8, "multiscale": FACTORS, "plain_from": 2}
    batches = prepare(dataset, 2, True, augmentation="strong", **options)
    model = Counting()
    model.compile("sgd")
    model.fit(batches, epochs=1, verbose=0)
    built = len(traces)
    model.fit(batches, epochs=3, verbose=0)
    assert len(traces) == built


def test_a_function_that_drops_the_masks_has_no_plain_epochs():
    def without_masks(record, seed):
        return {key: value for key, value in record.items() if key != "masks"}

    options = {"augmentation": without_masks, "size": (32, 48), "training": True}
    assert "masks" not in prepare(with_masks(2), 1, **options).element_spec[1]
    with pytest.raises(ValueError, match="augmentation changes whether records have masks, which plain_from undoes"):
        prepare(with_masks(2), 1, plain_from=3, **options)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"multiscale": []}, "multiscale must be None or a list of factors"),
        ({"multiscale": 0.5}, "multiscale must be None or a list of factors"),
        ({"multiscale": [1, 0]}, "multiscale must be None or a list of factors"),
        ({"multiscale": [1, float("nan")]}, "multiscale must be None or a list of factors"),
        ({"multiscale": [float("inf")]}, "multiscale must be None or a list of factors"),
        ({"multiscale": "RT-DETR"}, "multiscale must be None or a list of factors"),
        ({"multiscale": [1, 0.1]}, "factor 0.1, which makes a canvas of 96 x 128 smaller"),
        ({"multiscale_interpolation": "bicubic"}, "multiscale_interpolation must be one of"),
        ({"plain_from": -1}, "plain_from must be None or the number of an epoch"),
    ],
)
def test_arguments_that_cannot_work(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        prepare(load_shapes(4)[0], 2, True, (64, 96), CANVAS, **arguments)
