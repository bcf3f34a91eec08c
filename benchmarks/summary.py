"""Runs benchmarks and puts what they print into `RESULTS.md`.

    python benchmarks/summary.py [NAME …]

All of them, or those that are named, e.g. `inference loss`. Each one's section stands between two comments in
`RESULTS.md`, where it is replaced as a whole; the notes between the sections are people's and stay.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "RESULTS.md"
NAMES = tuple(sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != Path(__file__).stem))


def replaced(text: str, name: str, section: str) -> str:
    """The results with one section replaced, or added at the end."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    block = f"{begin}\n\n{section.strip()}\n\n{end}"
    if begin not in text:
        return f"{text.rstrip()}\n\n{block}\n"
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: block, text, flags=re.DOTALL)


def main() -> None:
    """Runs the benchmarks, and writes the results after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    names = parser.parse_args().names or NAMES
    if unknown := sorted(set(names).difference(NAMES)):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    for name in names:
        print(f"bench: {name}", file=sys.stderr, flush=True)
        command = [sys.executable, f"benchmarks/{name}.py"]
        run = subprocess.run(command, cwd=FOLDER.parent, stdout=subprocess.PIPE, text=True, check=True)
        print(run.stdout)
        RESULTS.write_text(replaced(RESULTS.read_text(encoding="utf-8"), name, run.stdout), encoding="utf-8")


if __name__ == "__main__":
    main()
