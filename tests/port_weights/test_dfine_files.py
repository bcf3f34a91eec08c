"""D-FINE's files and DEIM's: averages, what a name tells, numbers that are tensors, rows of Objects365, and folding."""

import dataclasses
import json
import logging
import shutil

import authors_names
import numpy as np
import pytest
from members import CASES, MEMBERS, WHOLE
from ports import weights_of
from safetensors.numpy import load_file

import tfdetr_keras as td
from port_weights import export_pth, load_model, to_torch
from port_weights.families import family_of
from port_weights.schemes import detect_scheme

pytestmark = pytest.mark.member(name="DFINE")

MEMBER = MEMBERS["DFINE"]
PLAIN = CASES["DFINE-plain"]  # of which reg_scale is 8
FOLDED = 1.5e-5  # of logits and boxes. Measured: 1.9e-6 and 4.2e-7


@pytest.fixture(scope="module")
def state(answers):
    """What `save_pretrained` writes."""
    return load_file(answers(MEMBER.case).checkpoint / "model.safetensors")


def assert_same(model, original):
    expected = weights_of(original)
    assert weights_of(model).keys() == expected.keys()
    for path, value in weights_of(model).items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_average_is_what_counts(state, pytorch, port, tmp_path, caplog):
    """Files of a training run have both."""
    authors = authors_names.d_fine(state)
    trained = {name: tensor + 1 if tensor.dtype == np.float32 else tensor for name, tensor in authors.items()}
    content = {"model": trained, "ema": {"module": authors, "updates": 3, "warmups": 1000}, "last_epoch": 3}
    pytorch.call("pickles:write", tmp_path / "both.pth", content)
    assert_same(load_model(tmp_path / "both.pth", heads=4), port(MEMBER.case))
    assert "the average of the weights is taken (ema.module), as its authors do" in caplog.text


@pytest.mark.parametrize("name", ["DFINE-plain", "DFINE-two-levels"])
@pytest.mark.parametrize("naming", [dict, authors_names.d_fine_in_memory, authors_names.d_fine])
def test_all_names_both_ways(name, naming, answers, port):
    """Bit for bit, of the architectures beside the member's own."""
    model = port(CASES[name])
    named = naming(load_file(answers(CASES[name]).checkpoint / "model.safetensors"))
    assert_same(load_model(named, heads=4), model)
    written = to_torch(model, detect_scheme(named))
    kept = {one for one in named if not one.endswith(("num_batches_tracked", "n_points_scale", "num_points_scale"))}
    assert kept <= set(written)
    for one in kept:
        np.testing.assert_array_equal(written[one], named[one], err_msg=one)


def test_the_name_of_a_file_tells_of_deim(state, pytorch, port, tmp_path, caplog):
    """Released files hold the average alone: DEIM's as of training, D-FINE's as `model`."""
    authors = authors_names.d_fine(state)
    for name, content, activation in (
        ("deim_dfine_hgnetv2_s_coco_120e.pth", {"ema": {"module": authors}}, "silu"),
        ("dfine_s_coco.pth", {"model": authors}, "relu"),
    ):
        caplog.clear()
        pytorch.call("pickles:write", tmp_path / name, content)
        model = load_model(tmp_path / name, heads=4)
        assert (model.config.mlp_activation, model.config.decoder_activation) == (activation, activation)
        assert_same(model, port(MEMBER.case))
        told = "silu in the decoder, as its name says (deim); no tensor tells"
        assert [told in text for text in warnings_in(caplog)] == [True] * (activation == "silu")


@pytest.mark.slow
def test_a_pth_of_ours_tells_of_deim_under_any_name(tmp_path, caplog):
    original = MEMBER.new(mlp_activation="silu", decoder_activation="silu")
    export_pth(original, tmp_path / "own.pth")
    model = load_model(tmp_path / "own.pth")
    assert (model.config.mlp_activation, model.config.decoder_activation) == ("silu", "silu")
    assert_same(model, original)


def test_the_scale_of_distances_is_that_of_the_tensor(answers, port, tmp_path):
    """As in the largest published model, whose config.json has 4."""
    copy = shutil.copytree(answers(PLAIN).checkpoint, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    assert config["reg_scale"] == 8
    (copy / "config.json").write_text(json.dumps(config | {"reg_scale": 4.0}))
    model = load_model(copy)
    assert model.config.reg_scale == 8
    assert_same(model, port(PLAIN))
    batch = WHOLE.batch()
    np.testing.assert_array_equal(model(batch)["pred_boxes"], port(PLAIN)(batch)["pred_boxes"])


@pytest.mark.parametrize("name", ["DFINE", "DFINE-two-levels"])
def test_folded_it_finds_the_same(name, port):
    model = port(CASES[name])
    folded, batch = model.fold(), WHOLE.batch()
    assert not any("normalization/" in weight.path for weight in folded.weights)
    found, expected = folded(batch), model(batch)
    for output in ("logits", "pred_boxes"):
        apart = np.abs(np.asarray(found[output]) - np.asarray(expected[output])).max()
        print(f"{name} {output} {apart:.1e}")
        assert apart < FOLDED


def test_rows_of_objects365_are_kept_by_name(state, pytorch, tmp_path):
    """The first row is no class, names are longer than COCO's, and other classes are new."""
    objects = [f"object {index}" for index in range(6)]
    objects[2], objects[5] = "Person", "Traffic Light"
    authors = authors_names.d_fine(state)
    pytorch.call("pickles:write", tmp_path / "objects365.pth", {"model": authors})
    source = load_model(tmp_path / "objects365.pth", heads=4, id2label=objects)
    source.save(tmp_path / "objects365.keras")
    model = td.from_pretrained(tmp_path / "objects365.keras", id2label=["Traffic Light", "zebra", "Person"])
    assert model.config.num_classes == 3
    mine, theirs, kept = weights_of(model), weights_of(source), 0
    for path, value in theirs.items():
        if "class_head" in path:
            np.testing.assert_array_equal(mine[path][..., [0, 2]], value[..., [5, 2]], err_msg=path)
            kept += 1
        elif path.startswith("denoising_embedding"):
            np.testing.assert_array_equal(mine[path][[0, 2, -1]], value[[5, 2, -1]], err_msg=path)
        else:
            np.testing.assert_array_equal(mine[path], value, err_msg=path)
    assert kept == 2 * (MEMBER.config.decoder_layers + 1)


@pytest.mark.slow
def test_rt_detr_v2_over_the_same_backbone_comes_back(tmp_path):
    second = MEMBERS["RTDETRV2"]
    original = second.new(backbone=MEMBER.config.backbone, offset_scale=0.5)
    export_pth(original, tmp_path / "rtdetrv2_hgnetv2.pth")
    model = load_model(tmp_path / "rtdetrv2_hgnetv2.pth")
    assert type(model) is td.RTDETRV2
    assert model.config.backbone == dataclasses.replace(
        original.config.backbone, batch_norm=model.config.backbone.batch_norm
    )
    assert_same(model, original)
    named = to_torch(original, family_of(original.config).authors_scheme(original.config))
    assert_same(load_model(named, heads=4), original)
