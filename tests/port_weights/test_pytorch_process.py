"""PyTorch's process: what it loads, what comes back from it, and what is said when it fails."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import port_weights
from port_weights.pytorch.process import PyTorchMissingError, require, run

pytestmark = pytest.mark.usefixtures("porting_as_users_do")

PROBE = """
import os, signal, sys, warnings

def modules(folder):
    import port_weights.pytorch.model, port_weights.pytorch.pickles
    return sorted(sys.modules)

def noisy(folder, value):
    print("to stdout")
    os.write(1, b"past Python")
    print("to stderr", file=sys.stderr)
    warnings.warn("a warning")
    return [value, sorted(os.listdir(folder))]

def place(folder):
    import port_weights
    return port_weights.__file__

def raising(folder, kind):
    raise {"value": ValueError, "system": OSError, "import": ImportError, "bug": KeyError}[kind]("what went wrong")

def ending(folder, number):
    print("the last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), getattr(signal, number))
"""


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """Makes functions of a module that only this process's search path knows run in the other."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "probe_of_process.py").write_text(PROBE)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (tmp_path / "folder").mkdir()
    return lambda function, **arguments: run(f"probe_of_process:{function}", tmp_path / "folder", **arguments)


def test_it_holds_torch_and_neither_keras_nor_tensorflow(probe):
    loaded = set(probe("modules"))
    assert {"torch", "transformers"} <= loaded
    assert not {"keras", "tensorflow", "tfdetr_keras", "jax"} & loaded


def test_a_result_comes_back_and_noise_does_not(probe, tmp_path, capfd):
    (tmp_path / "folder" / "array").touch()
    value = {"number": 0.1, "text": "Größe", "nothing": None}
    assert probe("noisy", value=value) == [value, ["array"]]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "error"), [("value", ValueError), ("system", OSError), ("import", PyTorchMissingError)]
)
def test_an_error_that_is_meant_comes_back_as_it_is(probe, kind, error):
    with pytest.raises(error, match=r"^what went wrong$"):
        probe("raising", kind=kind)


def test_a_fault_comes_with_its_last_lines(probe):
    with pytest.raises(ValueError, match=r"ended with status 1; it printed:(?s:.*)KeyError: 'what went wrong'$"):
        probe("raising", kind="bug")


@pytest.mark.parametrize(
    ("number", "told"), [("SIGKILL", "SIGKILL, perhaps because memory ran out"), ("SIGSEGV", "SIGSEGV")]
)
def test_a_process_that_is_ended(probe, number, told):
    with pytest.raises(ValueError, match=rf"was ended by {told}; it printed:\n  the last words"):
        probe("ending", number=number)


def test_no_interpreter(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(ValueError, match=r"sys\.executable names no interpreter"):
        run("json:dumps", tmp_path)


def test_what_is_not_installed_is_named():
    require("json")
    with pytest.raises(PyTorchMissingError, match="No module named 'no_such_package'"):
        require("json", "no_such_package")


def test_it_starts_from_a_zip_file_in_any_folder(tmp_path):
    """And files of the folder it starts in do not take the place of modules."""
    shutil.make_archive(tmp_path / "packages", "zip", Path(port_weights.__file__).parents[1], "port_weights")
    with zipfile.ZipFile(tmp_path / "packages.zip", "a") as archive:
        archive.writestr("probe_of_process.py", PROBE)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "json.py").write_text("raise SystemExit('imported from where it started')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'packages.zip')!r}); import pathlib; "
        "from port_weights.pytorch.process import run; "
        f"print(run('probe_of_process:place', pathlib.Path({str(tmp_path)!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(tmp_path / "packages.zip"))
