"""Table Transformers, segmentation models, Conditional DETRs: every published name leads to the same weights, and back.

Bit for bit, in both directions.
"""

import json
import logging
import re

import numpy as np
import pytest
from reference.descriptions import HuggingFace
from safetensors.numpy import load_file, save_file

import tfdetr_keras as td
from port_weights import export, export_pth, load_model, to_torch
from port_weights.architecture import hugging_face_config
from port_weights.compare import compare
from port_weights.schemes import detect_scheme
from tfdetr_keras.models import DETR, ConditionalDETR, DETRForSegmentation

SHAPE = {"num_queries": 5, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2}
FEED_FORWARD = {"encoder_ffn_dim": 12, "decoder_ffn_dim": 20}
HEADS = 8
NAMES = {0: "cat", 1: "dog", 2: "N/A"}
LOSSES = {
    "table-transformer": {"eos_coefficient": 0.4},
    "segmentation": {"mask_loss_coefficient": 3, "dice_loss_coefficient": 4, "eos_coefficient": 0.3},
    "conditional": {"class_cost": 3, "cls_loss_coefficient": 4, "focal_alpha": 0.5},
}
CLASSES = {
    "table-transformer": td.TableTransformer,
    "segmentation": DETRForSegmentation,
    "conditional": ConditionalDETR,
}
THEIRS = {
    "table-transformer": "TableTransformerForObjectDetection",
    "segmentation": "DetrForSegmentation",
    "conditional": "ConditionalDetrForObjectDetection",
}
KINDS = list(CLASSES)


def relative(kind, **changes):
    """A relative of DETR of Hugging Face, tiny and random; four stages, for the mask head."""
    backbone = {
        "embedding_size": 8,
        "hidden_sizes": [8, 16, 16, 24],
        "depths": [1, 1, 2, 1],
        "layer_type": "basic",
    }
    fields = {
        "id2label": NAMES,
        "label2id": {name: index for index, name in NAMES.items()},
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        **SHAPE,
        **FEED_FORWARD | changes,
        **LOSSES[kind],
    }
    return HuggingFace(THEIRS[kind], backbone, fields, values="normal")


@pytest.fixture(scope="module")
def folders(pytorch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("relatives")
    for kind in KINDS:
        pytorch.call("models:save", relative(kind), folder / kind)
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(scope="module")
def ported(folders):
    return {kind: load_model(folder) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def on_disk(folders):
    return {kind: load_file(folder / "model.safetensors") for kind, folder in folders.items()}


def assert_same(got, expected):
    got, expected = ({weight.path: np.asarray(weight) for weight in model.weights} for model in (got, expected))
    assert got.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(got[path], array, err_msg=path)


def in_memory(kind, pytorch):
    state = pytorch.call("models:state", relative(kind))
    return {name: array for name, array in state.items() if "num_batches_tracked" not in name}


def timm_names(state, timm_name):
    """With a backbone of timm."""
    return {
        re.sub(r"(.*conv_encoder\.model\.)(.*)", lambda match: match[1] + timm_name(match[2]), name): tensor
        for name, tensor in state.items()
    }


def authors_names(kind, state, timm_name):
    """As the authors' own code has them: facebookresearch's, Microsoft's, Atten4Vis' of Conditional DETR."""
    prefix = "detr." if kind == "segmentation" else ""
    renamed = {}
    rules = [
        ("class_labels_classifier", "class_embed"),
        ("bbox_predictor", "bbox_embed"),
        ("query_position_embeddings", "query_embed"),
        ("input_projection", "input_proj"),
        ("encoder_attn_layer_norm", "norm2"),
        ("encoder_attn", "cross_attn" if kind == "conditional" else "multihead_attn"),
        ("self_attn_layer_norm", "norm1"),
        (".fc", ".linear"),
        ("layernorm", "norm"),
    ]
    for original, tensor in state.items():
        if original.startswith(("bbox_attention", "mask_head")):
            renamed[original] = tensor
            continue
        name = original.removeprefix("detr.").removeprefix("model.")
        if name.startswith("backbone."):
            renamed[f"{prefix}backbone.0.body." + timm_name(name.removeprefix("backbone.conv_encoder.model."))] = tensor
            continue
        for old, new in [*rules, ("final_layer_norm", "norm3" if "decoder" in name else "norm2")]:
            name = name.replace(old, new)
        renamed[prefix + (f"transformer.{name}" if re.match("(en|de)coder", name) else name)] = tensor
    for name in [name for name in renamed if ".q_proj." in name]:
        part = name.rsplit(".", 1)[1]
        pieces = [renamed.pop(name.replace(".q_proj.", f".{letter}_proj.")) for letter in "qkv"]
        renamed[name.replace(f".q_proj.{part}", f".in_proj_{part}")] = np.concatenate(pieces)
    return renamed


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_and_all_settings_come_from_the_folder(kind, folders, ported):
    model = ported[kind]
    assert type(model) is type(td.from_pretrained(folders[kind])) is CLASSES[kind]
    assert type(CLASSES[kind].from_pretrained(folders[kind])) is CLASSES[kind]
    config, criterion = model.config, model.criterion
    assert (config.id2label, config.num_queries, config.d_model) == (NAMES, 5, 16)
    assert (config.encoder_ffn_dim, config.decoder_ffn_dim, config.frozen) == (12, 20, ("stem", "stage1"))
    if kind == "segmentation":
        assert (criterion.mask_loss_coefficient, criterion.dice_loss_coefficient) == (3, 4)
        assert (criterion.classification, criterion.eos_coefficient) == ("softmax", 0.3)
    elif kind == "table-transformer":
        assert (config.pre_norm, criterion.eos_coefficient) == (True, 0.4)
    else:
        assert (criterion.cost_class, criterion.class_loss_coefficient, criterion.focal_alpha) == (3, 4, 0.5)
        assert criterion.classification == "focal"


@pytest.mark.parametrize("kind", KINDS)
def test_every_naming_gives_the_same_weights_and_goes_back_bit_for_bit(kind, pytorch, on_disk, ported, timm_name):
    states = {
        "on disk": on_disk[kind],
        "in memory": in_memory(kind, pytorch),
        "with timm": timm_names(on_disk[kind], timm_name),
        "the authors'": authors_names(kind, on_disk[kind], timm_name),
    }
    if kind == "table-transformer":  # whose names transformers did not change
        assert states["in memory"].keys() == states.pop("on disk").keys()
    assert len({frozenset(state) for state in states.values()}) == len(states)
    for naming, state in states.items():
        model = load_model(state, heads=HEADS)
        assert type(model) is CLASSES[kind], naming
        assert_same(model, ported[kind])
        back = to_torch(model, detect_scheme(state))
        assert back.keys() == state.keys(), naming
        for name, array in state.items():
            np.testing.assert_array_equal(back[name], array, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_export_writes_what_save_pretrained_wrote(kind, folders, on_disk, ported, tmp_path):
    export(ported[kind], tmp_path / "again")
    written = load_file(tmp_path / "again" / "model.safetensors")
    assert written.keys() == on_disk[kind].keys()
    for name, array in on_disk[kind].items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)
    theirs = json.loads((folders[kind] / "config.json").read_text())
    ours = json.loads((tmp_path / "again" / "config.json").read_text())
    for name in ("model_type", "architectures", "num_queries", "id2label", "class_cost", *LOSSES[kind]):
        assert ours[name] == theirs[name], name
    again = load_model(tmp_path / "again")
    assert_same(again, ported[kind])
    assert (again.config, again.criterion) == (ported[kind].config, ported[kind].criterion)
    processor = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    assert processor["image_processor_type"].startswith("ConditionalDetr" if kind == "conditional" else "Detr")


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_computes_the_same_from_an_export(kind, pytorch, ported, tmp_path):
    export(ported[kind], tmp_path / "again")
    pixels = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype(np.float32)
    batch = {"pixel_values": pixels}
    expected = pytorch.call("models:outputs_of_folder", THEIRS[kind], tmp_path / "again", batch)
    for name, value in ported[kind](pixels).items():
        if not name.startswith("aux"):
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-3 if "masks" in name else 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_keras_file(kind, ported, tmp_path):
    ported[kind].save(tmp_path / "model.keras")
    again = td.from_pretrained(tmp_path / "model.keras")
    assert type(again) is CLASSES[kind]
    assert_same(again, ported[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_pth_file(kind, pytorch, tmp_path):
    pytorch.call("models:save", relative(kind, encoder_ffn_dim=20), tmp_path / "folder")
    model = export_pth(tmp_path / "folder", tmp_path / "model.pth")
    again = load_model(tmp_path / "model.pth")
    assert type(again) is CLASSES[kind]
    assert_same(again, model)
    assert again.criterion == model.criterion


def test_a_detector_of_a_segmentation_model(folders, ported, caplog):
    detector = DETR.from_pretrained(folders["segmentation"])
    assert type(detector) is DETR
    assert "a detector of a segmentation model: the mask head is left out" in caplog.text
    pixels = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    for name, value in detector(pixels).items():
        np.testing.assert_array_equal(value, ported["segmentation"](pixels)[name])


def test_a_detector_gets_a_fresh_mask_head(folders, ported, on_disk, tmp_path, caplog):
    """From a file as `from_pretrained` does it, and from a model in memory."""
    caplog.set_level(logging.WARNING)
    state = {n.removeprefix("detr."): t for n, t in on_disk["segmentation"].items() if n.startswith("detr.")}
    save_file(state, tmp_path / "model.safetensors")
    config = json.loads((folders["segmentation"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["DetrForObjectDetection"]}))
    assert type(td.from_pretrained(tmp_path)) is DETR

    model = DETRForSegmentation.from_pretrained(tmp_path)
    assert "started from random weights: mask_attention, mask_head" in caplog.text
    detector = DETR.from_pretrained(tmp_path)
    again = DETRForSegmentation.from_detector(detector)
    weights = {weight.path: np.asarray(weight) for weight in ported["segmentation"].weights}
    for made in (model, again):
        fresh = {w.path for w in made.weights if not np.array_equal(np.asarray(w), weights[w.path])}
        assert {path.split("/")[1] for path in fresh} == {"mask_attention", "mask_head"}
    assert {w.path.split("/")[1] for w in again.trainable_weights} == {"mask_attention", "mask_head"}
    assert len(DETRForSegmentation.from_detector(detector, freeze=False).trainable_weights) > 60


def test_classes_that_cannot_be_had_of_one_another(folders):
    with pytest.raises(ValueError, match=r"conditional: this is a ConditionalDETR, not a DETR: load it with td\.Cond"):
        DETR.from_pretrained(folders["conditional"])
    with pytest.raises(ValueError, match="this is a DETR, not a ConditionalDETR"):
        ConditionalDETR.from_pretrained("detr-tiny")


def test_a_new_class_head_of_a_conditional_detr(folders, caplog):
    model = td.from_pretrained(folders["conditional"], num_classes=7)
    assert model.class_head.kernel.shape == (16, 7)
    assert "new class head: 7 classes instead of the checkpoint's 3" in caplog.text
    probability = 1 / (1 + np.exp(-np.asarray(model.class_head.bias)))
    np.testing.assert_allclose(probability, 0.01, rtol=1e-5)  # rare, before anything is learned


def test_tensors_that_are_missing_are_named(on_disk):
    state = {name: tensor for name, tensor in on_disk["segmentation"].items() if "gn3" not in name}
    with pytest.raises(ValueError, match=r"2 missing: mask_head\.gn3\.bias, mask_head\.gn3\.weight"):
        load_model(state, heads=HEADS)
    state = {name: t for name, t in on_disk["conditional"].items() if "layers.1.ca_qpos_sine" not in name}
    with pytest.raises(ValueError, match=r"2 missing: model.decoder.layers.1.ca_qpos_sine_proj.bias, .*weight"):
        load_model(state, heads=HEADS)


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
def test_the_comparison_knows_the_relatives(config_class, backbone, pytorch, tmp_path):
    """Also of dilated backbones, which transformers has with timm alone: there its own are dilated by hand."""
    config = config_class(backbone=backbone, **SMALL)
    pytorch.call("models:save_random", hugging_face_config(config), tmp_path / "random")
    source = load_file(tmp_path / "random" / "model.safetensors") if backbone.dilation else tmp_path / "random"
    options = {"heads": 8, "dilation": True} if backbone.dilation else {}
    rows, _ = compare(source, height=96, width=128, **options)
    assert [row.stage for row in rows if not row.agrees] == []
    assert ("pred_masks" in {row.stage for row in rows}) == (config_class is td.SegmentationConfig)
