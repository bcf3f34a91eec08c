"""The drawing of the code's floors is that of the code."""

import importlib.util
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def _drawing():
    spec = importlib.util.spec_from_file_location("architecture", REPOSITORY / "docs/figures/architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_drawing_has_the_floors_and_the_imports_of_the_code():
    """Numbers of lines may be older."""
    drawn = _drawing().picture()
    kept = (REPOSITORY / "docs/images/architecture.svg").read_text(encoding="utf-8")
    numbers = re.compile(r"\d+ files, [\d,]+ lines|[\d,]+ lines")
    assert numbers.sub("", kept) == numbers.sub("", drawn)


def test_no_floor_joins_many_and_few_modules_stand_outside_of_folders():
    drawing = _drawing()
    assert max(map(len, drawing.floors())) <= 4
    package = REPOSITORY / "tfdetr_keras"
    floors = [name for floor in drawing.floors() for name in floor if name != drawing.PORTING]
    assert len([file for file in package.glob("*.py") if file.name != "__init__.py"]) <= 8
    for name in floors:
        assert (package / name).is_dir() or (package / f"{name}.py").is_file()
