"""docs/from-pytorch.md leaves out no setting, and names none that is not here."""

import dataclasses
import re
from pathlib import Path

import pytest

import tfdetr_keras as td

PAGE = (Path(__file__).parents[2] / "docs" / "from-pytorch.md").read_text(encoding="utf-8")


def names_in(column, heading):
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[column] for line in section.splitlines() if line.startswith("| `")]
    return set(re.findall(r"[`, (]([a-z0-9_]+)(?=[`=,)({])", " ".join(cells)))


KINDS = ["DetrConfig", "TableTransformerConfig", "ConditionalDetrConfig", "DeformableDetrConfig", "DabDetrConfig"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_hugging_faces_configurations(kind, pytorch):
    fields = pytorch.call("models:fields_of", kind)
    assert len(fields) > 25
    assert fields <= names_in(1, "`transformers.DetrConfig`")


def test_what_it_names_here_is_here():
    ours = names_in(2, "`transformers.DetrConfig`")
    kinds = (td.DeformableDETRConfig, td.DABDETRConfig, td.SetCriterion)
    known = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    known |= {field.name for field in dataclasses.fields(td.ResNetConfig)}
    mentioned = {name for name in ours if "_" in name}
    assert mentioned
    assert mentioned <= known, mentioned - known
