"""What the pages' code finds in the folder that it runs in: small stand-ins under the names that the pages use."""

import shutil

import pytest
from PIL import Image
from stand_ins import CANVAS, SIZE, shapes, write_coco

import port_weights
import tfdetr_keras as td


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory):
    """A small model in Hugging Face's form."""
    folder = tmp_path_factory.mktemp("checkpoint") / "detr"
    port_weights.export("detr-tiny", folder, size=SIZE)
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    records, names = shapes(16, 1)
    training, validation = td.data.split(records, 0.5)
    settings = {"epochs": 1, "batch_size": 4, "size": SIZE, "pad_to": CANVAS, "max_boxes": 8}
    td.fit_detector(training, names, folder, validation, "detr-tiny", **settings)
    return folder


@pytest.fixture
def workplace(tmp_path, monkeypatch, checkpoint_folder, finished_run):
    """The folder that a page's code runs in.

    `facebook/detr-resnet-50` is a folder there, so that nothing is fetched from the hub.
    """
    shutil.copytree(checkpoint_folder, tmp_path / "facebook" / "detr-resnet-50")
    shutil.copytree(finished_run, tmp_path / "run")
    write_coco(tmp_path / "photos", tmp_path / "train.json", 12)
    shutil.copy(tmp_path / "train.json", tmp_path / "test.json")
    Image.open(tmp_path / "photos" / "0.png").convert("RGB").save(tmp_path / "photo.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    return tmp_path
