"""How fast are images made ready by the recipe of RT-DETR and D-FINE? Ours against torchvision in a DataLoader.

    python benchmarks/strong_pipeline.py [--repetitions 7] [--batch-size 8] [--images 128]

An epoch of COCO128, shuffled: JPEG files decoded, colours distorted, zoomed out, cropped around an object, boxes below
a pixel left out, mirrored, resized to 640 × 640, levels 0 … 1. The other is torchvision's second version on PIL's
images, which is how the authors train, in a PyTorch DataLoader with 2 worker processes that stay from epoch to epoch.
All run in turn, an epoch at a time, each in processes of its own; nothing is done with the batches, and the files are
in the system's cache. Figures are medians, ratios those of the rounds. One epoch after is watched for the most memory
that a contender's processes hold, imports included. `tests/data` shows, on the same draws, that both do the same.

The other rows are ours, too: with batches of RT-DETR's several sizes, and without the recipe, by which one sees what it
costs.

torchvision is downloaded on the first run into `benchmarks/.peers`, where only its own processes look.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from harness.loaders import TORCHVISION_PACKAGE, WORKERS, our_records, torchvision_unavailable
from harness.memory import peak_of_tree_mib
from harness.photographs import COCO128 as DATA
from harness.report import print_bar, print_header, print_table, rounded
from harness.workers import Worker, serve, take_turns

OURS, THEIRS = "ours", "DataLoader, torchvision"
SIZES, MIRRORED, PLAIN = "ours, several sizes", "ours, mirrored alone", "ours, resized alone"
CONTENDERS = (OURS, THEIRS, SIZES, MIRRORED, PLAIN)
SIDE = 640
BAR = 2


def _our_batches(contender: str, annotations: Path, batch_size: int) -> Any:
    import tfdetr_keras as td

    preprocessing = td.Preprocessing(size=(SIDE, SIDE), rule="stretch", mean=(0, 0, 0), std=(1, 1, 1))
    return td.data.prepare(
        our_records(DATA / "images", annotations),
        batch_size,
        training=True,
        augmentation={MIRRORED: "flip", PLAIN: "none"}.get(contender, "strong"),
        multiscale=td.data.MULTISCALE if contender == SIZES else None,
        preprocessing=preprocessing,
    )


class _Photographs:
    """The data set of a DataLoader: augmented images with their boxes and labels."""

    def __init__(self, annotations: Path) -> None:
        import torch
        from torchvision.transforms import v2

        content = json.loads(annotations.read_text())
        self.images = content["images"]
        self.rows: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in self.images}
        for row in content["annotations"]:
            if not row["iscrowd"]:
                self.rows[row["image_id"]].append(row)
        self.transform = v2.Compose(
            [
                v2.RandomPhotometricDistort(p=0.5),
                v2.RandomZoomOut(fill=0),
                v2.RandomApply([v2.RandomIoUCrop()], p=0.8),
                v2.SanitizeBoundingBoxes(min_size=1),
                v2.RandomHorizontalFlip(),
                v2.Resize([SIDE, SIDE]),
                v2.SanitizeBoundingBoxes(min_size=1),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> tuple[Any, dict[str, Any]]:
        import torch
        from PIL import Image
        from torchvision import tv_tensors

        entry = self.images[place]
        image, rows = Image.open(DATA / "images" / entry["file_name"]).convert("RGB"), self.rows[entry["id"]]
        boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        framed = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(image.height, image.width))
        labels = torch.tensor([row["category_id"] for row in rows], dtype=torch.long)
        return self.transform(image, {"boxes": framed, "labels": labels})


def _stacked(examples: list[tuple[Any, dict[str, Any]]]) -> tuple[Any, list[dict[str, Any]]]:
    import torch

    return torch.stack([image for image, _ in examples]), [targets for _, targets in examples]


def _their_batches(annotations: Path, batch_size: int) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(
        _Photographs(annotations),
        batch_size,
        shuffle=True,
        num_workers=WORKERS,
        collate_fn=_stacked,
        drop_last=True,
        persistent_workers=True,
    )


def work(contender: str) -> None:
    """What a worker process does: makes a loader, and times epochs."""
    batches: Iterable[Any]

    def prepare(annotations: str, batch_size: int) -> str | None:
        nonlocal batches
        if contender != THEIRS:
            batches = _our_batches(contender, Path(annotations), batch_size)
            return None
        if reason := torchvision_unavailable():
            return reason
        batches = _their_batches(Path(annotations), batch_size)
        return None

    def once() -> float:
        start = time.perf_counter()
        for _ in batches:
            pass
        return time.perf_counter() - start

    serve(prepare=prepare, once=once)


def write_annotations(number: int, file: Path) -> int:
    """Writes the annotations of COCO128's first images; returns how many there are."""
    content = json.loads((DATA / "annotations/instances_train2017.json").read_text())
    content["images"] = content["images"][:number]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in ids]
    file.write_text(json.dumps(content))
    return len(ids)


def main() -> None:
    """Measures and prints the table and the bar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"there is no folder {DATA}: set TFDETR_DATA to the folder that holds coco128/")
    if arguments.worker:
        work(arguments.worker)
        return

    packages = ("tfdetr-keras", "tensorflow", "keras", "torch", "pillow", "numpy")
    print_header("The strong recipe", packages)
    with tempfile.TemporaryDirectory() as folder:
        annotations = Path(folder) / "annotations.json"
        images = write_annotations(arguments.images, annotations)
        workers = {name: Worker(name) for name in CONTENDERS}
        reasons = {
            name: worker.ask("prepare", str(annotations), arguments.batch_size) for name, worker in workers.items()
        }
        running = {name: worker for name, worker in workers.items() if reasons[name] is None}
        for worker in running.values():
            worker.ask("once")  # starts processes, traces graphs
        runs = {name: partial(worker.ask, "once") for name, worker in running.items()}
        seconds = take_turns(runs, arguments.repetitions, seconds_per_figure=math.inf)
        held = {}
        for name, worker in workers.items():
            if name in running:
                held[name] = peak_of_tree_mib(worker.process.pid, partial(worker.ask, "once"))
            worker.close()
    whole = images // arguments.batch_size * arguments.batch_size
    ratios = {
        name: statistics.median(b / a for a, b in zip(seconds[OURS], seconds[name], strict=True)) for name in running
    }

    def row(name: str) -> list[str]:
        if name not in running:
            return [name, str(reasons[name]), "", ""]
        return [name, *map(rounded, (whole / statistics.median(seconds[name]), ratios[name], held[name]))]

    peer = " ".join(TORCHVISION_PACKAGE)
    print(f"{whole} images, batch {arguments.batch_size}; n={arguments.repetitions}; peer: {peer}.\n")
    print_table(("", "images/s", "ours / this", "peak MiB"), map(row, CONTENDERS))
    print("\nBar:\n")
    print_bar(f"images/s of {OURS} / {THEIRS}", ratios.get(THEIRS), at_least=BAR)


if __name__ == "__main__":
    main()
