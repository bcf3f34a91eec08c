"""Deformable DETR against its authors' code, where transformers is another one: proposals are trained, and the start.

What was recorded of their code stands in `tests/golden/deformable_detr.json`, see the script beside it. The rest is
what no other member has: proposals chosen where few are left, heads under several names, levels of images of any size.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from fresh_weights import assert_starts_alike

import tfdetr_keras as td
from port_weights import export, export_pth, load_model, to_torch
from port_weights.families import family_of
from port_weights.schemes import detect_scheme

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.append(str(GOLDEN))
import drawn  # noqa: E402

RECORDED = json.loads((GOLDEN / "deformable_detr.json").read_text())
KINDS = {
    "plain": {},
    "with_box_refine": {"with_box_refine": True},
    "two_stage": {"with_box_refine": True, "two_stage": True},
}
# Measured on a CPU, of float32 beside their float64: losses 9e-7, a gradient 3.3e-6 of the largest parameter's.
LOSS, GRADIENT = 5e-6, 3e-5


def recorded_model(kind):
    told = RECORDED["architecture"]
    config = td.DeformableDETRConfig(
        backbone=td.ResNetConfig("basic", (1, 1, 1, 1), tuple(told["channels"])),
        num_classes=told["classes"],
        num_queries=told["queries"],
        d_model=told["d_model"],
        encoder_layers=told["num_encoder_layers"],
        decoder_layers=told["num_decoder_layers"],
        encoder_attention_heads=told["nhead"],
        decoder_attention_heads=told["nhead"],
        encoder_ffn_dim=told["dim_feedforward"],
        decoder_ffn_dim=told["dim_feedforward"],
        num_feature_levels=told["num_feature_levels"],
        encoder_points=told["enc_n_points"],
        decoder_points=told["dec_n_points"],
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        frozen=("stem", "stage1"),
        **KINDS[kind],
    )
    return td.DeformableDETR(config)


def beside(name):
    """The name of a head's tensor beside the decoder, which holds it, too."""
    return name.replace("transformer.decoder.class", "class").replace("transformer.decoder.bbox", "bbox")


def names_of(model):
    return family_of(model.config).authors_scheme(model.config)


@pytest.fixture(scope="module")
def trained_once():
    """Losses by our names, and gradients by the authors', of the recorded batch."""
    model = recorded_model("two_stage")
    scheme = names_of(model)
    variables = {variable.path.split("/", 1)[1]: variable for variable in model.weights}
    for path, variable in variables.items():
        name, layout = scheme.torch_name(path)
        shape = layout.torch_shape(tuple(variable.shape))
        variable.assign(layout.read(drawn.weight(beside(name), shape), tuple(variable.shape)))
    pixels, mask = drawn.images(*RECORDED["sizes"])
    drawn_targets = drawn.targets(model.config.num_classes, *RECORDED["counts"])
    labels = np.full((len(drawn_targets), max(RECORDED["counts"])), -1)
    boxes = np.zeros((*labels.shape, 4), np.float32)
    for image, (own_labels, own_boxes) in enumerate(drawn_targets):
        labels[image, : len(own_labels)], boxes[image, : len(own_boxes)] = own_labels, own_boxes
    trainable = {variable.path.split("/", 1)[1]: variable.value for variable in model.trainable_variables}
    with tf.GradientTape() as tape:
        outputs = model({"pixel_values": pixels, "pixel_mask": mask}, training=True)
        losses = model.criterion(outputs, {"labels": labels, "boxes": boxes})
    parts = {}
    for path, gradient in tape.gradient(losses["loss"], trainable).items():
        name, layout = scheme.torch_name(path)
        pieces = parts.setdefault(name, [None] * layout.parts)
        pieces[layout.part] = layout.to_torch(np.asarray(tf.convert_to_tensor(gradient)))
    return losses, {name: np.concatenate(pieces) for name, pieces in parts.items()}


def test_losses_of_proposals_and_layers_are_the_authors_(trained_once):
    losses, expected = trained_once[0], RECORDED["two_stage"]["losses"]
    ours = {name.replace("_encoder_0", "_enc"): float(value) for name, value in losses.items()}
    del ours["cardinality_error"]
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, rel=LOSS), name


def test_gradients_of_proposals_and_layers_are_the_authors_(trained_once):
    """Of each parameter the norm, and the part along a drawn direction."""
    gradients, expected = trained_once[1], RECORDED["two_stage"]["gradients"]
    assert gradients.keys() == {beside(name) for name in expected}
    largest = max(norm for norm, _ in expected.values())
    for name, (norm, along) in expected.items():
        gradient = gradients[beside(name)].astype(np.float64)
        assert np.linalg.norm(gradient) == pytest.approx(norm, rel=GRADIENT, abs=GRADIENT * largest), name
        assert (gradient * drawn.direction(name, gradient.shape)).sum() == pytest.approx(
            along, abs=GRADIENT * largest
        ), name
    proposing = {name for name in expected if name.startswith(("transformer.enc_output", "transformer.decoder.class"))}
    assert all(expected[name][0] > 1e-3 * largest for name in proposing)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_model_starts_as_the_authors_(kind):
    """What is constant there is the same here, and what is drawn has the same spread and the same limits."""
    keras.utils.set_random_seed(3)
    model = recorded_model(kind)
    ours = to_torch(model, names_of(model))
    theirs = RECORDED["initial"][kind]
    assert set(theirs) <= set(ours)
    assert_starts_alike(ours, theirs, least=256)


def test_every_box_starts_at_its_reference():
    """Without refinement or with it: the centre is the query's point, the size 12 % of the image."""
    pixels = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype(np.float32)
    for kind in ("plain", "with_box_refine"):
        model = recorded_model(kind)
        stages = model.stages(pixels)
        boxes = np.concatenate([stages["aux_boxes"], stages["pred_boxes"][:, None]], axis=1)
        points = np.asarray(stages["decoder.layer0.references"])
        np.testing.assert_allclose(boxes[..., :2], np.broadcast_to(points[:, None], boxes[..., :2].shape), atol=1e-5)
        np.testing.assert_allclose(boxes[..., 2:], 1 / (1 + np.exp(2.0)), atol=1e-5)
        probability = 1 / (1 + np.exp(-np.asarray(model.class_head.stack[0].bias)))
        np.testing.assert_allclose(probability, 0.01, rtol=1e-5)


def small(**fields):
    own = {"num_classes": 4, "num_queries": 20, "with_box_refine": True}
    return td.from_preset("deformable-detr-tiny", **own | fields)


def test_fewer_positions_than_queries_say_so():
    model = small(two_stage=True, num_queries=100)
    with pytest.raises(ValueError, match=r"84 positions on all levels, of which 100 queries cannot be chosen"):
        model(np.zeros((1, 32, 32, 3), np.float32))
    assert model(np.zeros((1, 64, 64, 3), np.float32))["logits"].shape == (1, 100, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"two_stage": True, "with_box_refine": False}, "say with_box_refine=True, too"),
        ({"num_feature_levels": 0}, "num_feature_levels must be"),
        ({"encoder_points": 1.5}, "encoder_points must be"),
        ({"with_box_refine": "yes"}, "with_box_refine must be True or False"),
        ({"d_model": 40, "decoder_attention_heads": 4}, "divisible by 32"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        small(**fields)


@pytest.mark.slow
def test_proposals_are_trained_in_images_of_any_size_and_compiled_for_few():
    """The encoder's tokens are matched in a graph whose sizes are unknown; evaluation leaves their loss out."""
    model = small(two_stage=True)
    model.compile(optimizer=td.AdamW(1e-3))
    records, _ = td.data.load_shapes(8, 0, size=(48, 64))
    batches = td.data.prepare(records, 2, training=True, augmentation="none", size=(64, 96))
    before = np.array(model.encoder_class_head.kernel)
    history = model.fit(batches, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert (np.array(model.encoder_class_head.kernel) != before).any()
    outputs = [model(next(iter(batches))[0], training=training) for training in (True, False)]
    assert ["prediction_sets" in one for one in outputs] == [True, False]


def test_rates_of_offsets_and_reference_points_are_a_tenth():
    """The first step of AdamW is as long as the rate, whatever the gradient."""
    model = small()
    factors = model.recipe["learning_rate_multipliers"]
    optimizer = td.AdamW(1e-2, weight_decay=0.0, learning_rate_multipliers=factors)
    before = {variable.path: np.array(variable) for variable in model.trainable_variables}
    optimizer.apply(
        [keras.ops.ones_like(variable) for variable in model.trainable_variables], model.trainable_variables
    )
    moved = {v.path: np.abs(np.array(v) - before[v.path]).max() for v in model.trainable_variables}
    slow = {path for path, step in moved.items() if step < 5e-3}
    assert slow == {path for path in moved if "sampling_offsets" in path or "reference_points" in path}
    assert len(slow) == 2 * (2 + 3 + 1)
    np.testing.assert_allclose([moved[path] for path in slow], 1e-3, rtol=1e-3)


# ---- heads by all their names ----


@pytest.fixture(scope="module")
def refined():
    keras.utils.set_random_seed(0)
    model = small(two_stage=True)
    for weight in model.weights:
        if "head" in weight.path:
            weight.assign(weight + keras.random.normal(weight.shape, stddev=0.1))
    return model


def in_memory(model):
    return to_torch(model, family_of(model.config).reference_scheme(model.config))


def same(one, other):
    ours, theirs = ({v.path.split("/", 1)[1]: np.asarray(v) for v in model.weights} for model in (one, other))
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        np.testing.assert_array_equal(ours[path], value, err_msg=path)


def test_heads_are_found_beside_the_decoder_or_in_it(refined):
    state = in_memory(refined)
    heads = [name for name in state if "_embed." in name]
    in_decoder = {name for name in heads if name.startswith("model.decoder.")}
    assert len(in_decoder) == len(heads) / 2 > 0
    for left_out in (in_decoder, set(heads) - in_decoder):
        kept = {name: array for name, array in state.items() if name not in left_out}
        same(load_model(kept, heads=4, model_class=td.DeformableDETR), refined)
    assert set(to_torch(refined, detect_scheme(state))) == set(state)


def test_copies_that_differ_are_refused(refined):
    state = in_memory(refined)
    state["class_embed.1.bias"] = state["class_embed.1.bias"] + 1
    with pytest.raises(
        ValueError, match=r"model.decoder.class_embed.1.bias is not equal to class_embed.1.bias, of which"
    ):
        load_model(state, heads=4)


def test_a_head_that_all_layers_share_is_every_layer_s(tmp_path):
    """transformers writes the class head of a fresh refined model once."""
    model = small()
    model.class_head.stack[1].kernel.assign(model.class_head.stack[0].kernel)
    model.class_head.stack[2].kernel.assign(model.class_head.stack[0].kernel)
    state = in_memory(model)
    once = {name: array for name, array in state.items() if not name.startswith(("class_embed.1", "class_embed.2"))}
    assert len(once) == len(state) - 4
    same(load_model(once, heads=4), model)


def test_a_model_without_refinement_may_have_its_heads_as_often_as_layers():
    model = small(with_box_refine=False)
    state = in_memory(model)
    assert {"class_embed.0.bias", "class_embed.2.bias", "bbox_embed.2.layers.0.bias"} <= set(state)
    same(load_model(state, heads=4), model)
    once = {n: a for n, a in state.items() if not n.startswith(("class_embed.1", "class_embed.2", "bbox_embed.1"))}
    same(load_model(once, heads=4), model)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_kept_by_name_in_every_head(kind, tmp_path):
    model = small(id2label=["cat", "dog", "cow", "hen"], num_classes=4, **{"with_box_refine": False} | KINDS[kind])
    for variable in model.weights:
        if "class_head" in variable.path:
            variable.assign(keras.random.normal(variable.shape))
    model.save(tmp_path / "model.keras")
    fewer = td.from_pretrained(tmp_path / "model.keras", id2label=["hen", "fox", "cat"])
    heads = [(v.path, v) for v in fewer.weights if "class_head" in v.path]
    assert len(heads) == 2 * (len(model.class_head.stack) + (kind == "two_stage"))
    before = {variable.path: np.asarray(variable) for variable in model.weights}
    for path, variable in heads:
        np.testing.assert_array_equal(np.asarray(variable)[..., [0, 2]], before[path][..., [3, 0]], err_msg=path)


def test_what_the_authors_code_does_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="makes levels of one map or of three"):
        export_pth(small(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match="makes levels of one map or of three"):
        export(td.from_preset("deformable-detr", num_feature_levels=2), tmp_path / "folder", backbone="timm")
    model = recorded_model("two_stage")
    narrow = td.DeformableDETR(td.DeformableDETRConfig(**{**model.config.to_dict(), "d_model": 64}))
    with pytest.raises(ValueError, match="proposals in the authors' code are 256 wide"):
        export_pth(narrow, tmp_path / "model.pth")


def test_the_class_cost_of_transformers_by_default_is_not_taken_for_a_choice():
    family = family_of(small().config)
    assert "cost_class" not in family.coefficients_of({"class_cost": 1, "bbox_cost": 4})
    assert family.coefficients_of({"class_cost": 3})["cost_class"] == 3
    assert family.coefficients_of({"class_cost": 1, "cls_loss_coefficient": 1})["cost_class"] == 1
