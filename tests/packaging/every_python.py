"""Installs the package with every Python that is here, and takes a first day's steps: `make test-pythons`.

Each interpreter gets a fresh environment in a temporary folder, made from whatever index pip is set to, which is
deleted before the next one is made. Those that pyproject.toml's `requires-python` leaves out must be refused by pip.
Prints a row for each: versions, and the environment's size on disk. `--extra port` measures with an extra.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FIRST_STEPS = Path(__file__).resolve().with_name("first_steps.py")
MINORS = range(9, 16)


def interpreters() -> dict[str, str]:
    """Finds the Pythons on the search path and in pyenv, by their versions, e.g. "3.12"; the first of each."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    candidates = [f"python3.{minor}" for minor in MINORS] + [str(path) for path in sorted(pyenv.glob("3.*/bin/python"))]
    found: dict[str, str] = {}
    for path in filter(None, map(shutil.which, candidates)):
        ask = "import sys; print('%d.%d' % sys.version_info[:2])"
        told = subprocess.run([path, "-c", ask], capture_output=True, check=False)
        version = told.stdout.decode().strip()
        if told.returncode == 0 and version.startswith("3.") and int(version[2:]) in MINORS:
            found.setdefault(version, path)
    return dict(sorted(found.items(), key=lambda item: int(item[0][2:])))


def supported() -> list[str]:
    """Gives the versions that pyproject.toml's `requires-python` allows."""
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    bounds = re.search(r'^requires-python = ">=3\.(\d+),<3\.(\d+)"$', text, re.MULTILINE)
    assert bounds, "pyproject.toml's requires-python has another form"
    return [f"3.{minor}" for minor in range(int(bounds[1]), int(bounds[2]))]


def try_with(python: str, extra: str) -> str:
    """Installs the package in a fresh environment and takes the first steps.

    Args:
        python: the interpreter.
        extra: of the package, to be installed too; may be empty.

    Returns:
        The row of the table.

    Raises:
        subprocess.CalledProcessError: something failed.
    """
    with tempfile.TemporaryDirectory(prefix="tfdetr-python-") as folder, source() as package:
        environment = make_environment(python, folder)
        subprocess.run([environment, *INSTALL, f"{package}[{extra}]" if extra else package], check=True)
        size = sum(path.lstat().st_blocks * 512 for path in Path(folder).rglob("*"))
        done = subprocess.run(
            [environment, str(FIRST_STEPS)], cwd=folder, env=bare_environment(), check=True, stdout=subprocess.PIPE
        )
        told = json.loads(done.stdout.splitlines()[-1])
    versions = " | ".join(told[name] for name in ("python", "tensorflow", "keras", "numpy"))
    return f"| {versions} | {extra or '-'} | {size / 1e9:.1f} GB |"


def refused(python: str) -> str:
    """Lets pip refuse the package; gives the line in which it says so.

    Raises:
        AssertionError: pip installs it, or fails for another reason.
    """
    with tempfile.TemporaryDirectory(prefix="tfdetr-python-") as folder, source() as package:
        environment = make_environment(python, folder)
        done = subprocess.run([environment, *INSTALL, "--no-deps", package], capture_output=True, check=False)
    lines = done.stderr.decode().splitlines()
    told = [line for line in lines if "requires a different Python" in line]
    assert done.returncode != 0, f"pip installs it with {python}"
    assert told, "\n".join(lines)
    return told[0]


@contextlib.contextmanager
def source() -> Iterator[str]:
    """A copy of what is packaged: pip would build in the checkout, and take along what earlier builds left there."""
    with tempfile.TemporaryDirectory(prefix="tfdetr-source-") as folder:
        for name in ("tfdetr_keras", "port_weights"):
            shutil.copytree(REPOSITORY / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(REPOSITORY / name, folder)
        yield folder


INSTALL = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")


def make_environment(python: str, folder: str) -> str:
    """Makes a fresh virtual environment; returns its Python."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    return str(Path(folder, "bin", "python"))


def bare_environment() -> dict[str, str]:
    """The environment variables without those that would let the checkout take the place of what was installed."""
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}


def main() -> None:
    """Tries every interpreter; ends with an error where a supported one is missing or something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extra", default="", help="an extra to install too, e.g. port")
    parser.add_argument("--only", metavar="3.N", help="this Python alone")
    options = parser.parse_args()
    found = interpreters()
    if options.only:
        found = {version: path for version, path in found.items() if version == options.only}
    print("| Python | TensorFlow | Keras | NumPy | extra | on disk |\n|---|---|---|---|---|---|", flush=True)
    for version, path in found.items():
        if version in supported():
            print(try_with(path, options.extra), flush=True)
        else:
            print(f"| {version} | {refused(path)} |", flush=True)
    missing = {options.only} - {None} - found.keys() if options.only else set(supported()) - found.keys()
    if missing:
        sys.exit(f"no Python {', '.join(sorted(missing))} was found: it was not tried")


if __name__ == "__main__":
    main()
