"""A small Hugging Face DETR with random weights, and the same weights under every name they are published by."""

import json
import re

import numpy as np
import pytest
from authors_names import timm_name
from reference.descriptions import HuggingFace
from safetensors.numpy import load_file, save_file

from port_weights import load_model

SHAPE = {"num_queries": 5, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2}
FEED_FORWARD = {"encoder_ffn_dim": 24, "decoder_ffn_dim": 20}  # unlike, so that the two cannot be mixed up unnoticed


def hugging_face_model(family="Detr", values="normal", **changes):
    """A DETR or Table Transformer of Hugging Face, tiny and random, for `pytorch`."""
    backbone = {
        "embedding_size": 8,
        "hidden_sizes": [16, 32],
        "depths": [1, 2],
        "layer_type": "bottleneck" if family == "Detr" else "basic",
    }
    fields = {
        "id2label": {0: "cat", 1: "dog", 2: "N/A"},
        "label2id": {"cat": 0, "dog": 1, "N/A": 2},
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "eos_coefficient": 0.3,
        **{**SHAPE, **FEED_FORWARD, **changes},
    }
    return HuggingFace(f"{family}ForObjectDetection", backbone, fields, values)


@pytest.fixture(scope="session", name="timm_name")
def timm_name_fixture():
    return timm_name


@pytest.fixture(scope="session")
def make_hugging_face_model():
    return hugging_face_model


@pytest.fixture(scope="session")
def hf_model():
    return hugging_face_model()


@pytest.fixture(scope="session")
def hf_folder(hf_model, pytorch, tmp_path_factory):
    """What `save_pretrained` writes: `config.json` and `model.safetensors`."""
    folder = tmp_path_factory.mktemp("hugging-face") / "detr"
    pytorch.call("models:save", hf_model, folder)
    return folder


@pytest.fixture(scope="session")
def state(hf_folder):
    """The tensors of the file, name → array."""
    return load_file(hf_folder / "model.safetensors")


@pytest.fixture(scope="session")
def ported(hf_folder):
    """The Keras model of `hf_folder`."""
    return load_model(hf_folder)


@pytest.fixture(scope="session")
def weights_of():
    """A Keras model's weights by path."""
    return lambda model: {weight.path: np.asarray(weight) for weight in model.weights}


@pytest.fixture
def write_folder(tmp_path, hf_folder):
    """Writes a checkpoint folder with the given tensors and changes of `hf_folder`'s configuration."""

    def write(tensors, config=None, **changes):
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors")
        if config is None:
            config = json.loads((hf_folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        return folder

    return write


HF_BACKBONE = "model.backbone.conv_encoder.model."


@pytest.fixture(scope="session")
def timm_state(state):
    """The file's tensors as transformers with a timm backbone names them."""
    return {
        HF_BACKBONE + timm_name(name.removeprefix(HF_BACKBONE)) if name.startswith(HF_BACKBONE) else name: tensor
        for name, tensor in state.items()
    }


@pytest.fixture(scope="session")
def torchvision_state(state):
    """The backbone alone, as torchvision's ImageNet classifiers have it."""
    named = {timm_name(n.removeprefix(HF_BACKBONE)): t for n, t in state.items() if n.startswith(HF_BACKBONE)}
    classifier = {"fc.weight": np.ones((10, 32), np.float32), "fc.bias": np.ones(10, np.float32)}
    counters = {"bn1.num_batches_tracked": np.array(3)}
    return {**named, **classifier, **counters}


@pytest.fixture(scope="session")
def facebook_state(state):
    """The file's tensors as facebookresearch/detr names them, query, key and value packed."""
    renamed = {}
    rules = [
        ("class_labels_classifier", "class_embed"),
        ("bbox_predictor", "bbox_embed"),
        ("query_position_embeddings", "query_embed"),
        ("input_projection", "input_proj"),
        ("encoder_attn_layer_norm", "norm2"),
        ("encoder_attn", "multihead_attn"),
        ("self_attn_layer_norm", "norm1"),
        (".fc", ".linear"),
        ("layernorm", "norm"),
    ]
    for original, tensor in state.items():
        if original.startswith(HF_BACKBONE):
            renamed["backbone.0.body." + timm_name(original.removeprefix(HF_BACKBONE))] = tensor
            continue
        name = original.removeprefix("model.")
        for old, new in [*rules, ("final_layer_norm", "norm3" if "decoder" in name else "norm2")]:
            name = name.replace(old, new)
        renamed[f"transformer.{name}" if re.match("(en|de)coder", name) else name] = tensor
    for name in [name for name in renamed if ".q_proj." in name]:
        kind = name.rsplit(".", 1)[1]
        parts = [renamed.pop(name.replace(".q_proj.", f".{letter}_proj.")) for letter in "qkv"]
        renamed[name.replace(f".q_proj.{kind}", f".in_proj_{kind}")] = np.concatenate(parts)
    return renamed
