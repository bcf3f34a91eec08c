"""The README's fine-tuning example, as a user copies it."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_fine_tuning_example_works_as_written(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    [example] = [block for block in blocks if "td.fit_detector(" in block]
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(compile(example, str(README), "exec"), namespace)
    assert namespace["model"].id2label == {0: "star", 1: "cross", 2: "ring"}
    assert (tmp_path / "run" / "report.md").is_file()
    assert namespace["run"].metrics["AP50"] > 0.05  # five short epochs; before them it is 0
    assert "star" in capsys.readouterr().out
