"""Tags of a picture: readable, inside the image, clear of each other, and few enough to see the image."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw

from tfdetr_keras.visualize.lettering import USUAL_FONT, font_file, plate_of, shortened, text_width, wrapped, write
from tfdetr_keras.visualize.tags import HIDDEN, SHARE, Wording, placed_tags

SIZES = [(480, 360), (960, 144), (144, 960), (480, 72), (64, 64), (600, 1)]
LONG = "eine sehr lange Bezeichnung, wie sie in Fachgebieten üblich ist"


def crowd(count, size, seed=0):
    rng = np.random.default_rng(seed)
    centres, sides = rng.random((count, 2)) * size, rng.uniform(0.02, 0.4, (count, 2)) * min(size)
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    return np.clip(np.round(boxes), 0, [size[0] - 1, size[1] - 1] * 2)


def plates_of(tags):
    return np.array([[*tag.corner, *np.add(tag.corner, plate_of(tag.text, tag.size))] for tag in tags]).reshape(-1, 4)


def shared(one, other):
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    return np.prod(np.maximum(sides, 0))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [0, 1, 6, 60, 130])
@pytest.mark.parametrize(("name", "score"), [("RBC", "0.97"), (LONG, "0.50"), ("автомобиль", ""), ("红细胞", "1.00")])
def test_tags_lie_inside_the_image_on_no_other_and_hide_no_box(size, count, name, score):
    boxes = crowd(count, size)
    tags = placed_tags(boxes, [Wording(name, score)] * count, size)
    plates = plates_of(tags)
    assert len({tag.row for tag in tags}) == len(tags) <= count
    assert (plates[:, :2] >= 0).all()
    assert (plates[:, 2:] <= size).all()
    for place, plate in enumerate(plates):
        assert not any(shared(plate, other) for other in plates[:place])
        assert all(shared(plate, box) <= HIDDEN * max(np.prod(box[2:] - box[:2]), 1) for box in boxes)
    areas = np.prod(plates[:, 2:] - plates[:, :2], axis=1)
    assert areas[1:].sum() <= SHARE * np.prod(size)
    for tag in tags:
        assert text_width(tag.text, tag.size) < plate_of(tag.text, tag.size)[0]


def test_a_tag_is_whole_where_there_is_room_and_touches_its_box():
    [tag] = placed_tags(np.array([[100, 100, 200, 180]]), [Wording("white blood cell", "0.97")], (480, 360))
    assert (tag.text, tag.is_named) == ("white blood cell 0.97", True)
    [[left, _, _, bottom]] = plates_of([tag])
    assert (left, bottom) == (100, 100)


def test_a_crowd_is_tagged_by_scores_alone_unless_colours_tell_something_else():
    boxes, wordings = crowd(60, (480, 360)), [Wording("RBC", f"0.{score}") for score in range(30, 90)]
    tags = placed_tags(boxes, wordings, (480, 360))
    assert len(tags) > 40
    assert {(tag.text, tag.is_named) for tag in tags} == {(wordings[tag.row].score, False) for tag in tags}
    named = placed_tags(boxes, wordings, (480, 360), colours_are_classes=False)
    assert len(named) > 40
    assert all(tag.text.startswith("RBC") and tag.is_named for tag in named)


def test_the_last_box_which_lies_on_top_gets_its_tag_first():
    boxes = np.tile([[10.0, 10.0, 60.0, 60.0]], (40, 1))
    tags = placed_tags(boxes, [Wording("cell", "0.90")] * 40, (72, 72))
    assert 0 < len(tags) < 40
    assert tags[0].row == 39


@pytest.mark.parametrize("text", [LONG, "IMG_2024_05_17_holiday_at_the_sea_0001.jpg", "a", "", "two\nlines  here"])
@pytest.mark.parametrize("width", [30, 100, 1000])
def test_long_names_are_shortened_in_the_middle(text, width):
    short = shortened(text, width)
    assert text_width(short) <= width
    whole = " ".join(text.split())
    if short != whole:
        start, end = short.split("…")
        assert whole.startswith(start)
        assert whole.endswith(end)
        assert 0 <= len(start) - len(end) <= 1
        assert text_width(whole) > width


def test_letters_that_the_usual_font_lacks_are_of_another():
    """Of one that matplotlib has, as any machine has it; Chinese is in fonts of the machine, where it has such."""
    stix = str(Path(USUAL_FONT).with_name("STIXGeneral.ttf"))
    lacking = sorted(set(FT2Font(stix).get_charmap()) - set(FT2Font(USUAL_FONT).get_charmap()))
    letter, of_no_font = next(chr(code) for code in lacking if chr(code).isprintable()), "\U0010fffe"
    assert font_file("Ä") == font_file("ж") == font_file(of_no_font) == USUAL_FONT
    assert font_file(letter) != USUAL_FONT
    pictures = []
    for text in (letter, of_no_font):
        image = Image.new("L", (40, 30))
        write(ImageDraw.Draw(image), (5, 5), text, 255)
        pictures.append(np.asarray(image))
    assert pictures[0].any()
    assert (pictures[0] != pictures[1]).any()  # no empty box


def test_lines_are_broken_between_words():
    lines = wrapped(LONG, 200)
    assert " ".join(lines) == LONG
    assert len(lines) > 1
    assert all(text_width(line) <= 200 for line in lines)
