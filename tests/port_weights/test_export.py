"""Exported models, read by the real transformers, by a plain PyTorch DETR and back into Keras; and what is refused."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open
from safetensors.numpy import load_file

import port_weights.__main__ as command_line
from port_weights import compare as comparing
from port_weights import export, export_pth, exports, load_model
from port_weights.exports import FILES
from port_weights.families.detr import ACTIVATIONS
from tfdetr_keras import (
    DETR,
    DETRConfig,
    Preprocessing,
    ResNetConfig,
    SetCriterion,
    TableTransformer,
    TableTransformerConfig,
)
from tfdetr_keras.backbones.resnet import RESNETS
from tfdetr_keras.models import model_class

BACKBONE = ResNetConfig(depths=(1, 2), channels=(16, 32), stem_channels=8)
TINY = DETRConfig(
    backbone=BACKBONE,
    num_classes=3,
    id2label={0: "cat", 1: "Hündin", 2: "cat"},  # COCO names several classes "N/A"
    num_queries=5,
    d_model=16,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=2,
    encoder_ffn_dim=24,
    decoder_ffn_dim=20,
    dropout=0.2,
    attention_dropout=0.05,
    activation_dropout=0.15,
)
CRITERION = SetCriterion(2.0, 4.0, 3.0, bbox_loss_coefficient=6.0, giou_loss_coefficient=7.0, eos_coefficient=1.0)


def changed(config=TINY, backbone=None, kind=DETRConfig, **changes):
    """A configuration with other values, those of its backbone in `backbone`."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    kind = type(config) if kind is DETRConfig else kind
    return kind(**fields | {"backbone": dataclasses.replace(config.backbone, **backbone or {}), **changes})


CONFIGS = {
    "post-norm": TINY,
    "pre-norm": changed(backbone={"block": "basic"}, kind=TableTransformerConfig),
    "learned": changed(position_embedding="learned"),
    "pre-norm-learned": changed(position_embedding="learned", kind=TableTransformerConfig),
    "batch-norm": changed(backbone={"batch_norm": "trainable"}, activation_function="gelu"),
    "two-classes": changed(num_classes=2, id2label=None, activation_function="silu", auxiliary_outputs=False),
}


def random_model(config, criterion=None, seed=0, **options):
    """A Keras model with every weight at random, statistics included.

    Deep random networks map all images to one point, where a wrong backbone would go unnoticed: so kernels that read
    rectified values are centred, and attention is sharpened.
    """
    model, rng = model_class(config)(config, criterion, **options), np.random.default_rng(seed)
    for variable in model.weights:
        shape, path = tuple(variable.shape), variable.path
        if path.endswith(("gamma", "moving_variance")):
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) == 1 or path.endswith("bias"):
            value = rng.normal(0.0, 0.2, shape)
        elif path.endswith(("embeddings", "row", "column")):
            value = rng.normal(size=shape)
        else:
            inputs = shape[0] if path.endswith(("query/kernel", "key/kernel", "value/kernel")) else shape[:-1]
            value = rng.normal(size=shape) / np.sqrt(np.prod(inputs))
        if "convolution" in path or path.endswith("feed_forward/output/kernel"):
            value -= value.mean(axis=tuple(range(value.ndim - 1)), keepdims=True)
        elif path.endswith(("query/kernel", "key/kernel")):
            value *= 2
        variable.assign(value)
    return model


@pytest.fixture(scope="module", params=CONFIGS)
def exported(request, tmp_path_factory):
    """A model of each kind and its folder."""
    model = random_model(CONFIGS[request.param], CRITERION)
    folder = tmp_path_factory.mktemp("exported") / request.param
    assert export(model, folder) is model
    return model, folder


@pytest.fixture(scope="module")
def tiny():
    return random_model(TINY, CRITERION)


@pytest.fixture
def read_by_transformers(pytorch):
    """Reads a folder as a detector, which must leave no tensor over and lack none, and runs it on `BATCH`."""

    def read(folder):
        found = pytorch.call("models:read_folder", folder, BATCH)
        loading = found["loading"]
        assert {"missing_keys", "unexpected_keys", "mismatched_keys"} <= loading.keys()
        assert not any(loading.values()), loading
        return found

    return read


BATCH = comparing.padded_batch(64, 96)


def assert_same_outputs(theirs, model):
    """PyTorch and Keras agree on a padded batch, on which a model of other weights would not."""
    ours = model(BATCH)
    for name, tolerance in (("logits", 1e-4), ("pred_boxes", 1e-5)):
        expected = np.asarray(ours[name])
        assert np.ptp(expected, axis=0).max() > 100 * tolerance, "the images should be told apart"
        np.testing.assert_allclose(theirs[name], expected, rtol=0, atol=tolerance)


def assert_same_weights(weights_of, model, expected):
    got, expected = weights_of(model), weights_of(expected)
    assert got.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(got[path], array, err_msg=path)


def as_ported(config):
    """What is left of a configuration in a folder: which parts are trained is not said there."""
    return changed(config, {"batch_norm": "frozen"}, frozen=("stem", "stage1"), auxiliary_outputs=True)


def test_transformers_reads_a_folder(exported, read_by_transformers):
    model, folder = exported
    detector = read_by_transformers(folder)
    family = "TableTransformer" if isinstance(model, TableTransformer) else "Detr"
    assert detector["class"] == f"{family}ForObjectDetection"
    assert detector["id2label"] == model.id2label
    assert_same_outputs(detector, model)


def test_a_folder_comes_back_bit_for_bit(exported, weights_of, tmp_path):
    model, folder = exported
    again = load_model(folder)
    assert_same_weights(weights_of, again, model)
    assert again.config == as_ported(model.config)
    assert again.criterion == CRITERION
    export(again, tmp_path / "again")
    assert sorted(entry.name for entry in folder.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_ported_folder_goes_back_as_it_was(hf_folder, state, pytorch, tmp_path):
    """Both files as transformers itself wrote them, but for keys of the configuration that say nothing here."""
    export(hf_folder, tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)
    theirs, ours = (pytorch.call("models:config_of_folder", folder) for folder in (hf_folder, tmp_path / "back"))
    silent = {"_name_or_path", "dtype", "transformers_version", "use_timm_backbone", "use_pretrained_backbone"}
    for name in (theirs.keys() | ours.keys()) - silent - {"backbone", "backbone_config"}:
        assert ours.get(name) == theirs.get(name), name
    for name in (theirs["backbone_config"].keys() | ours["backbone_config"].keys()) - silent:
        assert ours["backbone_config"].get(name) == theirs["backbone_config"].get(name), name


def random_targets(batch, num_classes):
    rng = np.random.default_rng(1)
    boxes = np.concatenate([rng.uniform(0.3, 0.7, (batch, 4, 2)), rng.uniform(0.1, 0.5, (batch, 4, 2))], axis=-1)
    return {"labels": rng.integers(0, num_classes, (batch, 4)), "boxes": boxes.astype(np.float32)}


@pytest.mark.slow
@pytest.mark.parametrize("start", ["ported", "from-scratch"])
def test_a_trained_model(start, make_hugging_face_model, pytorch, read_by_transformers, weights_of, tmp_path):
    keras.utils.set_random_seed(0)
    if start == "ported":  # with a new head, and everything in it trained
        pytorch.call("models:save", make_hugging_face_model(values="telling"), tmp_path / "theirs")
        model = load_model(tmp_path / "theirs", id2label={0: "nut", 1: "bolt"})
        model.freeze()
    else:
        model = random_model(changed(backbone={"batch_norm": "trainable"}))
    before = weights_of(model)
    model.compile(optimizer=keras.optimizers.Adam(1e-3))
    model.fit(BATCH, random_targets(2, model.config.num_classes), batch_size=2, epochs=3, verbose=0)
    moved = {path for path, array in weights_of(model).items() if (array != before[path]).any()}
    statistics = {path for path in before if path.endswith(("moving_mean", "moving_variance"))}
    assert {"detr/class_head/kernel", "detr/backbone/stem/convolution/kernel"} <= moved
    assert statistics <= moved if start == "from-scratch" else not statistics & moved
    export(model, tmp_path / "trained")
    detector = read_by_transformers(tmp_path / "trained")
    assert detector["id2label"] == model.id2label
    assert_same_outputs(detector, model)
    assert_same_weights(weights_of, load_model(tmp_path / "trained"), model)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_means_the_same_on_both_sides(name, pytorch):
    x = np.linspace(-8, 8, 1001, dtype=np.float32)
    np.testing.assert_allclose(
        keras.activations.get(name)(x), pytorch.call("layers:activation", name, x), rtol=0, atol=3e-6
    )


def test_half_precision_becomes_float32(weights_of, tmp_path):
    model = random_model(TINY, dtype="bfloat16")
    assert model.input_projection.kernel.dtype == "bfloat16"
    export(model, tmp_path / "half")
    arrays = load_file(tmp_path / "half" / "model.safetensors")
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    assert_same_weights(weights_of, load_model(tmp_path / "half"), model)


def test_the_image_processor(tiny, pytorch, tmp_path):
    export(tiny, tmp_path / "usual")
    export(tiny, tmp_path / "small", size=(480, 800))
    for folder, size in (("usual", (800, 1333)), ("small", (480, 800))):
        assert pytorch.call("processors:warnings_about_folder", tmp_path / folder) == []
        expected = pytorch.call("processors:settings", size)
        assert expected["class"].startswith("DetrImageProcessor")
        assert pytorch.call("processors:of_folder", tmp_path / folder) == expected
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    inputs, outputs, _ = pytorch.call("processors:run_folder", tmp_path / "small", image)
    assert inputs["pixel_values"].shape == (1, 3, 480, 720)
    assert outputs["logits"].shape == (1, 5, 4)


def test_the_canvas_of_the_training(tiny, pytorch, tmp_path):
    export(tiny, tmp_path / "canvas", size=(48, 64), pad_to=(64, 80))
    image = np.zeros((60, 75, 3), np.uint8)
    inputs = pytorch.call("processors:prepare_by_folder", tmp_path / "canvas", image)
    assert inputs["pixel_values"].shape == (1, 3, 64, 80)
    assert inputs["pixel_mask"].sum() == 48 * 60
    assert load_model(tmp_path / "canvas").preprocessing == Preprocessing((48, 64), pad_to=(64, 80))


def test_the_file_says_that_it_is_pytorchs(tiny, tmp_path):
    """Version 4 of transformers reads no safetensors that do not."""
    export(tiny, tmp_path / "tiny")
    with safe_open(tmp_path / "tiny" / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert len({entry.stat().st_mode for entry in (tmp_path / "tiny").iterdir()}) == 1  # read by the same people


# timm


TIMM_PREFIX = "model.backbone.conv_encoder.model."
TIMM = {
    "resnet18": changed(backbone=dataclasses.asdict(RESNETS["resnet-18"])),
    "resnet50": changed(backbone={**dataclasses.asdict(RESNETS["resnet-50"]), "dilation": True}),
}


@pytest.fixture(scope="module", params=TIMM)
def timm_exported(request, tmp_path_factory):
    """Models over ResNets that timm has, one of them DC5, and their folders."""
    model = random_model(TIMM[request.param], CRITERION)
    folder = tmp_path_factory.mktemp("timm") / request.param
    export(model, folder, backbone="timm")
    return request.param, model, folder


def test_timm_names(timm_exported, pytorch):
    """Those of the same ResNet in plain PyTorch, which computes the same from them."""
    _, model, folder = timm_exported
    backbone = model.config.backbone
    fields = backbone.depths, backbone.channels, backbone.stem_channels, backbone.block, backbone.dilation
    tensors = load_file(folder / "model.safetensors")
    named = {name.removeprefix(TIMM_PREFIX): t for name, t in tensors.items() if name.startswith("model.backbone")}
    pixels = BATCH["pixel_values"]
    expected = pytorch.call("models:stages_of_backbone", fields, named, pixels)
    for ours, theirs in zip(model.backbone(pixels), expected, strict=True):
        difference = np.abs(np.asarray(ours) - theirs).max()
        # After fifty layers either side's rounding reaches 8e-5 of the largest value, as float64 shows.
        assert difference <= 5e-4 * np.abs(theirs).max()


def test_what_transformers_asks_timm_for(timm_exported, pytorch):
    """Versions 4 and 5 read the same keys, each in its way; this is version 5's."""
    name, model, folder = timm_exported
    backbone = pytorch.call("models:config_of_folder", folder)["backbone_config"]
    assert (backbone["model_type"], backbone["backbone"]) == ("timm_backbone", name)
    assert list(backbone["out_indices"]) == [1, 2, 3, 4]
    assert backbone["output_stride"] == (16 if model.config.backbone.dilation else None)
    written = json.loads((folder / "config.json").read_text())
    assert (written["use_timm_backbone"], written["backbone"]) == (True, name)
    assert (written["backbone_config"], written["use_pretrained_backbone"]) == (None, False)
    assert written["dilation"] == model.config.backbone.dilation


def test_timm_folders_come_back_bit_for_bit(timm_exported, read_by_transformers, weights_of, tmp_path):
    name, model, folder = timm_exported
    again = load_model(folder)
    assert_same_weights(weights_of, again, model)
    assert again.config == as_ported(model.config)
    export(again, tmp_path / "again", backbone="timm")
    for file in FILES:
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()
    if name == "resnet18":  # and by way of transformers' own ResNet
        export(folder, tmp_path / "own")
        assert_same_outputs(read_by_transformers(tmp_path / "own"), model)
        export(tmp_path / "own", tmp_path / "back", backbone="timm")
        for file in FILES:
            assert (tmp_path / "back" / file).read_bytes() == (folder / file).read_bytes()


# .pth


FACEBOOK = changed(encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24)
FACEBOOK_CONFIGS = {
    "post-norm": FACEBOOK,
    "pre-norm": changed(FACEBOOK, {"block": "basic", "batch_norm": "trainable"}, TableTransformerConfig),
    "dilated": changed(FACEBOOK, {"dilation": True}),
}


@pytest.mark.parametrize(
    "kind", ["post-norm", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("pre-norm", "dilated"))]
)
def test_a_pth_file(kind, pytorch, weights_of, tmp_path):
    """Read by a plain PyTorch DETR with facebookresearch's names, and by `load_model` that is told nothing."""
    config = FACEBOOK_CONFIGS[kind]
    model, path = random_model(config, CRITERION), tmp_path / "detr.pth"
    assert export_pth(model, path) is model
    assert [entry.name for entry in tmp_path.iterdir()] == ["detr.pth"]
    fields = {
        "depths": config.backbone.depths,
        "widths": config.backbone.channels,
        "stem_width": config.backbone.stem_channels,
        "layer_type": config.backbone.block,
        "dilated": config.backbone.dilation,
        "d_model": 16,
        "heads": 4,
        "ffn_dim": 24,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_queries": 5,
        "num_labels": 3,
        "pre_norm": config.pre_norm,
    }
    assert_same_outputs(pytorch.call("models:outputs_of_pickle", path, fields, BATCH), model)

    again = load_model(path)
    assert_same_weights(weights_of, again, model)
    # Names of classes and dropouts are not read from a .pth.
    kept = {"id2label": None, "dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1}
    assert again.config == changed(as_ported(config), **kept)


@pytest.mark.slow
def test_the_arguments_of_a_pth_file(pytorch, tmp_path, caplog):
    backbone = changed(FACEBOOK, dataclasses.asdict(RESNETS["resnet-18"]), position_embedding="learned")
    export_pth(random_model(backbone, CRITERION), tmp_path / "detr.pth")
    assert caplog.text == ""
    arguments = vars(pytorch.call("pickles:read", tmp_path / "detr.pth")["args"])
    assert arguments == {
        **{"backbone": "resnet18", "dilation": False, "position_embedding": "learned", "masks": False},
        **{"enc_layers": 1, "dec_layers": 2, "dim_feedforward": 24, "hidden_dim": 16, "nheads": 4, "num_queries": 5},
        **{"dropout": 0.2, "pre_norm": False, "aux_loss": True, "eos_coef": 1.0},
        **{"set_cost_class": 2.0, "set_cost_bbox": 4.0, "set_cost_giou": 3.0},
        **{"bbox_loss_coef": 6.0, "giou_loss_coef": 7.0, "mask_loss_coef": 1.0, "dice_loss_coef": 1.0},
    }
    assert load_model(tmp_path / "detr.pth").criterion == CRITERION


def test_a_backbone_that_torchvision_lacks_is_written_and_said(tmp_path, caplog):
    export_pth(random_model(FACEBOOK), tmp_path / "own.pth")
    assert "load_model reads this backbone from the .pth, but torchvision has none like it" in caplog.text


@pytest.mark.slow
def test_learned_positions_before_the_norm_agree_through_the_tables(tmp_path):
    """Table Transformer keeps them where version 4 of DETR did."""
    export_pth(
        random_model(changed(FACEBOOK, kind=TableTransformerConfig, position_embedding="learned")),
        tmp_path / "detr.pth",
    )
    rows, origin = comparing.compare(tmp_path / "detr.pth", height=64, width=96)
    assert origin == "written from the ported model through the name tables"
    assert [row.stage for row in rows if not row.agrees] == []


# What is said, and what is refused


def test_a_loss_that_transformers_cannot_be_told_of(read_by_transformers, tmp_path, caplog):
    criterion = SetCriterion(bbox_loss_coefficient=2.5, class_weights=(1.0, 2.0, 3.0), eos_coefficient=0.4)
    model = random_model(TINY, criterion)
    export(model, tmp_path / "odd")
    assert caplog.messages == [
        "the model 'detr': transformers cannot be told of, and would train without, bbox_loss_coefficient=2.5, "
        "class_weights=(1.0, 2.0, 3.0)"
    ]
    config = read_by_transformers(tmp_path / "odd")["config"]  # version 5 refuses 2.5
    told = [config[f"{name}_coefficient"] for name in ("bbox_loss", "giou_loss", "eos")]
    assert told == [5, 2, 0.4]


@pytest.mark.parametrize("kind", ["post-norm", "learned", "pre-norm-learned"])
def test_only_detrs_learned_positions_depend_on_the_version(kind, tmp_path, caplog):
    export(random_model(CONFIGS[kind], CRITERION), tmp_path / "detr")
    said = ["the model 'detr': learned positions are written as transformers 5 names them; 4 will not find them"]
    assert caplog.messages == (said if kind == "learned" else [])


def broken(config=TINY):
    model = random_model(config)
    model.class_head.bias.assign(np.full(4, np.nan))
    return model


STANDARD_DC5 = changed(backbone=dataclasses.asdict(RESNETS["resnet-18"]) | {"dilation": True})
DC5 = "the backbone's last stage is dilated (DC5), which Hugging Face's own ResNet cannot be: "
NO_TIMM = (
    "timm has no ResNet of depths (1, 2) and channels (16, 32), only resnet-18, resnet-34, resnet-50, resnet-101: "
)
PTH = "transformers has no place for one like this; export_pth, or a target ending in .pth, keeps it"
HEADS = "encoder_attention_heads=4 and decoder_attention_heads=2, but facebookresearch/detr has one setting for both"
WIDTHS = "encoder_ffn_dim=24 and decoder_ffn_dim=20, but facebookresearch/detr has one setting for both"
DIVERGED = "1 of its weights are not finite, as after a training that diverged: "
FACEBOOK_REFUSES = ": export a Hugging Face folder instead"


@pytest.mark.parametrize(
    ("write", "config", "message"),
    [
        (export, STANDARD_DC5, DC5 + "write it with backbone='timm', as resnet18 there"),
        (export, changed(backbone={"dilation": True}), DC5 + PTH),
        (lambda *given: export(*given, backbone="timm"), TINY, NO_TIMM + "write it with backbone='hugging-face'"),
        (lambda *given: export(*given, backbone="timm"), changed(backbone={"dilation": True}), NO_TIMM + PTH),
        (export, changed(activation_function="leaky_relu"), "activation_function='leaky_relu' is not known to be the "),
        (export_pth, changed(FACEBOOK, decoder_attention_heads=2), HEADS + FACEBOOK_REFUSES),
        (export_pth, changed(FACEBOOK, decoder_ffn_dim=20), WIDTHS + FACEBOOK_REFUSES),
        (export_pth, changed(FACEBOOK, activation_function="gelu"), "activation_function='gelu', but facebookresearch"),
    ],
    ids=["dc5", "odd-dc5", "odd-timm", "odd-dc5-timm", "leaky-relu", "pth-heads", "pth-widths", "pth-gelu"],
)
def test_models_that_the_format_cannot_express(write, config, message, tmp_path):
    target = tmp_path / ("detr.pth" if write is export_pth else "detr")
    with pytest.raises(ValueError, match="the model 'detr': ") as caught:
        write(DETR(config), target)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite(tmp_path):
    with pytest.raises(ValueError, match=DIVERGED + "class_labels_classifier.bias$"):
        export(broken(), tmp_path / "detr")
    with pytest.raises(ValueError, match=DIVERGED + "class_embed.bias$"):
        export_pth(broken(FACEBOOK), tmp_path / "detr.pth")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": (1333, 800)}, ValueError, r"size must be \(shortest_edge, longest_edge\), .* not \(1333, 800\)"),
        ({"size": (0, 800)}, ValueError, "size must be"),
        ({"size": (480.5, 800)}, ValueError, "size must be"),
        ({"pad_to": (800, 700)}, ValueError, r"pad_to=\(800, 700\) must be \(height, width\) in pixels, for images of"),
        ({"backbone": "torchvision"}, ValueError, "backbone='torchvision' must be one of 'hugging-face', 'timm'"),
        ({"heads": 4}, ValueError, "heads: for a checkpoint that is yet to be read, and this is a model"),
    ],
)
def test_options_that_cannot_be(options, error, message, tiny, tmp_path):
    with pytest.raises(error, match=message):
        export(tiny, tmp_path / "detr", **options)
    assert list(tmp_path.iterdir()) == []


def test_options_are_those_of_load_model(state, pytorch, tmp_path):
    export(state, tmp_path / "detr", heads=2, num_classes=7)
    config = pytorch.call("models:config_of_folder", tmp_path / "detr")
    assert (config["encoder_attention_heads"], len(config["id2label"])) == (2, 7)
    with pytest.raises(ValueError, match=r"absent\.pth: no such file or folder"):
        export("absent.pth", tmp_path / "none")
    assert [entry.name for entry in tmp_path.iterdir()] == ["detr"]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_stands_in_a_folder_is_not_overwritten_unasked(tiny, tmp_path):
    folder = tmp_path / "detr"
    folder.mkdir()
    export(tiny, folder)  # an empty folder is in nobody's way
    first = contents(folder)
    assert {path.name for path in first} == set(FILES)
    with pytest.raises(ValueError, match="detr holds an export already: set overwrite, or name another folder"):
        export(tiny, folder, size=(480, 800))
    assert contents(folder) == first

    export(tiny, folder, size=(480, 800), overwrite=True)
    second = contents(folder)
    assert second.keys() == first.keys()
    assert second != first
    assert [entry.name for entry in tmp_path.iterdir()] == ["detr"]

    (folder / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"holds other files \(notes\.txt\): name a new or an empty folder"):
            export(tiny, folder, overwrite=overwrite)
    assert contents(folder).keys() == first.keys() | {folder.joinpath("notes.txt").relative_to(folder)}


def test_a_link_leads_to_the_folder(tiny, tmp_path):
    (tmp_path / "here").symlink_to(tmp_path / "there")
    (tmp_path / "there").mkdir()
    export(tiny, tmp_path / "here")
    assert (tmp_path / "here").is_symlink()
    assert {path.name for path in contents(tmp_path / "there")} == set(FILES)


def test_what_stands_at_a_file_is_not_overwritten_unasked(tmp_path):
    model, path = random_model(FACEBOOK), tmp_path / "detr.pth"
    path.write_bytes(b"an older model")
    with pytest.raises(ValueError, match=r"detr\.pth exists already: set overwrite, or name another file"):
        export_pth(model, path)
    assert path.read_bytes() == b"an older model"
    export_pth(model, path, overwrite=True)
    assert load_model(path).config.num_queries == 5


@pytest.mark.parametrize(
    ("write", "target", "message"),
    [
        (export, "file", "file is a file; name a folder to write"),
        (export, "nowhere/detr", "detr: the folder .*nowhere does not exist"),
        (export, "detr.pth", r"detr\.pth: a folder is written here, but that is the name of a file; see export_pth"),
        (export, "detr.keras", r"detr\.keras: a folder is written here"),
        (export_pth, "folder.pth", r"folder\.pth is a folder; name a file to write"),
        (export_pth, "nowhere/detr.pth", r"detr\.pth: the folder .*nowhere does not exist"),
        (export_pth, "detr.safetensors", r"detr\.safetensors: the file to write must end in \.pth, \.pt, \.bin"),
    ],
)
def test_targets_that_cannot_be(write, target, message, tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.pth").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        write(tiny, tmp_path / target)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("earlier", [False, True], ids=["new", "overwriting"])
@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_an_export_that_fails_leaves_nothing_and_harms_nothing(moment, earlier, tiny, tmp_path, monkeypatch):
    folder = tmp_path / "detr"
    if earlier:
        export(tiny, folder, size=(480, 800))
    before = contents(tmp_path)
    rename, failed = os.rename, []

    def stop_halfway(tensors, path, **options):
        path.write_bytes(b"half a model")
        failed.append(moment)
        raise OSError("disk full")

    def refuse_once(old, new):
        """The new folder cannot be put in place; everything else can."""
        if os.fspath(new) == os.fspath(folder) and not failed:
            failed.append(moment)
            raise OSError("disk full")
        rename(old, new)

    if moment == "writing":
        monkeypatch.setattr(safetensors.numpy, "save_file", stop_halfway)
    else:
        monkeypatch.setattr(os, "rename", refuse_once)
    with pytest.raises(OSError, match="disk full"):
        export(tiny, folder, overwrite=True)
    assert failed == [moment]
    assert contents(tmp_path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == (["detr"] if earlier else [])


def test_what_appears_while_a_model_is_written_stays(tiny, tmp_path, monkeypatch):
    save_file = safetensors.numpy.save_file

    def with_company(*arguments, **options):
        (tmp_path / "detr").mkdir()
        (tmp_path / "detr" / "notes.txt").write_text("mine")
        save_file(*arguments, **options)

    monkeypatch.setattr(safetensors.numpy, "save_file", with_company)
    with pytest.raises(ValueError, match=r"holds other files \(notes\.txt\)"):
        export(tiny, tmp_path / "detr", overwrite=True)
    assert contents(tmp_path) == {(tmp_path / "detr" / "notes.txt").relative_to(tmp_path): b"mine"}


def test_a_pth_that_fails_leaves_nothing_and_harms_nothing(tmp_path, monkeypatch):
    def stop_halfway(task, folder, path, **arguments):
        pathlib.Path(path).write_bytes(b"half a model")
        raise OSError("disk full")

    monkeypatch.setattr(exports, "run", stop_halfway)
    for before in (None, b"an older model"):
        if before:
            (tmp_path / "detr.pth").write_bytes(before)
        with pytest.raises(OSError, match="disk full"):
            export_pth(random_model(FACEBOOK), tmp_path / "detr.pth", overwrite=True)
        assert list(contents(tmp_path).values()) == ([before] if before else [])


WITHOUT_TORCH = """
import sys
sys.modules.update(torch=None, transformers=None)
from port_weights import export, export_pth
export(sys.argv[1], sys.argv[2])
try:
    export_pth(sys.argv[1], sys.argv[2] + ".pth")
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_folder_needs_no_torch(hf_folder, state, tmp_path, request):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(hf_folder), str(tmp_path / "detr")],
        env={**os.environ, "PYTHONPATH": str(request.config.rootpath)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"only torch can write {tmp_path / 'detr.pth'}: pip install 'tfdetr-keras[port]'" in done.stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ["detr"]
    for name, array in load_file(tmp_path / "detr" / "model.safetensors").items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)


# The command line


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("keras") / "detr.keras"
    random_model(FACEBOOK, CRITERION).save(path)
    return path


def test_the_command_exports_a_folder(keras_file, read_by_transformers, tmp_path, capsys):
    folder, model = tmp_path / "detr", keras.saving.load_model(keras_file)
    assert command_line.main(["export", str(keras_file), str(folder), "--size", "480", "800"]) == 0
    assert capsys.readouterr().out == f"{folder}: {model.count_params():,} weights, 3 classes\n"
    assert_same_outputs(read_by_transformers(folder), model)
    size = json.loads((folder / "preprocessor_config.json").read_text())["size"]
    assert size == {"shortest_edge": 480, "longest_edge": 800}

    assert command_line.main(["export", str(keras_file), str(folder)]) == 2
    assert "holds an export already" in capsys.readouterr().err
    assert command_line.main(["export", str(keras_file), str(folder), "--overwrite"]) == 0
    size = json.loads((folder / "preprocessor_config.json").read_text())["size"]
    assert size == {"shortest_edge": 800, "longest_edge": 1333}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["detr.pth"], ["detr.pt", "--format", "pth"]], ids=["by-name", "by-option"])
def test_the_command_exports_a_file(arguments, keras_file, tmp_path, weights_of):
    path = tmp_path / arguments[0]
    assert command_line.main(["export", str(keras_file), str(path), *arguments[1:]]) == 0
    assert_same_weights(weights_of, load_model(path), keras.saving.load_model(keras_file))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["detr", "--backbone", "timm"], "timm has no ResNet of depths"),
        (["detr.pth", "--size", "480", "800"], "--size is of a Hugging Face folder, and "),
        (["detr.pth", "--backbone", "timm"], "--backbone is of a Hugging Face folder, and "),
        (["detr", "--format", "pth"], "the file to write must end in .pth"),
        (["detr.pth", "--format", "hf"], "that is the name of a file"),
        (
            ["detr", "--size", "800", "480"],
            "size must be (shortest_edge, longest_edge), 1 <= shortest_edge <= longest_edge, not (800, 480)",
        ),
    ],
)
def test_bad_input_is_the_commands_second_exit_code(arguments, message, keras_file, tmp_path, capsys):
    assert command_line.main(["export", str(keras_file), str(tmp_path / arguments[0]), *arguments[1:]]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written_is_no_accident(keras_file, tmp_path, capsys, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied", "detr")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    assert command_line.main(["export", str(keras_file), str(tmp_path / "detr")]) == 2
    assert "Permission denied: 'detr'" in capsys.readouterr().err
