"""Post-processing of masks: from a mask head's outputs to instances, panoptic and semantic maps, and masks of objects.

The rules are those of transformers' `DetrImageProcessor`, its peculiarities included, so that a ported model gives the
same results as there; each function names them. One is optional: masks cover the canvas that a batch was padded to,
and transformers stretches the canvas, padding and all, over the image. With `pixel_mask` the padding is cut off first.

Source: Carion et al. 2020, "End-to-End Object Detection with Transformers", section 5 ("DETR for panoptic
segmentation").
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from tfdetr_keras import notebook
from tfdetr_keras.inference.mask_frames import frames_of
from tfdetr_keras.inference.postprocess import confident, post_process
from tfdetr_keras.matching.classification import Classification, classification_named, sigmoid, softmax
from tfdetr_keras.visualize.segment_rows import segment_rows

NOTHING = -1  # fills the map of an image in which no query was confident


def post_process_instance(
    outputs: Mapping[str, Any],
    target_sizes: Any = None,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    pixel_mask: Any = None,
) -> list[dict[str, Any]]:
    """Turn logits and masks into one map of objects per image: `post_process_panoptic` without fusing.

    For masks that may overlap, and for mask AP, see `post_process_masks`.

    Args:
        outputs: see `post_process_panoptic`.
        target_sizes: see `post_process_panoptic`.
        threshold: see `post_process_panoptic`.
        mask_threshold: see `post_process_panoptic`.
        overlap_mask_area_threshold: see `post_process_panoptic`.
        pixel_mask: see `post_process_panoptic`.

    Returns:
        As `post_process_panoptic`; `was_fused` is False.

    Raises:
        ValueError: see `post_process_panoptic`.

    Source:
        transformers 5, `DetrImageProcessor.post_process_instance_segmentation`.
    """
    return post_process_panoptic(
        outputs, target_sizes, threshold, mask_threshold, overlap_mask_area_threshold, (), pixel_mask
    )


def post_process_panoptic(
    outputs: Mapping[str, Any],
    target_sizes: Any = None,
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    label_ids_to_fuse: Collection[int] = (),
    pixel_mask: Any = None,
    classification: str | Classification = "softmax",
) -> list[dict[str, Any]]:
    """Turn logits and masks into one map of segments per image, in which each pixel belongs to at most one segment.

    Queries whose most likely class, including "no object", is a real one and more probable than `threshold` compete
    for the pixels: each pixel goes to the query with the highest product of the query's probability and the mask's
    probability there, or to the first of equal ones. A query becomes a segment if the pixels that it won are more than
    `overlap_mask_area_threshold` times those where its product reaches `mask_threshold`. Ids count from 1 in the order
    of the queries; later segments of a label in `label_ids_to_fuse` take the id of the first.

    Some of this may surprise; it is the same in transformers:

    - A pixel that no mask covers still goes to a query, as one product is always the highest: segments are cut out of
      the whole image, not out of the masks.
    - `mask_threshold` is compared with the product, so the area of a less confident query counts as smaller.
    - Pixels that a rejected query won are 0, which is no segment; but an image without any confident query is -1
      throughout.
    - A fused segment has one entry in `segments_info` per query, each with that query's score.
    - After a fusion ids continue from the fused one. So a later segment can get the id of another, even of another
      label; where that matters, as for panoptic quality, fuse nothing here and fuse the result with `fuse_segments`.

    Args:
        outputs: the model's outputs: `logits` `(batch, queries, classes + 1)`, last = no object, or `(…, classes)`
            where each class is a sigmoid, and `pred_masks` `(batch, queries, h, w)` logits over the canvas.
        target_sizes: `(batch, 2)` height and width in pixels of each result, usually of the original image; None
            leaves masks at their resolution, or with `pixel_mask` at that of the image on the canvas.
        threshold: only queries with a score > threshold take part.
        mask_threshold: from which product on a pixel counts as one of the query's own.
        overlap_mask_area_threshold: the ratio that a segment's pixels must exceed.
        label_ids_to_fuse: labels with at most one segment in an image, such as sky.
        pixel_mask: `(batch, height, width)`, 1 = image, 0 = padding, the model's input: masks are enlarged to
            this canvas and cropped to the image before they are resized.
        classification: that of the model, `model.config.classification`.

    Returns:
        Per image `{"segmentation": (height, width) int32 of ids, "segments_info": [{"id": int, "label_id": int,
        "was_fused": bool, "score": float}, …]}`.

    Raises:
        ValueError: outputs without masks; `target_sizes` or `pixel_mask` that do not fit them.

    Source:
        transformers 5, `DetrImageProcessor.post_process_panoptic_segmentation`.
    """
    masks = _masks(outputs)
    probabilities = _probabilities(outputs, classification)
    labels, scores = probabilities.argmax(-1), probabilities.max(-1)
    keep = scores > float(threshold)
    if classification_named(classification).has_no_object:
        keep &= labels != probabilities.shape[-1] - 1
    results = []
    for place, frame in enumerate(frames_of(masks, target_sizes, pixel_mask)):
        kept = np.flatnonzero(keep[place])
        if not len(kept):
            results.append({"segmentation": np.full(frame.size, NOTHING, np.int32), "segments_info": []})
            continue
        products = (frame.resized(sigmoid(masks[place, query])) * scores[place, query] for query in kept)
        owners, own_areas = _shared_out(products, len(kept), frame.size, float(mask_threshold))
        won_areas = np.bincount(owners.ravel(), minlength=len(kept))
        ids, segments_info = _numbered(
            labels[place, kept],
            scores[place, kept],
            won_areas,
            own_areas,
            overlap_mask_area_threshold,
            label_ids_to_fuse,
        )
        results.append({"segmentation": ids[owners], "segments_info": segments_info})
    return results


def post_process_semantic(
    outputs: Mapping[str, Any],
    target_sizes: Any = None,
    pixel_mask: Any = None,
    classification: str | Classification = "softmax",
) -> list[np.ndarray]:
    """Turn logits and masks into one map of classes per image.

    A class's value at a pixel is the sum over all queries of the query's probability of it times the mask's probability
    there; the pixel gets the class with the highest value. "No object" is not a candidate, so each pixel has a real
    class.

    Args:
        outputs: see `post_process_panoptic`.
        target_sizes: see `post_process_panoptic`.
        pixel_mask: see `post_process_panoptic`.
        classification: see `post_process_panoptic`.

    Returns:
        Per image `(height, width)` int32, labels.

    Raises:
        ValueError: see `post_process_panoptic`.

    Source:
        Cheng et al. 2021, "Per-Pixel Classification is Not All You Need for Semantic Segmentation", arXiv:2107.06278,
        section 3.4; transformers 5, `DetrImageProcessor.post_process_semantic_segmentation`.
    """
    masks = _masks(outputs)
    probabilities = _probabilities(outputs, classification)
    if classification_named(classification).has_no_object:
        probabilities = probabilities[..., :-1]
    results = []
    for place, frame in enumerate(frames_of(masks, target_sizes, pixel_mask)):
        values = np.tensordot(probabilities[place].T, sigmoid(masks[place]), axes=1)
        owners, _ = _shared_out((frame.resized(value) for value in values), len(values), frame.size)
        results.append(owners)
    return results


def post_process_masks(
    outputs: Mapping[str, Any],
    target_sizes: Any,
    threshold: float | Sequence[float] = 0.5,
    mask_threshold: float = 0.5,
    pixel_mask: Any = None,
    classification: str | Classification = "softmax",
    top_k: int | None = None,
) -> list[dict[str, np.ndarray]]:
    """Turn logits, boxes and masks into the detections of `post_process`, each with its mask, as mask AP needs them.

    Masks stay logits until they have their size, and may overlap. facebookresearch's own post-processing applies the
    threshold on the canvas and then enlarges pixels; here contours stay smooth, otherwise the masks are the same.

    Args:
        outputs: the model's outputs: `logits` and `pred_boxes` as for `post_process`, and `pred_masks`
            `(batch, queries, h, w)` logits over the canvas.
        target_sizes: `(batch, 2)` height and width in pixels of the image that boxes and masks refer to.
        threshold: only detections with score > threshold are returned.
        mask_threshold: pixels with a greater mask probability belong to the object.
        pixel_mask: see `post_process_panoptic`; needed if a batch was padded.
        classification: see `post_process_panoptic`.
        top_k: as for `post_process`.

    Returns:
        Per image the result of `post_process`, and `"masks": (n, height, width) bool`.

    Raises:
        ValueError: see `post_process_panoptic`.

    Source:
        facebookresearch/detr, `PostProcessSegm`.
    """
    objects = objects_with_masks(outputs, target_sizes, threshold, mask_threshold, pixel_mask, classification, top_k)
    sizes = np.asarray(ops.convert_to_numpy(target_sizes)).astype(int).tolist()
    results = []
    for (found, mask_of), (height, width) in zip(objects, sizes, strict=True):
        masks = np.empty((len(found["scores"]), height, width), bool)
        for row in range(len(masks)):
            masks[row] = mask_of(row)
        results.append(found | {"masks": masks})
    return results


def objects_with_masks(
    outputs: Mapping[str, Any],
    target_sizes: Any,
    threshold: float | Sequence[float] = 0.5,
    mask_threshold: float = 0.5,
    pixel_mask: Any = None,
    classification: str | Classification = "softmax",
    top_k: int | None = None,
) -> list[tuple[dict[str, np.ndarray], Callable[[int], np.ndarray]]]:
    """Return the result of `post_process_masks`, with masks made on demand: a hundred may fill a memory.

    Returns:
        Per image the result of `post_process`, and a function from the row of a detection to its mask `(height, width)`
        bool.

    Raises:
        ValueError: see `post_process_panoptic`.
    """
    masks = _masks(outputs)
    frames = frames_of(masks, target_sizes, pixel_mask)
    with np.errstate(divide="ignore"):  # thresholds of 0 and 1
        logit = np.float32(np.log(mask_threshold) - np.log1p(-mask_threshold))
    detections = post_process(outputs, target_sizes, threshold, classification, top_k)
    queries = [of_image for _, _, of_image in confident(outputs["logits"], threshold, classification, top_k)]

    def mask_of(place: int, row: int) -> np.ndarray:
        return frames[place].resized(masks[place, queries[place][row]]) > logit

    return [(found, functools.partial(mask_of, place)) for place, found in enumerate(detections)]


def _probabilities(outputs: Mapping[str, Any], classification: str | Classification) -> np.ndarray:
    """Return the probabilities of the classes, and of "no object" where there is such."""
    logits = np.asarray(ops.convert_to_numpy(outputs["logits"]), np.float32)
    return softmax(logits) if classification_named(classification).has_no_object else sigmoid(logits)


def fuse_segments(
    segmentation: np.ndarray, segments_info: Sequence[Mapping[str, Any]], label_ids: Collection[int]
) -> dict[str, Any]:
    """Fuse all segments of a label into one, as panoptic quality requires for stuff.

    This is what `label_ids_to_fuse` of `post_process_panoptic` is meant to do, but no two segments share an id here.

    Args:
        segmentation: `(height, width)` int, ids; those that `segments_info` lacks stay unchanged.
        segments_info: as `post_process_panoptic` returns it without fusing.
        label_ids: labels that get at most one segment in the image, such as sky.

    Returns:
        `{"segmentation": (height, width) int32, "segments_info": [{"id": int, "label_id": int, "was_fused": bool,
        "score": float}, …]}`: a fused segment has the id of its first part and the highest score of its parts;
        `was_fused` is whether the label is one of `label_ids`. Other segments are unchanged.

    Raises:
        ValueError: an id that two segments share, unless they are to be fused.
    """
    segmentation = np.array(segmentation, np.int32)
    known: dict[int, int] = {}
    fused: dict[int, dict[str, Any]] = {}
    segments: list[dict[str, Any]] = []
    for entry in segments_info:
        label, to_fuse = entry["label_id"], entry["label_id"] in label_ids
        if entry["id"] in known and not (to_fuse and known[entry["id"]] == label):
            raise ValueError(
                f"two segments have the id {entry['id']}, of the labels {known[entry['id']]} and {label}, so "
                "their pixels cannot be told apart: let post_process_panoptic fuse nothing"
            )
        known[entry["id"]] = label
        if to_fuse and (whole := fused.get(label)):
            segmentation[segmentation == entry["id"]] = whole["id"]
            whole["score"] = max(whole["score"], entry["score"])
            continue
        segments.append({**entry, "was_fused": to_fuse})
        if to_fuse:
            fused[label] = segments[-1]
    return {"segmentation": segmentation, "segments_info": segments}


def lay_masks(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Lay the masks of detections, which may overlap, over each other, the highest-scoring on top; return segments.

    Args:
        found: of one image, from `post_process_masks` or `td.detect`.

    Returns:
        As `post_process_instance`; ids are the rows of the detections, from 1. A mask that lies wholly under others is
        not among the segments.
    """
    segmentation = np.zeros(found["masks"].shape[1:], np.int32)
    for row in np.argsort(found["scores"], kind="stable"):
        segmentation[found["masks"][row]] = row + 1
    segments_info = [
        {"id": row, "label_id": int(found["labels"][row - 1]), "was_fused": False, "score": score}
        for row, score in enumerate(found["scores"].tolist(), start=1)
        if (segmentation == row).any()
    ]
    return {"segmentation": segmentation, "segments_info": segments_info}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Segments:
    """The segments of one image.

    Printed, they are a table; in a notebook, a picture and a table; iterated over, one dictionary per segment.

    Attributes:
        segmentation: `(height, width)` int32, ids.
        segments_info: as `post_process_panoptic` returns it.
        class_names: name of each label, in a list or by label.
        image: `(height, width, 3)` uint8, RGB.
    """

    segmentation: np.ndarray
    segments_info: list[dict[str, Any]]
    class_names: Sequence[str] | Mapping[int, str]
    image: np.ndarray

    def __len__(self) -> int:
        """Return the number of segments."""
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield `{"id": int, "label": int, "name": str, "score": float, "area": int}` for each segment.

        Areas are in pixels. The score is the highest of the queries that were fused into a segment.
        """
        return segment_rows(self.segmentation, self.segments_info, self.class_names)

    def __repr__(self) -> str:
        """Return what the image consists of, in one line."""
        height, width = self.segmentation.shape
        names = [row["name"] for row in self]
        return f"<Segments: {len(names)} in {height} × {width} pixels{': ' if names else ''}{notebook.counted(names)}>"

    def _repr_html_(self) -> str:
        """Return a picture with the segments and a table, for notebooks."""
        from tfdetr_keras.visualize import image_of_segments  # draws `Segments`

        height, width = self.segmentation.shape
        rows = [(f"{row['score']:.2f}", row["name"], f"{100 * row['area'] / (height * width):.1f} %") for row in self]
        return notebook.page(
            f"{notebook.number(len(rows), 'segment')} in {height} × {width} pixels",
            notebook.picture(image_of_segments(self)),
            notebook.table(("score", "class", "area"), rows) if rows else "",
        )

    def __str__(self) -> str:
        """Return one line per segment."""
        height, width = self.segmentation.shape
        lines = [f"{notebook.number(len(self), 'segment')} in {height} × {width} pixels"]
        lines += [f"{row['score']:.2f}  {row['name']}  {100 * row['area'] / (height * width):.1f} %" for row in self]
        return "\n".join(lines)


def _masks(outputs: Mapping[str, Any]) -> np.ndarray:
    """Return the logits `(batch, queries, h, w)` float32 of the masks; raise if there are none."""
    if "pred_masks" not in outputs:
        raise ValueError(f'outputs have no "pred_masks", only {sorted(outputs)}: this takes a model with a mask head')
    masks = np.asarray(ops.convert_to_numpy(outputs["pred_masks"]), np.float32)
    expected = tuple(np.shape(outputs["logits"])[:2])
    if masks.ndim != 4 or masks.shape[:2] != expected:
        raise ValueError(f"pred_masks must be (batch, queries, h, w) = {(*expected, 'h', 'w')}, not {masks.shape}")
    return masks


def _shared_out(
    maps: Iterable[np.ndarray], count: int, size: tuple[int, int], threshold: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Assign each pixel to the map with the highest value there, the first of equal ones, while holding only one map.

    Args:
        maps: `count` times `(height, width)` float32, not negative.
        count: of the maps.
        size: (height, width).
        threshold: from which value on a pixel counts for a map's area.

    Returns:
        `(height, width)` int32, the number of each pixel's map; and `(count,)` int64, the maps' areas, whether won or
        not.
    """
    owners, highest = np.zeros(size, np.int32), np.zeros(size, np.float32)
    areas = np.zeros(count, np.int64)
    for row, values in enumerate(maps):
        areas[row] = np.count_nonzero(values >= threshold)
        np.copyto(owners, row, where=values > highest)
        np.maximum(highest, values, out=highest)
    return owners, areas


def _numbered(
    labels: np.ndarray,
    scores: np.ndarray,
    won_areas: np.ndarray,
    own_areas: np.ndarray,
    min_ratio: float,
    label_ids_to_fuse: Collection[int],
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return ids `(n,)` int32 of the `n` queries that competed for pixels, 0 = rejected, and segment descriptions."""
    ids = np.zeros(len(labels), np.int32)
    segments_info: list[dict[str, Any]] = []
    fused: dict[int, int] = {}
    latest = 0
    rows = zip(labels.tolist(), scores.tolist(), won_areas, own_areas, strict=True)
    for row, (label, score, won, own) in enumerate(rows):
        # The ratio is float32, as in PyTorch: 4 of 5 pixels are more than 0.8.
        if not won or not own or not float(np.float32(won) / np.float32(own)) > min_ratio:
            continue
        ids[row] = latest = fused.get(label, latest + 1)
        to_fuse = label in label_ids_to_fuse
        if to_fuse:
            fused[label] = latest
        segments_info.append({"id": latest, "label_id": label, "was_fused": to_fuse, "score": round(score, 6)})
    return ids, segments_info
