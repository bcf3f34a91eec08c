"""`detect` and `segment` of DETR's relatives: independent classes, masks, and Table Transformer's sizes."""

import sys
import types

import numpy as np
import pytest
from PIL import Image
from some_slow import some_slow

import tfdetr_keras as td
from tfdetr_keras import app
from tfdetr_keras.inference import detection
from tfdetr_keras.inference.segments import fuse_segments, post_process_masks, post_process_panoptic
from tfdetr_keras.visualize import draw_attention, draw_segments, image_of_segments

SIZE, CANVAS = (64, 96), (96, 128)
NAMES = ["cat", "dog", "sky"]
SMALL = {
    "backbone": td.ResNetConfig(block="basic", depths=(1, 1, 1, 1), channels=(16, 16, 16, 16), stem_channels=16),
    "num_classes": 3,
    "id2label": dict(enumerate(NAMES)),
    "num_queries": 12,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}


def drawn(model, images, seed, query_spread):
    """Gives a model weights with which its queries answer as differently as a trained model's do.

    Each is drawn of its path's own generator: what these tests see does not hang on the order in which layers
    are made. Logits and masks then get a mean of 0 and a standard deviation of 3 over the images.
    """
    spread = {"kernel": None, "bias": 0.1, "embeddings": query_spread}
    for weight in model.weights:
        if (kind := weight.path.rsplit("/", 1)[1]) in spread:
            rng = np.random.default_rng([seed, *weight.path.split("/", 1)[1].encode()])
            weight.assign(rng.normal(scale=spread[kind] or np.prod(weight.shape[:-1]) ** -0.5, size=weight.shape))
    heads = {"logits": model.class_head}
    if hasattr(model, "mask_head"):
        heads["pred_masks"] = model.mask_head.outputs
        # Masks follow the attention: its shares are small numbers beside the features that all queries have in common.
        convolution = model.mask_head.convolutions[0].convolution
        kernel = np.array(convolution.kernel)
        kernel[:, :, model.config.d_model :] *= 1000
        convolution.kernel.assign(kernel)
        for adapter in model.mask_head.adapters:
            adapter.kernel.assign(adapter.kernel / 10)
    every = [stages_of(model, image)[0] for image in images]
    for name, head in heads.items():
        channels = head.kernel.shape[-1]
        outputs = np.concatenate([np.asarray(stages[name]).reshape(-1, channels) for stages in every])
        factor = 3 / outputs.std(axis=0)
        head.kernel.assign(head.kernel * factor)
        head.bias.assign((head.bias - outputs.mean(axis=0)) * factor)
    return model


@pytest.fixture(scope="module")
def conditional(images):
    return drawn(td.ConditionalDETR(td.ConditionalDETRConfig(**SMALL)), images, seed=0, query_spread=3)


@pytest.fixture(scope="module")
def segmenter(images):
    return drawn(td.DETRForSegmentation(td.SegmentationConfig(**SMALL)), images, seed=6, query_spread=10)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (3, 5, 6, 3), np.uint8)
    sizes = ((90, 70), (64, 64), (50, 120))  # width, height
    return [np.asarray(Image.fromarray(one).resize(size)) for one, size in zip(coarse, sizes, strict=True)]


def stages_of(model, image, pad_to=None):
    """What the model computes of an image, with its inputs and the image's size."""
    batches = td.data.prepare(td.data.image_files.records_of([image]), 1, size=SIZE, pad_to=pad_to)
    [(inputs, targets)] = batches
    inputs = {key: value.numpy() for key, value in inputs.items()}
    return model.stages(inputs, attention=True), inputs["pixel_mask"], targets["orig_size"].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("pad_to", [None, pytest.param(CANVAS, marks=pytest.mark.slow)])
def test_a_query_may_speak_for_several_classes(conditional, images, pad_to):
    repeated = unsorted = 0
    for image in images:
        stages, _, [(height, width)] = stages_of(conditional, image, pad_to)
        pairs = 1 / (1 + np.exp(-np.asarray(stages["logits"])[0].astype(np.float64)))
        found = conditional.detect(image, SIZE, 0.6, pad_to=pad_to)
        assert len(found) == (pairs > 0.6).sum()
        np.testing.assert_allclose(found.scores, np.sort(pairs[pairs > 0.6])[::-1], atol=1e-5)
        attended = conditional.detect(image, SIZE, 0.6, attention=True, pad_to=pad_to)
        np.testing.assert_allclose(attended.boxes, found.boxes, atol=1e-3)
        weights = np.asarray(stages["decoder.layer1.attention"])[0].mean(axis=0)
        inside = np.asarray(stages["mask"])[0] != 0
        queries = []
        for row, attention in zip(attended, attended.attention, strict=True):
            # The query is the one with such a probability of the class.
            query = np.abs(pairs[:, row["label"]] - row["score"]).argmin()
            queries.append(query)
            x, y, w, h = np.asarray(stages["pred_boxes"])[0, query]
            box = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * [width, height, width, height]
            np.testing.assert_allclose(row["box"], np.clip(box, 0, [width, height] * 2), atol=1e-3)
            np.testing.assert_allclose(attention.ravel(), weights[query][inside.ravel()], atol=1e-6)
        repeated += len(queries) - len(set(queries))
        unsorted += queries != sorted(queries)
    assert repeated > 0
    assert unsorted > 0
    assert attended.names == [NAMES[label] for label in attended.labels]


def test_the_hundred_surest_at_most(conditional, images):
    many = td.ConditionalDETR(td.ConditionalDETRConfig(**SMALL | {"num_queries": 40}))
    for attention in (False, True):
        assert len(many.detect(images[0], SIZE, 0.0, attention=attention)) == 100
        assert len(conditional.detect(images[0], SIZE, 0.0, attention=attention)) == 36


def test_attention_is_drawn_for_every_class(conditional, segmenter, images, tmp_path):
    for model in (conditional, segmenter):
        draw_attention(model.detect(images[0], SIZE, 0.4, attention=True), tmp_path / "attention.png")
        assert (tmp_path / "attention.png").stat().st_size > 1000


@pytest.mark.parametrize("attention", some_slow([False, True], False))
@pytest.mark.parametrize("pad_to", some_slow([None, CANVAS], CANVAS))
def test_detections_carry_their_masks(segmenter, images, attention, pad_to):
    several = segmenter.detect(images, SIZE, 0.4, attention=attention, pad_to=pad_to)
    for image, found in zip(images, several, strict=True):
        stages, pixel_mask, sizes = stages_of(segmenter, image, pad_to)
        [expected] = post_process_masks(stages, sizes, 0.4, pixel_mask=pixel_mask)
        order = np.argsort(-expected["scores"], kind="stable")
        assert found.masks.dtype == bool
        assert found.masks.shape == (len(found), *image.shape[:2])
        np.testing.assert_allclose(found.scores, expected["scores"][order], atol=1e-5)
        assert (found.masks != expected["masks"][order]).mean() < 1e-3  # pixels that a rounding decides
        assert 0.02 < found.masks.mean() < 0.98
        assert (found.attention is None) != attention
    assert all(len(found) > 1 for found in several)
    without = segmenter.detect(images[0], SIZE, 0.4, attention=attention, pad_to=pad_to, masks=False)
    assert without.masks is None
    np.testing.assert_array_equal(without.boxes, several[0].boxes)
    assert len(segmenter.detect(images[0], SIZE, 0.999999).masks) == 0


def test_supervision_gets_the_masks(segmenter, images, monkeypatch):
    found = segmenter.detect(images[0], SIZE, 0.4)
    monkeypatch.setitem(sys.modules, "supervision", types.SimpleNamespace(Detections=dict))
    np.testing.assert_array_equal(found.to_supervision()["mask"], found.masks)
    monkeypatch.undo()
    supervision = pytest.importorskip("supervision")
    handed = found.to_supervision()
    assert isinstance(handed, supervision.Detections)
    np.testing.assert_array_equal(handed.area, found.masks.sum((1, 2)))


def test_a_detector_has_none(images):
    found = td.DETR(td.DETRConfig(**SMALL)).detect(images[0], SIZE, 0.0)
    assert len(found) == 12
    assert found.masks is None


@pytest.mark.parametrize(
    ("pad_to", "things"),
    [
        (None, None),
        (CANVAS, [True, True, False]),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((None, [True, True, False]), (None, [False] * 3), (CANVAS, None), (CANVAS, [False] * 3))
        ),
    ],
)
def test_segments_of_images_in_every_form(segmenter, images, tmp_path, pad_to, things):
    Image.fromarray(images[1]).save(tmp_path / "a.png")
    forms = [images[0], str(tmp_path / "a.png"), Image.fromarray(images[2])]
    several = segmenter.segment(forms, SIZE, 0.4, things, pad_to=pad_to)
    for image, found in zip(images, several, strict=True):
        stages, pixel_mask, sizes = stages_of(segmenter, image, pad_to)
        [expected] = post_process_panoptic(stages, sizes, 0.4, pixel_mask=pixel_mask)
        stuff = [label for label, is_thing in enumerate(things or []) if not is_thing]
        expected = fuse_segments(**expected, label_ids=stuff)
        assert isinstance(found, td.Segments)
        assert (found.segmentation != expected["segmentation"]).mean() < 1e-3
        assert [row["label"] for row in found] == [entry["label_id"] for entry in expected["segments_info"]]
        labels = [row["label"] for row in found]
        assert all(labels.count(label) <= 1 for label in stuff)
        np.testing.assert_array_equal(found.image, image)
        noun = "segment" if len(found) == 1 else "segments"
        assert str(found).startswith(f"{len(found)} {noun} in {image.shape[0]} × {image.shape[1]} pixels")
        assert image_of_segments(found, 100).size
    assert sum(len(found) for found in several) > 2
    alone = segmenter.segment(tmp_path / "a.png", SIZE, 0.4, things, pad_to=pad_to)
    np.testing.assert_array_equal(alone.segmentation, several[1].segmentation)
    assert segmenter.segment([]) == []
    shown = [{"segmentation": one.segmentation, "segments_info": one.segments_info} for one in several]
    draw_segments(images, shown, segmenter.id2label, tmp_path / "segments.png")


def test_segment_is_surer_by_default(segmenter, images):
    sure = {entry["score"] for found in segmenter.segment(images, SIZE) for entry in found.segments_info}
    unsure = {entry["score"] for found in segmenter.segment(images, SIZE, 0.4) for entry in found.segments_info}
    assert all(score > 0.85 for score in sure)
    assert min(unsure) < 0.85


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        ("nowhere.png", {}, r"^nowhere\.png cannot be read"),
        (np.zeros((64, 64, 3), np.uint8), {"things": [True]}, "things has 1 values, but the model has 3 classes"),
        (np.zeros((64, 64, 3), np.uint8), {"size_rule": "tables"}, "size_rule must be one of"),
    ],
)
def test_what_cannot_be_segmented(segmenter, image, options, message):
    with pytest.raises(ValueError, match=message):
        segmenter.segment(image, SIZE, **options)


def test_a_detector_has_no_segments(images):
    detector = td.DETR(td.DETRConfig(**SMALL))
    assert not hasattr(detector, "segment")
    with pytest.raises(ValueError, match='outputs have no "pred_masks"'):
        next(td.inference.segment(detector, td.data.image_files.records_of(images), SIZE))


@pytest.mark.parametrize("attention", [False, True])
def test_images_are_resized_by_the_rule(conditional, attention, monkeypatch):
    asked = []
    original = detection.prepare
    monkeypatch.setattr(
        detection, "prepare", lambda *a, **o: asked.append(o["preprocessing"].rule) or original(*a, **o)
    )
    image = np.zeros((40, 40, 3), np.uint8)
    small = conditional.detect(image, SIZE, 0.0, attention=attention)
    large = conditional.detect(image, SIZE, 0.0, attention=attention, size_rule="table")  # 96 pixels, not 64
    assert asked == ["huggingface", "table"]
    if attention:
        assert (small.attention.shape[1:], large.attention.shape[1:]) == ((2, 2), (3, 3))
    with pytest.raises(ValueError, match="size_rule must be one of"):
        conditional.detect(image, SIZE, size_rule="tables")


def test_the_page_takes_the_relatives(conditional, segmenter, images, tmp_path):
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    for model, count in ((conditional, 36), (segmenter, 12)):
        look = app.look_at(model, tmp_path / "a.png", td.Preprocessing(SIZE, "table"))
        assert len(look.found) == count
        assert look.found.masks is None
        threshold = float(np.median(look.found.scores))
        seen = app.view(look, threshold)
        assert seen.picture.size
        assert seen.attended.size
        assert len(seen.rows) == (look.found.scores > threshold).sum() > 0
