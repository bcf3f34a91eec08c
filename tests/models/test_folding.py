"""A folded model answers as the one it was made of."""

import keras
import numpy as np
import pytest

import port_weights
import tfdetr_keras as td


@pytest.fixture
def randomised(make_model):
    """Makes the small model with batch statistics that matter."""

    def make(**changes):
        model, rng = make_model(**changes), np.random.default_rng(1)
        for weight in model.weights:
            if "normalization/" in weight.path:
                low = 0.3 if weight.path.endswith(("gamma", "variance")) else -0.5
                weight.assign(rng.uniform(low, 1.5, weight.shape))
        return model

    return make


@pytest.mark.parametrize(
    "backbone",
    [
        {},
        {"batch_norm": "trainable"},
        {"block": "bottleneck", "dilation": True},
    ],
)
def test_same_outputs_at_every_stage(randomised, make_batch, backbone):
    model = randomised(backbone=backbone)
    folded, inputs = model.fold(), make_batch()[0]
    expected = model.stages(inputs)
    for name, found in folded.stages(inputs).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert not any("normalization/" in weight.path and "backbone/" in weight.path for weight in folded.weights)
    assert any("normalization/" in weight.path for weight in model.weights)  # which is left as it was


def test_a_folded_model_is_saved_as_any(randomised, make_batch, tmp_path):
    folded, inputs = randomised().fold(), make_batch()[0]
    folded.save(tmp_path / "folded.keras")
    for again in (
        keras.saving.load_model(tmp_path / "folded.keras"),
        td.DETR.from_pretrained(tmp_path / "folded.keras"),
    ):
        np.testing.assert_array_equal(again(inputs)["logits"], folded(inputs)["logits"])


def test_what_is_kept(randomised):
    model = randomised(frozen="stem", id2label={0: "a", 1: "b", 2: "c"}, dtype="mixed_bfloat16")
    folded = model.fold()
    assert folded.config.frozen == ("stem",)
    assert folded.id2label == model.id2label
    assert folded.dtype_policy.name == "mixed_bfloat16"


def test_what_cannot_be_done(randomised, tmp_path):
    folded = randomised().fold()
    with pytest.raises(ValueError, match="folded already"):
        folded.fold()
    with pytest.raises(ValueError, match="export the original"):
        port_weights.export(folded, tmp_path / "out")
    folded.save(tmp_path / "folded.keras")
    records, names = td.data.load_shapes(4)
    with pytest.raises(ValueError, match=r"folded\.keras: its batch normalisation was folded for inference"):
        td.fit_detector(records, names, tmp_path / "run", source=tmp_path / "folded.keras")
