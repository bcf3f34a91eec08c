"""Files of LW-DETR and RF-DETR: what programs leave beside the weights, names of classes, sizes, what is refused."""

import argparse
import dataclasses
import json
import logging
import shutil
import types

import numpy as np
import pytest
from members import MEMBERS
from ports import weights_of
from safetensors.numpy import load_file, save_file
from some_slow import some_slow

import tfdetr_keras as td
from port_weights import export, export_pth, load_model
from port_weights.families import family_of
from port_weights.processor import processor_of, read_processor
from tfdetr_keras.backbones.dinov2 import DINOv2Config
from tfdetr_keras.backbones.lw_vit import LWViTConfig

pytestmark = pytest.mark.member(name="RFDETR")

LW, RF = MEMBERS["LWDETR"], MEMBERS["RFDETR"]
SMALL = {
    "num_classes": 4,
    "num_queries": 7,
    "d_model": 32,
    "decoder_layers": 2,
    "self_attention_heads": 2,
    "cross_attention_heads": 4,
    "decoder_ffn_dim": 24,
    "decoder_points": 3,
    "groups": 3,
    **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.1),
}
VIT = {"patch_size": 8, "windows": 2, "width": 24, "heads": 3, "table_side": 5, "layer_scale": 0.2, "drop_path": 0.1}


def odd(kind, **changes):
    """Return a model of which nothing is as published, and no shape tells all."""
    if kind == "LWDETR":
        backbone = LWViTConfig(**VIT, depth=3, windowed=(0,), taps=(1, 3))
        images = td.Preprocessing((64, 96), "stretch", multiple_of=16)
        fields = {"projector_scales": (2.0, 0.5), "projector_blocks": 2, "expansion": 0.25, "preprocessing": images}
        return td.LWDETR(td.LWDETRConfig(backbone, **SMALL | fields | {"projector_norm": "frozen"} | changes))
    backbone = DINOv2Config(**VIT, depth=4, taps=(1, 3))
    images = td.Preprocessing((64, 64), "stretch", antialias=False, multiple_of=16)
    names = ["cat", "dog", "N/A", "sky"]
    fields = {"preprocessing": images, "id2label": names, "auxiliary_outputs": False}
    return td.RFDETR(td.RFDETRConfig(backbone, **SMALL | fields | changes))


@pytest.fixture(scope="module")
def state(answers):
    """The weights of a member's tiny model by its authors' names."""

    def of(member):
        on_disk = load_file(answers(member.case).checkpoint / "model.safetensors")
        return next(iter(member.namings.values()), lambda same: same)(on_disk)

    return of


def assert_same(model, original):
    expected = weights_of(original)
    assert weights_of(model).keys() == expected.keys()
    for path, value in weights_of(model).items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---- the authors' files ----


@pytest.mark.parametrize("kind", ["LWDETR", "RFDETR"])
def test_a_pth_tells_what_no_shape_tells(kind, tmp_path):
    original = odd(kind)
    export_pth(original, tmp_path / "model.pth")
    again = load_model(tmp_path / "model.pth")
    assert_same(again, original)
    assert again.config == original.config
    assert again.criterion == original.criterion


def arguments_of(model):
    return family_of(model.config).authors_arguments(model.config, model.criterion)


FORMS = ("Namespace", "SimpleNamespace", "dict", "model_config", "ckpt", "compiled ckpt")


@pytest.mark.parametrize("form", some_slow(FORMS, "SimpleNamespace", "dict"))
def test_every_form_in_which_the_package_keeps_a_model(form, state, port, pytorch, tmp_path, caplog):
    """Of which a Lightning checkpoint has the weights under longer names; nothing in any of them is run."""
    member, tensors = RF, state(RF)
    told = {**arguments_of(port(member.case)), "num_windows": 2, "resolution": 64, "a tuple": (1, 2), "nothing": None}
    size, optimizer = (64, 64), {"state": {0: {"exp_avg": np.ones(3, np.float32)}}}
    beside = {"epoch": 3, "optimizer": optimizer, "ema_model": {name: x + 1 for name, x in tensors.items()}}
    prefix = {"ckpt": "model.", "compiled ckpt": "model._orig_mod."}.get(form, "")
    named = {f"{prefix}{name}": tensor for name, tensor in tensors.items()} | {
        f"{prefix}_kp_active_mask": np.ones((1, 17), np.float32)
    }
    content = {
        "Namespace": {"model": named, "args": argparse.Namespace(**told), **beside},
        "SimpleNamespace": {"model": named, "args": types.SimpleNamespace(**told), **beside},
        "dict": {"model": named, "args": told, **beside},
        "model_config": {"model": named, "args": {"class_names": told["class_names"]}, "model_config": told},
        "ckpt": {"state_dict": named, "hyper_parameters": told, "callbacks": {"best": {"score": 1}}},
        "compiled ckpt": {"state_dict": named, "hyper_parameters": told},
    }[form]
    path = tmp_path / ("last.ckpt" if prefix else "best.pth")
    pytorch.call("pickles:write", path, content)
    model = load_model(path)
    assert_same(model, port(member.case))
    assert (model.config.names, model.preprocessing.size) == (member.config.names, size)
    assert dataclasses.replace(model.config, preprocessing=member.config.preprocessing) == member.config
    expected = ["ema_model"] if "ema_model" in content else []
    assert ["ema_model" for text in warnings_in(caplog) if "an average of the weights (ema_model)" in text] == expected


@pytest.mark.parametrize("place", ["args", "hyper_parameters", "model_config"])
def test_a_file_whose_arguments_run_code_is_refused(place, pytorch, tmp_path):
    trace, path = tmp_path / "harm-was-done", tmp_path / "last.ckpt"
    pytorch.call("pickles:write_arguments_that_run", path, trace, place)
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged, or holds more than weights and is refused"):
        load_model(path)
    assert not trace.exists()
    pytorch.call("pickles:open_without_care", path)  # the trap works
    assert trace.exists()


NAMES = ["cat", "dog", "tree", "sky", "road"]  # of the tiny model's six outputs


@pytest.mark.parametrize(
    ("names", "others", "expected"),
    [
        ([*NAMES, "sea"], {}, [*NAMES, "sea"]),
        (NAMES, {"rfdetr_version": "1.11.2"}, [*NAMES, "N/A"]),
        (NAMES, {"vit_encoder_num_layers": 12}, ["N/A", *NAMES]),
        (NAMES[:4], {"vit_encoder_num_layers": 12}, ["N/A", *NAMES[:4], "N/A"]),
        (NAMES, {"vit_encoder_num_layers": 12, "rfdetr_version": "1.9.0"}, [*NAMES, "N/A"]),
        (NAMES, {}, None),
        (NAMES[:3], {"rfdetr_version": "1.11.2"}, None),
        ([*NAMES, "sea", "sun"], {}, None),
    ],
    ids=["all", "since 1.7", "before", "before, one more", "both", "not told", "too few", "too many"],
)
def test_names_are_those_of_the_outputs_that_the_package_means(
    names, others, expected, state, pytorch, tmp_path, caplog
):
    version = {name: value for name, value in others.items() if name == "rfdetr_version"}
    told = {"class_names": names} | {name: value for name, value in others.items() if name not in version}
    pytorch.call("pickles:write", tmp_path / "best.pth", {"model": state(RF), "args": told, **version})
    model = load_model(tmp_path / "best.pth")
    if expected is None:
        assert model.config.names == {index: f"class_{index}" for index in range(6)}
        assert f"class_names are {len(names)} names, of a head of 6 outputs" in caplog.text
    else:
        assert list(model.config.names.values()) == expected
        assert not warnings_in(caplog)


def test_heads_of_the_backbone_can_be_told(state):
    for member, heads in ((LW, 6), (RF, 4)):
        model = load_model(state(member), heads=heads)
        assert model.config.backbone.heads == heads
        assert model.config.self_attention_heads == member.config.self_attention_heads


def test_backbones_that_nobody_published_are_told(state):
    for member, name, change, message in (
        (LW, "backbone.0.encoder.blocks.5.", None, r"a ViT of 5 blocks of 192 channels is none that is published"),
        (RF, "patch_embeddings.projection.weight", np.zeros((128, 3, 8, 8), np.float32), r"patches of 8 pixels are of"),
    ):
        tensors = {key: tensor for key, tensor in state(member).items() if name not in key}
        if change is not None:
            [key] = [key for key in state(member) if name in key]
            tensors[key] = change
        with pytest.raises(ValueError, match=message):
            load_model(tensors)


def test_queries_that_groups_cannot_share(state):
    tensors = state(RF)
    with pytest.raises(ValueError, match="3 groups cannot share 44 queries"):
        load_model({**tensors, "query_feat.weight": tensors["query_feat.weight"][:44]})


def test_a_left_over_tensor_is_named(state):
    with pytest.raises(ValueError, match=r"1 unexpected: transformer\.something_else"):
        load_model({**state(RF), "transformer.something_else": np.ones(3, np.float32)})


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("LWDETR", {"decoder_activation": "gelu"}, "decoder_activation='gelu', but Atten4Vis/LW-DETR has 'relu' alone"),
        ("RFDETR", {"decoder_activation": "gelu"}, "decoder_activation='gelu', but roboflow/rf-detr has 'relu' alone"),
        ("LWDETR", {"projector_norm": "folded"}, "its batch normalisation is folded"),
    ],
)
def test_what_the_authors_lack(kind, changes, message, tmp_path):
    model = odd(kind)
    with pytest.raises(ValueError, match=message):
        export_pth(type(model)(dataclasses.replace(model.config, **changes)), tmp_path / "model.pth")


@pytest.mark.parametrize("name", ["query.lora_A.default.weight", "query.base_layer.weight", "weight"])
def test_adapters_that_were_not_merged_are_refused(name, state):
    tensors = {**state(RF), f"backbone.0.encoder.base_model.model.{name}": np.zeros((2, 3), np.float32)}
    with pytest.raises(ValueError, match=rf"as peft wraps it .*base_model\.model\.{name}\): merge them where"):
        load_model(tensors)


def test_a_model_of_one_group_goes_both_ways(tmp_path):
    """As inference has it."""
    alone = odd("RFDETR", **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.2)).fold()
    export(alone, tmp_path / "folder")
    again = load_model(tmp_path / "folder")
    assert_same(again, alone)
    assert again.config == alone.config
    export_pth(alone, tmp_path / "model.pth")
    assert load_model(tmp_path / "model.pth").config == alone.config


# ---- Hugging Face's files ----


@pytest.fixture
def folder(answers, tmp_path):
    """Writes a folder of a member with other settings in its `config.json`, or in its backbone's."""

    def written(member, of_backbone=False, tensors=None, **changes):
        copy = shutil.copytree(answers(member.case).checkpoint, tmp_path / "copy", dirs_exist_ok=True)
        config = json.loads((copy / "config.json").read_text())
        (config["backbone_config"] if of_backbone else config).update(changes)
        (copy / "config.json").write_text(json.dumps(config))
        if tensors is not None:
            save_file(tensors, copy / "model.safetensors")
        return copy

    return written


@pytest.mark.parametrize(
    ("member", "of_backbone", "changes", "message"),
    [
        (LW, False, {"activation_function": "relu"}, "activation_function='relu', but here it is 'silu' alone"),
        (LW, False, {"batch_norm_eps": 1e-3}, "batch_norm_eps=0.001"),
        (LW, True, {"mlp_ratio": 2}, "backbone_config.mlp_ratio=2, but here it is 4 alone"),
        (LW, True, {"use_absolute_position_embeddings": False}, "use_absolute_position_embeddings=False"),
        (RF, True, {"use_swiglu_ffn": True}, "backbone_config.use_swiglu_ffn=True"),
        (RF, True, {"layer_norm_eps": 1e-5}, "backbone_config.layer_norm_eps=1e-05"),
        (RF, True, {"apply_layernorm": False}, "apply_layernorm=False"),
        (RF, False, {"num_feature_levels": 2}, "num_feature_levels=2, but here it is 1 alone"),
    ],
)
def test_settings_that_are_refused_by_name(folder, member, of_backbone, changes, message):
    with pytest.raises(ValueError, match=message):
        load_model(folder(member, of_backbone, **changes))


def test_transformers_own_default_of_dropout_is_not_taken(folder, caplog):
    """Nobody trains an RF-DETR with it."""
    caplog.set_level(logging.INFO)
    assert load_model(folder(RF, dropout=0.1)).config.dropout == 0
    assert "dropout=0.1, which is transformers' default: 0 is taken" in caplog.text
    assert load_model(folder(RF, dropout=0.2)).config.dropout == 0.2
    assert load_model(folder(LW, dropout=0.1)).config.dropout == 0.1


@pytest.mark.parametrize("member", [LW, RF], ids=["LWDETR", "RFDETR"])
def test_what_transformers_lacks(member, tmp_path):
    with pytest.raises(ValueError, match="is not written with a backbone of timm"):
        export(member.new(), tmp_path / "folder", backbone="timm")


def test_images_of_rf_detr_are_not_smoothed(tmp_path, caplog):
    """As transformers' processor of it does, too, which no key of its file says."""
    images = RF.config.preprocessing
    written = processor_of(images, RF.config)
    assert written["image_processor_type"] == "RfDetrImageProcessor"
    assert not images.antialias
    assert "antialias" not in written
    assert not warnings_in(caplog)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    assert read_processor(tmp_path, images) == images
    smoothed = dataclasses.replace(images, antialias=True)
    written = processor_of(smoothed, RF.config)
    assert written["antialias"] is True
    assert "transformers does not know, and prepares images without, antialias=True" in caplog.text
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    assert read_processor(tmp_path, images) == smoothed


def test_images_of_lw_detr_are_smoothed(tmp_path, caplog):
    images = LW.config.preprocessing
    written = processor_of(images, LW.config)
    assert written["image_processor_type"] == "DeformableDetrImageProcessor"
    assert written["size"] == {"height": 640, "width": 640}
    assert not warnings_in(caplog)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    assert read_processor(tmp_path, images) == images
