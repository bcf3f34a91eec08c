"""The code of a page, and running it as a reader would: from top to bottom, in one folder."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
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
# Of numbers with a decimal point, as scores are, that a page shows: they hang on the machine's rounding.
DECIMALS_DIFFER = 0.05
_DECIMAL = re.compile(r"\d+\.\d+(?:e[+-]?\d+)?")


class Block(NamedTuple):
    """A fenced block: its language, its text, the line of the page that it begins on, and its title."""

    language: str
    code: str
    line: int
    title: str = ""

    @property
    def is_output(self):
        """Whether the page says that the code before it prints this."""
        return self.title == "Output"

    @property
    def is_of_transformers(self):
        """Whether it is a program of its own: one that imports transformers, and not beside TensorFlow."""
        return self.language == "python" and "import transformers\n" in self.code and "tensorflow" not in self.code


def blocks_of(page):
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    fences = re.finditer(r"^([ ]*)```(\w*)([^\n]*)\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE)
    return [
        Block(
            match[2],
            re.sub(rf"^{match[1]}", "", match[4], flags=re.MULTILINE),
            text[: match.start(4)].count("\n"),
            "".join(re.findall(r'title="([^"]*)"', match[3])),
        )
        for match in fences
    ]


def run_page(page, namespace=None, before=None, left_out=()):
    """Runs a page's blocks in the current folder; the programs share their names, as in a notebook.

    All but those that import transformers, each of which is run in a process of its own.

    What the page shows as output is compared with what the block before it printed, and what it shows under a file's
    name with the file.

    Args:
        page: the file.
        namespace: names that the programs know.
        before: called before each block with the block.
        left_out: a block whose lines all begin with one of these is not run.

    Returns:
        The names that the programs leave, and what was printed.
    """
    names = {"__name__": "page"} if namespace is None else namespace
    everything = printed = ""
    for block in blocks_of(page):
        if block.is_output:
            assert_lines(block, printed, page)
        elif block.language in READ and Path(block.title).is_file():
            assert_lines(block, Path(block.title).read_text(), page)
        if block.language not in RUN or all(line.startswith(left_out) for line in block.code.splitlines()):
            continue
        if before is not None:
            before(block)
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            if block.is_of_transformers:
                run_program([sys.executable, "-c", block.code], f"{page}, line {block.line}")
            elif block.language == "python":
                exec(compile("\n" * block.line + block.code, str(page), "exec"), names)
            else:
                run_commands(block.code)
        printed = output.getvalue()
        everything += printed
    return names, everything


def assert_lines(block, text, page):
    """A block's lines are among those of a text, in their order; "…" stands for lines, or for the end of one."""
    lines = iter(text.splitlines())
    for number, shown in enumerate(block.code.splitlines(), block.line + 1):
        if shown.strip() not in ("", "…"):
            assert any(_same(shown, line) for line in lines), f"{page}, line {number}: not found:\n{shown}\n{text}"


def _same(shown, line):
    """But for spaces, and for decimal fractions, which differ a little from machine to machine."""
    shown, line = (" ".join(text.split()) for text in (shown, line))
    if shown.endswith("…"):
        shown = shown[:-1]
        line = line[: len(shown)]
    if _DECIMAL.sub("#", shown) != _DECIMAL.sub("#", line):
        return False
    pairs = zip(_DECIMAL.findall(shown), _DECIMAL.findall(line), strict=True)
    return all(abs(float(one) - float(other)) <= DECIMALS_DIFFER for one, other in pairs)


def run_commands(code):
    """Runs the lines of a block for a shell."""
    for line in re.sub(r"\\\n\s*", " ", code).splitlines():
        words = shlex.split(line, comments=True)
        ours = [name for name in COMMANDS if words[: len(name.split())] == name.split()]
        if ours:
            assert COMMANDS[ours[0]](words[len(ours[0].split()) :]) == 0, line
        elif words:
            run_program(["bash", "-c", line], line)


def run_program(command, title):
    """Runs a command in a process of its own, and prints what that prints."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{title}\n{done.stderr}"
    print(done.stdout, end="")
