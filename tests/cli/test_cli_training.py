"""`tfdetr train`, `resume`, `evaluate` and `predict`, one after the other, as a user types them."""

import errno
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import tfdetr_keras as td
from tfdetr_keras.cli import main
from tfdetr_keras.models import PRESETS

SHAPES = ["--data", "shapes", "--count", "10", "--drawn-size", "24", "32"]
SMALL = ["--size", "32", "32", "--pad-to", "32", "32", "--batch-size", "4", "--augmentation", "flip"]


@pytest.fixture(scope="module", autouse=True)
def smallest():
    backbone = td.ResNetConfig(block="basic", depths=(1,), channels=(8,), stem_channels=8)
    one = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1)
    PRESETS["detr-smallest"] = td.DETRConfig(
        backbone=backbone, num_queries=6, d_model=8, encoder_ffn_dim=8, decoder_ffn_dim=8, **one
    )
    yield
    del PRESETS["detr-smallest"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    arguments = ["train", *SHAPES, "--val-split", "0.3", "--from", "detr-smallest", *SMALL, "--epochs", "1", "--cache"]
    assert main([*arguments, "--out", str(folder)]) == 0
    return folder


def test_train_tells_where_the_run_is(folder, capsys):
    content = json.loads((folder / "config.json").read_text())
    assert content["settings"]["epochs"] == 1
    assert content["data"]["training"] == {"data": "shapes", "count": 10, "drawn_size": [24, 32], "on_error": "raise"}
    assert content["data"]["val_split"] == 0.3
    assert main(["train", *SHAPES, "--from", "detr-smallest", "--out", str(folder)]) == 2
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.slow
def test_resume_for_more_epochs(folder, capsys):
    before = (folder / "metrics.csv").read_text().splitlines()
    assert main(["resume", str(folder), "--epochs", "2"]) == 0
    assert (folder / "metrics.csv").read_text().splitlines()[: len(before)] == before
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3
    assert f"the run is in {folder}" in capsys.readouterr().out


def test_evaluate(folder, tmp_path, capsys):
    arguments = ["evaluate", *SHAPES, "--drawn-seed", "5", "--model", str(folder), "--out", str(tmp_path / "results")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    records, names = td.data.load_shapes(10, seed=5, size=(24, 32))
    model = td.DETR.from_pretrained(folder / "best.keras")
    expected = td.evaluation.evaluate_detections(model, records, names, (32, 32), 8, (32, 32))
    assert metrics == expected  # the run's own size and canvas
    assert f"AP50   {expected['AP50']:.4f}" in printed
    assert "triangle" in printed
    assert {row["image_id"] for row in json.loads((tmp_path / "results" / "detections.json").read_text())} == set(
        range(10)
    )
    assert main([*arguments, "--last", "--size", "24", "32"]) == 0


def test_predict(folder, tmp_path, capsys, monkeypatch):
    titles, draw = [], td.visualize.draw_detections
    monkeypatch.setattr(td.visualize, "draw_detections", lambda *a, **kw: titles.append(kw["titles"]) or draw(*a, **kw))
    pictures = tmp_path / "photos"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a", (30, 40)), ("b", (50, 20))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(pictures / f"{name}.png")
    model = td.DETR.from_pretrained(folder)
    records, _ = td.data.load_images(pictures)
    expected = list(td.detect(model, records, (32, 32), 8, (32, 32), threshold=0.0))
    assert (
        main(["predict", str(pictures), "--model", str(folder), "--threshold", "0", "--out", str(tmp_path / "out")])
        == 0
    )
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [image["file"] for image in found] == [str(pictures / "a.png"), str(pictures / "b.png")]
    for image, detections in zip(found, expected, strict=True):
        assert (tmp_path / "out" / image["picture"]).is_file()
        assert [row["class"] for row in image["detections"]] == [
            model.id2label[label] for label in detections["labels"].tolist()
        ]
        np.testing.assert_allclose([row["box"] for row in image["detections"]], detections["boxes"], rtol=1e-5)
    assert titles == [["a.png"], ["b.png"]]
    assert "found 12 objects in 2 images" in capsys.readouterr().out


def coco(folder, names):
    """A COCO set of one image whose classes have these names."""
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(folder / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 20}],
        "categories": [{"id": 3 + place, "name": name} for place, name in enumerate(names)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [2, 2, 9, 9]}],
    }
    path = folder / f"{'-'.join(names)}.json"
    path.write_text(json.dumps(content))
    return ["--data", "coco", "--images", str(folder), "--annotations", str(path)]


@pytest.mark.slow
def test_a_set_of_its_own_for_validation_and_original_category_ids(tmp_path):
    data = coco(tmp_path, ["cat", "dog"])
    run = tmp_path / "run"
    arguments = [*data, "--from", "detr-smallest", "--val-annotations", data[-1], "--epochs", "1", "--batch-size", "1"]
    assert main(["train", *arguments, "--size", "20", "20", "--out", str(run)]) == 0
    assert json.loads((run / "config.json").read_text())["data"]["validation"]["annotations"] == data[-1]
    assert main(["evaluate", *data, "--model", str(run), "--out", str(tmp_path / "results")]) == 0
    rows = json.loads((tmp_path / "results" / "detections.json").read_text())
    assert {row["category_id"] for row in rows} <= {3, 4}
    assert {row["image_id"] for row in rows} == {1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ["--val-split", "0.5", "--val-count", "3"],
            "--val-split takes its images from the training set: leave out --val-count",
        ),
        (["--val-count", "3"], "the validation images have no annotations"),
        (["--val-split", "1.5"], "--val-split must be between 0 and 1, not 1.5: 20 % is 0.2"),
        (["--from", "nowhere.keras"], "nowhere.keras: no such file"),
        (["--epochs", "0"], "error: --epochs must be at least 1"),
        (["--freeze", "tail"], "--freeze: 'tail' is no part of this model"),
        (["--batch-size", "11"], "10 records do not fill one training batch of 11"),
    ],
)
def test_train_refuses(tmp_path, capsys, change, message):
    arguments = ["train", *SHAPES, "--from", "detr-smallest", *SMALL, "--out", str(tmp_path / "run"), *change]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_others_refuse(folder, tmp_path, capsys):
    for arguments, message in (
        (["resume", str(tmp_path)], "is not the folder of a training run"),
        (["evaluate", *SHAPES, "--model", str(tmp_path / "none.keras")], "none.keras: no such file"),
        (["evaluate", *coco(tmp_path, ["cat"]), "--model", str(folder)], "has other classes than the model: cat and"),
        (["predict", str(tmp_path / "no.png"), "--model", str(folder)], "there is no image or folder"),
        (["predict", str(tmp_path), "--model", str(folder), "--threshold", "1"], "--threshold must be at least 0 and"),
        (["evaluate", *SHAPES, "--model", "some.keras", "--last"], "--last is for the folder of a run"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_a_run_from_python_is_resumed_from_python(folder, tmp_path, capsys):
    content = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"data": None}))
    assert main(["resume", str(tmp_path)]) == 2
    assert "call td.fit_detector again, with resume=True" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "resume", "evaluate", "predict"])
def test_help_says_what_it_does(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "usage: tfdetr" in capsys.readouterr().out


def test_the_shown_commands_are_of_the_grammar():
    from tfdetr_keras.cli import evaluate, parser, predict, train

    for module in (train, evaluate, predict):
        text = module.EXAMPLES.replace("\\\n", " ")
        commands = [line.split()[1:] for line in text.splitlines() if line.startswith("  tfdetr")]
        assert commands
        for arguments in commands:
            assert callable(parser().parse_args(arguments).run)


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_without_its_state_is_not_begun_again(folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    (run / "state.safetensors").unlink()
    before = content_of(run)
    assert main(["resume", str(run)]) == 2
    told = capsys.readouterr().err
    assert f"{run} holds best.keras and last.keras and metrics.csv of a run, but not its state.safetensors" in told
    assert f"begin a new run from its model (tfdetr train --from {run / 'best.keras'}) in another folder" in told
    assert content_of(run) == before


def test_a_full_disk_is_one_sentence(folder, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = content_of(folder)
    with monkeypatch.context() as patch:
        patch.setattr("tfdetr_keras.backend.atomic.os.fsync", full)
        assert main(["resume", str(folder), "--epochs", "9"]) == 1
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"{folder / 'config.json'} could not be written: the disk of {folder} has no room" in told
    assert told.endswith(f"go on with: tfdetr resume {folder}")
    assert content_of(folder) == before


def test_fewer_epochs_than_are_done(folder, capsys):
    before = content_of(folder)
    config = json.loads((folder / "config.json").read_text())
    assert main(["resume", str(folder), "--epochs", "0"]) == 2
    assert "error: --epochs must be at least 1, not 0" in capsys.readouterr().err
    assert json.loads((folder / "config.json").read_text()) == config
    assert content_of(folder) == before


@pytest.mark.slow
def test_data_that_moved_or_changed(tmp_path, capsys, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    coco(old, ["cat"])
    monkeypatch.chdir(old)  # by names that hold from here alone
    arguments = ["--data", "coco", "--images", ".", "--annotations", "cat.json", "--from", "detr-smallest"]
    assert main(["train", *arguments, "--size", "20", "20", "--batch-size", "1", "--epochs", "1", "--out", "run"]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "old/run"]) == 0
    old.rename(new)
    assert main(["resume", "new/run"]) == 0
    assert json.loads((new / "run/config.json").read_text())["data"]["training"]["images"] == str(new)

    (new / "a.png").rename(tmp_path / "a.png")
    (new / "cat.json").rename(tmp_path / "cat.json")
    capsys.readouterr()
    assert main(["resume", "new/run"]) == 2
    assert "say where it is with this option" in capsys.readouterr().err
    assert main(["resume", "new/run", "--images", ".", "--annotations", "cat.json"]) == 0
    assert main(["resume", "new/run", "--segments", "."]) == 2
    assert "--segments: the run's data of the kind coco has none" in capsys.readouterr().err

    content = json.loads((tmp_path / "cat.json").read_text())
    content["annotations"].append(content["annotations"][0] | {"id": 2, "bbox": [4, 4, 9, 9]})
    (tmp_path / "cat.json").write_text(json.dumps(content))
    assert main(["resume", "new/run", "--epochs", "2"]) == 2
    told = capsys.readouterr().err
    assert "was trained on other data (training: 2 objects, not 1)" in told
    assert "set --accept-changed-data to continue" in told
    assert main(["resume", "new/run", "--epochs", "2", "--accept-changed-data"]) == 0
    assert "trained for 2 of 2 epochs" in (new / "run/report.md").read_text()
