"""Tables from the detections of Table Transformer's two models: rows, columns and cells, with their texts.

One model finds tables on a page, and `crop_tables` cuts them out; the other finds the parts of a table, and
`read_structure` makes a grid of them, in which each position belongs to one cell. Texts come from elsewhere, from OCR
or a PDF: `Table.with_text`.

Source: Smock, Pesala and Abraham 2022, "PubTables-1M: Towards comprehensive table extraction from unstructured
documents", CVPR, arXiv:2110.00061: the classes, and the form of a table: rows and columns leave no gaps, they
intersect in the grid's cells, and a spanning cell is made of whole ones. The rules that turn detections into this
form are this module's own.
"""

from __future__ import annotations

import csv
import dataclasses
import html
import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from tfdetr_keras.inference.detections import Detections

TABLE, ROTATED = "table", "table rotated"  # the classes of the detection model
ROW, COLUMN, COLUMN_HEADER = "table row", "table column", "table column header"
PROJECTED_ROW_HEADER, SPANNING_CELL = "table projected row header", "table spanning cell"
STRUCTURE = (TABLE, COLUMN, ROW, COLUMN_HEADER, PROJECTED_ROW_HEADER, SPANNING_CELL)  # those of the other one
THRESHOLD = 0.5  # of scores, as in microsoft/table-transformer
HALF = 0.5  # what lies in something by half, lies in it
# Pixels. The structure models were trained on tables with up to 10, or up to 30, around them on each side
# (microsoft/table-transformer, `src/table_datasets.py`), and its own pipeline cuts tables out with 10.
PADDING = 10
THIN = 1e-3  # pixels: as wide, or high, a word is taken to be at least


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table: one position of its grid, or a rectangle of several.

    Attributes:
        row: the uppermost one of the grid, from 0.
        column: the leftmost one, from 0.
        row_span: number of rows.
        column_span: number of columns.
        box: xyxy, pixels.
        is_column_header: whether it stands in the table's header rows.
        is_projected_row_header: whether it is a heading, as wide as the table, of the rows that follow.
        text: its content.
    """

    row: int
    column: int
    row_span: int
    column_span: int
    box: tuple[float, float, float, float]
    is_column_header: bool = False
    is_projected_row_header: bool = False
    text: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """The structure of a table. Every position of its grid belongs to exactly one cell.

    Attributes:
        rows: `(rows, 4)` float32 xyxy, pixels, from top to bottom; each begins where the one above ends.
        columns: `(columns, 4)` float32 xyxy, pixels, from left to right; each begins where the one before ends.
        cells: row by row, and from left to right.
        header_rows: number of rows, from the first, that are the column header.
    """

    rows: np.ndarray
    columns: np.ndarray
    cells: tuple[Cell, ...]
    header_rows: int = 0

    def __str__(self) -> str:
        """Return one line per row."""
        lines = [f"{len(self.rows)} rows × {len(self.columns)} columns, {self.header_rows} of the rows in the header"]
        return "\n".join([*lines, *(" | ".join(row) for row in self.to_lists())])

    def with_text(self, words: Sequence[Mapping[str, Any]]) -> Table:
        """Return the table with these words in its cells, instead of any that it had.

        A word belongs to the cell that holds most of it, if at least half of it is in the table. The words of a
        cell are put into lines, each from left to right, with spaces between them.

        Args:
            words: `{"text": str, "box": (x1, y1, x2, y2)}` each, pixels of the image that the table was read from, in
                any order. Lines of words work as well, if they do not run through several cells.

        Raises:
            ValueError: a word has no text or no box, or a box that is not four finite numbers, or is inverted.
        """
        boxes = np.array([_word_box(word, place) for place, word in enumerate(words)], np.float64).reshape(-1, 4)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + THIN)
        written: list[list[int]] = [[] for _ in self.cells]
        if self.cells:
            shares = np.stack([_share(boxes, np.array(cell.box)) for cell in self.cells], axis=1)
            for place in np.flatnonzero(shares.sum(axis=1) >= HALF).tolist():
                written[int(shares[place].argmax())].append(place)
        texts = [" ".join(words[place]["text"] for place in _reading_order(boxes, chosen)) for chosen in written]
        cells = [
            dataclasses.replace(cell, text=" ".join(text.split())) for cell, text in zip(self.cells, texts, strict=True)
        ]
        return dataclasses.replace(self, cells=tuple(cells))

    def to_lists(self) -> list[list[str]]:
        """Return the texts, one list per row.

        A text that spans positions is in the first of them; the others are empty.
        """
        texts = [[""] * len(self.columns) for _ in self.rows]
        for cell in self.cells:
            texts[cell.row][cell.column] = cell.text
        return texts

    def to_csv(self) -> str:
        """Return the texts of `to_lists` as CSV, one line per row."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self.to_lists())
        return text.getvalue()

    def to_html(self) -> str:
        """Return a `table` element.

        The header is in a `thead`, and a `tbody` ends where a projected row header begins.
        """
        rows: list[list[Cell]] = [[] for _ in self.rows]
        for cell in self.cells:
            rows[cell.row].append(cell)
        begins = {0, self.header_rows} | {cell.row for cell in self.cells if cell.is_projected_row_header}
        bounds = sorted(begins | {len(rows)})
        lines = ["<table>"]
        for first, last in pairwise(bounds):
            part = "thead" if first < self.header_rows else "tbody"
            lines += [f"<{part}>", *(f"<tr>{''.join(map(_html, row))}</tr>" for row in rows[first:last]), f"</{part}>"]
        return "\n".join([*lines, "</table>"])

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes by name, in lists and dictionaries of plain values, e.g. for JSON."""
        return {
            "rows": self.rows.tolist(),
            "columns": self.columns.tolist(),
            "cells": [{**dataclasses.asdict(cell), "box": list(cell.box)} for cell in self.cells],
            "header_rows": self.header_rows,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class TableCrop:
    """A table cut out of a page, upright.

    Attributes:
        image: `(height, width, 3)` uint8, RGB.
        region: the part that was cut out, xyxy in whole pixels of the page.
        rotated: whether it was turned, by 90° clockwise.
        score: of the detection.
    """

    image: np.ndarray
    region: tuple[int, int, int, int]
    rotated: bool
    score: float

    def from_page(self, boxes: Any) -> np.ndarray:
        """Convert boxes `(n, 4)` xyxy from pixels of the page to pixels of `image`; return float64."""
        left, top, _, bottom = self.region
        height = bottom - top
        x1, y1, x2, y2 = np.asarray(boxes, np.float64).reshape(-1, 4).T - np.array([[left], [top], [left], [top]])
        return np.stack([height - y2, x1, height - y1, x2] if self.rotated else [x1, y1, x2, y2], axis=1)

    def to_page(self, boxes: Any) -> np.ndarray:
        """Convert boxes `(n, 4)` xyxy, such as cells', from pixels of `image` to pixels of the page; return float64."""
        left, top, _, bottom = self.region
        height = bottom - top
        x1, y1, x2, y2 = np.asarray(boxes, np.float64).reshape(-1, 4).T
        turned = np.stack([y1, height - x2, y2, height - x1] if self.rotated else [x1, y1, x2, y2], axis=1)
        return turned + np.array([left, top, left, top])

    def words_from_page(self, words: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return words of the page, as `Table.with_text` takes them, with their boxes in pixels of `image`.

        Raises:
            ValueError: as `Table.with_text`.
        """
        boxes = self.from_page([_word_box(word, place) for place, word in enumerate(words)])
        return [{**word, "box": tuple(box)} for word, box in zip(words, boxes.tolist(), strict=True)]


def crop_tables(detections: Detections, padding: int = PADDING) -> list[TableCrop]:
    """Cut the tables out of a page, each upright, for the structure model.

    A "table rotated" reads from bottom to top, and is turned by 90° clockwise, as in microsoft/table-transformer.

    Args:
        detections: of the detection model, on a page.
        padding: pixels of the page to keep around each table, as far as the page goes.

    Returns:
        One for each detection, in their order.

    Raises:
        ValueError: not the detections of one image, names of other classes, or a box outside the page; a negative
            `padding`.
    """
    _check_detections(detections, (TABLE, ROTATED), "the detection model")
    if padding < 0:
        raise ValueError(f"padding must be at least 0, not {padding}")
    height, width = detections.image.shape[:2]
    crops = []
    for found in detections:
        x1, y1, x2, y2 = found["box"]
        left, top = max(int(np.floor(x1 - padding)), 0), max(int(np.floor(y1 - padding)), 0)
        right, bottom = min(int(np.ceil(x2 + padding)), width), min(int(np.ceil(y2 + padding)), height)
        if left >= right or top >= bottom:
            raise ValueError(f"the box {found['box']} lies outside the page of {height} × {width} pixels")
        rotated = found["name"] == ROTATED
        image = detections.image[top:bottom, left:right]
        image = np.ascontiguousarray(np.rot90(image, k=-1) if rotated else image)
        crops.append(TableCrop(image, (left, top, right, bottom), rotated, found["score"]))
    return crops


def read_structure(detections: Detections, thresholds: float | Mapping[str, float] = THRESHOLD) -> Table:
    """Make a table from the parts that a model for structure recognition detects in the image of one.

    From the detections above their threshold:

    1. The highest-scoring table is the table, or else everything that rows and columns cover. A part with less than
       half of itself in the table is left out; rows and columns end where it ends.
    2. If two rows share half of the thinner one, the higher-scoring one stays; so with columns. A gap between
       neighbours, or the strip that they share, is divided between them.
    3. The header ends with the last row that the uppermost column header covers by half.
    4. A spanning cell is made of the rows and the columns that it covers by half, a projected row header of such rows
       and all columns. One that begins in the header and ends below it keeps the part with more rows. If two
       overlap, the higher-scoring one stays.
    5. A row in which no cell begins is merged into the one above; such a column, into the one before.

    Args:
        detections: of the classes `STRUCTURE`, in one image; detected with the lowest of the thresholds.
        thresholds: the score that a detection has to exceed: one for all, or one by the name of the class, and 0.5 for
            classes that are not named.

    Returns:
        The table, without texts. If no row or no column was found, it has no rows, columns and cells.

    Raises:
        ValueError: not the detections of one image, names of other classes, or thresholds for other classes.
    """
    _check_detections(detections, STRUCTURE, "a model for structure recognition")
    names, boxes = _highest_scoring_first(detections, thresholds)
    lines = boxes[(names == ROW) | (names == COLUMN)]
    outer = _hull(boxes[names == TABLE][:1] if TABLE in names else lines)
    inside = _share(boxes, outer) >= HALF
    names, boxes = names[inside], boxes[inside]
    row_edges = _edges(boxes[names == ROW][:, 1::2], outer[1::2])
    column_edges = _edges(boxes[names == COLUMN][:, ::2], outer[::2])
    if not len(row_edges) or not len(column_edges):
        return Table(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32), ())
    headers = _distinct(boxes[names == COLUMN_HEADER][:, 1::2])
    header_rows = _covered(headers[0], row_edges)[1] if len(headers) else 0
    regions = _regions(names, boxes, row_edges, column_edges, header_rows)
    return _table(regions, row_edges, column_edges, header_rows)


def _check_detections(detections: Any, classes: Sequence[str], model: str) -> None:
    if not isinstance(detections, Detections):
        raise ValueError(f"detections must be the Detections of one image, not {type(detections).__name__}")
    if unknown := sorted(set(detections.names) - set(classes)):
        raise ValueError(f"{model} detects {', '.join(classes)}; these detections have {', '.join(unknown)}, too")


def _highest_scoring_first(
    detections: Detections, thresholds: float | Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return names `(n,)` and boxes `(n, 4)` float64 of detections above their threshold, sorted by score."""
    by_name = dict(thresholds) if isinstance(thresholds, Mapping) else dict.fromkeys(STRUCTURE, thresholds)
    if unknown := sorted(set(by_name) - set(STRUCTURE)):
        raise ValueError(f"thresholds has {', '.join(unknown)}: the classes are {', '.join(STRUCTURE)}")
    scores = np.asarray(detections.scores, np.float32)
    names = np.array(detections.names, str)
    order = np.argsort(-scores, kind="stable")
    limits = np.array([by_name.get(name, THRESHOLD) for name in names.tolist()], np.float32)
    order = order[scores[order] > limits[order]]
    return names[order], np.asarray(detections.boxes, np.float64).reshape(-1, 4)[order]


def _hull(boxes: np.ndarray) -> np.ndarray:
    """Return the box around all boxes; an empty one if there are none."""
    if not len(boxes):
        return np.zeros(4)
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])


def _share(boxes: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """Return the fraction of each box `(n, 4)` that is in another one."""
    shared = np.minimum(boxes[:, 2:], outer[2:]) - np.maximum(boxes[:, :2], outer[:2])
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.prod(np.maximum(shared, 0), axis=1) / np.where(areas > 0, areas, np.inf)


def _shared(one: np.ndarray, other: np.ndarray) -> float:
    """Return the length that two intervals share; below 0 if they do not touch."""
    return min(one[1], other[1]) - max(one[0], other[0])


def _distinct(intervals: np.ndarray) -> np.ndarray:
    """Suppress non-maximum intervals `(n, 2)`, sorted by score; return the others in order of place.

    An interval is dropped if a higher-scoring one shares half or more of the shorter of the two.
    """
    kept: list[np.ndarray] = []
    for interval in intervals:
        length = interval[1] - interval[0]
        if length > 0 and all(_shared(interval, other) < HALF * min(length, other[1] - other[0]) for other in kept):
            kept.append(interval)
    return np.array(sorted(kept, key=lambda interval: interval[0] + interval[1])).reshape(-1, 2)


def _edges(intervals: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """Return where rows, or columns, begin, and where the last one ends: one more than there are, or none.

    They rise since no row reaches the middle of its neighbour.
    """
    kept = _distinct(np.clip(intervals, *outer))
    between = (kept[:-1, 1] + kept[1:, 0]) / 2
    return np.concatenate([kept[:1, 0], between, kept[-1:, 1]])


def _covered(interval: np.ndarray, edges: np.ndarray) -> tuple[int, int]:
    """Return the first of the rows, or columns, that an interval covers by half, and the one after the last.

    If there are none, it is (0, 0).
    """
    shared = np.minimum(edges[1:], interval[1]) - np.maximum(edges[:-1], interval[0])
    places = np.flatnonzero(shared >= HALF * np.diff(edges))
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)


# Of the grid: first row, row after the last, first column, column after the last.
_Region = tuple[int, int, int, int]


def _regions(
    names: np.ndarray, boxes: np.ndarray, row_edges: np.ndarray, column_edges: np.ndarray, header_rows: int
) -> dict[_Region, bool]:
    """Return the rectangle of the grid that each cell has, and whether it is a projected row header."""
    taken = np.zeros((len(row_edges) - 1, len(column_edges) - 1), bool)
    regions: dict[_Region, bool] = {}
    for name, box in zip(names.tolist(), boxes, strict=True):
        if name not in (SPANNING_CELL, PROJECTED_ROW_HEADER):
            continue
        projected = name == PROJECTED_ROW_HEADER
        top, bottom = _covered(box[1::2], row_edges)
        left, right = (0, taken.shape[1]) if projected else _covered(box[::2], column_edges)
        if top < header_rows < bottom:
            top, bottom = (top, header_rows) if 2 * header_rows >= top + bottom else (header_rows, bottom)
        region, projected = (top, bottom, left, right), projected and top >= header_rows
        if region in regions:  # found as the one and as the other
            regions[region] |= projected
        elif taken[top:bottom, left:right].size > (not projected) and not taken[top:bottom, left:right].any():
            taken[top:bottom, left:right] = True
            regions[region] = projected
    for row, column in np.argwhere(~taken).tolist():
        regions[row, row + 1, column, column + 1] = False
    return regions


def _table(regions: Mapping[_Region, bool], row_edges: np.ndarray, column_edges: np.ndarray, header_rows: int) -> Table:
    """Make the table, and leave out the edges at which no cell begins."""
    row_places, column_places = (np.unique([region[axis] for region in regions]) for axis in (0, 2))
    ys = np.append(row_edges[row_places], row_edges[-1]).astype(np.float32)
    xs = np.append(column_edges[column_places], column_edges[-1]).astype(np.float32)
    header_rows = int(np.searchsorted(row_places, header_rows))
    cells = []
    for region in sorted(regions, key=lambda region: (region[0], region[2])):
        top, bottom = np.searchsorted(row_places, region[:2]).tolist()
        left, right = np.searchsorted(column_places, region[2:]).tolist()
        box = (float(xs[left]), float(ys[top]), float(xs[right]), float(ys[bottom]))
        cells.append(Cell(top, left, bottom - top, right - left, box, top < header_rows, regions[region]))
    rows = [(xs[0], top, xs[-1], bottom) for top, bottom in pairwise(ys)]
    columns = [(left, ys[0], right, ys[-1]) for left, right in pairwise(xs)]
    return Table(np.array(rows, np.float32), np.array(columns, np.float32), tuple(cells), header_rows)


def _word_box(word: Any, place: int) -> np.ndarray:
    if not isinstance(word, Mapping) or not isinstance(word.get("text"), str) or "box" not in word:
        raise ValueError(f'words[{place}] must be {{"text": str, "box": (x1, y1, x2, y2)}}, not {word!r}')
    try:
        box = np.asarray(word["box"], np.float64)
    except (TypeError, ValueError):
        box = np.full(4, np.nan)
    if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] < box[:2]).any():
        raise ValueError(f"the box of words[{place}] must be x1 <= x2 and y1 <= y2 in pixels, not {word['box']!r}")
    return box


def _reading_order(boxes: np.ndarray, places: Sequence[int]) -> list[int]:
    """Return some words ordered by lines, and by their left edges.

    A word is on a line if it shares half of its height, or of the other's, with the line's tallest.
    """
    lines: list[list[int]] = []
    tallest, height = np.zeros(2), 0.0
    for place in sorted(places, key=lambda place: boxes[place, 1] + boxes[place, 3]):
        word, word_height = boxes[place, 1::2], boxes[place, 3] - boxes[place, 1]
        if lines and _shared(word, tallest) >= HALF * min(word_height, height):
            lines[-1].append(place)
        else:
            lines.append([place])
            height = 0.0
        if word_height > height:
            tallest, height = word, word_height
    return [place for line in lines for place in sorted(line, key=lambda place: boxes[place, 0])]


def _html(cell: Cell) -> str:
    tag = "th" if cell.is_column_header or cell.is_projected_row_header else "td"
    spans = {"rowspan": cell.row_span, "colspan": cell.column_span}
    attributes = "".join(f' {name}="{span}"' for name, span in spans.items() if span > 1)
    scope = ' scope="rowgroup"' if cell.is_projected_row_header else ""
    return f"<{tag}{attributes}{scope}>{html.escape(cell.text)}</{tag}>"
