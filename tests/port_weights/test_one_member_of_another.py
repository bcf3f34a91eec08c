"""Checkpoints of one member where another is asked for, new heads of them, and what is missing in them."""

import json
import logging

import numpy as np
import pytest
from members import CONDITIONAL, SEGMENTATION
from ports import weights_of
from safetensors.numpy import load_file, save_file

import tfdetr_keras as td
from port_weights import load_model
from port_weights.architecture import hugging_face_config
from port_weights.compare import compare
from tfdetr_keras.models import DETR, ConditionalDETR, DETRForSegmentation


@pytest.fixture
def segmentation(answers):
    """The folder of a segmentation model."""
    return answers(SEGMENTATION).checkpoint


@pytest.fixture
def conditional(answers):
    """The folder of a Conditional DETR."""
    return answers(CONDITIONAL).checkpoint


def test_a_detector_of_a_segmentation_model_leaves_its_mask_head_out(segmentation, port, caplog):
    detector = DETR.from_pretrained(segmentation)
    assert type(detector) is DETR
    assert "a detector of a segmentation model: the mask head is left out" in caplog.text
    pixels = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    for name, value in detector(pixels).items():
        np.testing.assert_array_equal(value, port(SEGMENTATION)(pixels)[name])


def test_a_detector_gets_a_fresh_mask_head(segmentation, port, tmp_path, caplog):
    """From a file as `from_pretrained` does it, and from a model in memory."""
    caplog.set_level(logging.WARNING)
    on_disk = load_file(segmentation / "model.safetensors")
    state = {name.removeprefix("detr."): tensor for name, tensor in on_disk.items() if name.startswith("detr.")}
    save_file(state, tmp_path / "model.safetensors")
    config = json.loads((segmentation / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["DetrForObjectDetection"]}))
    assert type(td.from_pretrained(tmp_path)) is DETR

    model = DETRForSegmentation.from_pretrained(tmp_path)
    assert "started from random weights: mask_attention, mask_head" in caplog.text
    detector = DETR.from_pretrained(tmp_path)
    again = DETRForSegmentation.from_detector(detector)
    weights = weights_of(port(SEGMENTATION))
    for made in (model, again):
        fresh = {path for path, value in weights_of(made).items() if not np.array_equal(value, weights[path])}
        assert {path.split("/")[0] for path in fresh} == {"mask_attention", "mask_head"}
    assert {w.path.split("/")[1] for w in again.trainable_weights} == {"mask_attention", "mask_head"}
    assert len(DETRForSegmentation.from_detector(detector, freeze=False).trainable_weights) > 60


def test_classes_that_cannot_be_had_of_one_another(conditional):
    with pytest.raises(ValueError, match=r"checkpoint: this is a ConditionalDETR, not a DETR: load it with td\.Cond"):
        DETR.from_pretrained(conditional)
    with pytest.raises(ValueError, match="this is a DETR, not a ConditionalDETR"):
        ConditionalDETR.from_pretrained("detr-tiny")


def test_a_new_class_head_of_a_conditional_detr(conditional, caplog):
    model = td.from_pretrained(conditional, num_classes=7)
    assert model.class_head.kernel.shape == (32, 7)
    assert "new class head: 7 classes instead of the checkpoint's 6" in caplog.text
    probability = 1 / (1 + np.exp(-np.asarray(model.class_head.bias)))
    np.testing.assert_allclose(probability, 0.01, rtol=1e-5)  # rare, before anything is learned


def test_tensors_that_are_missing_are_named(segmentation, conditional):
    state = load_file(segmentation / "model.safetensors")
    state = {name: tensor for name, tensor in state.items() if "gn3" not in name}
    with pytest.raises(ValueError, match=r"2 missing: mask_head\.gn3\.bias, mask_head\.gn3\.weight"):
        load_model(state, heads=8)
    state = load_file(conditional / "model.safetensors")
    state = {name: tensor for name, tensor in state.items() if "layers.1.ca_qpos_sine" not in name}
    with pytest.raises(ValueError, match=r"2 missing: model.decoder.layers.1.ca_qpos_sine_proj.bias, .*weight"):
        load_model(state, heads=4)


SMALL = {
    "num_classes": 4,
    "num_queries": 6,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
}
THIN = td.ResNetConfig("bottleneck", (1, 1, 1, 2), (64, 64, 64, 96), 16)
DC5 = td.ResNetConfig("bottleneck", (1, 1, 1, 2), (64, 64, 64, 96), 16, dilation=True)


@pytest.mark.parametrize(
    ("config_class", "backbone"),
    [
        pytest.param(td.SegmentationConfig, THIN, marks=pytest.mark.slow, id="segmentation"),
        pytest.param(td.SegmentationConfig, DC5, marks=pytest.mark.slow, id="segmentation dc5"),
        pytest.param(td.ConditionalDETRConfig, THIN, marks=pytest.mark.slow, id="conditional"),
        pytest.param(td.ConditionalDETRConfig, DC5, marks=pytest.mark.slow, id="conditional dc5"),
    ],
)
def test_the_comparison_knows_the_members(config_class, backbone, pytorch, tmp_path):
    """Also of dilated backbones, which transformers has with timm alone: there its own are dilated by hand."""
    config = config_class(backbone=backbone, **SMALL)
    pytorch.call("models:save_random", hugging_face_config(config), tmp_path / "random")
    source = load_file(tmp_path / "random" / "model.safetensors") if backbone.dilation else tmp_path / "random"
    options = {"heads": 8, "dilation": True} if backbone.dilation else {}
    rows, _ = compare(source, height=96, width=128, **options)
    assert [row.stage for row in rows if not row.agrees] == []
    assert ("pred_masks" in {row.stage for row in rows}) == (config_class is td.SegmentationConfig)
