"""What a model found in one image, for people and for their other tools."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image, the surest first.

    Printed, they are a table; iterated over, one dictionary an object.

    Attributes:
        scores: `(n,)` float32.
        labels: `(n,)` int64.
        boxes: `(n, 4)` float32 xyxy, pixels of the image; `detect` clips them to it.
        names: of the classes, `n` of them.
        image: `(height, width, 3)` uint8, RGB, as the model saw it: upright.
        attention: `(n, h, w)` float32, how much each object's query attends to each cell of the feature map in the last
            decoder layer, averaged over heads; where it was asked for.
        masks: `(n, height, width)` bool, the objects' pixels; of a model with a mask head.
    """

    scores: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    names: list[str]
    image: np.ndarray
    attention: np.ndarray | None = None
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        """How many objects."""
        return len(self.names)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Gives `{"name": str, "label": int, "score": float, "box": [x1, y1, x2, y2]}` for each object."""
        rows = zip(self.names, self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        for name, label, score, box in rows:
            yield {"name": name, "label": label, "score": score, "box": box}

    def __str__(self) -> str:
        """A line an object."""
        height, width = self.image.shape[:2]
        lines = [f"{len(self)} objects in {height} × {width} pixels"]
        lines += [f"{row['score']:.2f}  {row['name']}  {[round(side) for side in row['box']]}" for row in self]
        return "\n".join(lines)

    def to_supervision(self) -> Any:
        """The same as a `supervision.Detections`, for that library's annotators, trackers and zones.

        Raises:
            ValueError: supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise ValueError("install supervision first: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, str)},
        )
