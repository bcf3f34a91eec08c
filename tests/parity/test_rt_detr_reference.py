"""The reference of RT-DETR and RT-DETRv2 against their authors' own code, as it was recorded.

What transformers computes, its denoising with given draws, and the loss that `reference.rt_detr` makes of it stand for
the authors' in every comparison with Keras; so they must give what the authors' code gives, of the same weights.
Measured on a CPU in float64: outputs differ by at most 6e-9, losses by 3e-8, a gradient by 8e-8 of its norm,
moving means and variances by 5e-10: the authors' anchors and positions are made in float32. In float32 the reference's
own losses are up to 2.5e-5 off, its gradients up to 7e-3, where batch normalisation takes the statistics of a batch.
"""

import json
import sys
import zlib
from pathlib import Path

import authors_names
import numpy as np
import pytest
from reference.descriptions import HuggingFace
from safetensors.numpy import load_file

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.append(str(GOLDEN))
import drawn  # noqa: E402

RECORDED = json.loads((GOLDEN / "rt_detr.json").read_text())
KINDS = tuple(RECORDED["trained"])
NAMINGS = {"v1": authors_names.rt_detr, "v2": authors_names.rt_detr_v2, "v2_discrete": authors_names.rt_detr_v2}
OUTPUT, LOSS, GRADIENT, STATISTICS = 6e-8, 3e-7, 1e-6, 5e-9
# A gradient that is zero but for rounding: no query is told from another by what is added to all keys alike, and batch
# normalisation takes away what is added to all positions.
ZERO = 1e-7


def description(kind):
    """The recorded architecture in the words of transformers."""
    told = RECORDED["architecture"][kind]
    widths = (256, 512, 1024, 2048) if told["bottleneck"] else (64, 128, 256, 512)
    backbone = {
        "layer_type": "bottleneck" if told["bottleneck"] else "basic",
        "depths": tuple(told["blocks"]),
        "hidden_sizes": widths,
        "embedding_size": 64,
    }
    names = {index: str(index) for index in range(told["classes"])}
    fields = {
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
        "num_queries": told["queries"],
        "num_denoising": told["denoising"],
        "d_model": told["width"],
        "encoder_hidden_dim": told["encoder_width"],
        "encoder_attention_heads": told["heads"],
        "decoder_attention_heads": told["heads"],
        "encoder_ffn_dim": told["encoder_ffn"],
        "decoder_ffn_dim": told["decoder_ffn"],
        "decoder_layers": told["layers"],
        "decoder_n_points": told["points"],
        "hidden_expansion": told["expansion"],
        "freeze_backbone_batch_norms": told["frozen_norm"],
    }
    if kind == "v1":
        return HuggingFace("RTDetrForObjectDetection", backbone, fields, "initial")
    method = "discrete" if kind == "v2_discrete" else "default"
    return HuggingFace("RTDetrV2ForObjectDetection", backbone, fields | {"decoder_method": method}, "initial")


def drawn_state(state, naming):
    """The drawn weights by the names of `state`, each drawn by the name and in the shape that the authors give it."""
    numbered, count = {}, 0
    for name, tensor in state.items():
        numbered[name] = count + np.arange(tensor.size).reshape(tensor.shape)
        count += tensor.size
    kept = np.concatenate([tensor.astype(np.float32).ravel() for tensor in state.values()])
    for name, places in naming(numbered).items():
        if not name.endswith(("num_batches_tracked", "num_points_scale")):
            kept[places] = drawn.weight(name, places.shape)
    return {name: kept[places].astype(state[name].dtype) for name, places in numbered.items()}


def recorded_batch():
    """Images, targets, and the draws of denoising."""
    pixels, _ = drawn.images(*RECORDED["sizes"])
    pairs = drawn.targets(RECORDED["architecture"]["v1"]["classes"], *RECORDED["counts"])
    labels = np.full((len(pairs), max(RECORDED["counts"])), -1)
    boxes = np.zeros((*labels.shape, 4), np.float32)
    for image, (own_labels, own_boxes) in enumerate(pairs):
        labels[image, : len(own_labels)], boxes[image, : len(own_boxes)] = own_labels, own_boxes
    draws = drawn.denoising(RECORDED["architecture"]["v1"]["classes"], len(pairs), RECORDED["slots"])
    return {"pixel_values": pixels.astype(np.float64)}, {"labels": labels, "boxes": boxes}, draws


@pytest.fixture(scope="module", params=KINDS)
def both(request, pytorch, tmp_path_factory):
    """The recorded values, and the reference's: gradients and statistics by the authors' names."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    reference, naming = description(kind), NAMINGS[kind]
    pytorch.call("models:save", reference, folder)
    state = drawn_state(load_file(folder / "model.safetensors"), naming)
    batch, targets, draws = recorded_batch()
    arrays = authors_names.rt_detr_in_memory(state)
    found = pytorch.call("rt_detr:gradients", reference, batch, targets, draws, arrays)
    found["outputs"] = pytorch.call("rt_detr:stages_in_evaluation", reference, batch, arrays)
    found["names"] = sorted(naming(state))
    found["by_name"] = found["gradients"]
    on_disk = authors_names.rt_detr_in_memory({name: name for name in state})
    for part in ("gradients", "statistics"):
        found[part] = naming({on_disk[name]: array for name, array in found[part].items()})
    return RECORDED["trained"][kind], found


def test_names_are_the_authors(both):
    recorded, found = both
    assert [len(found["names"]), zlib.crc32("\n".join(found["names"]).encode())] == recorded["names"]


def test_outputs_in_evaluation_are_the_authors(both):
    recorded, found = both
    for name, (norm, along) in recorded["outputs"].items():
        output = found["outputs"][{"boxes": "pred_boxes"}.get(name, name)]
        assert np.linalg.norm(output) == pytest.approx(norm, rel=OUTPUT), name
        assert (output * drawn.direction(name, output.shape)).sum() == pytest.approx(along, abs=OUTPUT * norm), name


def test_losses_are_the_authors(both):
    recorded, found = both
    assert found["losses"].keys() - recorded["losses"].keys() == {"cardinality_error"}
    for name, value in recorded["losses"].items():
        assert found["losses"][name] == pytest.approx(value, rel=LOSS), name


def test_gradients_are_the_authors(both):
    """Of each parameter the norm, and the part along a drawn direction."""
    recorded, found = both
    largest = max(norm for norm, _ in recorded["gradients"].values())
    for name, (norm, along) in recorded["gradients"].items():
        gradient = found["gradients"][name]
        limit = GRADIENT * norm if norm > ZERO * largest else ZERO * largest
        assert np.linalg.norm(gradient) == pytest.approx(norm, abs=limit), name
        assert (gradient * drawn.direction(name, gradient.shape)).sum() == pytest.approx(along, abs=limit), name
    others = found["gradients"].keys() - recorded["gradients"].keys()
    assert all("sampling_offsets" in name and not found["gradients"][name].any() for name in others)


def test_batch_norm_has_seen_what_the_authors_has(both):
    recorded, found = both
    for name, (norm, along) in recorded["statistics"].items():
        moving = found["statistics"][name]
        assert np.linalg.norm(moving) == pytest.approx(norm, rel=STATISTICS), name
        limit = STATISTICS * norm
        assert (moving * drawn.direction(name, moving.shape)).sum() == pytest.approx(along, abs=limit), name


def test_transformers_own_loss_has_the_same_value_and_other_gradients(both):
    """Should the gradients agree one day, transformers decodes as the authors do and `reference.rt_detr` can shrink.

    Measured: the cosine between the two is 0.90 to 0.95.
    """
    recorded, found = both
    theirs = found["of_transformers"]
    assert theirs["loss"] == pytest.approx(recorded["losses"]["loss"], rel=LOSS)
    one, other = (
        np.concatenate([gradients[name].ravel() for name in sorted(gradients)])
        for gradients in (theirs["gradients"], found["by_name"])
    )
    assert 0.5 < one @ other / np.linalg.norm(one) / np.linalg.norm(other) < 0.99


def test_a_run_is_its_single_steps(pytorch):
    """One step from given weights and moments is what the same step is within a run, to the last bit."""
    reference, (batch, targets, draws) = description("v1"), recorded_batch()
    steps, rates = [(batch, targets)] * 3, {"rate": 1e-4, "backbone_factor": 0.1}
    run = pytorch.call("training:denoised_steps", reference, steps, [draws] * 3, **rates)
    state = {}
    for step in range(3):
        one = pytorch.call("training:denoised_steps", reference, steps[:1], [draws], **rates, **state)
        assert one["losses"][0] == run["losses"][step]
        state = {"arrays": one["weights"], "moments": one["moments"]}
    # Each step changes the loss; whether it falls, other pairs decide, which random weights change with each step.
    assert len({losses["loss"] for losses in run["losses"]}) == 3
    for name, array in run["weights"].items():
        np.testing.assert_array_equal(one["weights"][name], array, err_msg=name)
