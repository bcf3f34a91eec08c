"""Nothing said of sizes: training, measuring, predicting, exporting and the page take the model's own preprocessing."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from smallest import SMALLEST

import tfdetr_keras as td
from tfdetr_keras.cli import main
from tfdetr_keras.training import RunFolder

pytestmark = pytest.mark.slow

SHAPES = ["--data", "shapes", "--count", "10", "--drawn-size", "40", "90"]
TRAIN = [*SHAPES, "--val-split", "0.3", "--epochs", "1", "--batch-size", "4", "--augmentation", "flip"]
CANVAS = td.Preprocessing((64, 64), pad_to=(64, 64))  # detr-tiny's
TABLE = td.Preprocessing((96, 96), "table")
OTHER = td.Preprocessing((64, 48), "stretch", None, 1.0, (120.0, 120.0, 120.0), (60.0, 60.0, 60.0), "bicubic")


@pytest.fixture(scope="module")
def runs(without_tracing, tmp_path_factory):
    """Runs without a word on sizes, of a packaged checkpoint, a Table Transformer, and another DETR."""
    folder = tmp_path_factory.mktemp("runs")
    fields = {field.name: getattr(SMALLEST, field.name) for field in dataclasses.fields(SMALLEST)}
    configs = {
        "table": td.TableTransformerConfig(**fields | {"preprocessing": TABLE}),
        "other": dataclasses.replace(SMALLEST, preprocessing=OTHER),
    }
    for name, config in configs.items():
        td.models.model_class(config)(config).save(folder / f"{name}.keras")
    sources = {"canvas": "detr-tiny", **{name: str(folder / f"{name}.keras") for name in configs}}
    for name, source in sources.items():
        assert main(["train", *TRAIN, "--from", source, "--out", str(folder / name)]) == 0
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for record in td.data.load_shapes(3, seed=9, size=(50, 120))[0].as_numpy_iterator():
        Image.fromarray(record["image"]).save(folder / f"{record['image_id']}.png")
    return folder


OWN = pytest.mark.parametrize(("name", "own"), [("canvas", CANVAS), ("table", TABLE), ("other", OTHER)])


@OWN
def test_a_run_is_trained_by_it_and_keeps_it(runs, name, own):
    run = RunFolder(runs / name)
    assert run.preprocessing == own
    for which in ("best", "last"):
        assert run.load_model(which).preprocessing == own
    told = (runs / name / "report.md").read_text()
    assert f"| preprocessing | {own} |" in told
    assert "| size |" not in told


@OWN
def test_it_is_measured_by_it(runs, name, own, tmp_path):
    assert main(["evaluate", "--model", str(runs / name), "--out", str(tmp_path)]) == 0
    measured = json.loads((tmp_path / "metrics.json").read_text())
    assert {key: measured[key] for key in ("AP", "AR100")} == {
        key: RunFolder(runs / name).metrics[key] for key in ("AP", "AR100")
    }


@OWN
def test_what_is_predicted_and_exported(runs, name, own, photographs, tmp_path):
    model = td.load_model(runs / name)
    wanted = list(td.detect(model, td.data.load_images(photographs)[0], threshold=-1, preprocessing=own))
    assert (
        main(["predict", str(photographs), "--model", str(runs / name), "--threshold", "0", "--out", str(tmp_path)])
        == 0
    )
    predicted = json.loads((tmp_path / "detections.json").read_text())
    tf.config.run_functions_eagerly(False)  # what is exported is traced
    exported = ["export", "--model", str(runs / name), "--format", "saved-model", "--out", str(tmp_path / "served")]
    assert main(exported) == 0
    tf.config.run_functions_eagerly(True)
    served = tf.saved_model.load(str(tmp_path / "served"))
    for path, one, found in zip(sorted(photographs.iterdir()), wanted, predicted, strict=True):
        scores = [row["score"] for row in found["detections"]]
        np.testing.assert_allclose(scores, one["scores"], rtol=0, atol=1e-5)
        pixels = tf.constant(np.asarray(Image.open(path))[None])
        of_graph = served.signatures["serving_default"](images=pixels)["scores"][0]
        np.testing.assert_allclose(of_graph, np.sort(one["scores"])[::-1], rtol=0, atol=3e-3)
        np.testing.assert_allclose(model.detect(path, threshold=-1).scores, np.sort(one["scores"])[::-1], atol=1e-5)


@OWN
def test_the_page_shows_it(runs, name, own, monkeypatch):
    pages = []

    class Stop(Exception):
        pass

    def page(model, title, **options):
        pages.append(options)
        raise Stop

    monkeypatch.setattr("tfdetr_keras.app.require_gradio", lambda: None)
    monkeypatch.setattr("tfdetr_keras.app.page", page)
    with pytest.raises(Stop):
        main(["app", "--model", str(runs / name), "--port", "0"])
    assert pages == [{"preprocessing": own}]


@OWN
def test_pytorchs_folder_has_it(runs, name, own, tmp_path):
    """And so the model that is ported back from it."""
    folder = td.export.hub(runs / name, tmp_path / "hub")
    assert td.from_pretrained(folder).preprocessing == own
    assert "size=" not in (folder / "README.md").read_text()


@pytest.mark.slow
def test_one_field_is_overridden(runs, tmp_path, capsys):
    arguments = ["train", *TRAIN, "--from", str(runs / "table.keras"), "--size", "48", "80", "--out"]
    arguments.append(str(tmp_path / "run"))
    assert main(arguments) == 0
    assert RunFolder(tmp_path / "run").preprocessing == td.Preprocessing((48, 80), "table")
    assert main([*arguments[:-1], str(tmp_path / "other"), "--buckets", "--pad-to", "96", "96"]) == 2
    assert "--buckets chooses the canvases itself: leave out --pad-to" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_gone_on_with_by_it(runs, tmp_path, capsys):
    """Without a word, or with the same said; with another size it is another run."""
    records, names = td.data.load_shapes(8, seed=2, size=(40, 90))
    settings = {"epochs": 1, "batch_size": 4, "source": runs / "other.keras"}
    td.fit_detector(records, names, tmp_path / "run", **settings)
    settings["epochs"] = 2
    for said in ({}, {"preprocessing": OTHER}, {"size": OTHER.size, "size_rule": "stretch"}):
        settings["epochs"] += 1
        run = td.fit_detector(records, names, tmp_path / "run", resume=True, **settings, **said)
        assert run.preprocessing == OTHER
    with pytest.raises(ValueError, match=r"preprocessing was stretched to 64 x 48 .* not stretched to 64 x 64"):
        td.fit_detector(records, names, tmp_path / "run", resume=True, **settings, size=(64, 64))


@pytest.mark.slow
def test_a_run_of_an_earlier_version(without_tracing, tmp_path):
    """Which wrote sizes, and models that do not say how images are prepared."""
    records, names = td.data.load_shapes(8, seed=2, size=(40, 90))
    td.DETR(SMALLEST).save(tmp_path / "a.keras")
    settings = {"epochs": 1, "batch_size": 4, "source": tmp_path / "a.keras", "size": (48, 64), "pad_to": (64, 64)}
    run = td.fit_detector(records, names, tmp_path / "run", **settings)
    config = run.config()
    for name in ("preprocessing", "size_rule"):
        del config["settings"][name]
    config["settings"] |= {"size": [48, 64], "pad_to": [64, 64]}
    del config["model"]["preprocessing"]
    (run.path / "config.json").write_text(json.dumps(config))
    expected = td.Preprocessing((48, 64), pad_to=(64, 64))
    assert run.preprocessing == run.new_model().preprocessing == expected
    settings["epochs"] = 2
    run = td.fit_detector(records, names, tmp_path / "run", resume=True, **settings)
    assert run.load_model("last").preprocessing == expected
