"""The folder of a run for the Hugging Face hub: what it holds, what its card says, and that the card's code runs."""

import contextlib
import io
import json
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from huggingface_hub import ModelCard
from PIL import Image

import tfdetr_keras as td
from tfdetr_keras.cli import main
from tfdetr_keras.preprocessing import Preprocessing
from tfdetr_keras.training.run_folder import RunFolder

pytestmark = pytest.mark.slow

SIZE, CANVAS = (48, 64), (64, 64)
CARD = {"repository": "me/shapes", "dataset": "somebody/drawn-shapes", "license": "apache-2.0"}


@pytest.fixture(scope="module")
def records():
    return td.data.load_shapes(8, seed=1, size=SIZE)


def train(training, names, folder, validation=None, **settings):
    """A short run; eagerly, since tracing would take most of its time."""
    tf.config.run_functions_eagerly(True)
    try:
        settings |= {"epochs": 1, "batch_size": 2, "size": SIZE, "max_boxes": 8, "jit_compile": False}
        return td.fit_detector(training, names, folder, validation, "detr-tiny", **settings)
    finally:
        tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def run(records, tmp_path_factory):
    training, validation = td.data.split(records[0], 0.5)
    return train(training, records[1], tmp_path_factory.mktemp("private-place") / "run", validation, pad_to=CANVAS)


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    return td.export.hub(run, tmp_path_factory.mktemp("hub") / "shapes", **CARD)


def test_both_sides_read_it(folder, run, records, pytorch):
    image = next(records[0].as_numpy_iterator())["image"]
    expected = run.load_model().detect(image, SIZE, threshold=0.1, pad_to=CANVAS)
    ported = td.DETR.from_pretrained(folder)
    found = ported.detect(image, SIZE, threshold=0.1, pad_to=CANVAS)
    assert len(found)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.names == expected.names

    inputs, theirs, id2label = pytorch.call("processors:run_folder", folder, image)
    assert id2label == dict(ported.id2label)
    assert inputs["pixel_values"].shape[2:] == CANVAS
    ours = ported({**inputs, "pixel_values": inputs["pixel_values"].transpose(0, 2, 3, 1)})
    np.testing.assert_allclose(theirs["logits"], ours["logits"], atol=1e-4)
    np.testing.assert_allclose(theirs["pred_boxes"], ours["pred_boxes"], atol=1e-5)


def test_what_the_hub_reads_of_the_card(folder, run):
    card = ModelCard.load(folder / "README.md")
    data = card.data
    assert (data.license, data.pipeline_tag, data.datasets) == (
        "apache-2.0",
        "object-detection",
        ["somebody/drawn-shapes"],
    )
    assert data.model_name == "shapes"
    measured = {result.metric_name: result.metric_value for result in data.eval_results}
    assert measured == {name: round(run.metrics[name], 4) for name in ("AP", "AP50", "AP75")}
    assert {result.dataset_type for result in data.eval_results} == {"somebody/drawn-shapes"}


def test_what_people_read_of_it(folder, run):
    text = (folder / "README.md").read_text(encoding="utf-8")
    for expected in ("circle, square, triangle", "1.2 million weights", "training: 4 images", "validation: 4 images"):
        assert expected in text
    for name in run.metrics["AP_per_class"]:
        assert f"| {name} |" in text
    pictures = re.findall(r"!\[[^]]*\]\((.*?)\)", text)
    assert pictures == ["predictions.png", "curves.png"]
    for picture in pictures:
        Image.open(folder / picture).verify()
    assert "private-place" not in "".join(
        file.read_text(encoding="utf-8") for file in folder.iterdir() if file.suffix in (".md", ".json", ".csv")
    )


def test_the_cards_code_runs(folder, records, pytorch, tmp_path, monkeypatch):
    """With the folder in place of the repository; each program in a process that has its own libraries alone."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "me" / "shapes")
    Image.fromarray(next(records[0].as_numpy_iterator())["image"]).save("photo.jpg", quality=95)
    programs = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    ours, theirs = programs
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(ours, "README.md", "exec"), {})
    assert re.search(r"\d objects? in ", output.getvalue())
    assert "tfdetr_keras" not in theirs
    assert pytorch.call("programs:run", theirs, "README.md", tmp_path).startswith("[")


@pytest.mark.slow
def test_a_run_without_validation_or_names(records, tmp_path):
    run = train(td.data.split(records[0], 0.25)[1], records[1], tmp_path / "run")
    path = td.export.hub(run.path, tmp_path / "detector")
    text = (path / "README.md").read_text(encoding="utf-8")
    assert "no AP was measured" in text
    assert 'from_pretrained("OWNER/detector")' in text
    assert "pad_to=" not in text
    assert "pad_size" not in json.loads((path / "preprocessor_config.json").read_text())
    data = ModelCard.load(path / "README.md").data
    assert data.eval_results is None
    assert data.license is None


def test_several_canvases_are_none_of_the_models_own(run, tmp_path):
    copy = shutil.copytree(run.path, tmp_path / "run")
    config = json.loads((copy / "config.json").read_text())
    config["settings"]["pad_to"] = "buckets"
    (copy / "config.json").write_text(json.dumps(config))
    assert RunFolder(copy).preprocessing == Preprocessing(SIZE)


def test_a_base_model_of_the_hub_is_named(run, tmp_path):
    copy = shutil.copytree(run.path, tmp_path / "run")
    config = json.loads((copy / "config.json").read_text()) | {"source": "facebook/detr-resnet-50"}
    (copy / "config.json").write_text(json.dumps(config))
    card = ModelCard.load(td.export.hub(copy, tmp_path / "detector") / "README.md")
    assert card.data.base_model == "facebook/detr-resnet-50"


def test_the_command(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.path, "run")
    command = ["export", "--model", "run", "--format", "hub", "--out", "detector"]
    assert main([*command, "--repository", "me/detector", "--license", "mit"]) == 0
    assert "detector: hub, " in capsys.readouterr().out
    assert ModelCard.load("detector/README.md").data.license == "mit"
    for extra, message in (
        ([], "holds an export already: set overwrite"),
        (["--overwrite", "--repository", "no-owner"], "repository='no-owner' must have the form owner/name"),
        (["--last"], "--format hub writes a run's best model as it was trained"),
        (["--size", "4", "8"], "--format hub writes a run's best model as it was trained"),
    ):
        assert main([*command, *extra]) == 2
        assert message in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    other = ["export", "--format", "hub", "--out", "other", "--model"]
    assert main([*other, "detr-tiny"]) == 2
    assert "detr-tiny is not the folder of a training run" in capsys.readouterr().err
    assert main(["export", "--model", "run", "--format", "keras", "--out", "a.keras", "--license", "mit"]) == 2
    assert "--license mit is for --format hub" in capsys.readouterr().err


def test_a_run_that_has_no_model_yet(tmp_path, run):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(RunFolder(run.path).path / "config.json", folder)
    with pytest.raises(ValueError, match="no epoch was finished yet"):
        td.export.hub(folder, tmp_path / "detector")
    with pytest.raises(ValueError, match="is not the folder of a training run"):
        td.export.hub(tmp_path, tmp_path / "detector")
    assert not (tmp_path / "detector").exists()
