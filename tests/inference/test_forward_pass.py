"""Masks of sure queries alone are, to a rounding, those that the whole model makes of them; no others are made."""

import os
import socket
import subprocess
import sys
import textwrap
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from pycocotools import mask as coco_mask
from some_slow import some_slow

import tfdetr_keras as td
from tfdetr_keras.data.image_files import records_of
from tfdetr_keras.data.record import MASKS_SPEC, RECORD_SPEC
from tfdetr_keras.evaluation import coco as evaluation
from tfdetr_keras.evaluation import panoptic as panoptic_evaluation
from tfdetr_keras.inference import detection as inference
from tfdetr_keras.inference import forward_pass
from tfdetr_keras.inference.forward_pass import GROUP, forward_function, with_confident_masks
from tfdetr_keras.inference.segments import post_process_masks, post_process_panoptic
from tfdetr_keras.models.detr_segmentation import MaskHead

SIZE, QUERIES, CLASSES = (64, 96), 14, ["cat", "dog", "sky"]
SHAPES = [(70, 90), (64, 64), (120, 50)]  # height, width
SURE = 4.0  # logit of a sure query's class: a probability of 0.95
SHARES = np.random.default_rng(0).uniform(0, 3, (QUERIES, 8)).astype(np.float32)  # of each query's heads
COUNTS = [[5, 5, 5], [1, 0, 6], [0, 0, 0], [14, 3, 9], [14, 14, 14]]  # sure queries of the images of a batch


class Told(td.DETRForSegmentation):
    """Gives the image in each place of a batch as many sure queries as it is told, in any order; masks are its own."""

    def tell(self, counts):
        rng = np.random.default_rng(counts)
        logits = rng.uniform(-0.2, 0.2, self.told.shape)
        for place, count in enumerate(counts):
            queries = rng.permutation(QUERIES)[:count]
            logits[place, queries, rng.integers(0, len(CLASSES), count)] += SURE
        self.told.assign(logits)
        return self

    def _add_parts(self):
        super()._add_parts()
        shape = (3, QUERIES, len(CLASSES) + 1)
        self.told = self.add_weight(shape=shape, trainable=False, dtype="float32", autocast=False, name="told")

    def _outputs(self, decoded):
        batch = ops.shape(decoded.logits)[0]
        return super()._outputs(decoded) | {"logits": ops.convert_to_tensor(self.told)[:batch]}


def random_model(kind=Told, **options):
    """With random weights, of which each query's mask is another one; the same on every call."""
    keras.utils.set_random_seed(0)
    config = td.SegmentationConfig(
        backbone=td.ResNetConfig(block="basic", depths=(1, 1, 1, 1), channels=(16, 16, 16, 16), stem_channels=16),
        num_classes=len(CLASSES),
        id2label=dict(enumerate(CLASSES)),
        num_queries=QUERIES,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
    )
    model = kind(config, **options)
    # Queries attend by their own shares, which count for more than what they have in common.
    attend = model.mask_attention.call
    model.mask_attention.call = lambda *inputs: attend(*inputs) * ops.convert_to_tensor(SHARES)[:, None]
    convolution = model.mask_head.convolutions[0].convolution
    kernel = np.array(ops.convert_to_numpy(convolution.kernel))
    kernel[:, :, config.d_model :] *= 1000
    convolution.kernel.assign(kernel)
    for adapter in model.mask_head.adapters:
        adapter.kernel.assign(adapter.kernel / 10)
    return model


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (5, 6, 3), np.uint8) for _ in SHAPES]
    return [tf.image.resize(one, shape).numpy().astype(np.uint8) for one, shape in zip(coarse, SHAPES, strict=True)]


def batches_of(images, batch_size=3):
    return td.data.prepare(records_of(images), batch_size, size=SIZE)


@pytest.fixture
def batch(images):
    """Inputs and the images' sizes."""
    [(inputs, targets)] = batches_of(images)
    return inputs, targets["orig_size"].numpy()


@pytest.fixture
def made(monkeypatch):
    """The shapes of all masks that are made of sure queries."""
    shapes = []

    def noted(*arguments):
        outputs = with_confident_masks(*arguments)
        shapes.append(tuple(outputs["pred_masks"].shape))
        return outputs

    for module in (forward_pass, inference):
        monkeypatch.setattr(module, "with_confident_masks", noted)
    return shapes


def number_made(most):
    """How many masks an image, where one has `most` sure queries and no other has more."""
    return min(max(1, -(-most // GROUP)) * GROUP, QUERIES)


def whole(model, inputs_spec, masks_above, folded=False):
    """In place of `forward_function`: the whole model, with the masks of all queries."""
    return lambda inputs: model(inputs, training=False)


def assert_same_detections(found, expected):
    assert found["masks"].shape == expected["masks"].shape
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    for key, tolerance in (("scores", 1e-6), ("boxes", 1e-3)):
        np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=tolerance)
    assert (found["masks"] != expected["masks"]).sum() <= 1e-3 * expected["masks"].size


def assert_same_segments(found, expected):
    assert (found["segmentation"] != expected["segmentation"]).mean() < 1e-3
    assert found["segments_info"] == expected["segments_info"]


def test_masks_of_queries_differ(model, batch):
    """Else the other tests would show nothing."""
    masks = np.asarray(model.tell([0, 0, 0])(batch[0])["pred_masks"])
    for query in range(1, QUERIES):
        assert np.abs(masks[:, query] - masks[:, query - 1]).mean() > 0.02 * masks.std()


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_outputs_are_those_of_sure_queries(model, images, batch, counts):
    inputs, _ = batch
    model.tell(counts)
    outputs = {name: np.asarray(value) for name, value in model(inputs, training=False).items()}
    found = forward_function(model, batches_of(images).element_spec[0], 0.5)(inputs)
    assert set(found) == {"logits", "pred_boxes", "pred_masks"}
    assert found["pred_masks"].shape == (3, number_made(max(counts)), *outputs["pred_masks"].shape[2:])
    for place, count in enumerate(counts):
        [queries] = np.nonzero(outputs["logits"][place, :, :-1].max(-1) > SURE / 2)
        assert len(queries) == count
        np.testing.assert_array_equal(found["logits"][place, :count], outputs["logits"][place, queries])
        np.testing.assert_allclose(found["pred_boxes"][place, :count], outputs["pred_boxes"][place, queries], atol=1e-6)
        masks = outputs["pred_masks"][place, queries]
        np.testing.assert_allclose(
            found["pred_masks"][place, :count], masks, rtol=0, atol=1e-4 * np.abs(masks).max(initial=1)
        )
    # What fills up is no object by any threshold from 0 on.
    detections = td.post_process(found, [[8, 8]] * 3, 0.0)
    assert [len(one["scores"]) for one in detections] == counts


@pytest.mark.parametrize("threshold", some_slow([0.0, 0.5, -1.0, 0.3, 0.99], 0.0, -1.0, 0.3, 0.99))
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_detections_and_segments_of_a_batch(model, images, batch, counts, threshold):
    inputs, sizes = batch
    found = forward_function(model.tell(counts), batches_of(images).element_spec[0], threshold)(inputs)
    outputs, options = model(inputs, training=False), {"threshold": threshold, "pixel_mask": inputs["pixel_mask"]}
    expected = post_process_masks(outputs, sizes, **options)
    for one, other in zip(post_process_masks(found, sizes, **options), expected, strict=True):
        assert_same_detections(one, other)
    assert found["pred_masks"].shape[1] == number_made(max(len(one["scores"]) for one in expected))
    expected = post_process_panoptic(outputs, sizes, **options)
    for one, other in zip(post_process_panoptic(found, sizes, **options), expected, strict=True):
        assert_same_segments(one, other)


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_detect_and_segment(model, images, batch, made, threshold):
    inputs, sizes = batch
    outputs = model.tell([1, 0, 6])(inputs, training=False)
    options = {"threshold": threshold, "pixel_mask": inputs["pixel_mask"]}
    detections = list(td.detect(model, records_of(images), SIZE, 3, threshold=threshold))
    for one, other in zip(detections, post_process_masks(outputs, sizes, **options), strict=True):
        assert_same_detections(one, other)
    segments = inference.segment(model, records_of(images), SIZE, 3, threshold=threshold)
    for one, other in zip(segments, post_process_panoptic(outputs, sizes, **options), strict=True):
        assert_same_segments(one, other)
    assert [shape[1] for shape in made] == [8 if threshold else QUERIES] * 2


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("count", [0, 6])
def test_one_image_after_the_other(model, images, made, count, attention):
    model.tell([count] * 3)
    found = model.detect(images, SIZE, attention=attention)
    for image, (inputs, targets), one in zip(images, batches_of(images, 1), found, strict=True):
        outputs = model(inputs, training=False)
        [expected] = post_process_masks(outputs, targets["orig_size"], pixel_mask=inputs["pixel_mask"])
        order = np.argsort(-expected["scores"], kind="stable")
        assert_same_detections(vars(one), {key: value[order] for key, value in expected.items()})
        assert one.masks.shape == (count, *image.shape[:2])
        assert (one.attention is None) != attention
    assert [shape[1] for shape in made] == [number_made(count)] * len(images)


def test_scores_at_the_threshold_are_judged_as_ever(model, images, made):
    """A query counts if its score exceeds the threshold by a last digit, and not if it equals it."""
    model.tell([6, 0, 0])
    scores = np.sort(model.detect(images[0], SIZE).scores)
    for threshold, count in ((scores[2], 3), (np.nextafter(scores[2], np.float32(0)), 4)):
        found = model.detect(images[0], SIZE, float(threshold))
        assert len(found) == len(found.masks) == count


def test_masks_that_are_not_wanted_are_not_made(images, monkeypatch):
    def fails(*_):
        raise AssertionError("masks were made")

    monkeypatch.setattr(MaskHead, "call", fails)
    other = random_model().tell([6, 6, 6])  # of which nothing is traced yet
    for attention in (False, True):
        found = other.detect(images[0], SIZE, attention=attention, masks=False)
        assert found.masks is None
        assert len(found) == 6
    evaluation.evaluate_detections(other, panoptic_records(images), CLASSES, SIZE)
    with pytest.raises(AssertionError, match="masks were made"):
        other.detect(images[0], SIZE, attention=True)


def test_one_graph_for_every_number_of_sure_queries(images):
    model = random_model(td.DETRForSegmentation)
    model.detect(images, SIZE, 0.0)
    for threshold in (0.0, 0.3, 0.999):
        model.segment(images, SIZE, threshold)
    [graphs] = model._inference_graphs.values()
    assert [graph.experimental_get_tracing_count() for graph in graphs] == [1, 1]


def panoptic_records(images):
    """Two segments an image, one above the other."""
    rows = []
    for place, image in enumerate(images):
        height, width = image.shape[:2]
        upper = np.arange(height)[:, None] < height // 2 + np.zeros((1, width), int)
        rows.append(
            {
                "image": image,
                "image_id": np.int64(place),
                "orig_size": np.array([height, width], np.int32),
                "boxes": np.array([[0, 0, width, height // 2], [0, height // 2, width, height]], np.float32),
                "labels": np.array([place % 3, 2], np.int32),
                "iscrowd": np.zeros(2, bool),
                "area": np.array([upper.sum(), (~upper).sum()], np.float32),
                "masks": np.stack([upper, ~upper]),
            }
        )
    return tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=RECORD_SPEC | {"masks": MASKS_SPEC})


@pytest.mark.parametrize("batch_size", [1, 3])
def test_panoptic_quality_is_the_same(model, images, made, batch_size, monkeypatch):
    model.tell([6, 2, 9])
    arguments = (panoptic_records(images), CLASSES, [True, True, False], SIZE, batch_size)
    quality = panoptic_evaluation.evaluate_panoptic(model, *arguments)
    assert [shape[1] for shape in made] == ([8] * 3 if batch_size == 1 else [12])
    monkeypatch.setattr(panoptic_evaluation, "forward_function", whole)
    expected = panoptic_evaluation.evaluate_panoptic(model, *arguments)
    assert set(quality) == set(expected)
    for name, value in expected.items():
        if isinstance(value, float):
            assert quality[name] == pytest.approx(value, abs=1e-2), name


@pytest.mark.parametrize("batch_size", [1, 3])
def test_average_precision_of_masks_is_the_same(model, images, batch_size, monkeypatch):
    model.tell([6, 2, 9])
    evaluator = evaluation.Evaluator(panoptic_records(images), CLASSES, SIZE, batch_size, masks=True)
    evaluator(model)
    found = evaluator.detections
    monkeypatch.setattr(evaluation, "forward_function", whole)
    evaluator(model)
    for one, other in zip(found, evaluator.detections, strict=True):
        assert len(one["scores"]) == QUERIES
        masks, expected = (np.concatenate([coco_mask.decode(side["masks"])]) for side in (one, other))
        assert_same_detections(one | {"masks": masks}, other | {"masks": expected})


def test_mixed_precision(images, batch):
    inputs, _ = batch
    model = random_model(dtype="mixed_bfloat16").tell([3, 1, 4])
    forward = forward_function(model, batches_of(images).element_spec[0], 0.5)
    found, outputs = forward(inputs), model(inputs, training=False)
    for name in ("logits", "pred_boxes", "pred_masks"):
        assert keras.backend.standardize_dtype(found[name].dtype) == outputs[name].dtype == "float32"
    [queries] = np.nonzero(np.asarray(model.told)[0, :, :-1].max(-1) > SURE / 2)
    expected = np.asarray(outputs["pred_masks"])[0, queries]
    assert np.abs(found["pred_masks"][0, :3] - expected).mean() < 0.05 * expected.std()


def test_other_models_give_what_they_give(images):
    """Of all queries, and sure or not."""

    class Other(keras.Model):
        def call(self, inputs):
            share = ops.mean(inputs["pixel_values"], (1, 2))[:, None]
            logits = ops.concatenate([share * query for query in range(QUERIES)], 1)
            boxes = ops.sigmoid(ops.concatenate([logits, share[..., :1] + ops.zeros_like(logits[..., :1])], -1))
            rows = ops.arange(8, dtype="float32")[:, None] - ops.arange(8, dtype="float32")
            return {"logits": logits, "pred_boxes": boxes, "pred_masks": logits[..., None, :1] * rows}

    model, asked = Other(), []
    model.config = types.SimpleNamespace(classification="softmax")
    for masks in (True, False):
        for found, (inputs, targets) in zip(
            td.detect(model, records_of(images), SIZE, threshold=0.4, masks=masks), batches_of(images, 1), strict=True
        ):
            outputs = model(inputs)
            [expected] = post_process_masks(outputs, targets["orig_size"], 0.4, pixel_mask=inputs["pixel_mask"])
            np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-6)
            assert ("masks" in found) == masks
            if masks:
                height, width = targets["orig_size"].numpy()[0]
                inside = np.clip(expected["boxes"], 0, [width, height, width, height])
                assert_same_detections(found, expected | {"boxes": inside})
            asked.append(len(found["scores"]))
    assert max(asked) > 0


# Compares on another backend, where workers may be several, what is found with what the whole model gives.
SCRIPT = """
    import sys
    sys.path.insert(0, sys.argv[1])
    workers, index, port = map(int, sys.argv[2:])
    if workers > 1:
        import jax
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", workers, index)
    import keras, numpy as np
    if workers > 1:
        keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    import test_forward_pass as tests
    from tfdetr_keras.backend.processes import by_this_worker_alone

    model = tests.random_model()
    rng = np.random.default_rng(index)
    images = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in [(64, 64), (80, 80), (64, 64)]]
    batches = tests.batches_of(images)
    [(inputs, targets)], spec = batches, batches.element_spec[0]
    with by_this_worker_alone():  # layer by layer, where nothing is compiled
        alone = tests.random_model()
    threshold = (0.5, 0.0)[index]  # workers need not agree on the number of masks
    for counts in ([1, 0, 6], [0, 0, 14]):
        found = tests.forward_function(model.tell(counts), spec, threshold)(inputs)
        arrays = {name: value.numpy() for name, value in inputs.items()}
        with by_this_worker_alone():
            outputs = alone.tell(counts).stages(arrays)
        outputs = {name: keras.ops.convert_to_numpy(outputs[name]) for name in found}
        options = {"threshold": threshold, "pixel_mask": arrays["pixel_mask"]}
        sizes = targets["orig_size"].numpy()
        of_both = [tests.post_process_masks(one, sizes, **options) for one in (found, outputs)]
        for one, other in zip(*of_both, strict=True):
            tests.assert_same_detections(one, other)
        most = max(len(one["scores"]) for one in of_both[0])
        assert most == (14 if index else max(counts))
        assert found["pred_masks"].shape[1] == tests.number_made(most)
        without = tests.forward_function(model, spec, None)(inputs)
        assert set(without) == {"logits", "pred_boxes"}
        assert np.shape(without["logits"]) == (3, 14, 4)
    print("done on", keras.backend.backend())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "workers"), [("jax", 1), ("jax", 2), ("torch", 1)])
def test_other_backends(backend, workers, request):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(SCRIPT),
                str(request.path.parent),
                *map(str, (workers, index, port)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "KERAS_BACKEND": backend, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"},  # compiled sooner
        )
        for index in range(workers)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        assert f"done on {backend}" in output
