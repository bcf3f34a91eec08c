"""Tables from detections: random grids are found again from noisy boxes, and whatever is detected makes a table."""

import csv
import dataclasses
import io
import json
from html.parser import HTMLParser
from itertools import product

import numpy as np
import pytest
from PIL import Image

import tfdetr_keras as td
from tfdetr_keras.data.image_files import records_of
from tfdetr_keras.inference import tables
from tfdetr_keras.inference.detection import detect_images
from tfdetr_keras.inference.tables import (
    COLUMN,
    COLUMN_HEADER,
    PROJECTED_ROW_HEADER,
    ROW,
    SPANNING_CELL,
    STRUCTURE,
    TABLE,
)

SEEDS = range(400)


def detections(rows, image=(400, 400)):
    """Detections of (name, score, box) each."""
    names = [name for name, _, _ in rows]
    return td.Detections(
        scores=np.array([score for _, score, _ in rows], np.float32),
        labels=np.array([STRUCTURE.index(name) if name in STRUCTURE else 9 for name in names], np.int64),
        boxes=np.array([box for _, _, box in rows], np.float32).reshape(-1, 4),
        names=names,
        image=np.zeros((*image, 3), np.uint8),
    )


class Drawn:
    """A random table: where its rows and columns begin, its header, and the rectangles that its cells have."""

    def __init__(self, seed):
        self.rng = rng = np.random.default_rng(seed)
        count = rng.integers(1, 8), rng.integers(1, 7)
        self.ys = 20.0 + np.cumsum([0, *rng.integers(12, 40, count[0])])
        self.xs = 30.0 + np.cumsum([0, *rng.integers(20, 90, count[1])])
        self.shape = count
        self.header = int(rng.integers(0, min(3, count[0] + 1)))
        self.projected = {(row, row + 1, 0, count[1]) for row in range(self.header, count[0] - 1) if rng.random() < 0.2}
        self.spans = set(self.projected)
        for _ in range(6):
            self._try_span(self.random_region())

    def random_region(self):
        top, left = (int(self.rng.integers(0, n)) for n in self.shape)
        bottom = int(self.rng.integers(top + 1, min(top + 3, self.shape[0]) + 1))
        right = int(self.rng.integers(left + 1, min(left + 3, self.shape[1]) + 1))
        return top, bottom, left, right

    def _try_span(self, region):
        size = (region[1] - region[0]) * (region[3] - region[2])
        crosses = region[0] < self.header < region[1]
        if size == 1 or crosses or any(positions(region) & positions(other) for other in self.spans):
            return
        self.spans.add(region)
        begins = self.regions()
        if tuple(len({region[axis] for region in begins}) for axis in (0, 2)) != self.shape:
            self.spans.remove(region)  # a row or column in which no cell begins

    def regions(self):
        taken = set().union(*map(positions, self.spans))
        single = set(product(range(self.shape[0]), range(self.shape[1]))) - taken
        return self.spans | {(row, row + 1, column, column + 1) for row, column in single}

    def box(self, region):
        top, bottom, left, right = region
        return np.array([self.xs[left], self.ys[top], self.xs[right], self.ys[bottom]])

    def cells(self):
        """As `Cell` says it: row, column, spans, and the two flags."""
        return [
            (top, left, bottom - top, right - left, top < self.header, (top, bottom, left, right) in self.projected)
            for top, bottom, left, right in sorted(self.regions(), key=lambda region: (region[0], region[2]))
        ]

    def detected(self, noise=0.2):
        """Its parts, each side moved by up to `noise` of the least row's height; with worse answers among them."""
        rng, rows, columns = self.rng, *self.shape
        step = noise * 12
        whole = (0, rows, 0, columns)
        sure = [(TABLE, whole)]
        sure += [(ROW, (row, row + 1, 0, columns)) for row in range(rows)]
        sure += [(COLUMN, (0, rows, column, column + 1)) for column in range(columns)]
        sure += [(COLUMN_HEADER, (0, self.header, 0, columns))] if self.header else []
        sure += [(PROJECTED_ROW_HEADER if region in self.projected else SPANNING_CELL, region) for region in self.spans]
        found = [(name, rng.uniform(0.75, 1), self.box(region) + rng.uniform(-step, step, 4)) for name, region in sure]
        for name, _, box in list(found):
            if name in (ROW, COLUMN) and rng.random() < 0.3:  # the same again
                found.append((name, rng.uniform(0.5, 0.7), box + rng.uniform(-2 * step, 2 * step, 4)))
        for _ in range(3):  # what contradicts a surer span, and what is not sure enough
            region = self.random_region()
            crosses = region[0] < self.header < region[1]  # and would be cut
            clashes = any(positions(region) & positions(other) for other in self.spans) and not crosses
            score = rng.uniform(0.5, 0.7) if clashes else rng.uniform(0, 0.5)
            found.append((SPANNING_CELL, score, self.box(region) + rng.uniform(-step, step, 4)))
            found.append((ROW, rng.uniform(0, 0.5), rng.uniform(0, 300, 2).repeat(2)[[0, 2, 1, 3]] + [0, 0, 90, 15]))
        below = self.ys[-1] + 40  # another table
        found += [(TABLE, 0.7, (30, below, 300, below + 60)), (ROW, 0.99, (30, below, 300, below + 20))]
        rng.shuffle(found)
        return detections(found)

    def words(self):
        """Words in its cells, in two lines if there is room; and the text of each cell."""
        words, texts = [], {}
        for number, region in enumerate(sorted(self.regions())):
            x1, y1, x2, y2 = self.box(region)
            lines = 2 if y2 - y1 > 24 else 1
            height, width = (y2 - y1) / lines, (x2 - x1) / 2
            said = []
            for line, place in product(range(lines), range(2)):
                text = f"{number}<b>{line}&amp;{place}"
                said.append(text)
                left, top = x1 + place * width, y1 + line * height
                dx, dy = self.rng.uniform(0, 0.2, 2) * (width, height)
                words.append({"text": text, "box": (left + 2 + dx, top + 2 + dy, left + width - 2, top + height - 2)})
            texts[region[0], region[2]] = " ".join(said)
        self.rng.shuffle(words)
        return words, texts


def positions(region):
    top, bottom, left, right = region
    return set(product(range(top, bottom), range(left, right)))


def described(table):
    return [
        (cell.row, cell.column, cell.row_span, cell.column_span, cell.is_column_header, cell.is_projected_row_header)
        for cell in table.cells
    ]


def covered(table):
    """The position of the grid that each cell takes, and the cell's number."""
    return [
        (position, number)
        for number, cell in enumerate(table.cells)
        for position in positions((cell.row, cell.row + cell.row_span, cell.column, cell.column + cell.column_span))
    ]


class Grid(HTMLParser):
    """Which cell each position of an HTML table belongs to, by HTML's rules; and what is wrong with its tags."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sections, self.slots, self.cells, self.row = [], [], {}, [], -1
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        parents = {"table": None, "thead": "table", "tbody": "table", "tr": ("thead", "tbody"), "th": "tr", "td": "tr"}
        parent = self.open[-1] if self.open else None
        assert parent == parents[tag] or parent in (parents[tag] or ())
        self.open.append(tag)
        if tag in ("thead", "tbody"):
            self.sections.append([tag, 0])
        elif tag == "tr":
            self.row += 1
            self.sections[-1][1] += 1
        elif tag in ("th", "td"):
            attributes = dict(attributes)
            assert set(attributes) <= {"rowspan", "colspan", "scope"}
            column = 0
            while (self.row, column) in self.slots:
                column += 1
            rows, columns = (int(attributes.get(name, 1)) for name in ("rowspan", "colspan"))
            for position in positions((self.row, self.row + rows, column, column + columns)):
                assert position not in self.slots
                self.slots[position] = len(self.cells)
            self.cells.append({"tag": tag, "scope": attributes.get("scope"), "text": "", "begin": (self.row, column)})

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open[-1:] in (["th"], ["td"]):
            self.cells[-1]["text"] += text
        else:
            assert not text.strip()


def assert_sound(table):
    """What holds for every table."""
    rows, columns = len(table.rows), len(table.columns)
    taken = covered(table)
    assert len(taken) == rows * columns
    assert {position for position, _ in taken} == set(product(range(rows), range(columns)))
    assert [(cell.row, cell.column) for cell in table.cells] == sorted((cell.row, cell.column) for cell in table.cells)
    assert {cell.row for cell in table.cells} == set(range(rows))
    assert {cell.column for cell in table.cells} == set(range(columns))
    assert (table.rows[:, 2:] > table.rows[:, :2]).all()
    assert (table.columns[:, 2:] > table.columns[:, :2]).all()
    np.testing.assert_array_equal(table.rows[1:, 1], table.rows[:-1, 3])
    np.testing.assert_array_equal(table.columns[1:, 0], table.columns[:-1, 2])
    for cell in table.cells:
        last_row, last_column = cell.row + cell.row_span - 1, cell.column + cell.column_span - 1
        first, last = table.rows[cell.row], table.rows[last_row]
        assert cell.box == (table.columns[cell.column][0], first[1], table.columns[last_column][2], last[3])
        assert cell.is_column_header == (cell.row < table.header_rows) == (last_row < table.header_rows)
        assert not cell.is_projected_row_header or (cell.column_span == columns and not cell.is_column_header)
    grid = Grid(table.to_html())
    assert grid.slots == dict(taken)
    assert [cell["text"] for cell in grid.cells] == [cell.text for cell in table.cells]
    assert [cell["tag"] == "th" for cell in grid.cells] == [
        cell.is_column_header or cell.is_projected_row_header for cell in table.cells
    ]
    assert sum(count for tag, count in grid.sections if tag == "thead") == table.header_rows
    assert [tag for tag, _ in grid.sections].count("thead") == (table.header_rows > 0)
    assert all(count for _, count in grid.sections)
    bodies = np.cumsum([0, *(count for _, count in grid.sections)])
    assert {cell["begin"][0] for cell in grid.cells if cell["scope"] == "rowgroup"} <= set(bodies.tolist())
    assert list(csv.reader(io.StringIO(table.to_csv()))) == table.to_lists()
    again = json.loads(json.dumps(table.to_dict()))
    assert [tables.Cell(**{**cell, "box": tuple(cell["box"])}) for cell in again["cells"]] == list(table.cells)
    assert again["header_rows"] == table.header_rows
    np.testing.assert_array_equal(again["rows"], table.rows.tolist())
    np.testing.assert_array_equal(again["columns"], table.columns.tolist())


def test_a_table_is_found_again_from_noisy_boxes():
    for seed in SEEDS:
        drawn = Drawn(seed)
        table = tables.read_structure(drawn.detected())
        assert described(table) == drawn.cells(), seed
        assert table.header_rows == drawn.header, seed
        assert np.abs(table.rows[:, 3] - drawn.ys[1:]).max() <= 0.2 * 12 + 1e-3, seed
        assert np.abs(table.columns[:, 0] - drawn.xs[:-1]).max() <= 0.2 * 12 + 1e-3, seed
        assert_sound(table)


def test_the_tables_drawn_have_everything():
    drawn = [Drawn(seed) for seed in SEEDS]
    assert {table.header for table in drawn} == {0, 1, 2}
    assert sum(bool(table.projected) for table in drawn) > 50
    assert sum(len(table.spans - table.projected) for table in drawn) > 300
    assert any(bottom - top > 1 < right - left for table in drawn for top, bottom, left, right in table.spans)


def test_words_go_to_their_cells_in_reading_order():
    for seed in SEEDS:
        drawn = Drawn(seed)
        words, texts = drawn.words()
        x1, y1 = drawn.xs[0], drawn.ys[0]
        caption = {"text": "caption", "box": (x1, y1 - 15, x1 + 60, y1 + 3)}
        note = {"text": "note", "box": (0, 390, 40, 400)}
        table = tables.read_structure(drawn.detected(noise=0)).with_text([*words, caption, note])
        assert {(cell.row, cell.column): cell.text for cell in table.cells} == texts, seed
        assert_sound(table)
        lists = table.to_lists()
        for row, column in product(range(drawn.shape[0]), range(drawn.shape[1])):
            assert lists[row][column] == texts.get((row, column), "")
        assert str(table).splitlines()[1:] == [" | ".join(row) for row in lists]
        assert {cell.text for cell in table.with_text([]).cells} == {""}


def test_whatever_is_detected_makes_a_sound_table():
    counts = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        count = int(rng.integers(0, 60))
        names = rng.choice(STRUCTURE, count, p=[0.02, 0.25, 0.28, 0.05, 0.1, 0.3])
        starts = rng.uniform(-20, 400, (count, 2))
        boxes = np.concatenate([starts, starts + rng.uniform(0, 80, (count, 2))], axis=1)
        boxes[names == ROW, ::2] += [-300, 300]
        boxes[names == COLUMN, 1::2] += [-300, 300]
        boxes[names == TABLE] += [-200, -200, 200, 200]
        boxes = boxes if seed % 2 else np.round(boxes / 40) * 40  # also without area
        table = tables.read_structure(detections(list(zip(names.tolist(), rng.random(count), boxes, strict=True))))
        assert_sound(table)
        counts.append(len(table.cells))
    assert np.median(counts) > 3


def test_all_boxes_together_make_the_same_table_in_any_order_and_place():
    drawn = Drawn(7)
    found = drawn.detected()
    order = np.random.default_rng(0).permutation(len(found))
    moved = dataclasses.replace(
        found,
        scores=found.scores[order],
        boxes=found.boxes[order] * 2 + [64, 32, 64, 32],
        names=[found.names[place] for place in order],
    )
    one, other = tables.read_structure(found), tables.read_structure(moved)
    assert described(one) == described(other)
    np.testing.assert_allclose(one.rows * 2 + [64, 32, 64, 32], other.rows, rtol=1e-6)


GRID = [
    (TABLE, 0.9, (0, 0, 100, 90)),
    *((ROW, 0.9, (0, top, 100, top + 30)) for top in (0, 30, 60)),
    *((COLUMN, 0.9, (left, 0, left + 50, 90)) for left in (0, 50)),
]


def read(*more, thresholds=0.5):
    return tables.read_structure(detections([*GRID, *more]), thresholds)


def spans(table):
    return [cell for cell in described(table) if cell[2:4] != (1, 1)]


def test_the_surer_of_two_rows_stays():
    """One that lies in another, in whichever of the two more is sure."""
    assert len(read((ROW, 0.8, (0, 33, 100, 48))).rows) == 3
    table = read((ROW, 0.95, (0, 1, 100, 58)))
    np.testing.assert_allclose(table.rows[:, 1], [1, 59])


def test_gaps_and_overlaps_are_divided():
    rows = [(ROW, 0.9, (0, 0, 100, 20)), (ROW, 0.9, (0, 40, 100, 64)), (ROW, 0.9, (0, 60, 100, 90))]
    columns = [(COLUMN, 0.9, (0, 0, 40, 90)), (COLUMN, 0.9, (44, 0, 100, 90))]
    table = tables.read_structure(detections(rows + columns))
    np.testing.assert_array_equal(table.rows, [[0, 0, 100, 30], [0, 30, 100, 62], [0, 62, 100, 90]])
    np.testing.assert_array_equal(table.columns, [[0, 0, 42, 90], [42, 0, 100, 90]])


def test_rows_and_columns_end_with_the_table():
    found = [row if row[0] != TABLE else (TABLE, 0.9, (10, 8, 95, 70)) for row in GRID]
    table = tables.read_structure(detections(found))
    np.testing.assert_array_equal(table.rows, [[10, 8, 95, 30], [10, 30, 95, 60]])  # most of the third is outside
    np.testing.assert_array_equal(table.columns, [[10, 8, 50, 60], [50, 8, 95, 60]])


def test_the_header_ends_with_the_last_row_that_it_covers():
    assert read((COLUMN_HEADER, 0.9, (0, 0, 100, 40))).header_rows == 1
    assert read((COLUMN_HEADER, 0.9, (0, 0, 100, 46))).header_rows == 2
    assert read((COLUMN_HEADER, 0.9, (0, 32, 100, 60))).header_rows == 2  # nothing is above a header
    assert read((COLUMN_HEADER, 0.9, (0, 60, 100, 90)), (COLUMN_HEADER, 0.8, (0, 0, 100, 30))).header_rows == 1
    assert read((COLUMN_HEADER, 0.9, (0, 0, 100, 10))).header_rows == 0
    assert Grid(read((COLUMN_HEADER, 0.9, (0, 0, 100, 90))).to_html()).sections == [["thead", 3]]


def test_a_span_over_the_headers_end_keeps_its_larger_part():
    header = (COLUMN_HEADER, 0.9, (0, 0, 100, 30))
    assert spans(read(header, (SPANNING_CELL, 0.9, (0, 0, 50, 90)))) == [(1, 0, 2, 1, False, False)]
    assert spans(read(header, (SPANNING_CELL, 0.9, (0, 0, 50, 60)))) == []
    assert spans(read(header, (SPANNING_CELL, 0.9, (0, 0, 100, 60)))) == [(0, 0, 1, 2, True, False)]  # of two alike
    header = (COLUMN_HEADER, 0.9, (0, 0, 100, 60))
    assert spans(read(header, (SPANNING_CELL, 0.9, (0, 0, 50, 90)))) == [(0, 0, 2, 1, True, False)]


def test_of_overlapping_spans_the_surer_stays():
    down, right = (0, 30, 50, 90), (0, 30, 100, 60)
    assert spans(read((SPANNING_CELL, 0.9, down), (SPANNING_CELL, 0.8, right))) == [(1, 0, 2, 1, False, False)]
    assert spans(read((SPANNING_CELL, 0.7, down), (SPANNING_CELL, 0.8, right))) == [(1, 0, 1, 2, False, False)]
    # One that comes to a single position contradicts nothing.
    assert spans(read((SPANNING_CELL, 0.9, (0, 30, 50, 60)), (SPANNING_CELL, 0.8, right))) == [
        (1, 0, 1, 2, False, False)
    ]


def test_a_projected_row_header_spans_the_row():
    part = (PROJECTED_ROW_HEADER, 0.8, (0, 32, 60, 58))
    assert spans(read(part)) == [(1, 0, 1, 2, False, True)]
    assert spans(read(part, (SPANNING_CELL, 0.9, (0, 30, 100, 60)))) == [(1, 0, 1, 2, False, True)]  # found as both
    assert spans(read(part, (COLUMN_HEADER, 0.9, (0, 0, 100, 60)))) == [(1, 0, 1, 2, True, False)]
    assert spans(read((PROJECTED_ROW_HEADER, 0.8, (0, 40, 100, 46)))) == []  # covers no row
    html = read(part).with_text([{"text": "Cats", "box": (2, 40, 30, 50)}]).to_html()
    assert html.splitlines() == [
        "<table>",
        "<tbody>",
        "<tr><td></td><td></td></tr>",
        "</tbody>",
        "<tbody>",
        '<tr><th colspan="2" scope="rowgroup">Cats</th></tr>',
        "<tr><td></td><td></td></tr>",
        "</tbody>",
        "</table>",
    ]


def test_rows_and_columns_in_which_no_cell_begins_are_none():
    table = read(*((SPANNING_CELL, 0.9, (left, 30, left + 50, 90)) for left in (0, 50)))
    np.testing.assert_array_equal(table.rows, [[0, 0, 100, 30], [0, 30, 100, 90]])
    assert spans(table) == []
    table = read(*((SPANNING_CELL, 0.9, (0, top, 100, top + 30)) for top in (0, 30, 60)))
    np.testing.assert_array_equal(table.columns, [[0, 0, 100, 90]])
    assert (len(table.rows), spans(table)) == (3, [])


def test_thresholds_by_class():
    unsure = (SPANNING_CELL, 0.4, (0, 30, 100, 60))
    assert spans(read(unsure)) == []
    assert spans(read(unsure, thresholds=0.3)) == spans(read(unsure, thresholds={SPANNING_CELL: 0.3})) != []
    assert spans(read(unsure, thresholds=0.4)) == []  # has to be exceeded
    assert len(read(thresholds={ROW: 0.95}).cells) == 0


@pytest.mark.parametrize("missing", [(ROW,), (COLUMN,), (ROW, COLUMN), STRUCTURE])
def test_nothing_found_is_an_empty_table(missing):
    table = tables.read_structure(detections([row for row in GRID if row[0] not in missing]))
    assert (table.rows.shape, table.columns.shape, table.cells) == ((0, 4), (0, 4), ())
    assert table.with_text([{"text": "lost", "box": (0, 0, 9, 9)}]).to_csv() == ""
    assert_sound(table)


def test_rows_outside_the_table_are_none():
    found = [row for row in GRID if row[0] != ROW] + [(ROW, 0.9, (0, 200, 100, 230))]
    assert len(tables.read_structure(detections(found)).cells) == 0


def test_words_of_odd_shapes():
    table = read()
    words = [
        {"text": "thin", "box": (10, 10, 10, 20)},
        {"text": "2", "box": (30, 9, 34, 14)},  # a superscript
        {"text": "m", "box": (22, 12, 30, 22)},
        {"text": "two\n lines ", "box": (0, 60, 30, 90)},
        {"text": "more in the second", "box": (40, 30, 90, 60)},
        {"text": "half", "box": (90, 70, 110, 80)},
        {"text": "less", "box": (89, 85, 112, 89)},
    ]
    assert table.with_text(words).to_lists() == [["thin m 2", ""], ["", "more in the second"], ["two lines", "half"]]


def test_lines_may_overlap_a_little():
    words = [("of", (0, 34, 20, 46)), ("first", (20, 31, 49, 43)), ("the", (2, 40, 22, 52)), ("last", (25, 42, 48, 54))]
    table = read().with_text([{"text": text, "box": box} for text, box in words])
    assert table.to_lists()[1][0] == "of first the last"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("word", r"words\[1\] must be \{\"text\""),
        ({"text": 3, "box": (0, 0, 1, 1)}, r"words\[1\] must be"),
        ({"text": "a", "bbox": (0, 0, 1, 1)}, r"words\[1\] must be"),
        ({"text": "a", "box": (0, 0, 1)}, r"the box of words\[1\] must be x1 <= x2"),
        ({"text": "a", "box": "0 0 1 1"}, r"the box of words\[1\]"),
        ({"text": "a", "box": (0, 0, np.inf, 1)}, r"the box of words\[1\]"),
        ({"text": "a", "box": (0, 5, 1, 1)}, r"the box of words\[1\]"),
    ],
)
def test_a_bad_word_is_named(word, message):
    words = [{"text": "fine", "box": (0, 0, 1, 1)}, word]
    with pytest.raises(ValueError, match=message):
        read().with_text(words)
    [crop] = tables.crop_tables(detections([(TABLE, 0.9, (10, 10, 50, 50))]))
    with pytest.raises(ValueError, match=message):
        crop.words_from_page(words)


def test_detections_that_are_none_of_a_table():
    with pytest.raises(ValueError, match="detections must be the Detections of one image, not list"):
        tables.read_structure([detections(GRID)])
    with pytest.raises(ValueError, match=r"a model for structure recognition detects table, .* have table rot"):
        read((tables.ROTATED, 0.9, (0, 0, 9, 9)))
    with pytest.raises(ValueError, match="thresholds has row: the classes are table, table column"):
        read(thresholds={"row": 0.3})
    with pytest.raises(ValueError, match="detections must be the Detections of one image, not dict"):
        tables.crop_tables({})
    with pytest.raises(ValueError, match=r"the detection model detects table, table rotated; .* have table col"):
        tables.crop_tables(detections(GRID))
    with pytest.raises(ValueError, match="padding must be at least 0, not -1"):
        tables.crop_tables(detections([]), padding=-1)
    with pytest.raises(ValueError, match=r"the box \[500.0, .*\] lies outside the page of 400 × 400 pixels"):
        tables.crop_tables(detections([(TABLE, 0.9, (500, 10, 550, 50))]))


def test_tables_are_cut_out_as_by_pil():
    rng = np.random.default_rng(0)
    page = rng.integers(0, 256, (120, 90, 3), np.uint8)
    found = detections([(TABLE, 0.9, (10.4, 20, 60, 40)), (tables.ROTATED, 0.8, (3, 50, 30, 118.5))])
    upright, turned = tables.crop_tables(dataclasses.replace(found, image=page), padding=5)
    assert (upright.region, upright.rotated, round(upright.score, 3)) == ((5, 15, 65, 45), False, 0.9)
    assert (turned.region, turned.rotated) == ((0, 45, 35, 120), True)  # the page ends
    np.testing.assert_array_equal(upright.image, Image.fromarray(page).crop(upright.region))
    expected = Image.fromarray(page).crop(turned.region).rotate(270, expand=True)  # counterclockwise
    np.testing.assert_array_equal(turned.image, expected)
    assert tables.crop_tables(detections([])) == []


@pytest.mark.parametrize("name", [TABLE, tables.ROTATED])
def test_boxes_go_to_the_crop_and_back(name):
    """What is painted on the page is where the box says in the crop."""
    page = np.zeros((200, 300, 3), np.uint8)
    page[80:90, 120:150] = 255
    [crop] = tables.crop_tables(dataclasses.replace(detections([(name, 0.9, (100, 60, 220, 130))]), image=page))
    box = (120, 80, 150, 90)
    [moved] = crop.from_page([box])
    x1, y1, x2, y2 = moved.astype(int)
    assert crop.image[y1:y2, x1:x2].min() == 255
    assert crop.image.sum() == page.sum()
    np.testing.assert_array_equal(crop.to_page([moved]), [box])
    [word] = crop.words_from_page([{"text": "a", "box": box, "line": 3}])
    assert word == {"text": "a", "box": tuple(moved), "line": 3}
    boxes = np.random.default_rng(1).uniform(0, 200, (9, 4))
    np.testing.assert_allclose(crop.to_page(crop.from_page(boxes)), boxes)
    assert crop.from_page([]).shape == crop.to_page([]).shape == (0, 4)


def test_a_rotated_table_is_read_as_an_upright_one():
    """A page, its tables' words and boxes, and all of it turned to read from bottom to top."""
    drawn = Drawn(3)
    words, texts = drawn.words()
    side = 400

    def turned(box):  # by 90° counterclockwise
        x1, y1, x2, y2 = box
        return (y1, side - x2, y2, side - x1)

    page = detections([(tables.ROTATED, 0.9, turned(drawn.box((0, drawn.shape[0], 0, drawn.shape[1]))))])
    [crop] = tables.crop_tables(page)
    left, top = drawn.xs[0] - tables.PADDING, drawn.ys[0] - tables.PADDING
    found = drawn.detected(noise=0)
    in_crop = dataclasses.replace(found, boxes=found.boxes - np.float32([left, top, left, top]))
    on_page = [{**word, "box": turned(word["box"])} for word in words]
    table = tables.read_structure(in_crop).with_text(crop.words_from_page(on_page))
    assert {(cell.row, cell.column): cell.text for cell in table.cells} == texts
    region = next(iter(drawn.regions()))
    [cell] = [cell for cell in table.cells if (cell.row, cell.column) == (region[0], region[2])]
    np.testing.assert_allclose(crop.to_page([cell.box]), [turned(drawn.box(region))], atol=1e-3)


def test_a_detector_sees_images_of_table_transformers_size():
    """The same as an image that has been resized before, and not what it sees by the other rule."""
    model = td.DETR.from_pretrained("detr-tiny")
    [record] = td.data.load_shapes(1, seed=8, size=(64, 96))[0].as_numpy_iterator()
    image = record["image"]
    height, width = image.shape[:2]
    scale = 96 / max(height, width)
    size = tf_size(image, (round(scale * height), round(scale * width)))
    settings = {"size": (64, 96), "threshold": 0.2, "size_rule": "table"}
    found, before = detect_images(model, [image, size], **settings)
    assert len(found) == len(before) > 0
    np.testing.assert_array_equal(found.scores, before.scores)
    np.testing.assert_allclose(found.boxes[:, ::2] * size.shape[1] / width, before.boxes[:, ::2], rtol=1e-5)
    assert not np.array_equal(found.scores, detect_images(model, image, size=(64, 96), threshold=0.2).scores)
    [same] = td.detect(model, records_of([image]), **settings)
    np.testing.assert_array_equal(np.sort(same["scores"])[::-1], found.scores)
    looked = detect_images(model, image, attention=True, **settings)
    np.testing.assert_allclose(looked.scores, found.scores, rtol=1e-4)


def tf_size(image, size):
    """An image resized as `prepare` does."""
    return td.data.transforms.resized_levels(image, size).numpy().round().astype(np.uint8)
