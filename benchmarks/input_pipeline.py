"""How fast are images made ready for the model? Ours against Hugging Face's image processor, and a training step.

    python benchmarks/input_pipeline.py [--repetitions 5] [--batch-size 4] [--images 128]

The evaluation's preprocessing of COCO128: JPEG files decoded, resized to 800/1333, normalised, padded to the largest
image of the batch, with mask and boxes. The others are `DetrImageProcessor`, by PIL and by torchvision, in a PyTorch
DataLoader with 2 worker processes that stay from epoch to epoch, and behind a bridge: images decoded by `tf.data`,
handed to the image processor in a DataLoader without workers. All run in turn, an epoch at a time, each in processes
of its own; nothing is done with the batches, and the files are in the system's cache. Figures are medians, ratios
those of the rounds. One epoch before is compared with ours, batch by batch; one epoch after is watched for the most
memory that a contender's processes hold, imports included.

The second table is about training: our pipeline with the paper's augmentation, size 800/1333 at most, and one step of
DETR with ResNet-50 (forward, backward, AdamW) at the same batch size, on the batch of that pipeline whose canvas has
the median area. They take turns, too.

torchvision is downloaded on the first run into `benchmarks/.peers`, where only its own processes look.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness.loaders import CONTENDERS, OURS, TORCHVISION_PACKAGE, arrays_of, loader, our_records, unavailable
from harness.memory import peak_of_tree_mib
from harness.photographs import COCO128 as DATA
from harness.report import print_bar, print_header, print_table, rounded
from harness.workers import Worker, serve, take_turns

AUGMENTATION, STEP = "augmentation", "training step"
STEP_BATCH, STEP_REPETITIONS, SEED = 2, 3, 0
BAR = 2
# Both resize to whole levels, and round some pixels the other way; then float32.
LEVEL_AGREEMENT, BOX_AGREEMENT = 1.01, 1e-5
LEVELS = 255 * np.array((0.229, 0.224, 0.225))  # uint8 levels in one unit of normalised pixels


def _training_batches(annotations: Path) -> Any:
    from tfdetr_keras.data import prepare

    return prepare(our_records(DATA / "images", annotations), STEP_BATCH, training=True, seed=SEED)


def _training_step(annotations: Path) -> tuple[Callable[[], object], list[int]]:
    """One step on the batch whose canvas has the median area, and that canvas."""
    import keras

    from tfdetr_keras.models.detr import DETR

    # The first pass over a data set is always the same.
    canvases = [inputs["pixel_mask"].shape[1:].as_list() for inputs, _ in _training_batches(annotations)]
    median = sorted(range(len(canvases)), key=lambda place: math.prod(canvases[place]))[len(canvases) // 2]
    inputs, targets = next(iter(_training_batches(annotations).skip(median)))
    keras.utils.set_random_seed(SEED)
    model = DETR.from_preset("detr-resnet-50")
    model.compile(optimizer=keras.optimizers.AdamW(1e-4))
    return lambda: model.train_on_batch(inputs, targets), canvases[median]


def work(process: str) -> None:
    """What a worker process does: makes a loader or a training step, saves batches, and times epochs or steps."""
    epoch: Callable[[], object]
    saved: Iterator[Any]

    def exhaust(batches: Iterable[Any]) -> None:
        for _ in batches:
            pass

    def prepare(annotations: str, batch_size: int) -> Any:
        nonlocal epoch, saved
        if process == STEP:
            epoch, canvas = _training_step(Path(annotations))
            return canvas
        if process == AUGMENTATION:
            batches: Iterable[Any] = _training_batches(Path(annotations))
        elif reason := unavailable(process):
            return reason
        else:
            batches = loader(process, DATA / "images", Path(annotations), batch_size)
            saved = iter(batches)
        epoch = partial(exhaust, batches)
        return None

    def save_next(file: str) -> bool:
        batch = next(saved, None)
        if batch is None:
            return False
        np.savez(file, **arrays_of(batch))
        return True

    def once() -> float:
        start = time.perf_counter()
        epoch()
        return time.perf_counter() - start

    serve(prepare=prepare, save_next=save_next, once=once)


def write_annotations(number: int, file: Path) -> int:
    """Writes the annotations of COCO128's first images; returns how many there are."""
    content = json.loads((DATA / "annotations/instances_train2017.json").read_text())
    content["images"] = content["images"][:number]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in ids]
    file.write_text(json.dumps(content))
    return len(ids)


def compare(workers: dict[str, Worker], folder: Path) -> dict[str, tuple[float, float]]:
    """Compares one epoch of each contender's with ours.

    Returns:
        By contender: the largest differences of pixels, in uint8 levels, and of boxes, relative to the image.
    """
    files = {name: folder / f"{place}.npz" for place, name in enumerate(workers)}
    largest = dict.fromkeys(workers, (0.0, 0.0))
    while all([worker.ask("save_next", str(files[name])) for name, worker in workers.items()]):
        ours = dict(np.load(files[OURS]))
        for name, file in files.items():
            theirs = dict(np.load(file))
            same = ("pixel_mask", "labels")
            if any(not np.array_equal(ours[key], theirs[key]) for key in same):
                raise SystemExit(f"{name} has other sizes, masks or labels than ours, so the times mean nothing")
            levels = float((np.abs(ours["pixel_values"] - theirs["pixel_values"]) * LEVELS).max())
            boxes = float(np.abs(ours["boxes"] - theirs["boxes"]).max(initial=0))
            if not (levels <= LEVEL_AGREEMENT and boxes <= BOX_AGREEMENT):
                raise SystemExit(f"{name} differs by {levels} levels, boxes by {boxes}: the times mean nothing")
            largest[name] = max(largest[name][0], levels), max(largest[name][1], boxes)
    return largest


def measure(workers: dict[str, Worker], images: dict[str, int], repetitions: int) -> dict[str, list[float]]:
    """Images per second of each worker, in every round."""
    runs = {name: partial(worker.ask, "once") for name, worker in workers.items()}
    seconds = take_turns(runs, repetitions, seconds_per_figure=math.inf)
    return {name: [images[name] / value for value in values] for name, values in seconds.items()}


def ratio(rates: dict[str, list[float]], faster: str, slower: str) -> float:
    """Median over the rounds of how many times as fast one is as another."""
    return statistics.median(a / b for a, b in zip(rates[faster], rates[slower], strict=True))


def peaks(workers: dict[str, Worker]) -> dict[str, float]:
    """MiB that each worker's processes hold at most during another run; closes the workers."""
    found = {}
    for name, worker in workers.items():
        found[name] = peak_of_tree_mib(worker.process.pid, partial(worker.ask, "once"))
        worker.close()
    return found


def evaluation(annotations: Path, images: int, batch_size: int, repetitions: int) -> dict[str, float]:
    """Prints the first table; returns how many times as fast as each contender ours is."""
    workers = {name: Worker(name) for name in CONTENDERS}
    reasons = {name: worker.ask("prepare", str(annotations), batch_size) for name, worker in workers.items()}
    running = {name: worker for name, worker in workers.items() if reasons[name] is None}
    with tempfile.TemporaryDirectory() as folder:
        differences = compare(running, Path(folder))
    rates = measure(running, dict.fromkeys(running, images), repetitions)
    ratios, held = {name: ratio(rates, OURS, name) for name in running}, peaks(running)

    def row(name: str) -> list[str]:
        if name not in running:
            return [name, str(reasons[name]), *[""] * 4]
        figures = statistics.median(rates[name]), ratios[name], held[name]
        levels, boxes = differences[name]
        return [name, *map(rounded, figures), *(("", "") if name == OURS else (f"{levels:.2f}", f"{boxes:.1e}"))]

    print(f"{images} images, batch {batch_size}; n={repetitions}; peer: {' '.join(TORCHVISION_PACKAGE)}.\n")
    columns = ("", "images/s", "ours / this", "peak MiB", "pixels differ, levels", "boxes differ")
    print_table(columns, map(row, CONTENDERS))
    return {name: value for name, value in ratios.items() if name != OURS}


def training(annotations: Path, images: int) -> float:
    """Prints the second table; returns how many times as fast as a step our augmentation is."""
    workers = {name: Worker(name) for name in (AUGMENTATION, STEP)}
    canvas = [worker.ask("prepare", str(annotations), STEP_BATCH) for worker in workers.values()][-1]
    for worker in workers.values():
        worker.ask("once")
    whole_batches = images // STEP_BATCH * STEP_BATCH
    rates = measure(workers, {AUGMENTATION: whole_batches, STEP: STEP_BATCH}, STEP_REPETITIONS)
    ahead, held = ratio(rates, AUGMENTATION, STEP), peaks(workers)
    print(f"\nTraining, batch {STEP_BATCH}, a step on {canvas[0]}×{canvas[1]}; n={STEP_REPETITIONS}:\n")
    print_table(
        ("", "images/s", f"this / {STEP}", "peak MiB"),
        [
            (name, *map(rounded, (statistics.median(rates[name]), ratio(rates, name, STEP), held[name])))
            for name in workers
        ],
    )
    return ahead


def main() -> None:
    """Measures and prints the tables and the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"there is no folder {DATA}: set TFDETR_DATA to the folder that holds coco128/")
    if arguments.worker:
        work(arguments.worker)
        return

    packages = ("tfdetr-keras", "tensorflow", "keras", "torch", "transformers", "pillow", "numpy")
    print_header("The input pipeline", packages)
    with tempfile.TemporaryDirectory() as folder:
        annotations = Path(folder) / "annotations.json"
        images = write_annotations(arguments.images, annotations)
        ratios = evaluation(annotations, images, arguments.batch_size, arguments.repetitions)
        ahead = training(annotations, images)
    print("\nBars:\n")
    fastest = min(ratios, key=ratios.get)
    print_bar(f"images/s of {OURS} / {fastest}, the fastest of the others", ratios[fastest], at_least=BAR)
    print_bar(f"images/s of the {AUGMENTATION} / {STEP}", ahead, at_least=BAR)


if __name__ == "__main__":
    main()
