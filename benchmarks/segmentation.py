"""How fast are masks? Ours against Hugging Face's `DetrForSegmentation`, in inference and in the second training stage.

    python benchmarks/segmentation.py [--repetitions 5] [--size 384x512] [--objects 8]

Both sides have ResNet-50, 100 queries, 250 classes and the same weights. "Segments" is from an image in memory to a map
of its segments, of as many queries as there are objects; "inference" from pixels in memory to masks of all queries. "A
training step" trains the mask head of a frozen detector on one image with some objects: matching, losses, gradients,
AdamW. Ours runs as `segment`, `predict_on_batch` and `train_on_batch` do, Hugging Face eagerly. Logits, boxes, masks
and segments are compared before anything is trained. Sides run in turn, once a round, each in a process of its own,
where its peak memory is read, too, from the process's start: after segments, then after inference, then after training.
Figures are medians; compilation is not timed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness.memory import peak_mib
from harness.report import print_bar, print_header, print_table, rounded
from harness.workers import Worker, serve, take_turns

OURS, THEIRS = "ours", "transformers"
TIMED = {"segment": "segments", "infer": "inference", "step": "a training step"}
LIMITS = {"logits": 1e-3, "pred_boxes": 1e-4, "pred_masks": 1e-2}  # absolute; masks are logits of some tens
MOST_PIXELS = 1e-2  # the share in another segment, where two products of score and mask are next to equal
RATE, DECAY, MAX_NORM = 1e-4, 1e-4, 0.1


def batch(height: int, width: int, objects: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """One image of noise, and objects with boxes as masks."""
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0.2, 0.6, (1, objects, 4)).astype(np.float32)
    rows, columns = (np.arange(side) + 0.5 for side in (height, width))
    cx, cy, w, h = (boxes[..., place, None, None] for place in range(4))
    masks = (np.abs(rows[:, None] / height - cy) < h / 2) & (np.abs(columns / width - cx) < w / 2)
    inputs = {
        "pixel_values": rng.normal(size=(1, height, width, 3)).astype(np.float32),
        "pixel_mask": np.ones((1, height, width), np.int64),
    }
    return inputs, {"labels": rng.integers(0, 250, (1, objects)).astype(np.int32), "boxes": boxes, "masks": masks}


def photograph(height: int, width: int) -> np.ndarray:
    """An image of noise."""
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


def threshold_of(scores: np.ndarray, count: int) -> float:
    """What so many of the scores exceed."""
    ordered = np.sort(scores.ravel())[::-1]
    return float(ordered[count - 1 : count + 1].mean())


def _ours(folder: str, inputs: dict[str, np.ndarray], targets: dict[str, np.ndarray]) -> tuple[Any, Any, Any]:
    import tfdetr_keras as td

    model = td.from_pretrained(folder)
    model.auxiliary_outputs = False  # which Hugging Face's model has none of
    model.freeze(td.PRESETS["detr-resnet-50"].parts)
    model.compile(optimizer=td.AdamW(RATE, weight_decay=DECAY, global_clipnorm=MAX_NORM))
    image = photograph(*inputs["pixel_mask"].shape[1:])
    size = min(image.shape[:2]), max(image.shape[:2])
    scores = model.detect(image, size, threshold=0.0, masks=False).scores
    threshold = threshold_of(scores, targets["labels"].size)

    def segment() -> np.ndarray:
        return model.segment(image, size, threshold).segmentation

    return segment, lambda: model.predict_on_batch(inputs), lambda: model.train_on_batch(inputs, targets)


def _theirs(folder: str, inputs: dict[str, np.ndarray], targets: dict[str, np.ndarray]) -> tuple[Any, Any, Any]:
    import torch
    import transformers
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

    model: Any = transformers.DetrForSegmentation.from_pretrained(folder)
    for parameter in model.detr.parameters():
        parameter.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=DECAY)
    pixels = torch.from_numpy(np.ascontiguousarray(inputs["pixel_values"].transpose(0, 3, 1, 2)))
    arguments = {"pixel_values": pixels, "pixel_mask": torch.from_numpy(inputs["pixel_mask"])}
    label = {name: torch.from_numpy(values[0]) for name, values in targets.items() if name != "labels"}
    label["class_labels"] = torch.from_numpy(targets["labels"][0]).long()

    image = photograph(*inputs["pixel_mask"].shape[1:])
    size = {"shortest_edge": min(image.shape[:2]), "longest_edge": max(image.shape[:2])}
    processor: Any = DetrImageProcessorPil(size=size)

    @torch.inference_mode()
    def outputs_of_image() -> Any:
        return model.eval()(**processor(images=image, return_tensors="pt"))

    scores = outputs_of_image().logits.softmax(-1)[..., :-1].amax(-1).numpy()
    threshold = threshold_of(scores, targets["labels"].size)

    def segment() -> np.ndarray:
        [found] = processor.post_process_panoptic_segmentation(
            outputs_of_image(), threshold, target_sizes=[image.shape[:2]], label_ids_to_fuse=set()
        )
        return found["segmentation"].numpy()

    @torch.inference_mode()
    def infer() -> dict[str, np.ndarray]:
        outputs = model.eval()(**arguments)
        return {name: outputs[name].numpy() for name in LIMITS}

    def step() -> None:
        loss = model.train()(**arguments, labels=[label]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return segment, infer, step


def differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """By how much outputs differ at most, and the share of pixels in another segment; ends the program if too much."""
    apart = {name: float(np.abs(ours[name] - theirs[name]).max()) for name in LIMITS}
    apart["segments"] = float((ours["segmentation"] != theirs["segmentation"]).mean())
    if any(not apart[name] <= limit for name, limit in (LIMITS | {"segments": MOST_PIXELS}).items()):
        raise SystemExit(f"the outputs differ by {apart}, so the times mean nothing")
    return apart


def work(contender: str) -> None:
    """What a worker process does."""
    side, folder, height, width, objects = contender.split("|")
    make = _ours if side == OURS else _theirs
    segment, infer, step = make(folder, *batch(int(height), int(width), int(objects)))

    def outputs() -> str:
        path = f"{folder}/{side}.npz"
        np.savez(path, **{name: value for name, value in infer().items() if name in LIMITS}, segmentation=segment())
        return path

    def timed(run: Any) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    runs = {"segment": segment, "infer": infer, "step": step}
    serve(outputs=outputs, peak=peak_mib, **{what: partial(timed, run) for what, run in runs.items()})


def main() -> None:
    """Measures and prints the table and the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--size", default="384x512", metavar="HEIGHTxWIDTH")
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return

    from port_weights.reference import write_random_checkpoint
    from tfdetr_keras.models import PRESETS

    height, width = map(int, arguments.size.split("x"))
    print_header("Segmentation", ("tfdetr-keras", "tensorflow", "keras", "torch", "transformers"))
    with tempfile.TemporaryDirectory() as folder:
        write_random_checkpoint(Path(folder), PRESETS["detr-resnet-50-panoptic"])
        workers = {side: Worker(f"{side}|{folder}|{height}|{width}|{arguments.objects}") for side in (OURS, THEIRS)}
        seconds, peaks = {}, {}
        for what in TIMED:
            for worker in workers.values():
                worker.ask(what)  # compiles
            once = {side: partial(worker.ask, what) for side, worker in workers.items()}
            turns = take_turns(once, arguments.repetitions, seconds_per_figure=1e6)
            seconds[what] = {side: statistics.median(values) for side, values in turns.items()}
            peaks[what] = {side: worker.ask("peak") for side, worker in workers.items()}
            if what == "infer":  # of the weights that both began with
                apart = differences(*(np.load(worker.ask("outputs")) for worker in workers.values()))
        for worker in workers.values():
            worker.close()

    print(f"ResNet-50, 100 queries, {arguments.objects} objects, {height}×{width}; n={arguments.repetitions}; ")
    print(f"outputs differ: {', '.join(f'{name} by {value:.1e}' for name, value in apart.items())}.\n")
    columns = ("", "median ms", f"this / {THEIRS}", "peak MiB", f"this / {THEIRS}")
    rows = [
        (
            f"{name}, {side}",
            rounded(1e3 * seconds[what][side]),
            rounded(seconds[what][side] / seconds[what][THEIRS]),
            rounded(peaks[what][side]),
            rounded(peaks[what][side] / peaks[what][THEIRS]),
        )
        for what, name in TIMED.items()
        for side in (OURS, THEIRS)
    ]
    print_table(columns, rows)
    print("\nBars:\n")
    for what, name in TIMED.items():
        print_bar(f"time of {name}, ours / {THEIRS}", seconds[what][OURS] / seconds[what][THEIRS], at_most=1)
        print_bar(f"memory after {name}, ours / {THEIRS}", peaks[what][OURS] / peaks[what][THEIRS], at_most=1)


if __name__ == "__main__":
    main()
