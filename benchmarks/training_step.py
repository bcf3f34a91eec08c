"""How long does a training step take, data and all? Ours against PyTorch's loop on the same `tf.data`.

    python benchmarks/training_step.py [--repetitions 5] [--model detr-resnet-50 detr-tiny]

The bridge is what people build today: the `tf.data` pipeline wrapped as a PyTorch data set, a collate function, and a
loop over Hugging Face's detector with its auxiliary loss, `torch.optim.AdamW` with a tenth of the
learning rate in the backbone, and gradients clipped to 0.1. Ours is `fit` on batches of the same pipeline, as a plain
graph and compiled by XLA. Photographs are decoded, mirrored, resized and padded to one canvas in every step, on both
sides by the same code; stem, first stage and batch normalisation are frozen on both. RT-DETR's images are stretched;
all of it is trained on both sides, with batch normalisation by the batch and with denoising queries. Weights are the
same, and outputs are compared first.

One round is one epoch of some steps, start of the pipeline included; sides run in turn; figures are medians, of a step.
Compilation is not timed. Each side has a process of its own, which is also where its peak memory is read, from the
process's start. Hugging Face's two-stage Deformable DETR does not train its proposals, and ours does; a further side
leaves their loss out, to tell its part of the step.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from harness.agreement import PARTS, apart
from harness.memory import peak_mib
from harness.photographs import COCO128
from harness.report import print_bar, print_header, print_table, rounded
from harness.workers import Worker, serve, take_turns

GRAPH, XLA, BRIDGE = "ours, graph", "ours, XLA", "the bridge"
WITHOUT = "ours, graph, without the proposals' loss"
CONTENDERS = (GRAPH, XLA, BRIDGE)
RATE, BACKBONE_FACTOR, DECAY, MAX_NORM = 1e-4, 0.1, 1e-4, 0.1
MAX_BOXES = 64
AGREEMENT = 1e-3  # of logits and boxes, absolute
OF_PROPOSALS = 0.05  # bar for the part of the step that their loss takes


class Load(NamedTuple):
    """What is trained: side of a square canvas in pixels, images a batch, steps a round, bar for the time, and who."""

    side: int
    batch: int
    steps: int
    at_most: float
    sides: tuple[str, ...] = CONTENDERS


RT_DETR = "rt-detr-r18"
TWO_STAGE = "deformable-detr-with-box-refine-two-stage"
LOADS = {
    "detr-resnet-50": Load(512, 2, 4, 0.65),
    "detr-tiny": Load(256, 16, 4, 0.5),
    # XLA takes minutes to compile the whole of these steps for a CPU, on which `fit` does not ask for it.
    "deformable-detr": Load(512, 2, 2, 0.8, (GRAPH, BRIDGE)),
    TWO_STAGE: Load(512, 2, 2, 0.8, (GRAPH, WITHOUT, BRIDGE)),
    RT_DETR: Load(640, 4, 2, 0.7, (GRAPH, BRIDGE)),
}


def _data(name: str, batch: int) -> Any:
    """Endless batches."""
    import tfdetr_keras as td
    from tfdetr_keras.models import PRESETS

    load = LOADS[name]
    square: dict[str, Any] = {"size": (load.side, load.side), "pad_to": (load.side, load.side)}
    if name == RT_DETR:
        square = {"preprocessing": PRESETS[name].preprocessing}

    records, _ = td.data.load_coco(
        COCO128 / "images", COCO128 / "annotations/instances_train2017.json", category_ids="original"
    )
    return td.data.prepare(
        records,
        batch,
        training=True,
        augmentation="flip",
        **square,
        max_boxes=MAX_BOXES,
        repeat=True,
    )


def _model(name: str) -> Any:
    """The model of either side, the same weights each time.

    Batch normalisation is frozen, as Hugging Face has it; RT-DETR's is not.
    """
    import keras

    import tfdetr_keras as td
    from tfdetr_keras.models import PRESETS

    keras.utils.set_random_seed(0)
    if name == RT_DETR:
        return td.from_preset(name, num_classes=91)
    backbone = dataclasses.replace(PRESETS[name].backbone, batch_norm="frozen")
    return td.from_preset(name, num_classes=91, backbone=backbone, frozen="stem+stage1")


Epoch = Callable[[], None]
Forward = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def ours(name: str, jit_compile: bool, of_proposals: bool = True) -> tuple[Forward, Epoch]:
    """Our forward pass and an epoch of `fit`, with the loss of proposals or without it."""
    import tfdetr_keras as td

    class OfLayers(td.SetCriterion):
        def __call__(self, outputs: Mapping[str, Any], targets: Any) -> dict[str, Any]:
            return super().__call__({key: x for key, x in outputs.items() if key != "prediction_sets"}, targets)

    load, model = LOADS[name], _model(name)
    if not of_proposals:
        model.criterion = OfLayers(**vars(model.criterion))
    model.compile(
        optimizer=td.AdamW(
            RATE,
            learning_rate_multipliers={"backbone": BACKBONE_FACTOR},
            weight_decay=DECAY,
            global_clipnorm=MAX_NORM,
        ),
        jit_compile=jit_compile,
    )
    data = _data(name, load.batch)

    def epoch() -> None:
        model.fit(data, steps_per_epoch=load.steps, verbose=0)

    return lambda pixels: {key: np.array(value) for key, value in model(pixels).items()}, epoch


def _bridge(name: str) -> tuple[Forward, Epoch]:
    # What people build holds TensorFlow and PyTorch in one process, and is safe only with triton first.
    with contextlib.suppress(ImportError):
        import triton  # noqa: F401
    import torch

    from port_weights import to_torch
    from port_weights.architecture import hugging_face_config
    from port_weights.families import family_of
    from port_weights.pytorch.model import load_weights, reference_model

    load, keras_model = LOADS[name], _model(name)
    model: Any = reference_model(hugging_face_config(keras_model.config))
    load_weights(model, to_torch(keras_model, family_of(keras_model.config).reference_scheme(keras_model.config)))
    # Hugging Face freezes all of its own ResNets; the paper, and so the other side, the stem and the first stage.
    for path, parameter in model.named_parameters() if name != RT_DETR else ():
        frozen = "backbone" in path and ("embedder" in path or "stages.0." in path or "normalization" in path)
        parameter.requires_grad_(not frozen)

    class Wrapped(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            yield from _data(name, 1).as_numpy_iterator()

    def collate(examples: list[Any]) -> dict[str, Any]:
        labels = []
        for _, targets in examples:
            real = targets["labels"][0] >= 0
            boxes, classes = targets["boxes"][0][real], targets["labels"][0][real]
            labels.append({"class_labels": torch.from_numpy(classes.astype(np.int64)), "boxes": torch.tensor(boxes)})
        pixels = np.concatenate([inputs["pixel_values"] for inputs, _ in examples]).transpose(0, 3, 1, 2)
        collated = {"pixel_values": torch.from_numpy(np.ascontiguousarray(pixels)), "labels": labels}
        if name != RT_DETR:
            masks = np.concatenate([inputs["pixel_mask"] for inputs, _ in examples])
            collated["pixel_mask"] = torch.from_numpy(masks.astype(np.int64))
        return collated

    batches = torch.utils.data.DataLoader(Wrapped(), load.batch, collate_fn=collate)
    backbone = [p for path, p in model.named_parameters() if "backbone" in path and p.requires_grad]
    rest = [p for path, p in model.named_parameters() if "backbone" not in path]
    optimizer = torch.optim.AdamW(
        [{"params": rest}, {"params": backbone, "lr": RATE * BACKBONE_FACTOR}], lr=RATE, weight_decay=DECAY
    )

    def epoch() -> None:
        model.train()
        model.config.auxiliary_loss = model.model.decoder.config.auxiliary_loss = True
        for _, batch in zip(range(load.steps), batches, strict=False):
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            optimizer.zero_grad()

    @torch.inference_mode()
    def forward(pixels: np.ndarray) -> dict[str, np.ndarray]:
        model.eval()
        outputs = model(torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))))
        return {"logits": outputs.logits.numpy(), "pred_boxes": outputs.pred_boxes.numpy()}

    return forward, epoch


def work(contender: str) -> None:
    """What a worker process does."""
    name, _, side = contender.partition(": ")
    forward, epoch = _bridge(name) if side == BRIDGE else ours(name, side == XLA, of_proposals=side != WITHOUT)

    def outputs() -> dict[str, list[Any]]:
        pixels = np.random.default_rng(0).normal(size=(1, 128, 160, 3)).astype(np.float32)
        found = forward(pixels)
        return {part: found[part].tolist() for part in PARTS}

    def once() -> float:
        start = time.perf_counter()
        epoch()
        return time.perf_counter() - start

    serve(outputs=outputs, once=once, peak=peak_mib)


def measure(name: str, repetitions: int) -> dict[str, tuple[float, float]]:
    """Median seconds of a step and peak MiB of each side."""
    sides = LOADS[name].sides
    workers = {side: Worker(f"{name}: {side}") for side in sides}
    outputs = {side: worker.ask("outputs") for side, worker in workers.items()}
    for side in set(sides) - {BRIDGE}:
        differences = apart(
            outputs[side], outputs[BRIDGE], is_ordered=name != RT_DETR
        )  # random tokens are nearly alike
        if not max(differences) <= AGREEMENT:
            raise SystemExit(f"{side}: logits and boxes differ by {differences}, so the times mean nothing")
    for worker in workers.values():
        worker.ask("once")  # compiles
    once = {side: partial(worker.ask, "once") for side, worker in workers.items()}
    seconds = take_turns(once, repetitions, seconds_per_figure=1e6)
    peaks = {side: worker.ask("peak") for side, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    return {side: (statistics.median(values) / LOADS[name].steps, peaks[side]) for side, values in seconds.items()}


def main() -> None:
    """Measures and prints the tables and the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--model", nargs="+", default=list(LOADS), choices=list(LOADS))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return

    print_header("The training step", ("tfdetr-keras", "tensorflow", "keras", "torch", "transformers"))
    for name in arguments.model:
        load, measured = LOADS[name], measure(name, arguments.repetitions)
        seconds, peak = measured[BRIDGE]
        print(f"#### {name}, {load.side}×{load.side}, batch {load.batch}\n")
        print(f"n={arguments.repetitions} rounds of {load.steps} steps; outputs agree to {AGREEMENT:g}.\n")
        columns = ("", "median ms of a step", f"this / {BRIDGE}", "images/s", "peak MiB", f"this / {BRIDGE}")
        rows = [
            (side, rounded(1e3 * s), rounded(s / seconds), rounded(load.batch / s), rounded(mib), rounded(mib / peak))
            for side, (s, mib) in measured.items()
        ]
        print_table(columns, rows)
        print("\nBars:\n")
        fastest = min({GRAPH, XLA}.intersection(measured), key=lambda side: measured[side][0])
        print_bar(f"time of {fastest} / {BRIDGE}", measured[fastest][0] / seconds, at_most=load.at_most)
        print_bar(f"peak memory of {fastest} / {BRIDGE}", measured[fastest][1] / peak, at_most=1.4)
        if WITHOUT in measured:
            share = 1 - measured[WITHOUT][0] / measured[GRAPH][0]
            print_bar("part of the step that the loss of proposals takes", share, at_most=OF_PROPOSALS)
        print()


if __name__ == "__main__":
    main()
