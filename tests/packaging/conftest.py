"""The archives that would be published: built once a run, away from the checkout and what older builds left there."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

REPOSITORY = Path(__file__).resolve().parents[2]
# What is made by running something, and stands in .gitignore.
MADE = (".git", ".venv*", "__pycache__", "*.egg-info", "build", "dist", "out", ".cache", ".*_cache", ".hypothesis")


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    """The folder with the source archive and, made from it, the wheel."""
    folder = tmp_path_factory.mktemp("archives")
    shutil.copytree(REPOSITORY, folder / "source", ignore=shutil.ignore_patterns(*MADE, ".peers"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


@pytest.fixture(scope="session")
def sdist(archives, tmp_path_factory):
    """The source archive, unpacked."""
    (path,) = archives.glob("*.tar.gz")
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return folder / path.name.removesuffix(".tar.gz")


@pytest.fixture(scope="session")
def wheel(archives):
    """The wheel, opened."""
    (path,) = archives.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="session")
def metadata(wheel):
    """What an index reads of the wheel, validated as an index does."""
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Metadata.from_email(wheel.read(name), validate=True)
