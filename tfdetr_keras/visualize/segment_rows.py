"""The segments of an image one by one, from a map and its list of segments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np


def segment_rows(
    segmentation: np.ndarray, segments_info: Sequence[Mapping[str, Any]], class_names: Sequence[str] | Mapping[int, str]
) -> Iterator[dict[str, Any]]:
    """Yield `{"id": int, "label": int, "name": str, "score": float, "area": int}` for each segment.

    Args:
        segmentation: `(height, width)` int, ids.
        segments_info: as `post_process_panoptic` returns it. The score is the highest of the queries that
            were fused into a segment.
        class_names: name of each label, in a list or by label.
    """
    ids, counts = np.unique(segmentation, return_counts=True)
    areas = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    scores: dict[tuple[int, int], float] = {}
    for entry in segments_info:
        key = entry["id"], entry["label_id"]
        scores[key] = max(entry["score"], scores.get(key, 0.0))
    for (number, label), score in scores.items():
        yield {"id": number, "label": label, "name": class_names[label], "score": score, "area": areas.get(number, 0)}
