"""The Keras forward pass against PyTorch's, stage by stage, from the same random weights.

Measured on a CPU: logits differ by at most 3e-5, boxes by 4e-6, a stage by 9e-6 of its largest value.
"""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from pairs import (
    CONDITIONAL,
    FACEBOOK_BASIC,
    FACEBOOK_BOTTLENECK,
    SEGMENTATION,
    SMALL,
    TABLE_TRANSFORMER,
    Pair,
    differences,
    facebook_pair,
    hugging_face_model,
    hugging_face_pair,
    padded_batch,
)

from port_weights import load_model
from tfdetr_keras.layers.position import SinePositionEmbedding
from tfdetr_keras.layers.resize import resize_nearest

LOGITS, BOXES, MASKS, STAGE = 1e-4, 1e-5, 1.5e-4, 3e-5
UNEQUAL = {
    "d_model": 48,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 72,
    "num_queries": 7,
}
HUGGING_FACE = {
    "resnet-18": {"backbone": "resnet-18"},
    "resnet-34": {"backbone": "resnet-34"},
    "resnet-50": {"backbone": "resnet-50"},
    "resnet-101": {"backbone": "resnet-101"},
    "learned-positions": {"backbone": "thin", **SMALL, "position_embedding_type": "learned"},
    "unequal-halves": {"backbone": "thin", **SMALL, **UNEQUAL},
    "table-transformer": {"backbone": "thin", **SMALL, **TABLE_TRANSFORMER},
    "table-transformer-resnet-18": {"backbone": "resnet-18", "num_labels": 6, "num_queries": 125, **TABLE_TRANSFORMER},
    "segmentation": {"backbone": "thin", **SMALL | SEGMENTATION},
    "segmentation-resnet-50": {"backbone": "resnet-50", "num_labels": 250, "num_queries": 20, **SEGMENTATION},
    "segmentation-resnet-101": {"backbone": "resnet-101", "num_labels": 250, "num_queries": 20, **SEGMENTATION},
    "conditional": {"backbone": "thin", **SMALL, **CONDITIONAL},
    "conditional-learned-positions": {
        "backbone": "thin",
        **SMALL,
        **UNEQUAL,
        **CONDITIONAL,
        "position_embedding_type": "learned",
    },
    "conditional-resnet-50": {"backbone": "resnet-50", **CONDITIONAL},
}
FACEBOOK = {
    "basic": FACEBOOK_BASIC,
    "dc5-basic": {**FACEBOOK_BASIC, "dilated": True},
    "dc5-bottleneck": {**FACEBOOK_BOTTLENECK, "dilated": True},
    "pre-norm": {**FACEBOOK_BOTTLENECK, "pre_norm": True},
}
LONGER = ("resnet-34", "resnet-101", "segmentation-resnet-50", "segmentation-resnet-101", "conditional-resnet-50")
CASES = [
    *(
        pytest.param(hugging_face_pair, options, id=f"huggingface-{name}", marks=[pytest.mark.slow] * (name in LONGER))
        for name, options in HUGGING_FACE.items()
    ),
    *(pytest.param(facebook_pair, options, id=f"facebook-{name}") for name, options in FACEBOOK.items()),
]


def assert_same_stages(pair: Pair, batch):
    expected = pair.torch_stages(batch)
    # A model that says the same for each query and image would hide a wrong attention.
    assert expected["logits"].std(axis=1, ddof=1).mean() > 100 * LOGITS
    assert expected["pred_boxes"].std(axis=1, ddof=1).mean() > 100 * BOXES
    found = differences(pair.keras.stages(batch), expected)
    limits = {
        "mask": 0.0,
        "pred_masks": MASKS,
        "logits": LOGITS,
        "aux_logits": LOGITS,
        "pred_boxes": BOXES,
        "aux_boxes": BOXES,
    }
    too_far = {name: value for name, value in found.items() if not value <= limits.get(name, STAGE)}
    assert not too_far, f"all stages in order: {found}"


@pytest.mark.parametrize(("make", "options"), CASES)
def test_every_stage_of_a_padded_batch(make, options, pytorch, tmp_path):
    pair = make(pytorch, tmp_path, **options)
    assert_same_stages(pair, padded_batch((128, 160), (97, 110)))


@pytest.mark.parametrize("backbone", ["thin", pytest.param("resnet-101", marks=pytest.mark.slow)])
@pytest.mark.parametrize("values", ["initial", "telling"])
def test_padding_stays_hidden_when_activations_are_large(pytorch, tmp_path, backbone, values):
    """Random weights give activations of any size; scores of the first encoder layer are then as large as their square.

    Between two such scores float32 cannot always tell, and sharpened attention shows it: then the measure is how far
    PyTorch's own float32 is from its float64.
    """
    options = SMALL if backbone == "thin" else {}
    reference = dataclasses.replace(hugging_face_model(backbone, **options), values=values)
    pytorch.call("models:save", reference, tmp_path)
    ported = load_model(tmp_path)
    batch = padded_batch((128, 160), (97, 110))

    def activations():
        stages = ported.stages(batch)
        return np.abs(stages[max(name for name in stages if name.startswith("backbone"))]).max()

    for _ in range(3):  # not at once: offsets do not grow with the image
        batch["pixel_values"] *= 1e6 / activations()
    assert activations() > 9e5
    exact = pytorch.call("models:outputs_in_float64", reference, batch)
    found, theirs = ported(batch), pytorch.call("models:outputs", reference, batch)
    for name, expected in exact.items():
        # Measured: logits differ by at most 9e-7, boxes by 1.2e-7.
        limit = {"logits": 5e-6, "pred_boxes": 1e-6}[name]
        if values == "telling":
            limit = 5 * np.abs(theirs[name] - expected).max()
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=limit, err_msg=name)


@pytest.fixture(scope="module")
def small_pair(pytorch, tmp_path_factory):
    return hugging_face_pair(pytorch, tmp_path_factory.mktemp("small"), "thin", **SMALL)


@pytest.mark.parametrize("sizes", [[(97, 131)], [(33, 64)], [(97, 131), (130, 65), (64, 64)]], ids=str)
def test_odd_sizes_and_batches(small_pair, sizes):
    assert_same_stages(small_pair, padded_batch(*sizes))


def test_without_a_mask(small_pair):
    batch = padded_batch((97, 131), (97, 131))
    del batch["pixel_mask"]
    assert_same_stages(small_pair, batch)
    alone, named = small_pair.keras(batch["pixel_values"]), small_pair.keras(batch)
    np.testing.assert_array_equal(alone["logits"], named["logits"])


def test_compiled_by_xla(small_pair):
    batch = padded_batch((128, 160), (97, 110))
    eager = small_pair.keras(batch)
    compiled = tf.function(small_pair.keras, jit_compile=True)(batch)
    for name, value in eager.items():
        np.testing.assert_allclose(compiled[name], value, rtol=0, atol=BOXES if name.endswith("boxes") else LOGITS)


def test_the_auxiliary_outputs_of_transformers_are_not_those_of_detr(small_pair):
    """With `auxiliary_loss=True` transformers 5 feeds each decoder layer the normalised output of the one before.

    Should this fail because the two agree, transformers has been repaired and the detour of `reference.stages` can go.
    """
    wrong = dataclasses.replace(small_pair, reference=hugging_face_model("thin", **SMALL, auxiliary_loss=True))
    weights, same = (small_pair.pytorch.call("models:state", pair.reference) for pair in (small_pair, wrong))
    assert weights.keys() == same.keys()
    assert all((weights[name] == same[name]).all() for name in weights)
    batch = padded_batch((128, 160), (97, 110))
    last = f"decoder.layer{SMALL['decoder_layers'] - 1}"
    ours, right = small_pair.keras.stages(batch)[last], small_pair.torch_stages(batch)[last]
    assert np.abs(wrong.torch_stages(batch)[last] - right).max() > 0.1
    np.testing.assert_allclose(ours, right, rtol=0, atol=LOGITS)


def test_masks_shrink_as_torch_does_it(pytorch):
    generator = np.random.default_rng(0)
    sizes = []
    for _ in range(400):
        height, width = generator.integers(1, 1400, 2)
        stride = generator.choice([4, 8, 16, 32])
        rows, columns = -(-height // stride), -(-width // stride)
        if generator.random() < 0.5:  # and sizes that no stride gives
            rows, columns = generator.integers(1, 60, 2)
        sizes.append([int(side) for side in (height, width, rows, columns)])
    for (height, width, *smaller), expected in zip(sizes, pytorch.call("layers:nearest", sizes), strict=True):
        # Each mask entry its own number (exact in float32), so that the result names the entry that was taken.
        mask = np.arange(height * width, dtype=np.float32).reshape(1, height, width)
        np.testing.assert_array_equal(resize_nearest(mask, *smaller), expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_sine_positions_under_irregular_masks(share, pytorch):
    """Masks with holes and with lines that are all padding, which no resized image gives but any caller may."""
    mask = np.random.default_rng(1).random((3, 11, 17)) < share
    mask[0, 4] = mask[1, :, 5] = False
    got = keras.ops.convert_to_numpy(SinePositionEmbedding(64)(mask))
    expected = pytorch.call("layers:sine_position", mask, 64)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
