"""D-FINE and DEIM, whole, beside recorded values of their authors' own code: outputs, losses, gradients of all weights.

Recorded in `golden/dfine_models.npz` were `DFINE` of https://github.com/Peterande/D-FINE at
4a1f73a8bcfac736a88abde9596d87f116d780a7, of the kinds small and xlarge, and `DEIM` of
https://github.com/ShihuaHuang95/DEIM at a9aa4adce6b5e97b2a6ca9452bf01b7c35440913, with two levels, as nano has, silu in
the decoder and its own class loss; with the losses of their configurations, in float64, weights, images, targets and
the draws of denoising being those of `golden/drawn.py`. Of each kind there are shapes, by name, of its state dict;
`logits` and `boxes` in evaluation; each loss of a step of training without its weight, and `loss`, the weighted total;
of each gradient the norm and at most 256 entries, evenly spread. No query of the recorded unions has two objects that
are equally frequent, of which the authors' unstable sort takes either. In float32 the authors' own total is up to
2.9e-6 off, their gradients together 3e-5 to 8.5e-3, as rounding lets rectified values by or not.

Here the network runs in float64, but for heads and losses. Measured on a CPU: outputs differ by at most 5.7e-7, the
total by 2.4e-8, a loss by 9.3e-6 (the distillation of nearly equal distributions), all gradients together by 4.2e-7 of
their norm, an entry by 5.5e-7 of the largest, norms by 8.1e-8.
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from test_rt_detr_training import run

import tfdetr_keras as td
from port_weights import load_model
from port_weights.schemes import detect_scheme
from tfdetr_keras.backend.compiler import left_plain
from tfdetr_keras.losses.fine_grained_criterion import FineGrainedCriterion

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.append(str(GOLDEN))
import drawn  # noqa: E402

RECORDED = np.load(GOLDEN / "dfine_models.npz")
KINDS = ("small", "deim", pytest.param("xlarge", marks=pytest.mark.slow))
SIZES, SLOTS = ((96, 96),) * 3, 24
OUTPUT, TOTAL, LOSS, GRADIENT, NORM = 5e-6, 2e-7, 1e-5, 5e-6, 8e-7
ENTRIES = 256  # of each gradient, at most


def told(kind, what):
    return json.loads(str(RECORDED[f"{kind}/{what}"]))


def state_of(kind):
    """The authors' state dict with the drawn weights, but for what is no weight."""
    of = told(kind, "architecture")
    scales = np.concatenate([np.full(points, 1 / points, np.float32) for points in of["points"]])
    kept = {"up": np.float32([0.5]), "reg_scale": np.float32([of["reg_scale"]]), "num_points_scale": scales}
    kept["num_batches_tracked"] = np.array(0)
    state = {}
    for name, shape in told(kind, "shapes").items():
        state[name] = kept.get(name.rsplit(".", 1)[-1], drawn.weight(name, tuple(shape)) if shape else None)
    return state


def batch_of(kind):
    """Images, targets, and the draws of denoising."""
    of = told(kind, "architecture")
    pixels, _ = drawn.images(*SIZES)
    pairs = drawn.targets(of["classes"], *of["counts"])
    labels = np.full((len(pairs), max(of["counts"])), -1)
    boxes = np.zeros((*labels.shape, 4))
    for image, (own_labels, own_boxes) in enumerate(pairs):
        labels[image, : len(own_labels)], boxes[image, : len(own_boxes)] = own_labels, own_boxes
    draws = drawn.denoising(of["classes"], len(pairs), SLOTS)
    return {"pixel_values": pixels.astype(np.float64)}, {"labels": labels, "boxes": boxes}, draws


def config_of(kind):
    """The recorded architecture in the words of this package."""
    of = told(kind, "architecture")
    activation = "silu" if of["silu"] else "relu"
    return td.DFINEConfig(
        backbone=td.HGNetV2Config(
            *(of[name] for name in ("stem", "hidden", "channels", "depths", "block_layers", "affine")),
            batch_norm="frozen" if of["frozen"] else "trainable",
        ),
        num_classes=of["classes"],
        num_queries=of["queries"],
        d_model=of["width"],
        encoder_dim=of["encoder_width"],
        encoder_ffn_dim=of["encoder_ffn"],
        encoder_attention_heads=of["heads"],
        attended_levels=(of["levels"] - 1,),
        expansion=of["expansion"],
        fusion_blocks=of["blocks"],
        num_feature_levels=of["levels"],
        decoder_layers=of["layers"],
        decoder_attention_heads=of["heads"],
        decoder_ffn_dim=of["decoder_ffn"],
        decoder_activation=activation,
        decoder_points=tuple(of["points"]) if len(set(of["points"])) > 1 else of["points"][0],
        mlp_activation=activation,
        reg_scale=of["reg_scale"],
        num_denoising=of["denoising"],
    )


@pytest.fixture(scope="module", params=KINDS)
def both(request):
    """The kind, its model in Keras, and stages, losses and gradients of a step of training."""
    kind = request.param
    named = load_model(state_of(kind), heads=told(kind, "architecture")["heads"])
    classification = "matchability_aware" if kind == "deim" else "varifocal"
    model = td.DFINE(config_of(kind), FineGrainedCriterion(classification=classification), dtype="float64")
    model.set_weights(named.get_weights())
    model.freeze(())  # as the recorded ones, in which all convolutions are trained
    batch, targets, draws = batch_of(kind)
    with left_plain():
        outputs = model.stages(batch, training=False)
        return kind, named, model, outputs, run(model, batch, targets, draws)


def test_tensors_tell_the_architecture(both):
    """All but what no tensor tells."""
    _, named, model, *_ = both
    of_nothing = ("num_queries", "num_denoising", "decoder_activation", "mlp_activation", "backbone", "frozen")
    found, expected = ({name: getattr(one.config, name) for name in vars(one.config)} for one in (named, model))
    assert {name for name in found if found[name] != expected[name]} <= {*of_nothing, "id2label", "preprocessing"}
    assert dataclasses.replace(named.config.backbone, batch_norm="folded") == dataclasses.replace(
        model.config.backbone, batch_norm="folded"
    )


def test_outputs_in_evaluation_are_the_authors(both):
    kind, *_, outputs, _ = both
    for name in ("logits", "boxes"):
        expected = RECORDED[f"{kind}/{name}"]
        found = np.asarray(outputs[{"boxes": "pred_boxes"}.get(name, name)], np.float64)
        print(f"{kind} {name} {np.abs(found - expected).max():.1e}")
        np.testing.assert_allclose(found, expected, rtol=0, atol=OUTPUT)


def test_losses_are_the_authors(both):
    kind, *_, (_, losses, _) = both
    expected = dict(zip(told(kind, "losses_names"), RECORDED[f"{kind}/losses"], strict=True))
    # The teacher's distance from itself, which DEIM leaves out.
    assert set(losses) - set(expected) <= {"cardinality_error", "loss_ddf_denoising_2"}
    apart = {name: abs(float(losses[name]) / (want or 1) - bool(want)) for name, want in expected.items()}
    print(f"{kind} total {apart['loss']:.1e}, losses {max(apart.values()):.1e}")
    assert apart["loss"] < TOTAL
    assert max(apart.values()) < LOSS, apart


def test_gradients_are_the_authors(both):
    """Of all weights: all together, each entry by the largest, and the norm of each."""
    kind, _, model, _, (*_, gradients) = both
    names, recorded = told(kind, "gradients_names"), RECORDED[f"{kind}/gradients"].astype(np.float64)
    found = by_authors_names(model, gradients, told(kind, "shapes"))
    assert sorted(found) == sorted(names)
    spread = np.concatenate([found[name].ravel()[:: -(-found[name].size // ENTRIES)] for name in names])
    norms, expected = np.array([np.linalg.norm(found[name]) for name in names]), RECORDED[f"{kind}/norms"]
    together = np.linalg.norm(spread - recorded) / np.linalg.norm(recorded)
    worst = np.abs(spread - recorded).max() / np.abs(recorded).max()
    of_norms = np.abs(norms - expected).max() / np.linalg.norm(expected)
    print(f"{kind} gradients {together:.1e}, of the largest {worst:.1e}, norms {of_norms:.1e}")
    assert together < GRADIENT
    assert worst < GRADIENT
    assert of_norms < NORM


def by_authors_names(model, gradients, names):
    """Gradients as PyTorch has them; query, key and value are one tensor there."""
    scheme, parts = detect_scheme(names), {}
    for path, gradient in gradients.items():
        name, layout = scheme.torch_name(path)
        parts.setdefault(name, {})[layout.part] = layout.to_torch(gradient)
    return {name: np.concatenate([own[part] for part in sorted(own)]) for name, own in parts.items()}
