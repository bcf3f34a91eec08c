"""What the pages' code finds in the folder that it runs in: small stand-ins under the names that the pages use."""

import os
import shutil
import subprocess
import sys

import pytest
from code_blocks import REPOSITORY
from PIL import Image
from stand_ins import CANVAS, SIZE, SMALL, shapes, write_coco

import port_weights
import tfdetr_keras as td


def make_checkpoint(folder):
    """A small model in Hugging Face's form, of random weights and for images of usual sizes."""
    port_weights.export(td.DETR(SMALL), folder)


def make_run(folder):
    """The folder of a short run."""
    records, names = shapes(16, 1)
    training, validation = td.data.split(records, 0.5)
    settings = {"epochs": 1, "batch_size": 4, "size": SIZE, "pad_to": CANVAS, "max_boxes": 8}
    td.fit_detector(training, names, folder, validation, "detr-tiny", **settings)


def furnish(folder, checkpoint, run):
    """Copies the stand-ins that all pages share into a folder.

    `facebook/detr-resnet-50` is a folder there, so that nothing is fetched from the hub.
    """
    shutil.copytree(checkpoint, folder / "facebook" / "detr-resnet-50")
    shutil.copytree(run, folder / "run")
    write_coco(folder / "photos", folder / "train.json", 12)
    shutil.copy(folder / "train.json", folder / "test.json")
    Image.open(folder / "photos" / "0.png").convert("RGB").save(folder / "photo.jpg", quality=95)


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "detr"
    make_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    make_run(folder)
    return folder


@pytest.fixture
def workplace(tmp_path, monkeypatch, checkpoint_folder, finished_run):
    """The folder that a page's code runs in."""
    furnish(tmp_path, checkpoint_folder, finished_run)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The built site, and what was said meanwhile."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, check=False, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder, run.stdout + run.stderr
