"""A diagnosis as one page that a browser shows without anything else: texts, tables and the pictures themselves."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
  margin: 0 auto; padding: 1rem; max-width: 76rem; }
h1 { font-size: 1.6rem; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .3rem; border-top: 1px solid #ddd; padding-top: 1rem; }
p { max-width: 46rem; margin: .4rem 0 .8rem; }
img { max-width: 100%; height: auto; display: block; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.numbers div { background: #f4f6f8; border-radius: .4rem; padding: .5rem .8rem; }
.numbers b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr));
  gap: 1rem 2rem; align-items: start; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 1px solid #999; }
"""
MOST_CONFUSED = 10  # pairs of classes that are named


def diagnosis_page(diagnosis: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Return the page.

    Args:
        diagnosis: see `diagnosis_of`, with a `title` for each image that is named.
        pictures: the PNG files of the charts and of the worst images, by their names without ".png".
    """
    metrics = diagnosis["metrics"]
    sections = [
        _section(
            "What its errors cost",
            "Each false detection and each missed object is one error. The bars say what AP50 would gain if all "
            "errors of a kind were mended; they are counted above the thresholds of the classes. <b>Localisation</b>: "
            "the right class, but the box overlaps too little. <b>Class</b>: the right place, another class. <b>"
            "Duplicate</b>: an object that was found already. <b>Background</b>: nothing is there. <b>Missed</b>: "
            "nothing was found there.",
            _two(_picture(pictures, "errors", "AP50 that mending each kind of error would add"), _errors(diagnosis)),
        ),
        _section(
            "Classes",
            "The <b>threshold</b> of a class is the score at which its F1, the mean of precision and recall, is "
            "highest; precision and recall are those above it, at an IoU of 0.5.",
            _classes(diagnosis),
        ),
        _section(
            "Precision, recall, and where to put the threshold",
            "Left, how many detections are right when so many objects are to be found; right, F1 by threshold, with a "
            "dot at the best. Named are the classes with the lowest values.",
            _two(
                _picture(pictures, "precision_recall", "Precision by recall of each class"),
                _picture(pictures, "f1", "F1 by threshold of each class"),
            ),
        ),
        _section(
            "What is taken for what",
            "Rows are what is labelled, columns what it was found as, above the thresholds. The last row counts what "
            "was found where nothing is labelled, the last column what was not found.",
            _two(_picture(pictures, "confusion", "Confusion matrix"), _confusions(diagnosis)),
        ),
        _section(
            "Small and large, few and many",
            "AP by the size of the objects (small: below 32² pixels; large: from 96² on), and by how many of them are "
            "in an image" + (", and of the groups." if diagnosis["groups"] else "."),
            _two(_picture(pictures, "slices", "AP by size, crowding and group"), _slices(diagnosis)),
        ),
        _section(
            "Can the scores be trusted?",
            "Of the detections with a score around 0.8, 80 in 100 should be right: then the dots lie on the dashed "
            f"line. They are off by {diagnosis['calibration']['expected_error']:.3f} on average. The numbers count "
            "detections.",
            _picture(pictures, "calibration", "Share of right detections by score"),
        ),
    ]
    if "worst" in pictures:
        sections.append(
            _section(
                "The images with the most mistakes",
                "Above the thresholds. Click the picture for its full size.",
                _picture(pictures, "worst", "Hits, misses and false alarms in the worst images", link=True),
            )
        )
    if diagnosis["suspicious_labels"]:
        sections.append(
            _section(
                "Labels to look at",
                "Confident detections that contradict the labels: mistakes of the model, or of whoever labelled.",
                _suspicious(diagnosis),
            )
        )
    tiles = [("AP", metrics["AP"]), ("AP50", metrics["AP50"]), ("AP75", metrics["AP75"])]
    counts = [(name, diagnosis[name]) for name in ("images", "objects", "detections")]
    cells = [f"<div>{name}<b>{_number(value)}</b></div>" for name, value in tiles]
    cells += [f"<div>{name}<b>{value:,}</b></div>" for name, value in counts]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Diagnosis</title>'
        f"<style>{STYLE}</style></head><body>\n<h1>Diagnosis</h1>\n"
        f"<p>Of {diagnosis['compared']}, by COCO's rules. All figures are in diagnosis.json.</p>\n"
        f'<div class="numbers">{"".join(cells)}</div>\n{"".join(sections)}</body></html>\n'
    )


def _section(title: str, text: str, content: str) -> str:
    """Return a section; `text` and `content` are HTML already."""
    return f"<h2>{html.escape(title)}</h2>\n<p>{text}</p>\n{content}\n"


def _two(*parts: str) -> str:
    return f'<div class="two">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def _picture(pictures: Mapping[str, bytes], name: str, meaning: str, link: bool = False) -> str:
    source = f"data:image/png;base64,{base64.b64encode(pictures[name]).decode()}"
    image = f'<img alt="{html.escape(meaning)}" src="{source}">'
    return f'<a href="{name}.png">{image}</a>' if link else image


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    lines = ["".join(f"<td>{html.escape(_cell(cell))}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    if value is None or isinstance(value, float):
        return _number(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _number(value: float | None) -> str:
    """Return a share with three digits; a dash for none, which COCO says as −1."""
    return "–" if value is None or value < 0 else f"{value:.3f}"


def _errors(diagnosis: Mapping[str, Any]) -> str:
    rows = [(kind, one["count"], one["AP50"]) for kind, one in diagnosis["errors"].items()]
    return _table(("error", "count", "AP50 it costs"), rows)


def _classes(diagnosis: Mapping[str, Any]) -> str:
    columns = ("objects", "AP", "AP50", "threshold", "precision", "recall", "F1")
    rows = [(name, *(one[column] for column in columns)) for name, one in diagnosis["classes"].items()]
    return _table(("class", *columns), sorted(rows, key=lambda row: row[2]))


def _confusions(diagnosis: Mapping[str, Any]) -> str:
    names, counts = diagnosis["confusion"]["names"], diagnosis["confusion"]["counts"]
    pairs = [
        (counts[row][column], names[row], names[column])
        for row in range(len(names) - 1)
        for column in range(len(names) - 1)
        if row != column and counts[row][column]
    ]
    if not pairs:
        return "<p>No object was found as another class.</p>"
    rows = [(true, found, count) for count, true, found in sorted(pairs, reverse=True)[:MOST_CONFUSED]]
    return _table(("labelled", "found as", "times"), rows)


def _slices(diagnosis: Mapping[str, Any]) -> str:
    rows = [
        (name, one.get("objects", ""), one.get("images", ""), one["AP"], one["AP50"], one["AR"])
        for kind in ("sizes", "crowding", "groups")
        for name, one in diagnosis[kind].items()
    ]
    return _table(("", "objects", "images", "AP", "AP50", "AR"), rows)


def _suspicious(diagnosis: Mapping[str, Any]) -> str:
    rows = [
        (one["title"], one["found"], one["labelled"] or "nothing", one["score"])
        for one in diagnosis["suspicious_labels"]
    ]
    return _table(("image", "found", "labelled", "score"), rows)
