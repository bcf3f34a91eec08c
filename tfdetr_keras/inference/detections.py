"""The objects that a model found in one image, for people and for their other tools."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from tfdetr_keras import notebook


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The objects found in one image, the highest-scoring first.

    Printed, they are a table; in a notebook, a picture and a table; iterated over, one dictionary per object. As with
    an array, `found[0]` is one of them, and `found[:5]` or `found[found.scores > 0.8]` are some, again as `Detections`.

    Attributes:
        scores: `(n,)` float32.
        labels: `(n,)` int64.
        boxes: `(n, 4)` float32 xyxy, pixels of the image; `detect` clips them to it.
        names: of the classes, `n` of them.
        image: `(height, width, 3)` uint8, RGB, as the model saw it: upright.
        attention: `(n, h, w)` float32, how much each object's query attends to each cell of the feature map in the last
            decoder layer, averaged over heads; if it was requested.
        masks: `(n, height, width)` bool, the objects' pixels; if the model has a mask head.
    """

    scores: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    names: list[str]
    image: np.ndarray
    attention: np.ndarray | None = None
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.names)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield `{"name": str, "label": int, "score": float, "box": [x1, y1, x2, y2]}` for each object."""
        return (self._row(place) for place in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice | np.ndarray | Sequence[int] | Sequence[bool]) -> Detections: ...

    def __getitem__(self, index: Any) -> Any:
        """Return one object or some of them.

        Args:
            index: a number, from the end if it is negative; a slice; a mask `(n,)` bool; or numbers `(m,)` int.

        Returns:
            For a number, the dictionary of one object, as iteration yields it; else `Detections` of the same image.

        Raises:
            IndexError: a number that is out of range, or a mask of another length.
            TypeError: an index of another kind.
        """
        if hasattr(index, "__index__") and np.ndim(index) == 0 and not isinstance(index, bool):
            return self._row(range(len(self))[operator.index(index)])
        if not isinstance(index, slice):
            index = np.asarray(index)
            if index.shape == (0,):
                index = index.astype(int)  # an empty list, or the mask of no objects
            if index.ndim != 1 or index.dtype.kind not in "biu":
                raise TypeError("Detections are indexed by a number, a slice, a mask (n,) bool or numbers (m,) int")
        places = np.arange(len(self))[index]
        return dataclasses.replace(
            self,
            scores=self.scores[places],
            labels=self.labels[places],
            boxes=self.boxes[places],
            names=[self.names[place] for place in places],
            attention=None if self.attention is None else self.attention[places],
            masks=None if self.masks is None else self.masks[places],
        )

    def _row(self, place: int) -> dict[str, Any]:
        return {
            "name": self.names[place],
            "label": int(self.labels[place]),
            "score": float(self.scores[place]),
            "box": self.boxes[place].tolist(),
        }

    def __repr__(self) -> str:
        """Return what was found, in one line."""
        height, width = self.image.shape[:2]
        extra = [name for name in ("masks", "attention") if getattr(self, name) is not None]
        found = f": {notebook.counted(self.names)}" if len(self) else ""
        return (
            f"<Detections of {notebook.number(len(self), 'object')} in {height} × {width} pixels{found}{_with(extra)}>"
        )

    def _repr_html_(self) -> str:
        """Return a picture with the boxes and a table, for notebooks."""
        from tfdetr_keras.visualize import image_of_detections  # draws `Detections`

        height, width = self.image.shape[:2]
        rows = [(f"{row['score']:.2f}", row["name"], *(round(side) for side in row["box"])) for row in self]
        return notebook.page(
            f"{notebook.number(len(self), 'object')} in {height} × {width} pixels",
            notebook.picture(image_of_detections(self)),
            notebook.table(("score", "class", "x1", "y1", "x2", "y2"), rows) if rows else "",
        )

    def __str__(self) -> str:
        """Return one line per object."""
        height, width = self.image.shape[:2]
        lines = [f"{notebook.number(len(self), 'object')} in {height} × {width} pixels"]
        lines += [f"{row['score']:.2f}  {row['name']}  {[round(side) for side in row['box']]}" for row in self]
        return "\n".join(lines)

    def to_coco(
        self, image_id: int, category_ids: Sequence[int] | Mapping[int, int] | None = None, masks: bool = False
    ) -> list[dict[str, Any]]:
        """Return the detections as COCO's results, which `pycocotools`' `loadRes` and evaluation servers take.

        For a whole data set see `tfdetr_keras.evaluation.write_coco_results`, which writes a file of such entries.

        Args:
            image_id: the id of the image in the annotations.
            category_ids: the id of each label, e.g. from `td.data.coco_category_ids`; the labels themselves by default.
            masks: whether an entry has the object's mask instead of its box: pycocotools wants only one of them, and
                uses the areas of boxes for masks if both are there.

        Returns:
            For each object `{"image_id": int, "category_id": int, "score": float}` with `"bbox": [x, y, width,
            height]`, pixels, or `"segmentation": {"size": [height, width], "counts": str}`; plain values, for JSON.

        Raises:
            ValueError: there are no masks, or a label without a category id.
        """
        from tfdetr_keras.inference.coco_results import coco_results  # needs pycocotools

        if masks and self.masks is None:
            raise ValueError("these detections have no masks: use a model with a mask head, or masks=False")
        image = {"image_id": image_id, "boxes": self.boxes, "labels": self.labels, "scores": self.scores}
        if masks:
            image["masks"] = self.masks
        return list(coco_results([image], category_ids, "segm" if masks else "bbox"))

    def to_supervision(self) -> Any:
        """Return the detections as a `supervision.Detections`, for that library's annotators, trackers and zones.

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


def _with(extra: Sequence[str]) -> str:
    return f"; with {' and '.join(extra)}" if extra else ""
