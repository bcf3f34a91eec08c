"""LW-DETR and RF-DETR beside their authors' own code, as it was recorded, where transformers is no oracle.

Rectangles, grids finer than 50 positions, where tokens at the border propose nothing, padding, masks with given points,
large logits, batches without objects, and how a fresh model starts. Weights, images and draws are those of `drawn`; of
an array the norm and the product with a drawn direction were recorded, see `record_group_detrs.py`. Ours runs in
float64, but for heads and losses, which the limits are for.
"""

import functools
import json
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdetr_keras as td
from port_weights.exports import to_torch
from port_weights.families import family_of
from tfdetr_keras.backbones.dinov2 import DINOv2Config
from tfdetr_keras.backbones.lw_vit import LWViTConfig
from tfdetr_keras.losses.point_masks import number_of_points
from tfdetr_keras.models.lw_detr import LWDETRConfig
from tfdetr_keras.models.rf_detr import RFDETRConfig
from tfdetr_keras.models.rf_detr_segmentation import RFDETRForSegmentation, RFDETRSegmentationConfig

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / "golden"), str(TESTS / "models")]
import drawn  # noqa: E402
from fresh_weights import assert_starts_alike  # noqa: E402

RECORDED = json.loads((TESTS / "golden" / "group_detrs.json").read_text())
KINDS = tuple(RECORDED["architecture"])
TRAINED = tuple(RECORDED["trained"])
SHAPE = RECORDED["shape"]
OUTPUT = 1e-6  # of the norm. Measured: 1.2e-7.
VALUE = 1e-5  # of the largest value, or of 1. Measured: 1.4e-6.
LOSS = 5e-6  # of each. Measured: 5.8e-7.
GRADIENTS = 2e-6  # of the norm of all. Measured: 2.0e-7.
GRADIENT = 3e-6  # of the largest one's norm. Measured: 3.2e-7.
OWN = 2.5e-5  # of a gradient's own norm. Measured: 2.9e-6.
OF_OUTPUTS = 4e-6  # of the norm of a gradient of outputs. Measured: 4.2e-7.
STATISTICS = 3e-8  # of the norm. Measured: 3.1e-9.
COST = 5e-7  # of the norm. Measured: 5.3e-8.
# Zero but for rounding, as a part of the largest gradient: a key's bias adds the same to all scores of a query.
ZERO = 1e-6

pytestmark = pytest.mark.usefixtures("without_tracing")


def new(kind, **options):
    """Return a fresh model of a recorded kind."""
    told = RECORDED["architecture"][kind]
    vit = {
        "patch_size": told["patch"],
        "windows": told["windows"],
        "width": told["width"],
        "depth": told["depth"],
        "heads": told["vit_heads"],
        "taps": told["taps"],
        "table_side": told["table"],
    }
    fields = {
        "backbone": LWViTConfig(**vit, windowed=told["windowed"]) if kind.startswith("lw") else DINOv2Config(**vit),
        "num_classes": told["classes"],
        "num_queries": told["queries"],
        "d_model": told["d_model"],
        "projector_scales": told["scales"],
        "decoder_layers": told["layers"],
        "self_attention_heads": told["heads"],
        "cross_attention_heads": told["cross_heads"],
        "decoder_ffn_dim": told["decoder_ffn"],
        "decoder_points": told["points"],
        "groups": told["groups"],
    }
    if kind.startswith("lw"):
        return td.LWDETR(LWDETRConfig(**fields), **options)
    if "masks" in kind:
        return RFDETRForSegmentation(RFDETRSegmentationConfig(**fields), **options)
    return td.RFDETR(RFDETRConfig(**fields), **options)


def scheme_of(model):
    """Return the authors' names of a model's weights."""
    return family_of(model.config).authors_scheme(model.config)


def named(model, arrays):
    """Return arrays by the authors' names and in their layout; each is told by the path of a variable."""
    parts, scheme = {}, scheme_of(model)
    for path, array in arrays.items():
        name, layout = scheme.torch_name(path)
        pieces = parts.setdefault(name, [None] * layout.parts)
        pieces[layout.part] = layout.to_torch(array)
    return {name: np.concatenate(pieces) if len(pieces) > 1 else pieces[0] for name, pieces in parts.items()}


def path_of(variable):
    """Return a variable's path without the model's name."""
    return variable.path.split("/", 1)[1]


def with_weights(kind):
    """Return the model of a recorded kind with the drawn weights, in float64."""
    model = new(kind, dtype="float64")
    scheme = scheme_of(model)
    for variable in model.weights:
        name, layout = scheme.torch_name(path_of(variable))
        shape = tuple(variable.shape)
        drawn_as = RECORDED["proposals"] + name if ".enc_out" in name else name
        variable.assign(layout.read(drawn.weight(drawn_as, layout.torch_shape(shape)), shape))
    return model


@functools.cache
def evaluated_model(kind):
    """Return the same for tests that do not change it."""
    return with_weights(kind)


def batch_of(sizes):
    """Return images, and a mask where not all are of one size."""
    pixels, mask = drawn.images(*sizes)
    batch = {"pixel_values": pixels.astype(np.float64)}
    return batch if mask.all() else {**batch, "pixel_mask": mask}


def targets_of(pairs, masks=None):
    """Return targets as of `drawn`, all images with as many rows."""
    most = max(1, *(len(labels) for labels, _ in pairs))
    targets = {"labels": np.full((len(pairs), most), -1), "boxes": np.zeros((len(pairs), most, 4), np.float32)}
    if masks is not None:
        targets["masks"] = np.zeros((len(pairs), most, *masks[0].shape[1:]), bool)
    for image, (labels, boxes) in enumerate(pairs):
        for name, rows in {"labels": labels, "boxes": boxes, "masks": None if masks is None else masks[image]}.items():
            if name in targets:
                targets[name][image, : len(rows)] = rows
    return targets


def points_of(layers, images, groups, objects, numbers):
    """Return the recorded draws of points, of some layers."""

    def every(name):
        drawn_points = [drawn.points(f"{layer}, {name}", images, groups, objects, numbers[name]) for layer in layers]
        return [points.reshape(images, groups * objects, numbers[name], 2) for points in drawn_points]

    return {
        "matching": np.concatenate([drawn.points(f"{layer}, matching", 1, numbers["matching"]) for layer in layers]),
        "layers": [
            {"candidates": candidates, "others": others}
            for candidates, others in zip(every("candidates"), every("others"), strict=True)
        ],
    }


def errors(arrays, recorded):
    """Return how far norm and product of each array are off."""
    found = {}
    for name, (norm, along) in recorded.items():
        array = np.asarray(arrays[name], np.float64)
        product = (array * drawn.direction(name, array.shape)).sum()
        found[name] = max(abs(np.linalg.norm(array) - norm), abs(product - along))
    return found


# ---- evaluation ----


def of_evaluated():
    for kind, batches in RECORDED["evaluated"].items():
        for recorded in batches:
            sizes = ",".join(f"{height}x{width}" for height, width in recorded["sizes"])
            marks = [pytest.mark.slow] if recorded["sizes"] == [[256, 256]] else []
            yield pytest.param(kind, recorded, id=f"{kind}-{sizes}", marks=marks)


@pytest.mark.parametrize(("kind", "recorded"), of_evaluated())
def test_outputs_in_evaluation_are_the_authors(kind, recorded):
    """Of each output the norm, the part along a drawn direction, and some values."""
    stages = evaluated_model(kind).stages(batch_of(recorded["sizes"]))
    assert (np.asarray(stages["proposals.boxes"]) == 0).all(-1).sum() == recorded["invalid"]
    found = errors(stages, recorded["outputs"])
    for name, (norm, _) in recorded["outputs"].items():
        assert found[name] < OUTPUT * norm, name
        output, values = np.asarray(stages[name], np.float64), np.array(recorded["values"][name])
        places = drawn.generator(f"places of {name}").integers(0, output.size, len(values))
        limit = VALUE * max(1.0, np.abs(values).max())
        np.testing.assert_allclose(output.ravel()[places], values, rtol=0, atol=limit, err_msg=name)


def test_tokens_that_propose_nothing_are_among_the_chosen_and_not_alone():
    """With these weights; transformers chooses none of them."""
    fine = {}
    for kind, batches in RECORDED["evaluated"].items():
        for recorded in batches:
            if max(map(max, recorded["sizes"])) > 200:
                fine[kind, recorded["sizes"][0][0]] = recorded["invalid"]
    assert set(fine) == {("lw_two_levels", 640), ("rf", 208), ("rf", 256)}
    assert all(5 <= chosen <= 35 for chosen in fine.values())
    for kind in ("lw_two_levels", "rf"):
        assert 10 < RECORDED["trained"][kind]["invalid"] < 3 * 3 * 40 - 10


# ---- training ----


class Trained(NamedTuple):
    """What a batch of training gives, see `trained`."""

    kind: str
    recorded: dict
    model: keras.Model
    targets: dict
    outputs: dict
    losses: dict
    gradients: dict


@pytest.fixture(scope="module", params=TRAINED)
def trained(request):
    """The recorded values of a batch, the model after it, and its targets, outputs, losses and gradients."""
    kind, recorded = request.param, RECORDED["trained"][request.param]
    told, model = RECORDED["architecture"][kind], with_weights(kind)
    pairs = drawn.targets(told["classes"], *recorded["counts"])
    has_masks = "masks" in kind
    targets = targets_of(pairs, drawn.masks(pairs, *recorded["sizes"][0]) if has_masks else None)
    variables = {path_of(variable): variable.value for variable in model.trainable_variables}
    with tf.GradientTape() as tape:
        outputs = model.stages(batch_of(recorded["sizes"]), training=True, targets=targets)
        if has_masks:
            rest = len(pairs), told["groups"], max(recorded["counts"]), recorded["points"]
            decoder = [f"layer{layer}" for layer in range(told["layers"])]
            outputs["point_masks"]["draws"] = points_of(decoder, *rest)
            outputs["prediction_sets"]["encoder"]["point_masks"]["draws"] = points_of(["encoder"], *rest)
        losses = model.criterion(outputs, targets)
    gradients = tape.gradient(losses["loss"], variables, unconnected_gradients="zero")
    gradients = named(model, {path: tf.convert_to_tensor(gradient).numpy() for path, gradient in gradients.items()})
    return Trained(kind, recorded, model, targets, outputs, losses, gradients)


def test_names_are_the_authors(trained):
    names = list(to_torch(trained.model, scheme_of(trained.model)))
    names += ["_kp_active_mask"] if trained.kind.startswith("rf") else []  # of key points, which nothing here has
    assert [len(names), zlib.crc32("\n".join(sorted(names)).encode())] == trained.recorded["names"]


def assert_losses(found, recorded):
    assert set(found) - {"cardinality_error"} == set(recorded)
    for name, value in recorded.items():
        assert float(found[name]) == pytest.approx(value, rel=LOSS, abs=LOSS), name


def test_losses_are_the_authors(trained):
    """Of all layers and proposals, in groups, with masks of each; and their weighted total."""
    assert_losses(trained.losses, trained.recorded["losses"])


def test_gradients_are_the_authors(trained):
    """Of each parameter the norm, and the part along a drawn direction."""
    recorded = trained.recorded["gradients"]
    assert set(trained.gradients) == set(recorded)
    assert all(name.endswith("mask_token") for name in trained.recorded["unused"])
    found, norms = errors(trained.gradients, recorded), {name: norm for name, (norm, _) in recorded.items()}
    largest = max(norms.values())
    assert np.linalg.norm(list(found.values())) < GRADIENTS * np.linalg.norm(list(norms.values()))
    for name, error in found.items():
        assert error < GRADIENT * largest, name
        assert norms[name] < ZERO * largest or error < OWN * norms[name], name


@pytest.mark.parametrize("trained", ["lw", "lw_two_levels"], indirect=True)
def test_batch_norm_has_seen_what_the_authors_has(trained):
    recorded = trained.recorded["statistics"]
    found = errors(to_torch(trained.model, scheme_of(trained.model)), recorded)
    assert len(found) >= 16
    for name, (norm, _) in recorded.items():
        assert found[name] < STATISTICS * norm, name


@pytest.mark.parametrize("trained", ["rf_masks"], indirect=True)
def test_costs_of_masks_are_the_authors(trained):
    """In the matching of each layer and of the proposals, group by group."""
    told, found = RECORDED["architecture"]["rf_masks"], {}
    groups = told["groups"]
    decoder = [f"layer{layer}" for layer in range(told["layers"])]
    for predictions, names in (
        (trained.outputs, decoder),
        (trained.outputs["prediction_sets"]["encoder"], ["encoder"]),
    ):
        costs = np.asarray(trained.model.criterion._further_cost(predictions, trained.targets, groups))
        for layer, name in enumerate(names):
            own = costs[:, layer * groups : (layer + 1) * groups]
            counts = enumerate(trained.recorded["counts"])
            found |= {f"{name}, image{image}": own[image, :, :count] for image, count in counts if count}
    assert set(found) == set(trained.recorded["costs"])
    off = errors(found, trained.recorded["costs"])
    for name, (norm, _) in trained.recorded["costs"].items():
        assert off[name] < COST * norm, name


@pytest.mark.parametrize("trained", ["rf_masks"], indirect=True)
def test_numbers_of_points_are_the_authors(trained, monkeypatch):
    drawn_shapes, uniform = set(), keras.random.uniform

    def watched(shape, **options):
        drawn_shapes.add(int(shape[-2]))
        return uniform(shape, **options)

    monkeypatch.setattr(keras.random, "uniform", watched)
    parts = {name: value for name, value in trained.outputs["point_masks"].items() if name != "draws"}
    sets = {name: value for name, value in trained.outputs.items() if name != "prediction_sets"}
    trained.model.criterion({**sets, "point_masks": parts}, trained.targets)
    assert drawn_shapes == set(trained.recorded["points"].values())


# ---- the losses alone ----


@pytest.mark.parametrize("name", RECORDED["alone"])
def test_losses_of_given_outputs_are_the_authors(name):
    """Also for logits of ±110, where LW-DETR's own code is not finite; RF-DETR has the same loss from logarithms."""
    recorded = RECORDED["alone"][name]
    counts, scale, has_masks = recorded["counts"], recorded["scale"], recorded["masks"]
    layers, groups, classes = SHAPE["layers"], 3, 5
    rows, height, width = groups * SHAPE["queries"], SHAPE["height"], SHAPE["width"]
    given = {
        "logits": scale * np.sign(drawn.normal("logits", layers + 1, 2, rows, classes)),
        "boxes": 0.3 + 0.1 * drawn.normal("boxes", layers + 1, 2, rows, 4),
        "features": scale * drawn.normal("features", layers + 1, 2, SHAPE["channels"], height, width),
        "queries": drawn.normal("queries", layers + 1, 2, rows, SHAPE["channels"]),
        "bias": drawn.normal("bias", 1),
    }
    given = {name: tf.constant(array, tf.float32) for name, array in given.items()}
    pairs = drawn.targets(classes, *counts)
    targets = targets_of(pairs, drawn.masks(pairs, *SHAPE["pixels"]) if has_masks else None)
    objects = targets["labels"].shape[1]
    count = number_of_points(height, width)
    numbers = {"matching": height * width // 16, "candidates": 3 * count, "others": count - int(0.75 * count)}

    def masks(first, last, names):
        points = points_of(names, 2, groups, objects, numbers)
        return {
            "features": tf.transpose(given["features"][first:last], (1, 0, 3, 4, 2)),
            "queries": tf.transpose(given["queries"][first:last], (1, 0, 2, 3)),
            "bias": given["bias"],
            "draws": points,
        }

    with tf.GradientTape() as tape:
        tape.watch(given)
        logits, boxes = (tf.transpose(given[part], (1, 0, 2, 3)) for part in ("logits", "boxes"))
        encoder = {"logits": logits[:, layers:], "pred_boxes": boxes[:, layers:], "groups": groups}
        outputs = {
            "logits": logits[:, layers - 1],
            "pred_boxes": boxes[:, layers - 1],
            "aux_logits": logits[:, : layers - 1],
            "aux_boxes": boxes[:, : layers - 1],
            "groups": groups,
            "prediction_sets": {"encoder": encoder},
        }
        if has_masks:
            outputs["point_masks"] = masks(0, layers, [f"layer{layer}" for layer in range(layers)])
            encoder["point_masks"] = masks(layers, layers + 1, ["encoder"])
        model = RFDETRForSegmentation if has_masks else td.RFDETR
        losses = model.default_criterion()(outputs, targets)
    gradients = tape.gradient(losses["loss"], given, unconnected_gradients="zero")
    gradients = {name: np.asarray(gradient) for name, gradient in gradients.items()}
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    assert_losses(losses, recorded["losses"])
    off = errors(gradients, recorded["gradients"])
    for part, (norm, _) in recorded["gradients"].items():
        assert off[part] <= OF_OUTPUTS * norm, part


# ---- how it starts ----


@pytest.mark.parametrize("kind", RECORDED["initial"])
def test_a_fresh_model_starts_as_the_authors(kind):
    """What is constant there is the same here, and what is drawn has the same spread; the backbone, too."""
    keras.utils.set_random_seed(3)
    model = new(kind)
    ours, theirs = to_torch(model, scheme_of(model)), RECORDED["initial"][kind]
    assert theirs["refpoint_embed.weight"] == [0, 0, 0]
    assert theirs["query_feat.weight"][1] == pytest.approx(1, abs=0.05)
    assert set(theirs) <= set(ours)
    assert_starts_alike(ours, theirs, least=256, pretrained=())
