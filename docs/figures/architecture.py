"""Draws `docs/images/architecture.svg` from the code's own imports: floors, what stands on each, what it rests on.

    python docs/figures/architecture.py

The floors are those of the contract in pyproject.toml. An arrow is an import, left out where a longer way says it, too.
"""

import ast
import html
import re
import sys
import tomllib
from pathlib import Path

import grimp

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))  # whatever checkout is installed
PORTING = "port_weights"  # stands below the models; its command line and what it calls, above, is not drawn
PICTURE = REPOSITORY / "docs/images/architecture.svg"
WIDTH, ROW, BOX, GAP, MARGIN = 760, 96, 58, 24, 20
STYLE = (
    "text{font-family:system-ui,sans-serif;fill:#1b1f24}.name{font-size:16px;font-weight:600}.told{font-size:12px}"
    "rect{fill:#f3f6fb;stroke:#5b6b82;stroke-width:1.2}path{fill:none;stroke:#5b6b82;stroke-width:1.2;opacity:.75}"
    ".ground{fill:#ffffff;stroke:none}"
)


def floors() -> list[list[str]]:
    """The names on each floor, the highest first."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    [contract] = [contract for contract in contracts if contract["id"] == "floors"]
    rows = [re.findall(r"\w+", layer) for layer in contract["layers"]]
    rows.insert(rows.index(["models"]) + 1, [PORTING])
    return rows


def imports(names: list[str]) -> set[tuple[str, str]]:
    """Which of the names imports which, of those below it."""
    graph = grimp.build_graph("tfdetr_keras", PORTING, exclude_type_checking_imports=True)
    place = {name: index for index, name in enumerate(names)}
    pairs = {
        (_name(module), _name(imported))
        for module in graph.modules - {"tfdetr_keras"}
        for imported in graph.find_modules_directly_imported_by(module) - {"tfdetr_keras"}
    }
    known = {pair for pair in pairs if set(pair) <= set(names)}
    return {(upper, lower) for upper, lower in known if place[upper] < place[lower]}


def _name(module: str) -> str:
    """What a module belongs to: a name of the package, or porting."""
    package, _, rest = module.partition(".")
    return package if package == PORTING else rest.split(".")[0]


def without_long_ways(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The edges that no way over a third name says, too."""
    names = {name for edge in edges for name in edge}
    return {
        (upper, lower)
        for upper, lower in edges
        if not any((upper, between) in edges and (between, lower) in edges for between in names)
    }


def told(name: str) -> tuple[str, str]:
    """How many files and lines a name stands for, and the first words of what it says of itself."""
    place = REPOSITORY / name if name == PORTING else REPOSITORY / "tfdetr_keras" / name
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    first = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    first_line = (ast.get_docstring(ast.parse(first.read_text(encoding="utf-8"))) or "").split("\n")[0]
    name_of_it, _, what = first_line.rstrip(".").replace("`", "").partition(": ")
    said = what if what and len(name_of_it.split()) < 3 else name_of_it
    return f"{len(files)} files, {lines:,} lines" if place.is_dir() else f"{lines:,} lines", said


def picture() -> str:
    """The drawing, as SVG."""
    rows = floors()
    names = [name for row in rows for name in row]
    boxes: dict[str, tuple[float, float, float]] = {}
    for level, row in enumerate(rows):
        width = min(360.0, (WIDTH - 2 * MARGIN - GAP * (len(row) - 1)) / len(row))
        left = (WIDTH - len(row) * width - GAP * (len(row) - 1)) / 2
        for place, name in enumerate(row):
            boxes[name] = (left + place * (width + GAP), MARGIN + level * ROW, width)
    height = 2 * MARGIN + (len(rows) - 1) * ROW + BOX
    parts = [f'<rect class="ground" width="{WIDTH}" height="{height}"/>']
    for upper, lower in sorted(without_long_ways(imports(names))):
        (x1, y1, width1), (x2, y2, width2) = boxes[upper], boxes[lower]
        start, end = (x1 + width1 / 2, y1 + BOX), (x2 + width2 / 2, y2)
        bend = 30.0 if y2 - y1 <= ROW else 60.0
        side = 0.0 if y2 - y1 <= ROW else (x1 + width1 / 2 < WIDTH / 2 or -1) * -1 * (width1 / 2 + 30)
        parts.append(
            f'<path marker-end="url(#head)" d="M{start[0]:.0f},{start[1]:.0f} '
            f"C{start[0] + side:.0f},{start[1] + bend:.0f} {end[0] + side:.0f},{end[1] - bend:.0f} "
            f'{end[0]:.0f},{end[1] - 3:.0f}"/>'
        )
    for name, (x, y, width) in boxes.items():
        size, said = told(name)
        room = int(width / 6.9)
        said = said if len(said) <= room else f"{said[: room - 1].rstrip()}…"
        parts.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{BOX}" rx="6"/>')
        parts.append(f'<text class="name" x="{x + 12:.0f}" y="{y + 22:.0f}">{name}</text>')
        parts.append(
            f'<text class="told" x="{x + width - 12:.0f}" y="{y + 22:.0f}" text-anchor="end">{html.escape(size)}</text>'
        )
        parts.append(f'<text class="told" x="{x + 12:.0f}" y="{y + 43:.0f}">{html.escape(said)}</text>')
    head = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" style="fill:#5b6b82;stroke:none"/></marker></defs>'
    )
    title = "<title>The floors of tfdetr_keras, and what imports what</title>"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">{title}'
        f"<style>{STYLE}</style>{head}{''.join(parts)}</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    print(PICTURE.relative_to(REPOSITORY))
