"""A saved model by its path: after any imports, of a file or of a run, and what else a path may turn out to be."""

import dataclasses
import json
import shutil
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

import tfdetr_keras as td

CONFIG = td.DETRConfig(
    backbone=td.ResNetConfig(block="basic", depths=(1, 1), channels=(16, 16), stem_channels=16),
    id2label={0: "cat", 1: "dog"},
    num_classes=2,
    num_queries=5,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
    frozen="stem",
)
PIXELS = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")


def same(first, second):
    return all(np.array_equal(first(PIXELS)[name], value) for name, value in second(PIXELS).items())


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = td.DETR(CONFIG)
    model.compile(optimizer=td.AdamW(1e-3))
    targets = {"labels": np.array([[0]]), "boxes": np.full((1, 1, 4), 0.5, "float32")}
    model.train_on_batch({"pixel_values": PIXELS, "pixel_mask": np.ones((1, 64, 64), "int32")}, targets)
    return model


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "detector.keras"
    model.save(path)
    return path


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("import tfdetr_keras as td; import keras; td.load_model(file)", marks=pytest.mark.slow),
        pytest.param("import keras; import tfdetr_keras as td; td.load_model(file)", marks=pytest.mark.slow),
        pytest.param("import keras; import tfdetr_keras; keras.saving.load_model(file)", marks=pytest.mark.slow),
        # Until one of its names is used, the package need not have brought Keras along.
        pytest.param(
            "import tfdetr_keras as td; import keras; td.DETR; keras.saving.load_model(file)", marks=pytest.mark.slow
        ),
    ],
    ids=["ours first", "keras first", "keras first, by keras", "ours first, by keras"],
)
def test_whatever_was_imported_before(program, file):
    program = f"file = {str(file)!r}; {program.replace('load_model(file)', 'load_model(file, compile=False)')}"
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_program_without_the_package_is_told_which_class_is_missing(file):
    program = f"import keras; keras.saving.load_model({str(file)!r})"
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Could not locate class 'DETR'" in done.stderr


def test_all_that_was_saved_comes_back(model, file):
    loaded = td.load_model(str(file))
    assert type(loaded) is td.DETR
    assert same(loaded, model)
    assert loaded.config == model.config
    assert loaded.optimizer.iterations == 1
    assert [w.path for w in loaded.trainable_weights] == [w.path for w in model.trainable_weights]
    assert not td.load_model(file, compile=False).compiled


def test_a_runs_folder_stands_for_its_best_model(model, file, tmp_path):
    shutil.copy(file, tmp_path / "best.keras")
    td.DETR(CONFIG).save(tmp_path / "last.keras")
    assert same(td.load_model(tmp_path), model)


def not_there(folder):
    return folder / "missing.keras"


def no_run(folder):
    return folder / "no-such-run"


def empty_folder(folder):
    return folder


def unfinished_run(folder):
    (folder / "class_names.txt").write_text("cat\n")
    return folder


def saved_model(folder):
    (folder / "saved_model.pb").touch()
    return folder


def hugging_face(folder):
    (folder / "config.json").touch()
    (folder / "model.safetensors").touch()
    return folder


def other_names(folder):
    (folder / "mine.keras").touch()
    return folder


def old_format(folder):
    (folder / "model.h5").touch()
    return folder / "model.h5"


def pytorch(folder):
    (folder / "detr.pth").touch()
    return folder / "detr.pth"


def lite(folder):
    (folder / "detr.tflite").touch()
    return folder / "detr.tflite"


def text(folder):
    (folder / "notes.txt").touch()
    return folder / "notes.txt"


def not_a_zip(folder):
    (folder / "broken.keras").write_text("no model")
    return folder / "broken.keras"


def another_model(folder):
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(folder / "other.keras")
    return folder / "other.keras"


def an_unknown_class(folder):
    """A model of a class that this process does not know."""
    another_model(folder)
    with zipfile.ZipFile(folder / "other.keras") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(content["config.json"]) | {"module": "theirs", "class_name": "Net", "registered_name": "Net"}
    with zipfile.ZipFile(folder / "theirs.keras", "w") as archive:
        for name, data in content.items():
            archive.writestr(name, json.dumps(config) if name == "config.json" else data)
    return folder / "theirs.keras"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (not_there, "missing.keras: no such file"),
        (no_run, "no such file or folder; give a .keras file or the folder of a run"),
        (lambda folder: "facebook/detr-resnet-50", "on the Hugging Face hub use td.from_pretrained"),
        (lambda folder: "detr-tiny", r"comes with the package: td.from_pretrained\('detr-tiny'\)"),
        (empty_folder, "without best.keras: it is not the folder of a training run"),
        (unfinished_run, "in which no epoch was finished yet"),
        (saved_model, "it is a SavedModel, which tf.saved_model.load runs"),
        (hugging_face, "in Hugging Face's format: use td.from_pretrained"),
        (other_names, "give one of its files: mine.keras"),
        (old_format, "hold weights alone.*model.load_weights"),
        (pytorch, "td.from_pretrained reads it"),
        (lite, "LiteRT runs it"),
        (text, "notes.txt is not a .keras file"),
        (not_a_zip, "broken.keras is not a complete .keras file"),
        (another_model, "holds a Sequential, not a detector"),
        (an_unknown_class, "holds a Net, no model known here"),
    ],
)
def test_what_is_no_model_of_ours(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        td.load_model(make(tmp_path))


def test_a_file_that_was_cut_off(file, tmp_path):
    cut = tmp_path / "cut.keras"
    cut.write_bytes(file.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"cut\.keras is not a complete \.keras file"):
        td.load_model(cut)


def test_weights_alone(model, tmp_path):
    model.save_weights(tmp_path / "detector.weights.h5")
    other = td.DETR(dataclasses.replace(CONFIG))
    assert not same(other, model)
    other.load_weights(tmp_path / "detector.weights.h5")
    assert same(other, model)
