"""What `make` says and installs, with interpreters that only say what they are asked to do."""

import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# Tells its version, makes environments that hold itself, and notes what pip and the demo are asked for. Whatever
# matches $REFUSED is not installed, with as long an answer as pip's.
INTERPRETER = """#!/bin/sh
case "$*" in
    *sys.version_info*) echo {version} ;;
    "-c import pip") ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/tfdetr" ;;
    *pip*${{REFUSED:-nothing}}*) echo "pip $*" | sed 's/.*constraints.txt //' >>calls; seq 50 >&2; exit 1 ;;
    *pip*) echo "pip $*" | sed 's/.*constraints.txt //' >>calls ;;
    *) echo "$*" >>calls ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """Runs make in a fresh checkout, where the Pythons of the given versions are on the search path."""
    checkout, path = tmp_path / "checkout", tmp_path / "bin"
    path.mkdir()
    (checkout / ".ci").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "floors.txt", ".ci/environment"):
        shutil.copy(REPOSITORY / name, checkout / name)
    for tool in ("make", "sh", "sed", "seq", "mkdir", "cp", "touch", "cat", "rm"):
        (path / tool).symlink_to(shutil.which(tool))

    def run(*arguments, pythons=("python3=3.12",), refused=None):
        for name, version in (python.split("=") for python in pythons):
            (path / name).write_text(INTERPRETER.format(version=version))
            (path / name).chmod(0o755)
        environment = {"PATH": str(path), **({"REFUSED": refused} if refused else {})}
        done = subprocess.run(
            ["make", *arguments], cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
        calls = checkout / "calls"
        made = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return done, made

    return run


@pytest.mark.parametrize(
    ("pythons", "arguments", "told"),
    [
        (
            ["python3=3.10", "python3.12=3.12"],
            ["demo"],
            ".venv: needs Python 3.11, 3.12, 3.13, and python3 is 3.10: make PYTHON=python3.12",
        ),
        (
            ["python3=3.14"],
            ["venv"],
            ".venv: needs Python 3.11, 3.12, 3.13, and python3 is 3.14: install one of them and make PYTHON=its path",
        ),
        (
            ["python3=3.12"],
            ["venv", "PYTHON=python3.13"],
            ".venv: needs Python 3.11, 3.12, 3.13, and python3.13 is not there: "
            "install one of them and make PYTHON=its path",
        ),
        (
            ["python3=3.12", "python3.11=3.11"],
            ["test-floors"],
            ".venv-floors: needs Python 3.11, and python3 is 3.12: make PYTHON=python3.11",
        ),
    ],
)
def test_another_python_is_refused_in_one_line(make, pythons, arguments, told):
    done, calls = make(*arguments, pythons=pythons)
    first, by_make = done.stderr.splitlines()
    assert first == told
    assert by_make.startswith("make: ***")
    assert done.stdout == ""
    assert not calls


def test_an_environment_of_another_python_is_named(make, tmp_path):
    make("demo")
    (tmp_path / "checkout/.venv/bin/python").write_text(INTERPRETER.format(version="3.10"))
    (tmp_path / "checkout/.venv/.core").unlink()
    done, _ = make("demo", pythons=["python3=3.10", "python3.11=3.11"])
    assert done.stderr.splitlines()[0] == (
        ".venv: needs Python 3.11, 3.12, 3.13, and .venv/bin/python is 3.10: remove .venv, then make PYTHON=python3.11"
    )


def test_the_demo_installs_what_it_needs_and_only_once(make):
    _, first = make("demo")
    _, second = make("demo")
    assert first == ["-e .", "-e .[port]", "demo --out out"]
    assert second == ["demo --out out"]


def test_where_all_is_installed_the_demo_installs_nothing(make):
    _, calls = make("venv")
    assert calls == ["torch", "-e .[test]", "--no-deps --upgrade --target .venv/beside torchvision"]
    _, calls = make("demo")
    assert calls == ["demo --out out"]


def test_where_torch_cannot_be_had_the_demo_says_so_in_one_line_and_runs(make):
    for expected in (["-e .", "-e .[port]", "demo --out out"], ["-e .[port]", "demo --out out"]):
        done, calls = make("demo", refused="port")
        assert done.returncode == 0
        assert done.stderr == ""
        assert calls == expected
        assert done.stdout.splitlines()[-1] == (
            "venv: no PyTorch to be had here (.venv/port.log says why); the demo leaves the comparison out"
        )


def test_where_the_package_cannot_be_installed_the_demo_does_not_run(make):
    done, calls = make("demo", refused="-e .")
    assert done.returncode != 0
    assert calls == ["-e ."]
