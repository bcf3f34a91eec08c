"""A first day's steps in the environment of these tests; `make test-pythons` takes them in fresh ones."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent


@pytest.mark.slow
def test_first_steps(tmp_path):
    done = subprocess.run(
        [sys.executable, FOLDER / "first_steps.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(FOLDER.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["keras"] == version("keras")
