"""How images are prepared: what can be, what changes, and that models carry it wherever they go."""

import dataclasses
import io
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from smallest import SMALLEST

import tfdetr_keras as td
from tfdetr_keras.models.keras_file import load_keras_file
from tfdetr_keras.preprocessing import preprocessing_for

ODD = td.Preprocessing(
    (48, 96), "stretch", (64, 96), 1.0, (100.0, 110.0, 120.0), (50.0, 60.0, 70.0), "bicubic", False, 32
)


def test_the_default_is_that_of_published_detrs():
    assert td.Preprocessing() == td.Preprocessing(
        (800, 1333), "huggingface", None, 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", True, 1
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": (1333, 800)}, r"size must be .shortest_edge, longest_edge., 1 <= .*, not .1333, 800."),
        ({"size": 800}, "size must be"),
        ({"size": (0, 800)}, "size must be"),
        ({"size": (480.0, 640.0)}, "size must be"),
        ({"size": (True, True)}, "size must be"),
        (
            {"size": (0, 640), "rule": "stretch"},
            'size must be .height, width. of at least 1 pixel with the rule "stretch"',
        ),
        ({"size": 640, "rule": "fit"}, "size must be .height, width."),
        ({"rule": "tables"}, r"size_rule must be one of .*'table', 'fit', 'stretch'\), not 'tables'"),
        ({"pad_to": 640}, "pad_to must be None or .height, width."),
        ({"pad_to": (0, 640)}, "pad_to must be None or .height, width."),
        ({"pad_to": (640, 650), "multiple_of": 32}, r"pad_to must be in multiples of 32, not .640, 650."),
        ({"multiple_of": 0}, "multiple_of must be a whole number of at least 1, not 0"),
        ({"rescale": 0}, "rescale must be a finite number above 0"),
        ({"rescale": float("nan")}, "rescale must be a finite number above 0"),
        ({"rescale": "1/255"}, "rescale must be"),
        ({"mean": (0.5, 0.5)}, "mean must be three finite numbers, of red, green and blue"),
        ({"mean": 0.5}, "mean must be three"),
        ({"std": (1.0, float("inf"), 1.0)}, "std must be three"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be above 0"),
        ({"interpolation": "nearest"}, "interpolation must be one of"),
        ({"antialias": 1}, "antialias must be True or False"),
    ],
)
def test_what_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        td.Preprocessing(**fields)


def test_of_mappings_as_files_have_them():
    assert td.Preprocessing.of(json.loads(json.dumps(dataclasses.asdict(ODD)))) == ODD
    assert td.Preprocessing.of(None) == td.Preprocessing()
    assert td.Preprocessing.of(ODD) is ODD
    for wrong, message in (([1], "must be a td.Preprocessing"), ({"sizes": 3}, "sizes: not a field of Preprocessing")):
        with pytest.raises(ValueError, match=message):
            td.Preprocessing.of(wrong)


def test_whole_numbers_of_numpy_are_written_as_json():
    sides = np.array([64, 96])
    written = dataclasses.asdict(td.Preprocessing(tuple(sides), pad_to=tuple(sides), multiple_of=np.int64(32)))
    assert json.loads(json.dumps(written))["size"] == [64, 96]


def test_changes():
    own = td.Preprocessing((64, 64), pad_to=(64, 64))
    assert own.changed() is own
    assert own.changed(size=(96, 128)) == td.Preprocessing((96, 128))  # the canvas was for the old size
    assert own.changed(size=(96, 128), pad_to=(128, 128)) == td.Preprocessing((96, 128), pad_to=(128, 128))
    assert own.changed(pad_to=(96, 96)) == td.Preprocessing((64, 64), pad_to=(96, 96))
    assert own.changed(size_rule="table") == td.Preprocessing((64, 64), "table", (64, 64))
    with pytest.raises(ValueError, match="size must be"):
        own.changed(size=(96, 64))


@pytest.mark.parametrize(
    ("preprocessing", "expected"),
    [
        (td.Preprocessing(), (1333, 1333)),
        (td.Preprocessing(multiple_of=32), (1344, 1344)),
        (td.Preprocessing((800, 1000), "table"), (1000, 1000)),
        (td.Preprocessing((480, 640), "fit"), (480, 640)),
        (td.Preprocessing((480, 640), "stretch"), (480, 640)),
        (td.Preprocessing((48, 64), pad_to=(64, 80)), (64, 80)),
    ],
)
def test_the_largest_canvas(preprocessing, expected):
    assert preprocessing.largest == expected
    assert preprocessing.on_one_canvas().pad_to == expected


def test_in_words():
    assert str(td.Preprocessing()) == "shorter side to 800 pixels, longer to 1333 at most"
    assert str(td.Preprocessing((800, 1000), "table")) == "longer side to 1000 pixels"
    assert str(ODD) == (
        "stretched to 48 x 96 pixels (height x width); padded to 64 x 96; rescale 1.0; mean (100.0, 110.0, 120.0); "
        "std (50.0, 60.0, 70.0); interpolation bicubic; antialias False; multiple_of 32"
    )


def test_presets_are_prepared_as_their_authors_do():
    assert td.from_preset("detr-tiny").preprocessing == td.Preprocessing((64, 64), pad_to=(64, 64))
    assert td.PRESETS["detr-resnet-50"].preprocessing == td.Preprocessing()
    assert td.PRESETS["table-transformer-detection"].preprocessing == td.Preprocessing((800, 800), "table")
    structure = td.PRESETS["table-transformer-structure-recognition"]
    assert structure.preprocessing == td.Preprocessing((1000, 1000), "table")
    assert td.from_preset("detr-tiny", preprocessing=ODD).preprocessing == ODD


def test_a_model_without_one_is_taken_for_a_published_detr():
    assert preprocessing_for(keras.Sequential()) == td.Preprocessing()
    assert preprocessing_for(None, ODD) == ODD
    assert preprocessing_for(td.DETR(SMALLEST), None, (64, 96)) == td.Preprocessing((64, 96))


@pytest.fixture
def model():
    return td.DETR(dataclasses.replace(SMALLEST, preprocessing=ODD))


def test_it_is_of_the_model(model, tmp_path):
    assert model.preprocessing == ODD
    assert model.fold().preprocessing == ODD
    assert (
        td.DETRForSegmentation.from_detector(td.from_preset("detr-resnet-18", preprocessing=ODD)).preprocessing == ODD
    )
    model.save(tmp_path / "own.keras")
    for loaded in (
        td.load_model(tmp_path / "own.keras"),
        keras.saving.load_model(tmp_path / "own.keras"),
        td.from_pretrained(tmp_path / "own.keras", num_classes=7),
    ):
        assert loaded.preprocessing == ODD
    model.preprocessing = td.Preprocessing()
    assert model.config.preprocessing == td.Preprocessing()
    with pytest.raises(ValueError, match=r"preprocessing must be a td\.Preprocessing"):
        model.preprocessing = (64, 64)


def test_files_of_earlier_versions(tmp_path, monkeypatch):
    """They do not say it: what the run beside them was trained with, or else a published DETR's."""
    config = td.DETRConfig.to_dict
    monkeypatch.setattr(
        td.DETRConfig, "to_dict", lambda self: {k: v for k, v in config(self).items() if k != "preprocessing"}
    )
    td.DETR(SMALLEST).save(tmp_path / "best.keras")
    monkeypatch.undo()
    assert td.load_model(tmp_path / "best.keras").preprocessing == td.Preprocessing()
    for pad_to, canvas in ((None, None), ([96, 96], (96, 96)), ("buckets", None)):
        settings = {"size": [64, 96], "pad_to": pad_to}
        (tmp_path / "config.json").write_text(json.dumps({"settings": settings, "class_names": []}))
        assert load_keras_file(tmp_path / "best.keras", False).preprocessing == td.Preprocessing(
            (64, 96), pad_to=canvas
        )
    for other in ("[]", "{}", '{"settings": {"size": "large", "pad_to": null}}', "no JSON"):
        (tmp_path / "config.json").write_text(other)
        assert load_keras_file(tmp_path / "best.keras", False).preprocessing == td.Preprocessing()


@pytest.fixture(scope="module")
def records():
    return td.data.load_shapes(3, seed=1, size=(80, 120))[0]


@pytest.mark.parametrize("training", [False, True])
def test_batches(records, training):
    for inputs, _ in td.data.prepare(records, 3, training, preprocessing=ODD):
        assert inputs["pixel_values"].shape == (3, 64, 96, 3)
        sizes = inputs["pixel_mask"].numpy().any(2).sum(1), inputs["pixel_mask"].numpy().any(1).sum(1)
        np.testing.assert_array_equal(sizes, [[48] * 3, [96] * 3])
        levels = inputs["pixel_values"].numpy()[:, :48] * ODD.std + ODD.mean
        np.testing.assert_allclose(levels, levels.round(), rtol=0, atol=1e-4)
        assert 0 <= levels.min() < levels.max() <= 255
        assert levels.max() > 150


def test_canvases_in_multiples_with_masks(records):
    def with_masks(record):
        objects, (height, width) = tf.shape(record["labels"])[0], tf.unstack(tf.shape(record["image"])[:2])
        return record | {"masks": tf.ones((objects, height, width), tf.bool)}

    masks = records.map(with_masks)
    own = td.Preprocessing((40, 60), multiple_of=32)
    [(inputs, targets)] = td.data.prepare(masks, 3, preprocessing=own)
    height, width = inputs["pixel_values"].shape[1:3]
    assert height % 32 == width % 32 == 0
    assert targets["masks"].shape[2:] == (height, width)
    assert inputs["pixel_mask"].numpy().any(2).sum(1).max() <= 60


def test_what_is_given_counts_more_than_the_models_own(records):
    [(inputs, _)] = td.data.prepare(records, 3, preprocessing=ODD, size=(32, 32), pad_to=(32, 64))
    assert inputs["pixel_values"].shape == (3, 32, 64, 3)
    [(inputs, _)] = td.data.prepare(records, 3, preprocessing=ODD, size=(32, 32))
    assert inputs["pixel_values"].shape == (3, 32, 32, 3)
    [(inputs, _)] = td.data.prepare(records, 3, preprocessing=ODD, pad_to="buckets")
    assert inputs["pixel_values"].shape == (3, 64, 96, 3)


def test_the_picture_of_a_batch(records, tmp_path):
    """Levels come back as they were, whatever they were normalised by."""
    pictures = []
    for own in (dataclasses.replace(ODD, rescale=1 / 255, mean=(0.0,) * 3, std=(1.0,) * 3), ODD):
        [batch] = td.data.prepare(records, 3, preprocessing=own)
        td.visualize.show_batch(batch, ["a"] * 3, tmp_path / "a.png", preprocessing=own)
        pictures.append((tmp_path / "a.png").read_bytes())
    first, second = (np.asarray(Image.open(io.BytesIO(picture)), np.float32) for picture in pictures)
    # A picture's border has something of the padding, which is black in one and grey in the other.
    assert (np.abs(first - second) > 1).mean() < 0.02


def test_the_command_line_needs_no_keras_for_it():
    heavy = "{'keras', 'numpy', 'tensorflow'}"
    program = f"import sys, tfdetr_keras as td; td.Preprocessing(); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout == "[]\n"
