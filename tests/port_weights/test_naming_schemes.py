"""The same weights under every published name become the same Keras weights, bit for bit, and go back again."""

import argparse
import json
import logging

import numpy as np
import pytest
from reference.descriptions import Facebook
from safetensors.numpy import load_file, save_file

from port_weights import load_model, to_torch
from port_weights.schemes import detect_scheme, scheme


def assert_same(weights_of, model, expected, without=()):
    """Equal weights everywhere but under the given parts."""
    got, expected = weights_of(model), weights_of(expected)
    assert got.keys() == expected.keys()
    for path, array in expected.items():
        if path.split("/")[1] not in without:
            np.testing.assert_array_equal(got[path], array, err_msg=path)


def test_the_ported_model_computes_what_pytorch_does(hf_model, ported, pytorch):
    """Anchors all that follows: these weights are in their right places."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(2, 64, 96, 3)).astype(np.float32)
    mask = np.ones((2, 64, 96), np.int64)
    mask[1, 40:] = mask[1, :, 70:] = 0
    batch = {"pixel_values": pixels, "pixel_mask": mask}
    expected, got = pytorch.call("models:outputs", hf_model, batch), ported(batch)
    np.testing.assert_allclose(got["logits"], expected["logits"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(got["pred_boxes"], expected["pred_boxes"], rtol=0, atol=1e-5)


def test_configuration_and_criterion_come_from_config_json(ported):
    config = ported.config
    assert config.id2label == {0: "cat", 1: "dog", 2: "N/A"}
    assert (config.num_queries, config.d_model, config.encoder_layers, config.decoder_layers) == (5, 16, 1, 2)
    assert (config.encoder_ffn_dim, config.decoder_ffn_dim) == (24, 20)
    assert (config.encoder_attention_heads, config.decoder_attention_heads) == (2, 2)
    assert (config.dropout, config.attention_dropout, config.activation_dropout) == (0.1, 0.0, 0.0)
    assert (config.backbone.block, config.backbone.depths) == ("bottleneck", (1, 2))
    assert config.frozen == ("stem", "stage1")
    assert ported.criterion.eos_coefficient == 0.3


def test_timm_names(timm_state, write_folder, ported, weights_of):
    """With the counters that published timm checkpoints carry beside their shortcuts."""
    counters = {
        name.replace("weight", "num_batches_tracked"): np.array(5)
        for name in timm_state
        if name.endswith("downsample.1.weight")
    }
    assert len(counters) == 2
    assert "model.backbone.conv_encoder.model.layer2.0.downsample.1.num_batches_tracked" in counters
    assert_same(weights_of, load_model(write_folder({**timm_state, **counters})), ported)


@pytest.fixture(scope="module")
def in_memory(hf_model, pytorch):
    """The `state_dict()` of `hf_model`, which transformers renames when it writes it."""
    return pytorch.call("models:state", hf_model)


def test_names_in_the_memory_of_transformers(in_memory, ported, weights_of):
    """As arrays; `test_state_dicts.py` has them as tensors."""
    names = in_memory
    assert any(".mlp.fc1." in name for name in names)
    assert any(".o_proj." in name for name in names)
    assert_same(weights_of, load_model(names, heads=2), ported)


def test_facebook_names_are_those_of_the_plain_reference(facebook_state, pytorch):
    shapes = dict(depths=(1, 2), widths=(16, 32), stem_width=8, d_model=16, heads=2, ffn_dim=24, num_queries=5)
    reference = Facebook({**shapes, "num_labels": 3, "encoder_layers": 1, "decoder_layers": 2})
    expected = {name: tensor.shape for name, tensor in pytorch.call("models:state", reference).items()}
    got = {name: tensor.shape for name, tensor in facebook_state.items()}
    assert got.keys() == expected.keys()
    for name, shape in expected.items():
        if not ("decoder" in name and "linear" in name):  # whose width is its own here, and not in the reference
            assert got[name] == shape, name


@pytest.fixture(params=["published", "training", "lightning", "bare"])
def facebook_file(request, facebook_state, pytorch, tmp_path):
    """The ways in which facebookresearch's tensors stand in a `.pth`."""
    tensors = facebook_state
    content = {
        "published": {"model": tensors},
        "training": {
            "model": tensors,
            "optimizer": {
                "state": {0: {"exp_avg": np.zeros(2, np.float32)}},
                "param_groups": [{"lr": 1e-4, "params": [0]}],
            },
            "epoch": 299,
            "args": argparse.Namespace(nheads=2, dilation=False, lr_backbone=1e-5, output_dir=""),
        },
        "lightning": {"state_dict": tensors},
        "bare": tensors,
    }[request.param]
    path = tmp_path / "detr.pth"
    pytorch.call("pickles:write", path, content)
    return path, request.param


def test_facebook_checkpoints(facebook_file, ported, weights_of):
    path, kind = facebook_file
    model = load_model(path, heads=None if kind == "training" else 2)
    assert_same(weights_of, model, ported)
    assert model.config.encoder_attention_heads == model.config.decoder_attention_heads == 2


def test_training_arguments_tell_of_dilation(facebook_state, pytorch, tmp_path):
    arguments = argparse.Namespace(nheads=4, dilation=True)
    pytorch.call("pickles:write", tmp_path / "detr.pth", {"model": facebook_state, "args": arguments})
    config = load_model(tmp_path / "detr.pth").config
    assert (config.encoder_attention_heads, config.backbone.dilation) == (4, True)


def test_a_file_named_dc5_is_taken_for_dilated(facebook_state, pytorch, tmp_path, caplog):
    path = tmp_path / "detr-r50-dc5-abcdef.pth"
    pytorch.call("pickles:write", path, {"model": facebook_state})
    assert load_model(path, heads=2).config.backbone.dilation
    assert "taken for a dilated (DC5) model because of its name" in caplog.text
    assert not load_model(path, heads=2, dilation=False).config.backbone.dilation


@pytest.mark.parametrize("names", ["state", "facebook_state", "timm_state"])
def test_a_detector_with_the_prefix_of_panoptic_checkpoints(names, request, ported, weights_of):
    state = {f"detr.{name}": tensor for name, tensor in request.getfixturevalue(names).items()}
    assert_same(weights_of, load_model(state, heads=2), ported)


def test_the_base_model_alone_has_fresh_heads(hf_model, pytorch, tmp_path, ported, weights_of, caplog):
    pytorch.call("models:save_base", hf_model, tmp_path / "base")
    names = load_file(tmp_path / "base" / "model.safetensors")
    assert not any(name.startswith(("model.", "class_labels")) for name in names)
    model = load_model(tmp_path / "base")
    assert_same(weights_of, model, ported, without=("class_head", "box_head"))
    assert "started from random weights: box_head, class_head" in caplog.text
    assert (np.asarray(model.class_head.kernel) != np.asarray(ported.class_head.kernel)).any()


FRESH = ("input_projection", "query_embedding", "encoder", "decoder", "class_head", "box_head")


def assert_same_backbone(weights_of, model, ported):
    got = {path: array for path, array in weights_of(model).items() if path.startswith("detr/backbone/")}
    expected = {path: array for path, array in weights_of(ported).items() if path.startswith("detr/backbone/")}
    assert got.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(got[path], array, err_msg=path)


def test_a_torchvision_classifier_gives_its_backbone(torchvision_state, pytorch, tmp_path, ported, weights_of, caplog):
    pytorch.call("pickles:write", tmp_path / "resnet.pth", torchvision_state)
    model = load_model(tmp_path / "resnet.pth", num_classes=2, num_queries=3)
    assert_same_backbone(weights_of, model, ported)
    assert (model.config.num_classes, model.config.num_queries, model.config.d_model) == (2, 3, 256)
    assert f"started from random weights: {', '.join(sorted(FRESH))}" in caplog.text


def test_a_hugging_face_classifier_gives_its_backbone(hf_model, state, pytorch, tmp_path, ported, weights_of):
    prefix = "model.backbone.conv_encoder.model."
    arrays = {"resnet." + n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    missing, unexpected = pytorch.call("models:save_classifier", hf_model, arrays, tmp_path / "resnet")
    assert unexpected == []
    assert all("classifier" in name or "num_batches" in name for name in missing)
    assert_same_backbone(weights_of, load_model(tmp_path / "resnet"), ported)


@pytest.fixture(scope="module")
def learned(make_hugging_face_model):
    return make_hugging_face_model(position_embedding_type="learned")


@pytest.fixture(scope="module")
def table(learned, pytorch):
    """The positions of `learned` by the last two parts of their names."""
    prefix, state = "model.position_embedding.", pytorch.call("models:state", learned)
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}


def test_learned_positions(learned, table, pytorch, tmp_path, facebook_state):
    pytorch.call("models:save", learned, tmp_path / "learned")
    model = load_model(tmp_path / "learned")
    np.testing.assert_array_equal(model.position_embedding.row, table["row_embeddings.weight"])
    np.testing.assert_array_equal(model.position_embedding.column, table["column_embeddings.weight"])

    names = {"backbone.1.row_embed.weight": "row_embeddings", "backbone.1.col_embed.weight": "column_embeddings"}
    again = load_model({**facebook_state, **{name: table[f"{part}.weight"] for name, part in names.items()}}, heads=2)
    assert again.config.position_embedding == "learned"
    np.testing.assert_array_equal(again.position_embedding.row, model.position_embedding.row)
    np.testing.assert_array_equal(again.position_embedding.column, model.position_embedding.column)


def test_learned_positions_of_transformers_4(learned, table, pytorch, tmp_path):
    """Version 4 kept the embedding inside the backbone; version 5 moved it without a rule for older files."""
    pytorch.call("models:save", learned, tmp_path / "learned")
    path = tmp_path / "learned" / "model.safetensors"
    older = {
        name.replace("model.position_embedding.", "model.backbone.position_embedding."): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(older, path)
    model = load_model(tmp_path / "learned")
    np.testing.assert_array_equal(model.position_embedding.row, table["row_embeddings.weight"])
    np.testing.assert_array_equal(model.position_embedding.column, table["column_embeddings.weight"])


def test_table_transformer(make_hugging_face_model, pytorch, tmp_path, weights_of):
    table = make_hugging_face_model("TableTransformer")
    pytorch.call("models:save", table, tmp_path / "table")
    model = load_model(tmp_path / "table")
    assert model.config.pre_norm
    assert model.config.backbone.block == "basic"
    assert_same(weights_of, load_model(pytorch.call("models:state", table), heads=2), model)
    pixels = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    expected = pytorch.call("models:outputs", table, {"pixel_values": pixels})["logits"]
    np.testing.assert_allclose(model(pixels)["logits"], expected, rtol=0, atol=2e-5)


def test_packed_attention_is_query_key_value(pytorch):
    """Against PyTorch's own attention: thirds in another order give another output."""
    import keras

    theirs, (query, key, value), expected = pytorch.call("layers:attention", d_model=16, heads=4, length=6)
    ours = keras.layers.MultiHeadAttention(num_heads=4, key_dim=4)
    ours.build((None, None, 16), (None, None, 16), (None, None, 16))
    table = scheme("torchvision", "facebookresearch")
    for variable in ours.weights:
        path = "encoder/layer0/self_attention/" + variable.path.split("/", 1)[1]
        name, layout = table.torch_name(path)
        tensor = theirs[name.removeprefix("transformer.encoder.layers.0.self_attn.")]
        variable.assign(layout.read(tensor, tuple(variable.shape)))
    got = ours(query, value, key=key)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("names", ["state", "timm_state", "facebook_state", "in-memory"])
def test_weights_go_back_bit_for_bit(names, request, ported, in_memory):
    if names == "in-memory":
        state = {name: array for name, array in in_memory.items() if not name.endswith("num_batches_tracked")}
    else:
        state = request.getfixturevalue(names)
    back = to_torch(ported, detect_scheme(state))
    assert back.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_a_scheme_without_a_name_for_a_weight(ported):
    with pytest.raises(ValueError, match="the scheme 'torchvision backbone' has no name for input_projection/kernel"):
        to_torch(ported, scheme("torchvision", "none"))


@pytest.mark.parametrize("names", ["state", "timm_state", "facebook_state"])
def test_shapes_alone_tell_the_architecture(names, request, ported, weights_of, caplog):
    """Without config.json; heads are what no shape tells."""
    model = load_model(request.getfixturevalue(names), heads=2)
    assert_same(weights_of, model, ported)
    told, real = model.config.to_dict(), ported.config.to_dict()
    for name in ("id2label", "attention_dropout", "activation_dropout"):  # nor these
        del told[name], real[name]
    assert told == real


def test_unknown_names():
    strange = {"vit.embeddings.weight": np.ones(3, np.float32), "a": np.ones(1, np.float32)}
    with pytest.raises(ValueError, match=r"not DETR weights of a known naming scheme .*a, vit.embeddings.weight …"):
        load_model(strange)


def test_a_transformer_without_backbone_is_unknown(facebook_state):
    half = {name: tensor for name, tensor in facebook_state.items() if name.startswith("transformer.")}
    with pytest.raises(ValueError, match="not DETR weights of a known naming scheme"):
        load_model(half)


def test_missing_unexpected_and_misshapen_tensors_are_all_named(state, write_folder):
    broken = {name: tensor for name, tensor in state.items() if "decoder.layers.1.fc1" not in name}
    broken["model.encoder.layers.0.fc2.bias"] = np.ones(17, np.float32)
    broken["model.surprise.weight"] = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"do not fit config\.json") as caught:
        load_model(write_folder(broken))
    message = str(caught.value)
    assert "2 missing: model.decoder.layers.1.fc1.bias, model.decoder.layers.1.fc1.weight\n" in message
    assert "1 unexpected: model.surprise.weight\n" in message
    assert "1 of another shape: model.encoder.layers.0.fc2.bias is (17,), expected (16,)" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_layers": 3}, "26 missing: model.decoder.layers.2.encoder_attn.k_proj.bias"),
        ({"encoder_ffn_dim": 32}, r"model.encoder.layers.0.fc1.weight is \(24, 16\), expected \(32, 16\)"),
        ({"num_queries": 6}, r"model.query_position_embeddings.weight is \(5, 16\), expected \(6, 16\)"),
        ({"id2label": {"0": "a", "1": "b"}}, r"class_labels_classifier.weight is \(4, 16\), expected \(3, 16\)"),
        ({"position_embedding_type": "learned"}, r"2 missing: model\..*position_embedding"),
    ],
)
def test_a_config_json_that_does_not_fit(state, write_folder, changes, message):
    with pytest.raises(ValueError, match=message):
        load_model(write_folder(state, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "yolos"}, "config.json says model_type='yolos'; expected one of 'detr', 'table-transformer'"),
        ({"encoder_attention_heads": 3}, "config.json does not describe a DETR: d_model=16 is not divisible by"),
        ({"position_embedding_type": "rotary"}, "does not describe a DETR: position_embedding='rotary'"),
        ({"backbone_config": None, "backbone": "efficientnet_b0"}, "backbone 'efficientnet_b0' is none of resnet-18"),
        ({"backbone_config": None, "backbone": "resnet26"}, "backbone 'resnet26' is none of"),
        ({"id2label": {"1": "a", "2": "b"}}, "does not describe a DETR: id2label must name each of the ids"),
    ],
)
def test_a_config_json_of_something_else(state, write_folder, changes, message):
    with pytest.raises(ValueError, match=message):
        load_model(write_folder(state, **changes))


def test_a_config_json_of_another_model(state, write_folder):
    with pytest.raises(ValueError, match="model_type='bert'"):
        load_model(write_folder(state, config={"model_type": "bert", "hidden_size": 16}))


def test_older_configurations_leave_out_what_is_default(state, write_folder, hf_folder, ported, weights_of):
    """A backbone is then told from the tensors; Hugging Face's dropouts of zero are put in."""
    config = json.loads((hf_folder / "config.json").read_text())
    for name in ("backbone_config", "attention_dropout", "activation_dropout", "position_embedding_type"):
        del config[name]
    model = load_model(write_folder(state, config))
    assert_same(weights_of, model, ported)
    assert model.config == ported.config


@pytest.mark.parametrize(
    ("num_queries", "kept", "message"),
    [(3, 3, "kept the first 3 of 5 query embeddings"), (8, 5, "added 3 fresh query embeddings to the checkpoint's 5")],
)
def test_another_number_of_queries(hf_folder, ported, weights_of, caplog, num_queries, kept, message):
    caplog.set_level(logging.WARNING)
    model = load_model(hf_folder, num_queries=num_queries)
    got, expected = np.asarray(model.query_embedding.embeddings), np.asarray(ported.query_embedding.embeddings)
    assert len(got) == num_queries
    np.testing.assert_array_equal(got[:kept], expected[:kept])
    assert not (got[kept:] == 0).all(axis=-1).any()
    assert message in caplog.text
    others = weights_of(model)
    for path, array in weights_of(ported).items():
        if "query_embedding" not in path:
            np.testing.assert_array_equal(others[path], array, err_msg=path)


def test_another_number_of_classes(hf_folder, ported, weights_of, caplog):
    model = load_model(hf_folder, num_classes=7)
    assert (model.config.num_classes, model.id2label[6]) == (7, "class_6")
    assert model.class_head.kernel.shape == (16, 8)
    assert "new class head: 7 classes instead of the checkpoint's 3" in caplog.text
    got = weights_of(model)
    for path, array in weights_of(ported).items():
        if "class_head" not in path:
            np.testing.assert_array_equal(got[path], array, err_msg=path)


def test_names_of_classes_are_kept_or_replaced(hf_folder, ported, weights_of, caplog):
    caplog.set_level(logging.WARNING)
    same = load_model(hf_folder, id2label={0: "cat", 1: "dog", 2: "N/A"})
    assert_same(weights_of, same, ported)
    assert caplog.text == ""
    renamed = load_model(hf_folder, id2label={0: "chat", 1: "chien", 2: "rien"}, keep_head=True)
    assert renamed.id2label == {0: "chat", 1: "chien", 2: "rien"}
    assert_same(weights_of, renamed, ported)
    assert load_model(hf_folder, num_classes=3).id2label == ported.id2label
    two = load_model(hf_folder, id2label={0: "a", 1: "b"})
    assert (two.config.num_classes, two.id2label) == (2, {0: "a", 1: "b"})
    with pytest.raises(ValueError, match="id2label names 2 classes, but num_classes=3"):
        load_model(hf_folder, num_classes=3, id2label={0: "a", 1: "b"})
