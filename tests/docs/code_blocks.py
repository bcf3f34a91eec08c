"""The code of a page, and running it as a reader would: from top to bottom, in one folder."""

import contextlib
import io
import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import port_weights.__main__
import tfdetr_keras.cli

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
RUN = ("python", "bash")
# Languages of blocks that are there to be read: output, files' contents, and commands that no test could end.
READ = ("text", "console", "json", "xml", "yaml")
# Our own commands are run in this process: a new one would spend its time importing TensorFlow.
COMMANDS = {
    "tfdetr": tfdetr_keras.cli.main,
    "python -m port_weights": port_weights.__main__.main,
}


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line of the page that it begins on."""

    language: str
    code: str
    line: int


def blocks_of(page):
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(match[2], re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE), text[: match.start(3)].count("\n"))
        for match in re.finditer(r"^([ ]*)```(\w*)[^\n]*\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE)
    ]


def run_page(page, namespace=None):
    """Runs a page's blocks in the current folder; the programs share their names, as in a notebook.

    Returns:
        The names that the programs leave, and what was printed.
    """
    names = {"__name__": "page"} if namespace is None else namespace
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks_of(page):
            if block.language == "python":
                exec(compile("\n" * block.line + block.code, str(page), "exec"), names)
            elif block.language == "bash":
                run_commands(block.code)
    return names, printed.getvalue()


def run_commands(code):
    """Runs the lines of a block for a shell."""
    for line in re.sub(r"\\\n\s*", " ", code).splitlines():
        words = shlex.split(line, comments=True)
        ours = [name for name in COMMANDS if words[: len(name.split())] == name.split()]
        if ours:
            assert COMMANDS[ours[0]](words[len(ours[0].split()) :]) == 0, line
        elif words:
            done = subprocess.run(["bash", "-c", line], check=False, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
