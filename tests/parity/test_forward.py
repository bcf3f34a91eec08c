"""The Keras forward pass against PyTorch's, stage by stage, from the same random weights.

Measured on a CPU: logits differ by at most 3e-5, boxes by 4e-6, a stage by 9e-6 of its largest value.
"""

import dataclasses

import keras
import numpy as np
import pytest
from batches import padded_batch
from members import DETR, of_stages, over
from ports import differences

from port_weights import load_model
from tfdetr_keras.layers.position import SinePositionEmbedding
from tfdetr_keras.layers.resize import resize_nearest


def assert_same_stages(found, expected, limits):
    # A model that says the same for each query and image would hide a wrong attention.
    assert expected["logits"].std(axis=1, ddof=1).mean() > 100 * limits.logits
    assert expected["pred_boxes"].std(axis=1, ddof=1).mean() > 100 * limits.boxes
    found = differences(found, expected)
    too_far = {name: value for name, value in found.items() if not value <= limits.of_stage(name)}
    assert not too_far, f"all stages in order: {found}"


@of_stages()
def test_every_stage_is_the_reference_s(case, place, answers, port):
    """Of a padded batch, and of one image of an odd size without a mask."""
    expected = answers(case).arrays(f"stages{place}")
    assert_same_stages(port(case).stages(case.sizes[place].batch()), expected, case.limits)


@pytest.mark.parametrize("backbone", ["thin", pytest.param("resnet-101", marks=pytest.mark.slow)])
@pytest.mark.parametrize("values", ["initial", "telling"])
def test_padding_stays_hidden_when_activations_are_large(pytorch, tmp_path, backbone, values):
    """Random weights give activations of any size; scores of the first encoder layer are then as large as their square.

    Between two such scores float32 cannot always tell, and sharpened attention shows it: then the measure is how far
    PyTorch's own float32 is from its float64.
    """
    case = DETR if backbone == "thin" else over(DETR, backbone)
    reference = dataclasses.replace(case.reference, values=values)
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


def test_a_batch_may_be_the_images_alone(port):
    model = port(DETR)
    batch = padded_batch((97, 131), (97, 131))
    del batch["pixel_mask"]
    np.testing.assert_array_equal(model(batch["pixel_values"])["logits"], model(batch)["logits"])


def test_the_auxiliary_outputs_of_transformers_are_not_those_of_detr(port, answers, pytorch):
    """With `auxiliary_loss=True` transformers 5 feeds each decoder layer the normalised output of the one before.

    Should this fail because the two agree, transformers has been repaired and the detour of `reference.stages` can go.
    """
    wrong = DETR.another("wrong", auxiliary_loss=True).reference
    weights, same = answers(DETR).arrays("state"), pytorch.call("models:state", wrong)
    assert weights.keys() == same.keys()
    assert all((weights[name] == same[name]).all() for name in weights)
    batch, right = DETR.sizes[0].batch(), answers(DETR).arrays("stages0")
    last = f"decoder.layer{DETR.reference.fields['decoder_layers'] - 1}"
    assert np.abs(pytorch.call("stages:of_batch", wrong, batch)[last] - right[last]).max() > 0.1
    np.testing.assert_allclose(port(DETR).stages(batch)[last], right[last], rtol=0, atol=DETR.limits.logits)


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
