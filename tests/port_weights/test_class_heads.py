"""A model of other classes answers for those that it kept as the checkpoint did, and newly for the others.

The oracle is the checkpoint itself: all but the class head is the same, so a row that was kept gives the same logits.
"""

import dataclasses
import logging
import re

import keras
import numpy as np
import pytest
from some_slow import some_slow

import tfdetr_keras as td
from port_weights import export, load_model
from tfdetr_keras.backbones.dinov2 import DINOv2Config
from tfdetr_keras.backbones.lw_vit import LWViTConfig
from tfdetr_keras.models import registry

NAMES = ["cat", "dog", "traffic light"]
FIELDS = {
    "num_classes": 3,
    "num_queries": 5,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "id2label": NAMES,
    "backbone": td.ResNetConfig("basic", (1, 1), (8, 16), 8),
}
CONFIGS = {
    "detr": td.DETRConfig(**FIELDS),
    "table": td.TableTransformerConfig(**FIELDS),
    "segmentation": td.SegmentationConfig(**FIELDS),
    "conditional": td.ConditionalDETRConfig(**FIELDS),
}
# Which tokens are chosen depends on all classes: all of them are, and answers are compared whatever their order.
CHOSEN = {
    **FIELDS,
    "num_queries": 8 * 12 + 4 * 6 + 2 * 3,
    "encoder_dim": 16,
    "backbone": td.ResNetConfig("basic", (1, 1, 1), (8, 16, 24), 8, variant="vd", batch_norm="trainable"),
}
CONFIGS |= {"rt-detr": td.RTDETRConfig(**CHOSEN), "rt-detr-v2": td.RTDETRV2Config(**CHOSEN)}
OF_DISTANCES = {**CHOSEN, "backbone": td.HGNetV2Config((4, 8), (4, 4, 4), (8, 16, 24), (1, 1, 1), 1)}
CONFIGS |= {"d-fine": td.DFINEConfig(**OF_DISTANCES, decoder_points=2, fusion_blocks=1)}
# Each group has a head of its own for what proposes.
OF_GROUPS = {
    "num_classes": 3,
    "num_queries": 4 * 6,
    "d_model": 16,
    "projector_blocks": 1,
    "decoder_layers": 1,
    "self_attention_heads": 2,
    "cross_attention_heads": 2,
    "decoder_ffn_dim": 16,
    "groups": 2,
    "id2label": NAMES,
}
VIT = {"patch_size": 8, "windows": 2, "width": 12, "depth": 2, "heads": 3, "table_side": 4, "taps": (1, 2)}
CONFIGS |= {
    "lw-detr": td.LWDETRConfig(LWViTConfig(**VIT, windowed=(0,)), **OF_GROUPS),
    "rf-detr": td.RFDETRConfig(DINOv2Config(**VIT), **OF_GROUPS | {"groups": 13}),
    "rf-detr-seg": td.RFDETRSegmentationConfig(DINOv2Config(**VIT), **OF_GROUPS),
}
HEADS = {"conditional": 1, "rt-detr": 2, "rt-detr-v2": 2, "d-fine": 2, "lw-detr": 3, "rf-detr": 14, "rf-detr-seg": 3}
ALIKE = ("table", "rt-detr", "rt-detr-v2", "lw-detr", "rf-detr")  # of their heads others have all, or more
PIXELS = np.random.default_rng(0).normal(size=(1, 32, 48, 3)).astype("float32")


def make(kind="detr", **changes):
    keras.utils.set_random_seed(1)
    config = dataclasses.replace(CONFIGS[kind], **changes)
    model = registry.model_class(config)(config)
    for bias in biases_of(model):
        bias.assign(np.linspace(-3, 3, config.num_logits))
    if "reference_embedding" in config.own_parts:  # or it would matter which query a token becomes
        model.query_embedding.embeddings.assign(np.ones(model.query_embedding.embeddings.shape))
    return model


def biases_of(model):
    """The biases of all class heads."""
    return [weight for weight in model.weights if re.search(r"class_head(/(layer|group)\d+)?/bias", weight.path)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Each kind as a `.keras` file and as a Hugging Face folder."""
    folder, made = tmp_path_factory.mktemp("sources"), {}
    for kind in CONFIGS:
        made[kind] = model = make(kind)
        model.save(folder / f"{kind}.keras")
        export(model, folder / kind)
    return folder, made


def logits(model):
    found = np.asarray(model(PIXELS)["logits"])
    return np.sort(found, axis=1) if "proposals" in model.config.own_parts else found


def assert_rows(model, original, sources):
    """Each class answers as that of `sources` did, or, where that is None, as none did; "no object" as ever."""
    got, expected = logits(model), logits(original)
    for label, source in enumerate(sources):
        same = [index for index in range(expected.shape[-1]) if np.allclose(got[..., label], expected[..., index])]
        assert same == ([] if source is None else [source]), model.id2label[label]
    if got.shape[-1] > len(sources):
        np.testing.assert_allclose(got[..., -1], expected[..., -1], rtol=0, atol=1e-6)


def assert_drawn_anew(model):
    """Also "no object": biases start within 1/√16 of 0, as PyTorch's do, and the source's reach from −3 to 3."""
    assert np.abs(np.asarray(model.class_head.bias)).max() <= 0.25


@pytest.mark.parametrize("form", ["{}", "{}.keras"])
@pytest.mark.parametrize("kind", some_slow(CONFIGS, *ALIKE))
def test_every_member_and_form(kind, form, sources, caplog):
    folder, made = sources
    source, original = folder / form.format(kind), made[kind]
    model = td.from_pretrained(source, id2label=["Traffic Light", "star", "cat", "ring"])
    assert model.id2label == {0: "Traffic Light", 1: "star", 2: "cat", 3: "ring"}
    assert_rows(model, original, [2, None, 0, None])
    assert (
        "kept by name: Traffic Light (there traffic light), cat; drawn anew: star, ring; left out: dog" in caplog.text
    )
    if kind in HEADS:  # as before training: rare (Lin et al. 2017, section 3.3)
        assert len(biases_of(model)) == HEADS[kind]
        for bias in biases_of(model):
            for label in (1, 3):
                assert 1 / (1 + np.exp(-float(bias[label]))) == pytest.approx(0.01)
    if hasattr(model, "denoising_embedding"):
        ours, theirs = (np.asarray(one.denoising_embedding.embeddings) for one in (model, original))
        np.testing.assert_array_equal(ours[[0, 2, 4]], theirs[[2, 0, 3]])  # the last is padding's
        assert not any((row == theirs).all(axis=1).any() for row in ours[[1, 3]])


@pytest.mark.parametrize("kind", some_slow(CONFIGS, *ALIKE))
def test_as_many_classes_of_other_names(kind, sources, caplog):
    """The README's first example: circle, square, triangle do not become star, cross, ring."""
    folder, made = sources
    model = type(made[kind]).from_pretrained(folder / f"{kind}.keras", id2label={0: "star", 1: "cross", 2: "ring"})
    assert_rows(model, made[kind], [None, None, None])
    assert "drawn anew: star, cross, ring; left out: cat, dog, traffic light" in caplog.text


def test_the_same_names_change_nothing(sources, caplog):
    folder, made = sources
    for changes in ({}, {"num_classes": 3}, {"id2label": NAMES}, {"keep_head": True}):
        model = td.from_pretrained(folder / "detr.keras", **changes)
        assert model.config == made["detr"].config
        assert_rows(model, made["detr"], [0, 1, 2])
    assert caplog.text == ""


def test_fewer_classes_with_fewer_queries(sources):
    """All but the class head is the same, so the first queries answer as they did for a class that stays."""
    folder, _ = sources
    two = td.from_pretrained(folder / "conditional", id2label=["dog", "cat"], num_queries=3)
    queries = td.from_pretrained(folder / "conditional", num_queries=3)
    assert two.config.num_queries == 3
    assert_rows(two, queries, [1, 0])


def test_what_the_caller_decides(sources, caplog):
    folder, made = sources
    renamed = td.from_pretrained(folder / "detr", id2label=["star", "cross", "ring"], keep_head=True)
    assert list(renamed.id2label.values()) == ["star", "cross", "ring"]
    assert_rows(renamed, made["detr"], [0, 1, 2])
    assert "kept by position, as keep_head=True says: cat is now star" in caplog.text
    anew = td.from_pretrained(folder / "detr", keep_head=False)
    assert anew.id2label == made["detr"].id2label
    assert_drawn_anew(anew)
    with pytest.raises(
        ValueError, match=r"detr: keep_head=True keeps the class head as it is, of 3 classes, and 2 are"
    ):
        td.from_pretrained(folder / "detr", num_classes=2, keep_head=True)
    with pytest.raises(ValueError, match="keep_head must be True, False or None, not 'yes'"):
        td.from_pretrained(folder / "detr", keep_head="yes")


def test_classes_that_nobody_named(tmp_path, caplog):
    model = make(id2label=None)
    model.save(tmp_path / "unnamed.keras")
    named = td.from_pretrained(tmp_path / "unnamed.keras", id2label=NAMES)
    assert_rows(named, model, [0, 1, 2])
    assert "has no names for its 3 classes, so their rows were kept in order, now called cat, dog" in caplog.text
    assert_rows(td.from_pretrained(tmp_path / "unnamed.keras", id2label=["cat", "dog"]), model, [None, None])


def test_weights_of_classes_go_with_their_rows(tmp_path):
    model = make()
    model.criterion = td.SetCriterion(class_weights=(2.0, 3.0, 4.0))
    model.save(tmp_path / "weighted.keras")
    again = td.from_pretrained(tmp_path / "weighted.keras", id2label=["traffic light", "star", "cat", "ring"])
    assert again.criterion.class_weights == (4.0, 1.0, 2.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": "cat"}, "id2label must not be a str"),
        ({"id2label": {"a": "cat"}}, "has the id 'a', which is not a whole number"),
        ({"id2label": {1: "cat", 2: "dog"}}, r"id2label must name each of the ids 0 … 1.*counts from 0, or a list"),
        ({"id2label": ["cat"], "num_classes": 2}, "names 1 classes, but num_classes=2"),
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1, not 0"),
        ({"num_classes": 2.5}, "num_classes must be a whole number of at least 1, not 2.5"),
        ({"num_queries": "5"}, "num_queries must be a whole number of at least 1, not '5'"),
    ],
)
def test_changes_that_are_none(sources, changes, message):
    with pytest.raises(ValueError, match=message):
        td.from_pretrained(sources[0] / "detr", **changes)


@pytest.mark.parametrize("source", [None, 3, ["detr-tiny"], b"detr-tiny"])
def test_what_is_no_source(source):
    with pytest.raises(ValueError, match="a checkpoint is a path, a hub id or a state dict"):
        load_model(source)


def test_a_run_starts_with_the_rows_of_its_classes(sources, caplog):
    from tfdetr_keras.training.settings import Settings
    from tfdetr_keras.training.starting_model import starting_model

    folder, made = sources
    caplog.set_level(logging.WARNING)
    assert_rows(starting_model(folder / "detr.keras", ["dog", "star"], Settings()), made["detr"], [1, None])
    assert "kept by name: dog; drawn anew: star" in caplog.text
    kept = starting_model(folder / "detr.keras", ["a", "b", "c"], Settings(keep_head=True))
    assert_rows(kept, made["detr"], [0, 1, 2])
    assert_drawn_anew(starting_model(folder / "detr.keras", NAMES, Settings(keep_head=False)))
    with pytest.raises(ValueError, match=r"masks=True freezes the detector, .*\(new to it: star\)"):
        starting_model(folder / "detr.keras", ["cat", "dog", "star"], Settings(masks=True))
    masked = starting_model(folder / "detr.keras", ["dog", "cat"], Settings(masks=True))
    assert_rows(masked, made["detr"], [1, 0])
    with pytest.raises(ValueError, match="keep_head: detr-resnet-18 is an architecture without weights"):
        starting_model("detr-resnet-18", NAMES, Settings(keep_head=True))
    with pytest.raises(ValueError, match="random_weights keeps nothing"):
        Settings(keep_head=True, random_weights=True)


def test_a_quantised_model_cannot_get_new_rows(sources, tmp_path):
    model = make()
    model.quantize("int8")
    model.save(tmp_path / "int8.keras")
    named = td.from_pretrained(tmp_path / "int8.keras", id2label=["a", "b", "c"], keep_head=True)
    assert named.id2label[2] == "c"
    for changes in ({"id2label": ["a", "b", "c"]}, {"id2label": NAMES[::-1]}, {"keep_head": False}):
        with pytest.raises(ValueError, match=r"quantised \(int8\), so that no class can be moved .*keep_head=True"):
            td.from_pretrained(tmp_path / "int8.keras", **changes)
