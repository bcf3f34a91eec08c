"""Reads COCO's instances format: a folder of images and one JSON file of annotations."""

import json
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.record import RECORD_SPEC, clip_boxes, validate_annotations

logger = logging.getLogger(__name__)

UNUSED_NAME = "N/A"  # the class name of an id that COCO does not use
_REQUIRED_KEYS = {
    "images": {"id", "file_name", "height", "width"},
    "categories": {"id", "name"},
    "annotations": {"image_id", "category_id", "bbox"},
}


def load_coco(
    images: str | Path,
    annotations: str | Path,
    category_ids: Literal["contiguous", "original"] = "contiguous",
) -> tuple[tf.data.Dataset, list[str]]:
    """Reads a detection set in COCO's format.

    Images are decoded while the dataset is read, in the order of the JSON file. Boxes are clipped to their image; those
    that cover nothing after it are left out, with a line in the log. Images without objects stay.

    Args:
        images: folder of the images (JPEG, PNG, BMP or GIF).
        annotations: the instances JSON file. An annotation needs `image_id`, `category_id` and `bbox` (x, y, width,
            height in pixels); `iscrowd` and `area` default to 0 and to the box's area.
        category_ids: "contiguous" numbers the categories 0 .. K - 1 in the order of their ids; "original" keeps the
            ids as labels, as the published COCO weights do, and names the gaps "N/A".

    Returns:
        A dataset of records (see `tfdetr_keras.data.record`) and the class names, one per label.

    Raises:
        ValueError: a missing, malformed or contradictory annotation file, a missing image file, a non-finite box.
    """
    if category_ids not in ("contiguous", "original"):
        raise ValueError(f'category_ids must be "contiguous" or "original", not {category_ids!r}')
    images, annotations = Path(images), Path(annotations)
    content = _read_json(annotations)
    labels, class_names = _label_table(content["categories"], category_ids, annotations)
    position = _image_positions(content["images"], images, annotations)
    sizes = np.array([(image["height"], image["width"]) for image in content["images"]], np.int32)
    objects = _objects(content["annotations"], position, labels, sizes, annotations)
    starts = np.searchsorted(objects["position"], np.arange(len(sizes) + 1))
    files = {
        "path": [str(images / image["file_name"]) for image in content["images"]],
        "image_id": np.array([image["id"] for image in content["images"]], np.int64),
        "orig_size": sizes,
        "start": starts[:-1],
        "stop": starts[1:],
    }
    columns = {key: tf.constant(objects[key], RECORD_SPEC[key].dtype) for key in ("boxes", "labels", "iscrowd", "area")}

    def read(file: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        record = {key: column[file["start"] : file["stop"]] for key, column in columns.items()}
        record["image"] = _decode(file["path"], file["orig_size"])
        return record | {"image_id": file["image_id"], "orig_size": file["orig_size"]}

    records = tf.data.Dataset.from_tensor_slices(files)
    return records.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True), class_names


def _decode(path: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """The file's pixels as RGB; the accurate DCT is the one that PIL uses, too."""
    content = tf.io.read_file(path)
    image = tf.cond(
        tf.io.is_jpeg(content),
        lambda: tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(content, channels=3, expand_animations=False),
    )
    found, text = tf.shape(image)[:2], tf.strings.as_string
    message = tf.strings.join(
        [
            *[path, " is ", text(found[0]), " x ", text(found[1]), " (height x width), but the annotation file says "],
            *[text(size[0]), " x ", text(size[1]), ": its boxes belong to another version of the image"],
        ]
    )
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(found == size), [message])]):
        return tf.ensure_shape(tf.identity(image), RECORD_SPEC["image"].shape)


def _read_json(path: Path) -> dict[str, list[dict[str, Any]]]:
    if not path.is_file():
        raise ValueError(f"there is no annotation file {path}")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # also covers bytes that are not UTF-8
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    for part, keys in _REQUIRED_KEYS.items():
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise ValueError(f"{path} is not COCO's instances format: it has no list {part!r}")
        for row, entry in enumerate(content[part]):
            if not isinstance(entry, dict) or not keys <= entry.keys():
                missing = sorted(keys - entry.keys()) if isinstance(entry, dict) else sorted(keys)
                raise ValueError(f"{path}: {part}[{row}] has no {', '.join(missing)}")
    return content


def _label_table(categories: list[dict[str, Any]], category_ids: str, source: Path) -> tuple[dict[int, int], list[str]]:
    """Category id -> label, and the names of all labels."""
    names = {category["id"]: category["name"] for category in sorted(categories, key=lambda category: category["id"])}
    if not names or len(names) != len(categories) or min(names) < 0:
        raise ValueError(f"{source}: categories must have different ids from 0 on, at least one")
    if category_ids == "contiguous":
        return {category_id: label for label, category_id in enumerate(names)}, list(names.values())
    return {category_id: category_id for category_id in names}, [
        names.get(category_id, UNUSED_NAME) for category_id in range(max(names) + 1)
    ]


def _image_positions(entries: list[dict[str, Any]], folder: Path, source: Path) -> dict[int, int]:
    """Image id -> place in the list, after a look at the files."""
    if not entries:
        raise ValueError(f"{source} lists no images")
    position: dict[int, int] = {}
    for place, entry in enumerate(entries):
        image_id, file = entry["id"], folder / entry["file_name"]
        if image_id in position:
            raise ValueError(f"{source}: images[{position[image_id]}] and images[{place}] have the same id, {image_id}")
        if not file.is_file():
            raise ValueError(f"{source}: the file of image {image_id}, {file}, does not exist")
        position[image_id] = place
    return position


def _objects(
    entries: list[dict[str, Any]],
    position: dict[int, int],
    labels: dict[int, int],
    sizes: np.ndarray,
    source: Path,
) -> dict[str, np.ndarray]:
    """All annotations as columns, ordered by their images' positions."""
    for row, entry in enumerate(entries):
        if entry["image_id"] not in position:
            raise ValueError(f"{source}: annotations[{row}] belongs to image {entry['image_id']}, which is not listed")
        if entry["category_id"] not in labels:
            raise ValueError(
                f"{source}: annotations[{row}] (image {entry['image_id']}) has category {entry['category_id']}, "
                "which is not listed"
            )
        if not isinstance(entry["bbox"], list) or len(entry["bbox"]) != 4:
            raise ValueError(
                f"{source}: annotations[{row}] (image {entry['image_id']}) has the bbox {entry['bbox']}, "
                "not [x, y, width, height]"
            )
    boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
    box_areas = boxes[:, 2] * boxes[:, 3]
    columns = {
        "position": np.array([position[entry["image_id"]] for entry in entries], np.int64),
        "labels": np.array([labels[entry["category_id"]] for entry in entries], np.int64),
        "iscrowd": np.array([bool(entry.get("iscrowd", 0)) for entry in entries], bool),
        "area": np.array([entry.get("area", area) for entry, area in zip(entries, box_areas, strict=True)], np.float64),
        "rows": np.arange(len(entries)),
    }
    boxes[:, 2:] += boxes[:, :2]
    # float32 already here: what is checked must be what is trained on
    columns["boxes"], kept = clip_boxes(boxes.astype(np.float32), sizes[columns["position"]])
    if not kept.all():
        logger.warning("%s: left out %d of %d boxes without area inside their image", source, (~kept).sum(), len(kept))
    order = np.argsort(columns["position"], kind="stable")
    columns = {key: column[order[kept[order]]] for key, column in columns.items()}
    image_ids = np.array(list(position))[columns["position"]]
    num_classes = max(labels.values()) + 1
    validate_annotations(columns["boxes"], columns["labels"], num_classes, str(source), image_ids, columns["rows"])
    return columns
