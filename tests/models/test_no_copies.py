"""How the files of the members stand to each other."""

from pathlib import Path

import tfdetr_keras as td
from tfdetr_keras.models.registry import members


def test_no_block_of_one_member_stands_in_the_file_of_another():
    """No ten lines in a row, but for blank lines, imports and comments, of a member's file stand in another file."""

    def blocks(path):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        code = [line for line in lines if line and not line.startswith(("import ", "from ", "#"))]
        return {tuple(code[place : place + 10]) for place in range(len(code) - 9)}

    folder = Path(td.models.__file__).parent
    files = {kind.__module__.rpartition(".")[2] for kind in members().values()}
    own = {name: blocks(folder / f"{name}.py") for name in files}
    assert len(own) >= 4
    for path in folder.glob("*.py"):
        for name, mine in own.items():
            assert path.stem == name or not mine & blocks(path), (name, path)
