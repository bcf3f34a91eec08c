"""Learning rates by part and by layer, and what does not decay, of a model's own variables."""

import dataclasses

import pytest
from smallest import SMALLEST

import tfdetr_keras as td
from tfdetr_keras.training.groups import learning_rate_multipliers
from tfdetr_keras.training.optimizer import KINDS, is_named
from tfdetr_keras.training.settings import Settings


def factors(frozen=(), **settings):
    model = td.DETR(dataclasses.replace(SMALLEST, frozen=frozen))
    return model, learning_rate_multipliers(model, Settings(**settings).resolved(model))


def test_by_layer_from_the_last_part_of_the_backbone():
    model, found = factors(layer_decay=0.5, backbone_multiplier=0.1)
    parts = model.config.backbone.parts
    assert found == {
        f"backbone/{part}": pytest.approx(0.1 * 0.5 ** (len(parts) - place)) for place, part in enumerate(parts)
    }
    optimizer = td.AdamW(learning_rate_multipliers=found)
    optimizer.build(model.trainable_variables)
    by_path = dict(zip((v.path for v in model.trainable_variables), optimizer._multipliers, strict=True))
    for path, factor in by_path.items():
        part = next((part for part in parts if f"/backbone/{part}/" in path), None)
        assert factor == (1.0 if part is None else found[f"backbone/{part}"])
    assert len(set(by_path.values())) == len(parts) + 1


def test_what_is_set_counts_more_and_what_is_frozen_is_left_out(caplog):
    model, found = factors(
        frozen=("stem",), layer_decay=0.5, learning_rate_multipliers={"class_head": 2.0, "backbone/stage1": 0.7}
    )
    assert (found["class_head"], found["backbone/stage1"]) == (2.0, 0.7)
    assert "backbone/stem" not in found
    td.AdamW(learning_rate_multipliers=found).build(model.trainable_variables)
    assert caplog.text == ""


def test_a_frozen_backbone_has_no_factor():
    assert factors(frozen=("backbone",), layer_decay=0.5)[1] == {}
    assert factors()[1] == {"backbone": 0.1}


def test_a_part_that_does_not_exist():
    with pytest.raises(ValueError, match="no variable of the model lies in 'class_haed'; there are, for example, back"):
        factors(learning_rate_multipliers={"class_haed": 2.0})


@pytest.mark.parametrize("value", [{"a": -1}, {"a": "1"}, {3: 1.0}, [("a", 1)]])
def test_what_are_no_factors(value):
    with pytest.raises(ValueError, match=r"^learning_rate_multipliers must be "):
        Settings(learning_rate_multipliers=value)


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("norms", "detr/encoder/layer0/norm/gamma", True),
        ("norms", "detr/backbone/stage1/block0/conv1/normalization/beta", True),
        ("norms", "detr/class_head/bias", False),
        ("norms", "detr/norms/kernel", False),
        ("biases", "detr/class_head/bias", True),
        ("biases", "detr/encoder/layer0/norm/beta", False),
        ("embeddings", "detr/query_embedding/embeddings", True),
        ("encoder/norms", "detr/encoder/layer0/norm/gamma", True),
        ("encoder/norms", "detr/decoder/layer0/norm/gamma", False),
        ("class_head", "detr/class_head/kernel", True),
        ("class", "detr/class_head/kernel", False),
    ],
)
def test_names_are_whole_steps_or_kinds(name, path, expected):
    assert is_named(name, path) is expected


def test_every_batch_norm_is_a_norm():
    """The authors' pattern `(?!.*norm|bn)` misses `….bn.…`, so that HGNet's normalisations decay: not here."""
    backbone = dataclasses.replace(SMALLEST.backbone, batch_norm="trainable")
    model = td.DETR(dataclasses.replace(SMALLEST, backbone=backbone, frozen=()))
    optimizer = td.AdamW(weight_decay_exclude=["norms"])
    optimizer.build(model.trainable_variables)
    decays = dict(zip((v.path for v in model.trainable_variables), optimizer._decays, strict=True))
    of_norms = {path for path in decays if path.rsplit("/", 1)[1] in KINDS["norms"]}
    assert sum("/backbone/" in path for path in of_norms) > 5
    assert {path for path, decayed in decays.items() if not decayed} == of_norms
