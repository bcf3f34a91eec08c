"""What do others train a D-FINE with? Losses and gradients of one batch: its authors', ours, transformers', KerasHub's.

    python benchmarks/d_fine_training.py

All get the outputs of one training step, decoder, pre-head, encoder and denoising queries, and a batch of two images
with different objects, four and two of them; what is compared are the weighted losses and the gradients of their sum
with respect to these outputs. The outputs are those that `tests/losses/fine_grained_outputs.py` draws, and the authors'
figures those that `tests/golden/fine_grained.npz` has recorded of their code.

transformers' loss gets them in the form in which its model hands them over (`tests/reference/fine_grained.py`), and so
does KerasHub's: the pre-head's first among the layers, and the objects of the second image filled up to four rows, as
its data pipeline does. Both run without a network. An output is "without a gradient" where it has none at all in a
layer in which the authors' code has one.

Each has a process of its own. KerasHub is downloaded on the first run into `benchmarks/.peers`.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from harness import kerashub
from harness.peers import not_installed, peer_folder
from harness.report import print_bar, print_header, print_table
from harness.workers import Worker, serve

TESTS = Path(__file__).parents[1] / "tests"
for _folder in ("losses", "reference"):
    sys.path.append(str(TESTS / _folder))

from fine_grained_outputs import BINS, CASES, CLASSES, UP, drawn, trained  # noqa: E402

CASE = "two images"
AUTHORS, OURS, TRANSFORMERS, KERASHUB = "authors", "ours", "transformers", "KerasHub"
CONTENDERS = {OURS: "tensorflow", TRANSFORMERS: "torch", KERASHUB: "tensorflow"}
DECODER, PRE, ENCODER, DENOISING, DENOISING_PRE = PLACES = (
    "decoder",
    "pre-head",
    "encoder",
    "denoising",
    "denoising, pre-head",
)
KINDS = {"loss_ce": "classes", "loss_bbox": "L1", "loss_giou": "GIoU", "loss_fgl": "FGL", "loss_ddf": "DDF"}
THEIR_KINDS = {"loss_vfl": "loss_ce", "loss_ciou": "loss_giou"}
WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0, "loss_fgl": 0.15, "loss_ddf": 1.5}  # the authors'
AGREEMENT = 1e-5  # of our sum, relative
LEFT_OUT = {
    OURS: "nothing",
    TRANSFORMERS: (
        "Logits and boxes of each layer are paired with distributions of the next, those of the pre-head with "
        "those of the first, and what is left over has no loss: classes and boxes of the last layer but one, "
        "distributions of the last, classes and boxes of the last layer's denoising queries. No union of the "
        "matchings: each layer's boxes are trained on its own. Boxes are cut off at the image."
    ),
    KERASHUB: (
        "Each image is trained towards objects of the first: what the matching of an image chooses is looked up "
        "among the objects of the whole batch, without the image's offset. Of the denoising queries the k-th, also "
        "if it is a negative, is trained towards the object whose number is the place of the k-th positive; and "
        "they are made of the objects that the network was constructed with, whatever the batch. Rows that fill up "
        "an image's objects count as objects. No union of the matchings. The pre-head has FGL and DDF of the first "
        "layer's distributions, CIoU stands for GIoU, α is 0.25 in place of 0.75 in the classes' loss, and boxes "
        "are cut off at the image."
    ),
}

Terms = list[tuple[str, str, float]]  # kind, place, weighted value


def _vector(gradients: Mapping[tuple[str, ...], Any]) -> dict[str, list[float]]:
    return {".".join(path): np.asarray(value, np.float64).ravel().tolist() for path, value in gradients.items()}


def _place_of_ours(suffix: str) -> str:
    name = suffix.rpartition("_")[0].removeprefix("_")
    return {"": DECODER, "pre": PRE, "encoder": ENCODER, "denoising_pre": DENOISING_PRE}.get(name, DENOISING)


def terms_of_ours(losses: Mapping[str, float]) -> Terms:
    """Weighted terms from unweighted losses by our names."""
    found = []
    for name, value in losses.items():
        kind = "_".join(name.split("_")[:2])
        if kind in WEIGHTS:
            found.append((kind, _place_of_ours(name.removeprefix(kind)), WEIGHTS[kind] * value))
    return found


def ours() -> tuple[float, Terms, dict[str, list[float]]]:
    """Sum, terms and gradients of ours."""
    import tensorflow as tf

    from tfdetr_keras.layers.distance_bins import bin_values
    from tfdetr_keras.losses.fine_grained_criterion import FineGrainedCriterion

    outputs, targets, variables = _tensors()
    reg_scale = tf.constant([CASES[CASE].reg_scale])
    outputs |= {"bin_values": bin_values(tf.constant([UP]), reg_scale), "reg_scale": reg_scale}
    with tf.GradientTape() as tape:
        tape.watch(variables)
        losses = FineGrainedCriterion()(outputs, targets)
    gradients = tape.gradient(losses["loss"], variables, unconnected_gradients="zero")
    return float(losses["loss"]), terms_of_ours({k: float(v) for k, v in losses.items()}), _vector(gradients)


def _tensors() -> tuple[dict[str, Any], dict[str, Any], dict[tuple[str, ...], Any]]:
    """Outputs in float32, targets, and of the outputs those that have gradients."""
    import tensorflow as tf

    outputs, targets = drawn(CASES[CASE])
    outputs = tf.nest.map_structure(
        lambda x: tf.constant(x, "float32" if np.issubdtype(x.dtype, np.floating) else None), outputs
    )
    return outputs, targets, dict(trained(outputs))


def transformers() -> tuple[float, Terms, dict[str, list[float]]]:
    """Sum, terms and gradients of transformers'."""
    from fine_grained import of_transformers

    outputs, targets = drawn(CASES[CASE])
    losses, gradients = of_transformers(outputs, targets, UP, CASES[CASE].reg_scale, BINS)
    total, found = losses.pop("loss"), []
    # The pre-head, the layers that have distributions to go with them, and the encoder's.
    layers = [PRE, *[DECODER] * (CASES[CASE].layers - 2), ENCODER]
    for name, value in losses.items():
        kind, _, number = name.partition("_aux_") if "_aux_" in name else name.partition("_dn_")
        place = DECODER
        if number:
            of_layers = layers if "_aux_" in name else [DENOISING_PRE, *[DENOISING] * CASES[CASE].layers]
            place = of_layers[int(number)]
        found.append((THEIR_KINDS.get(kind, kind), place, value))
    return total, found, _vector(dict(trained(gradients)))


def kerashub_loss() -> tuple[float, Terms, dict[str, list[float]]]:
    """Sum, terms and gradients of KerasHub's."""
    sys.path.append(str(peer_folder(kerashub.PACKAGE)))
    import tensorflow as tf
    from keras_hub.models import DFineObjectDetector
    from keras_hub.src.models.d_fine import d_fine_object_detector as module

    case = CASES[CASE]
    outputs, targets, variables = _tensors()
    sets = outputs["prediction_sets"]
    pre, noised, noised_pre = sets["pre"], sets["denoising"], sets["denoising_pre"]
    used = int(np.sum(noised["query_mask"]))
    pairs = [np.flatnonzero(row >= 0) for row in noised["queries"].numpy()[:, 0]]
    most = max(map(len, pairs))
    objects = targets["labels"].shape[1]

    # What its detector holds, by default, and its network.
    defaults = inspect.signature(DFineObjectDetector.__init__).parameters
    detector = SimpleNamespace(
        **{name: defaults[name].default for name in defaults if name.startswith(("matcher", "use_focal", "ddf"))},
        weight_dict={
            f"loss_{name.removeprefix('weight_loss_')}": defaults[name].default
            for name in defaults
            if name.startswith("weight_loss_")
        },
        num_classes=CLASSES,
        backbone=SimpleNamespace(
            num_queries=case.queries,
            num_decoder_layers=case.layers,
            dn_split_point=used,
            decoder=SimpleNamespace(
                reg_scale=tf.constant([case.reg_scale]), upsampling_factor=tf.constant([UP]), max_num_bins=BINS
            ),
        ),
    )
    calls: dict[str, int] = {}
    found: Terms = []

    def recorded(name: str, places: list[str]) -> Any:
        function = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            losses = function(*arguments, **options)
            place = places[calls.setdefault(name, 0)]
            calls[name] += 1
            for kind, value in losses.items():
                found.append((THEIR_KINDS.get(kind, kind), place, float(detector.weight_dict[kind] * value)))
            return losses

        return call

    matched = [DECODER, PRE, *[DECODER] * (case.layers - 1)]
    denoising = [DENOISING_PRE, *[DENOISING] * case.layers]
    module.compute_vfl_loss = recorded("compute_vfl_loss", [*matched, ENCODER, *denoising])
    module.compute_box_losses = recorded("compute_box_losses", [*matched, ENCODER, *denoising])
    module.compute_local_losses = recorded("compute_local_losses", [*matched, *denoising])

    with tf.GradientTape() as tape:
        tape.watch(variables)

        def joined(of_noised: Any, of_queries: Any) -> Any:
            return tf.concat([of_noised[:, :, :used], of_queries], 2)

        def layers(key: str, earlier: str) -> Any:
            decoder = tf.concat([pre[key], outputs[earlier], outputs[key][:, None]], 1)
            return joined(tf.concat([noised_pre[key], noised[key]], 1), decoder)

        def first_twice(of_layers: Any) -> Any:
            return tf.concat([of_layers[:, :1], of_layers], 1)

        references = tf.concat([noised["references"][:, :used], outputs["references"]], 1)
        y_pred = {
            "intermediate_logits": layers("logits", "aux_logits"),
            "intermediate_reference_points": layers("pred_boxes", "aux_boxes"),
            "intermediate_predicted_corners": first_twice(joined(noised["corners"], outputs["corners"])),
            "initial_reference_points": tf.repeat(references[:, None], case.layers + 1, axis=1),
            "enc_topk_logits": sets["encoder"]["logits"][:, 0],
            "enc_topk_bboxes": sets["encoder"]["pred_boxes"][:, 0],
            "dn_positive_idx": tf.constant([[*one, *[-1] * (most - len(one))] for one in pairs], tf.int64),
            "dn_num_group": tf.constant([used // (2 * objects)] * len(pairs), tf.int32),
            "dn_num_split": tf.constant([[used, case.queries]] * len(pairs), tf.int32),
        }
        y = {"labels": tf.constant(targets["labels"]), "boxes": tf.constant(targets["boxes"], tf.float32)}
        total = DFineObjectDetector.compute_loss(detector, None, y, y_pred, None)
    gradients = tape.gradient(total, variables, unconnected_gradients="zero")
    return float(total), found, _vector(gradients)


def work(contender: str) -> None:
    """What a worker process does."""
    serve(step={OURS: ours, TRANSFORMERS: transformers, KERASHUB: kerashub_loss}[contender])


def _without(found: np.ndarray, wanted: np.ndarray) -> list[int]:
    """The layers of an output without a gradient, of those that have one, from 1."""
    axes = tuple(axis for axis in range(wanted.ndim) if axis != 1)
    return [index + 1 for index in range(wanted.shape[1]) if wanted.any(axes)[index] and not found.any(axes)[index]]


def missing(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> str:
    """Which outputs have no gradient where they should have one."""
    names = []
    for path, value in wanted.items():
        name = path.removeprefix("prediction_sets.").replace(".", " ").replace("_", " ")
        if "." in path or path.startswith(("aux", "corners")):
            of_layers = _without(found[path], value)
            names += [f"{name} {', '.join(map(str, of_layers))}"] if of_layers else []
        elif value.any() and not found[path].any():
            names.append(name)
    return "; ".join(names) or "none"


def main() -> None:
    """Compute the step of each, and print the tables and the bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return

    recorded = np.load(TESTS / "golden" / "fine_grained.npz")
    losses = dict(zip(recorded[f"{CASE}/names"].tolist(), recorded[f"{CASE}/losses"].tolist(), strict=True))
    wanted = {".".join(path): recorded[f"{CASE}/{'.'.join(path)}"] for path, _ in trained(drawn(CASES[CASE])[0])}
    steps: dict[str, Any] = {AUTHORS: (losses["loss"], terms_of_ours(losses), wanted)}
    absent = [KERASHUB] if not_installed(kerashub.PACKAGE) else []
    for name in CONTENDERS:
        if name in absent:
            continue
        worker = Worker(name, KERAS_BACKEND=CONTENDERS[name])
        total, terms, vector = worker.ask("step")
        worker.close()
        gradients = {path: np.reshape(vector[path], value.shape) for path, value in wanted.items()}
        steps[name] = total, terms, gradients

    print_header("A training step of D-FINE", ("tfdetr-keras", "tensorflow", "keras", "torch", "transformers"))
    counts = " and ".join(map(str, CASES[CASE].counts))
    print(f"Two images, {counts} objects; KerasHub is {kerashub.PACKAGE[0]}; the authors': {recorded['source']}.\n")
    print_table(
        ("", "loss", "terms", "cosine of the gradients with the authors'", "without a gradient, by layer"),
        [
            (name, f"{total:.3f}", str(len(terms)), f"{_cosine(gradients, wanted):.4f}", missing(gradients, wanted))
            for name, (total, terms, gradients) in steps.items()
        ],
    )
    print("\nTerms, weighted, all layers together:\n")
    rows = []
    for kind, title in KINDS.items():
        for place in PLACES:
            sums = [_sum_of(terms, kind, place) for _, terms, _ in steps.values()]
            if any(one is not None for one in sums):
                rows.append((f"{title}, {place}", *("–" if one is None else f"{one:.3f}" for one in sums)))
    print_table(("", *steps), rows)
    print("\nWhat each leaves out or does otherwise:\n")
    for name in steps:
        if name in LEFT_OUT:
            print(f"- {name}: {LEFT_OUT[name]}")
    for name in absent:
        print(f"- {name}: not installed")
    print("\nBars:\n")
    total = steps[OURS][0] / losses["loss"]
    print_bar("loss of ours / the authors', from 1", abs(total - 1), at_most=AGREEMENT)
    print_bar("cosine of our gradients with the authors'", _cosine(steps[OURS][2], wanted), at_least=1 - AGREEMENT)


def _cosine(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> float:
    one, other = (np.concatenate([np.ravel(x[path]) for path in wanted]).astype(float) for x in (found, wanted))
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def _sum_of(terms: Terms, kind: str, place: str) -> float | None:
    values = [value for of_kind, of_place, value in terms if (of_kind, of_place) == (kind, place)]
    return sum(values) if values else None


if __name__ == "__main__":
    main()
