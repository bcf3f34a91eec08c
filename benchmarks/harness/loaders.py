"""The data loaders that the input pipeline's benchmark compares, each an iterable of batches, one epoch per pass.

All do the same work: read and decode JPEG files, resize to 800/1333, normalise, pad to the largest image of the batch,
with a mask, and give the boxes relative to the image without its padding.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness.peers import not_installed, peer_folder

OURS, PIL, TORCHVISION = "ours", "DataLoader, PIL", "DataLoader, torchvision"
BRIDGE_PIL, BRIDGE_TORCHVISION = "bridge from tf.data, PIL", "bridge from tf.data, torchvision"
CONTENDERS = (OURS, PIL, TORCHVISION, BRIDGE_PIL, BRIDGE_TORCHVISION)
TORCHVISION_PACKAGE = ("torchvision==0.28.0",)  # which goes with torch 2.13
WORKERS = 2  # processes of a DataLoader


def our_records(images: Path, annotations: Path) -> Any:
    """The records of COCO128, with the labels of the published weights."""
    from tfdetr_keras.data import load_coco

    return load_coco(images, annotations, category_ids="original")[0]


def loader(contender: str, images: Path, annotations: Path, batch_size: int) -> Iterable[Any]:
    """Makes a contender's loader.

    Args:
        contender: a name in `CONTENDERS`.
        images: folder of the images.
        annotations: COCO's instances file.
        batch_size: images a batch.
    """
    if contender == OURS:
        from tfdetr_keras.data import prepare

        return prepare(our_records(images, annotations), batch_size)
    from torch.utils.data import DataLoader

    # The bridge's process holds TensorFlow, too. The image processor imports triton, which has to come first there.
    collate, scenes = _Collate(_processor(contender)), _scenes(images, annotations)
    if contender in (BRIDGE_PIL, BRIDGE_TORCHVISION):
        # No worker processes: forked ones would inherit TensorFlow without its threads, and wait for these forever.
        return DataLoader(_bridge(scenes), batch_size, collate_fn=collate)
    return DataLoader(_Files(scenes), batch_size, num_workers=WORKERS, collate_fn=collate, persistent_workers=True)


def arrays_of(batch: Any) -> dict[str, np.ndarray]:
    """A batch of any contender's as arrays: pixels (batch, height, width, 3), mask, and all objects of the batch."""
    if isinstance(batch, tuple):
        inputs, targets = ({key: value.numpy() for key, value in part.items()} for part in batch)
        real = targets["labels"] >= 0
        return inputs | {"labels": targets["labels"][real], "boxes": targets["boxes"][real]}
    return {
        "pixel_values": batch["pixel_values"].numpy().transpose(0, 2, 3, 1),
        "pixel_mask": batch["pixel_mask"].numpy(),
        "labels": np.concatenate([labels["class_labels"].numpy() for labels in batch["labels"]]),
        "boxes": np.concatenate([labels["boxes"].numpy().reshape(-1, 4) for labels in batch["labels"]]),
    }


def unavailable(contender: str) -> str | None:
    """Why a contender cannot run in this process, if so."""
    return torchvision_unavailable() if contender in (TORCHVISION, BRIDGE_TORCHVISION) else None


def torchvision_unavailable() -> str | None:
    """Imports torchvision into this process; returns why that cannot be done, if so."""
    if reason := not_installed(TORCHVISION_PACKAGE):
        return reason
    sys.path.append(str(peer_folder(TORCHVISION_PACKAGE)))
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # built for another torch than ours: its compiled operators, of which none is needed, fail
        return _import_without_operators()
    except ImportError as error:
        return str(error)
    return None


def _import_without_operators() -> str | None:
    """Imports torchvision with the operators declared that its import asks for: what is measured uses torch's."""
    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    torchvision_unavailable.library = torch.library.Library("torchvision", "DEF")  # lives as long as the process
    for operator in ("nms", "qnms"):
        torchvision_unavailable.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        return str(error)
    return None


def _processor(contender: str) -> Any:
    if contender in (TORCHVISION, BRIDGE_TORCHVISION):
        from transformers.models.detr.image_processing_detr import DetrImageProcessor

        return DetrImageProcessor()
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

    return DetrImageProcessorPil()


Scene = tuple[Path, dict[str, Any]]  # an image file and its annotations as the image processor takes them


def _scenes(images: Path, annotations: Path) -> list[Scene]:
    content = json.loads(annotations.read_text())
    rows: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for row in content["annotations"]:
        rows[row["image_id"]].append(row)
    return [
        (images / image["file_name"], {"image_id": image["id"], "annotations": rows[image["id"]]})
        for image in content["images"]
    ]


class _Files:
    """The data set of a DataLoader: decoded images with their annotations."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, place: int) -> tuple[Any, dict[str, Any]]:
        from PIL import Image

        file, target = self.scenes[place]
        return Image.open(file).convert("RGB"), target


class _Collate:
    """Images and annotations to a batch: the image processor for each image, then padding.

    Handing the processor the whole batch is as fast with PIL, and a sixth slower with torchvision.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, examples: list[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
        import torch

        encoded = [
            self.processor(images=image, annotations=target, do_pad=False, return_tensors="pt")
            for image, target in examples
        ]
        pixels = [example["pixel_values"][0] for example in encoded]
        height, width = (max(image.shape[axis] for image in pixels) for axis in (1, 2))
        pixel_values = torch.zeros(len(pixels), 3, height, width)
        pixel_mask = torch.zeros(len(pixels), height, width, dtype=torch.int64)
        for place, image in enumerate(pixels):
            pixel_values[place, :, : image.shape[1], : image.shape[2]] = image
            pixel_mask[place, : image.shape[1], : image.shape[2]] = 1
        labels = [example["labels"][0] for example in encoded]
        return {"pixel_values": pixel_values, "pixel_mask": pixel_mask, "labels": labels}


def _bridge(scenes: Sequence[Scene]) -> Any:
    """A torch data set of what a `tf.data` pipeline yields."""
    import tensorflow as tf
    from torch.utils.data import IterableDataset

    def decode(place: tf.Tensor, file: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Without this method the pixels are not PIL's.
        return place, tf.io.decode_jpeg(tf.io.read_file(file), channels=3, dct_method="INTEGER_ACCURATE")

    files = tf.data.Dataset.from_tensor_slices([str(file) for file, _ in scenes])
    decoded = files.enumerate().map(decode, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    class Bridge(IterableDataset):
        def __iter__(self) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
            for place, image in decoded.as_numpy_iterator():
                yield image, scenes[place][1]

    return Bridge()
