"""PyTorch → Keras → PyTorch: every tensor of every published architecture comes back bit for bit, at its full size.

The files begin and end as PyTorch's; between them lies a `.keras` file, written and read again.
"""

import dataclasses

import numpy as np
import pytest
from reference.descriptions import Facebook, HuggingFace
from safetensors.numpy import load_file

from port_weights import convert, export, export_pth, load_model
from tfdetr_keras.models import PRESETS
from tfdetr_keras.models.packaged import packaged_checkpoints

NAMES = ("detr-resnet-18", "detr-resnet-34", "detr-resnet-50", "detr-resnet-101")


def through_keras(source, folder):
    convert(source, folder / "ported.keras")
    return folder / "ported.keras"


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(tensor), err_msg=name)
        assert np.asarray(found[name]).dtype == np.asarray(tensor).dtype


def hugging_face(preset, model):
    """The description of a model, each tensor of which has values of its own; their sizes do not matter here."""
    backbone = PRESETS[preset].backbone
    backbone = {
        "embedding_size": backbone.stem_channels,
        "hidden_sizes": list(backbone.channels),
        "depths": list(backbone.depths),
        "layer_type": backbone.block,
    }
    return HuggingFace(model, backbone, {"num_labels": PRESETS[preset].num_classes}, values="uniform")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "model"),
    [
        *((name, "DetrForObjectDetection") for name in NAMES),
        ("table-transformer-structure-recognition", "TableTransformerForObjectDetection"),
        ("detr-resnet-50-panoptic", "DetrForSegmentation"),
        ("detr-resnet-101-panoptic", "DetrForSegmentation"),
        ("conditional-detr-resnet-50", "ConditionalDetrForObjectDetection"),
        ("dab-detr-resnet-50", "DabDetrForObjectDetection"),
    ],
)
def test_hugging_face_folders(preset, model, pytorch, tmp_path):
    pytorch.call("models:save", hugging_face(preset, model), tmp_path / "before")
    export(through_keras(tmp_path / "before", tmp_path), tmp_path / "after")
    assert_same_tensors(
        load_file(tmp_path / "after" / "model.safetensors"), load_file(tmp_path / "before" / "model.safetensors")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "pre_norm"),
    [
        *((name, False) for name in (*NAMES, "detr-resnet-50-dc5", "detr-resnet-101-dc5")),
        ("detr-resnet-50", True),
        ("detr-resnet-50-dc5", True),
    ],
)
def test_facebookresearchs_files(preset, pre_norm, pytorch, tmp_path):
    backbone = PRESETS[preset].backbone
    fields = {
        "depths": backbone.depths,
        "widths": backbone.channels,
        "stem_width": backbone.stem_channels,
        "layer_type": backbone.block,
        "dilated": backbone.dilation,
        "pre_norm": pre_norm,
    }
    pytorch.call("models:save_pickle", Facebook(fields, values="uniform"), tmp_path / "before.pth")
    ported = load_model(tmp_path / "before.pth", dilation=backbone.dilation)
    assert dataclasses.replace(ported.config.backbone, batch_norm="frozen") == dataclasses.replace(
        backbone, batch_norm="frozen"
    )
    assert ported.config.pre_norm == pre_norm
    ported.save(tmp_path / "ported.keras")
    export_pth(tmp_path / "ported.keras", tmp_path / "after.pth")
    after, before = (pytorch.call("pickles:read", tmp_path / f"{name}.pth")["model"] for name in ("after", "before"))
    assert_same_tensors(after, before)


def test_detr_tiny(tmp_path):
    before = packaged_checkpoints()["detr-tiny"]
    export(through_keras("detr-tiny", tmp_path), tmp_path / "after")
    assert_same_tensors(load_file(tmp_path / "after" / "model.safetensors"), load_file(before / "model.safetensors"))
