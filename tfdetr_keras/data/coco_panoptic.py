"""Reader of COCO's panoptic format: images, a PNG file of segments for each, and one JSON file that describes them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf

from tfdetr_keras.data.areas import NOT_BELIEVED, not_believed
from tfdetr_keras.data.box_format import to_xyxy
from tfdetr_keras.data.coco_json import (
    FAULTY_ANNOTATIONS,
    REPEATED_ANNOTATIONS,
    Fault,
    image_fault,
    image_files,
    label_table,
    missing_keys,
    named_image,
    object_fault,
    read_coco_json,
)
from tfdetr_keras.data.files import ImageFiles, Objects, place_in, read_files
from tfdetr_keras.data.images import decode_image
from tfdetr_keras.data.numpy_calls import numpy_call
from tfdetr_keras.data.panoptic_png import NUMBER_OF_IDS, ids_of_colours
from tfdetr_keras.data.record import READABLE, Reader, Record, with_static_shapes
from tfdetr_keras.data.segmentations import is_whole
from tfdetr_keras.data.validation import OnError, Validation

WITHOUT_ANNOTATION = "images without an annotation"
MISSING_MAPS = "missing segment files"
FAULTY_MAPS = "segment files that cannot be read"
UNLISTED_SEGMENTS = "segment files with pixels of unlisted segments"
WITHOUT_PIXELS = "segments without pixels"
MOST_NAMED = 8  # ids in a message
_ANNOTATION_KEYS = {"image_id", "file_name", "segments_info"}
_SEGMENT_KEYS = {"id", "category_id"}


class _Map(NamedTuple):
    """The annotation of one image: where it stands, its PNG file, and the entries of its segments."""

    row: int
    path: Path
    segments_info: list[Any]


class _Segments(NamedTuple):
    """Properties of a set's objects in their files, beside their columns."""

    ids: np.ndarray  # (objects,), in the order of the images
    refused: dict[int, set[int]]  # image id -> ids of entries that were left out, whose pixels are no surprise


def load_coco_panoptic(
    images: str | Path,
    annotations: str | Path,
    segments: str | Path,
    category_ids: Literal["contiguous", "original"] = "contiguous",
    on_error: OnError = "raise",
) -> tuple[tf.data.Dataset, list[str]]:
    """Read a panoptic set in COCO's format: one object per segment, things and stuff alike, with its mask.

    Records come in the order of the JSON file's `images`; an image and its PNG file are decoded while the dataset is
    read. The masks of an image do not overlap; pixels without a segment, black in the PNG file, are in no mask.

    A segment's box is its `bbox`, as for `load_coco`, and its area its `area`. Where `bbox` is missing or has no area
    inside the image, and where `area` is missing, they are taken from the mask: the box reaches from the left edge of
    its first pixel to the right edge of its last one, as COCO's own do. (Training in facebookresearch/detr and
    transformers ends boxes at the last pixel's left and upper edge.)

    Args:
        images: folder of the images.
        annotations: the panoptic JSON file. An annotation needs `image_id`, `file_name` of the PNG file, and
            `segments_info`; a segment needs `id` and `category_id`.
        segments: folder of the PNG files. A pixel's segment is red + 256 green + 65536 blue.
        category_ids: see `load_coco`; `coco_things` tells which labels are things.
        on_error: "raise" an error for data that cannot be used, or "skip" it and count it in the dataset's `tally`. An
            image without annotation or readable PNG file is left out as a whole; pixels of segments that the JSON file
            lacks or that are left out belong to no segment.

    Returns:
        A dataset of records with `masks` (see `tfdetr_keras.data.record`) and the class names, one per label.

    Raises:
        ValueError: a missing, malformed or empty JSON file, or an image id that appears twice. Unless skipped: a
            missing image or PNG file, a malformed annotation or segment, one of an unknown image or category, an image
            with two annotations or none, a segment's id twice in one image. While iterating: an image or a PNG file
            that cannot be read or has another size, a segment without pixels, pixels of a segment that is not listed.

    Source: Kirillov et al. 2019, "Panoptic Segmentation", arXiv:1801.00868, and COCO's panoptic data format.
    """
    validation = Validation(on_error)
    images, annotations = Path(images), Path(annotations)
    content = read_coco_json(annotations)
    labels, class_names = label_table(content["categories"], category_ids, annotations, validation)
    files, joined = image_files(content["images"], images, annotations, validation)
    segmented = [entry for entry in content["annotations"] if not _is_joined(entry, joined)]
    maps = _maps(segmented, files, Path(segments), annotations, validation)
    places = sorted(maps)
    files = ImageFiles([files.paths[place] for place in places], files.image_ids[places], files.sizes[places])
    objects, details = _objects([maps[place] for place in places], files, labels, annotations, validation)
    paths = {int(files.image_ids[row]): maps[place].path for row, place in enumerate(places)}
    reader = read_files(files, objects, validation, root=images).reader
    return _with_masks(reader, paths, details).dataset(), class_names


def coco_things(annotations: str | Path, category_ids: Literal["contiguous", "original"] = "contiguous") -> list[bool]:
    """Return which labels of a panoptic set are things, objects that can be counted; the others are stuff, such as sky.

    Args:
        annotations: the panoptic JSON file.
        category_ids: the same as for `load_coco_panoptic`; with "original", unused numbers are not things.

    Returns:
        One value per label.

    Raises:
        ValueError: as `load_coco_panoptic`, or a category without `isthing`.
    """
    source = Path(annotations)
    categories = read_coco_json(source)["categories"]
    labels, names = label_table(categories, category_ids, source)
    things = [False] * len(names)
    for row, category in enumerate(categories):
        if category.get("isthing") not in (0, 1):
            raise ValueError(
                f"{source}: categories[{row}] has isthing {category.get('isthing')!r}, not 0 or 1: is it a panoptic "
                "file?"
            )
        things[labels[category["id"]]] = bool(category["isthing"])
    return things


def _is_joined(entry: Any, joined: dict[int, int]) -> bool:
    """Return whether an annotation belongs to an image that was left out because another has its file."""
    return bool(joined) and isinstance(entry, dict) and is_whole(entry.get("image_id")) and entry["image_id"] in joined


def _maps(entries: list[Any], files: ImageFiles, folder: Path, source: Path, validation: Validation) -> dict[int, _Map]:
    """Return the annotation of each image, by the image's place, for the images that have one."""
    place_of = {image_id: place for place, image_id in enumerate(files.image_ids.tolist())}
    found: dict[int, _Map] = {}
    refused: set[int] = set()
    for row, entry in enumerate(entries):
        fault = _annotation_fault(entry, place_of, found)
        if fault is None:
            found[place_of[entry["image_id"]]] = _Map(row, place_in(folder, entry["file_name"]), entry["segments_info"])
            continue
        owner = ""
        if isinstance(entry, dict) and "image_id" in entry:
            owner = f" ({named_image(entry['image_id'], place_of, files)})"
            if image_fault(entry, place_of) is None:
                refused.add(place_of[entry["image_id"]])
        validation.refuse(fault[0], f"{source}: annotations[{row}]{owner} {fault[1]}")
    for place, image_id in enumerate(files.image_ids.tolist()):
        if place not in found and place not in refused:
            validation.refuse(
                WITHOUT_ANNOTATION, f"{source}: {named_image(image_id, place_of, files)} has no annotation"
            )
    missing = [place for place, entry in sorted(found.items()) if not entry.path.is_file()]
    remedy = f"{len(missing)} of {len(found)} segment files are missing: is the folder right?"
    for place in missing:
        description = f"the segment file of image {files.image_ids[place]}, {found.pop(place).path}, does not exist"
        validation.refuse(MISSING_MAPS, description, remedy)
    return found


def _annotation_fault(entry: Any, place_of: dict[int, int], found: dict[int, _Map]) -> Fault | None:
    if missing := missing_keys(entry, _ANNOTATION_KEYS):
        return FAULTY_ANNOTATIONS, missing
    if fault := image_fault(entry, place_of):
        return fault
    if not isinstance(entry["file_name"], str):
        return FAULTY_ANNOTATIONS, f"has the file_name {entry['file_name']!r}, not a text"
    if not isinstance(entry["segments_info"], list):
        return FAULTY_ANNOTATIONS, f"has the segments_info {entry['segments_info']!r}, not a list"
    if other := found.get(place_of[entry["image_id"]]):
        return REPEATED_ANNOTATIONS, f"has the image of annotations[{other.row}]"
    return None


def _objects(
    maps: Sequence[_Map], files: ImageFiles, labels: dict[int, int], source: Path, validation: Validation
) -> tuple[Objects, _Segments]:
    """Return all usable segments as columns; boxes and areas that come from the masks are NaN."""
    sound: list[tuple[int, int, dict[str, Any]]] = []  # place of the image, place in its list, entry
    refused: dict[int, set[int]] = {}

    def note(place: int, entry: Any) -> None:
        if isinstance(entry, dict) and is_whole(entry.get("id")):
            refused.setdefault(int(files.image_ids[place]), set()).add(entry["id"])

    def name(place: int, number: int) -> str:
        row = f"annotations[{maps[place].row}].segments_info[{number}]"
        return f"{source}: {row} (image {files.image_ids[place]}, {files.paths[place]})"

    for place, found in enumerate(maps):
        seen: dict[Any, int] = {}
        for number, entry in enumerate(found.segments_info):
            if fault := _segment_fault(entry, labels, seen):
                validation.refuse(fault[0], f"{name(place, number)} {fault[1]}")
                if fault[0] != REPEATED_ANNOTATIONS:  # the first one's pixels are wanted
                    note(place, entry)
                continue
            seen[entry["id"]] = number
            sound.append((place, number, entry))
    image = np.array([place for place, _, _ in sound], np.int64)
    label = np.array([labels[entry["category_id"]] for _, _, entry in sound], np.int64)
    boxes, given = _boxes([entry.get("bbox") for _, _, entry in sound], files.sizes[image])
    corners, kept = validation.admit_boxes(boxes, label, files.sizes[image], None, lambda row: name(*sound[row][:2]))
    corners[~given] = np.nan
    for row in np.flatnonzero(~kept).tolist():
        note(sound[row][0], sound[row][2])
    areas = np.array([np.nan if entry.get("area") is None else entry["area"] for _, _, entry in sound], np.float64)
    doubtful = not_believed(areas, boxes) & given & kept & ~np.isnan(areas)
    for row in np.flatnonzero(doubtful | (areas == 0)).tolist():
        validation.tally.add(NOT_BELIEVED, f"{name(*sound[row][:2])} has the area {areas[row]:g}; its mask's is taken")
        areas[row] = np.nan
    objects = Objects(
        image=image,
        boxes=corners,
        labels=label,
        iscrowd=np.array([bool(entry.get("iscrowd", 0)) for _, _, entry in sound], bool),
        area=areas.astype(np.float32),
    )
    ids = np.array([entry["id"] for _, _, entry in sound], np.int32)
    return objects.rows(kept), _Segments(ids[kept], refused)


def _boxes(bboxes: list[list[float] | None], sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes xyxy and which of them are given; a missing one, or one without area, becomes the whole image."""
    given = np.array([bbox is not None for bbox in bboxes], bool)
    whole = np.zeros((len(bboxes), 4))
    whole[:, 2:] = sizes.reshape(-1, 2)[:, ::-1]
    boxes = whole.copy()
    boxes[given] = to_xyxy([bbox for bbox in bboxes if bbox is not None], "xywh")
    with np.errstate(invalid="ignore"):  # what is not finite or inverted is for the validation to refuse
        inside = np.clip(boxes, 0, whole[:, [2, 3, 2, 3]]).astype(np.float32)
        without_area = (inside[:, 2:] <= inside[:, :2]).any(axis=1) & (boxes[:, 2:] >= boxes[:, :2]).all(axis=1)
    boxes[without_area] = whole[without_area]
    return boxes, given & ~without_area


def _segment_fault(entry: Any, labels: dict[int, int], seen: dict[Any, int]) -> Fault | None:
    if missing := missing_keys(entry, _SEGMENT_KEYS):
        return FAULTY_ANNOTATIONS, missing
    if not is_whole(entry["id"]) or not 0 < entry["id"] < NUMBER_OF_IDS:
        return FAULTY_ANNOTATIONS, f"has the id {entry['id']!r}, not a whole number from 1 to {NUMBER_OF_IDS - 1}"
    return object_fault(entry, labels, seen, "segments_info")


def _with_masks(reader: Reader, paths: dict[int, Path], segments: _Segments) -> Reader:
    """Return a reader of the same records with masks, and with the boxes and areas that the masks give."""

    def read_map(image_id: np.ndarray, size: np.ndarray) -> np.ndarray | None:
        path = paths[int(image_id)]
        try:
            return ids_of_colours(decode_image(path.read_bytes(), tuple(size.tolist())))
        except OSError as error:
            reader.validation.refuse(FAULTY_MAPS, f"{path} cannot be opened: {error.strerror}")
        except ValueError as error:
            reader.validation.refuse(FAULTY_MAPS, f"{path} {error}")
        return None

    def cut_out(
        image_id: np.ndarray,
        start: np.ndarray,
        stop: np.ndarray,
        size: np.ndarray,
        readable: np.ndarray,
        boxes: np.ndarray,
        area: np.ndarray,
    ) -> tuple[Any, ...]:
        found = read_map(image_id, size) if readable else None
        if found is None:
            return np.zeros((0, *size), bool), boxes[:0], area[:0], np.arange(0), np.False_
        path, ids = paths[int(image_id)], segments.ids[int(start) : int(stop)]
        present = np.unique(found)
        others = set(present.tolist()) - {0} - set(ids.tolist()) - segments.refused.get(int(image_id), set())
        if others:
            named = ", ".join(map(str, sorted(others)[:MOST_NAMED])) + (", …" if len(others) > MOST_NAMED else "")
            description = f"{path} (image {image_id}) has pixels of segment {named}, which the annotation does not list"
            reader.validation.refuse(UNLISTED_SEGMENTS, description)
        kept = np.isin(ids, present)
        for segment in ids[~kept].tolist():
            reader.validation.refuse(WITHOUT_PIXELS, f"{path} (image {image_id}) has no pixel of segment {segment}")
        masks = found == ids[kept, None, None]
        boxes, area = boxes[kept], area[kept]
        for row, mask in enumerate(masks):
            if np.isnan(boxes[row]).any():
                boxes[row] = _extent(mask)
            if np.isnan(area[row]):
                area[row] = np.count_nonzero(mask)
        return masks, boxes, area, np.flatnonzero(kept), np.True_

    @tf.autograph.experimental.do_not_convert
    def read(entry: dict[str, tf.Tensor]) -> Record:
        record = reader.read(entry)
        inputs = [entry["image_id"], entry["start"], entry["stop"], record["orig_size"], record[READABLE]]
        inputs += [record["boxes"], record["area"]]
        types = [tf.bool, tf.float32, tf.float32, tf.int64, tf.bool]
        masks, boxes, area, kept, readable = numpy_call(cut_out, inputs, types)
        kept = tf.ensure_shape(kept, (None,))
        record |= {key: tf.gather(record[key], kept) for key in ("labels", "iscrowd")}
        record |= {"masks": masks, "boxes": boxes, "area": area}
        return with_static_shapes(record) | {READABLE: tf.ensure_shape(readable, ())}

    return dataclasses.replace(reader, read=read)


def _extent(mask: np.ndarray) -> list[int]:
    """Return the box xyxy around a mask's pixels, up to their outer edges."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
