"""DAB-DETR's files: the box head that PyTorch holds twice, fixed centres, and what transformers or the authors lack."""

import json
import logging
import shutil

import authors_names
import numpy as np
import pytest
from members import CASES, MEMBERS
from safetensors.numpy import load_file

from port_weights import export, export_pth, load_model

pytestmark = pytest.mark.member(name="DABDETR")

MEMBER, FIXED = MEMBERS["DABDETR"], CASES["DABDETR-relu"]
COPY = "model.decoder.bbox_embed.layers.1.bias"


@pytest.fixture(scope="module")
def state(answers):
    return load_file(answers(MEMBER.case).checkpoint / "model.safetensors")


def test_copies_of_the_box_head_may_be_there_in_part_or_not_at_all(state):
    whole = authors_names.dab_in_memory(state)
    part = {name: tensor for name, tensor in whole.items() if name != COPY}
    models = [load_model(one, heads=4) for one in (state, part, whole)]
    for one in models[1:]:
        for mine, theirs in zip(one.weights, models[0].weights, strict=True):
            np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)


@pytest.mark.parametrize("naming", ["in memory", "IDEA-Research's"])
def test_a_copy_that_is_another_is_refused_by_name(naming, state):
    renamed = MEMBER.namings[naming](state)
    [copy] = [name for name in renamed if name.endswith("decoder.bbox_embed.layers.1.bias")]
    renamed[copy] = renamed[copy] + 1
    with pytest.raises(ValueError, match=f"{copy} is not equal to bbox_.*layers.1.bias, of which it must be a copy"):
        load_model(renamed, heads=4)


def test_fixed_centres_come_and_go(answers, port, tmp_path):
    """The tensor is one like any other; that its centres are fixed is said beside it."""
    model, folder = port(FIXED), answers(FIXED).checkpoint
    assert model.config.random_refpoints_xy
    export(model, tmp_path / "again")
    written, before = (load_file(one / "model.safetensors") for one in (tmp_path / "again", folder))
    assert written.keys() == before.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["random_refpoints_xy"] is True
    assert load_model(tmp_path / "again").config == model.config


@pytest.mark.slow
def test_a_pth_says_what_no_shape_tells(tmp_path):
    fields = {"random_refpoints_xy": True, "temperature_height": 15, "temperature_width": 30.5, "num_patterns": 2}
    model = MEMBER.new(decoder_ffn_dim=64, keep_query_pos=True, normalize_before=True, **fields)
    export_pth(model, tmp_path / "model.pth")
    again = load_model(tmp_path / "model.pth").config
    for name in (*fields, "keep_query_pos", "normalize_before", "activation_function", "encoder_attention_heads"):
        assert getattr(again, name) == getattr(model.config, name), name


@pytest.mark.slow
def test_the_authors_one_width_is_told(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    export_pth(MEMBER.new(decoder_ffn_dim=64), tmp_path / "model.pth")
    assert "reads this .pth, but the encoder of IDEA-Research/DAB-DETR is 256 channels wide" in caplog.text


def test_a_backbone_of_timm_is_named_as_transformers_holds_it(tmp_path):
    from tfdetr_keras.backbones.resnet import RESNETS

    model = MEMBER.new(backbone=RESNETS["resnet-18"])
    export(model, tmp_path / "timm", backbone="timm")
    names = load_file(tmp_path / "timm" / "model.safetensors")
    assert "model.backbone.conv_encoder.model._backbone.layer1.0.conv1.weight" in names
    again = load_model(tmp_path / "timm")
    for mine, theirs in zip(again.weights, model.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)


def test_another_scale_of_positions_is_refused(answers, tmp_path):
    folder = shutil.copytree(answers(MEMBER.case).checkpoint, tmp_path / "scaled")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sine_position_embedding_scale": 6.2831855}))
    load_model(folder)
    (folder / "config.json").write_text(json.dumps(config | {"sine_position_embedding_scale": 1.0}))
    with pytest.raises(ValueError, match=r"scale=1\.0, but here sine positions are scaled to 2π"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding": "learned"}, "transformers' DAB-DETR has sine positions alone"),
        ({"temperature_height": 12.5}, "temperature_height=12.5, but transformers takes whole numbers alone"),
        ({"activation_function": "elu"}, "only models with .*prelu can be exported there"),
    ],
)
def test_what_transformers_lacks(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(MEMBER.new(**changes), tmp_path / "folder")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "silu", "decoder_ffn_dim": 64}, "IDEA-Research/DAB-DETR has prelu, relu, gelu alone"),
        ({}, "but IDEA-Research/DAB-DETR has one setting for both"),
    ],
)
def test_what_the_authors_lack(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_pth(MEMBER.new(**changes), tmp_path / "model.pth")


def test_the_class_loss_of_a_config_json_is_read_by_nobody(port, tmp_path, caplog):
    """Transformers trains with 1 whatever it says, as the authors do; another one is told to be lost."""
    model = MEMBER.new()
    export(model, tmp_path / "folder")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert "cls_loss_coefficient" not in config
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config | {"cls_loss_coefficient": 2}))
    assert load_model(tmp_path / "folder").criterion.class_loss_coefficient == 1
    model.criterion = type(model.criterion)(classification="focal", class_loss_coefficient=3, cost_class=2)
    caplog.set_level(logging.WARNING)
    export(model, tmp_path / "other")
    assert "transformers cannot be told of, and would train without, class_loss_coefficient=3" in caplog.text
