"""Settings of a checkpoint's image processor: followed, of no effect, or refused by name; never defaults in silence."""

import dataclasses
import json
import logging
import random
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from smallest import SMALLEST

from port_weights.processor import check_processor, processor_of, read_processor
from tfdetr_keras import PRESETS, ConditionalDETRConfig, Preprocessing
from tfdetr_keras.models.pretrained import _as_its_authors

PUBLISHED = {  # facebook/detr-resnet-50
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "DetrFeatureExtractor",
    "format": "coco_detection",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "max_size": 1333,
    "size": 800,
}
NEWER = {
    "do_convert_annotations": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "format": "coco_detection",
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "ConditionalDetrImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "pad_size": None,
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 1333, "shortest_edge": 800},
}


@pytest.fixture
def folder(tmp_path):
    def written(**settings):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        return tmp_path

    return written


@pytest.mark.parametrize("settings", [PUBLISHED, NEWER])
def test_published_files(folder, settings):
    assert read_processor(folder(**settings)) == Preprocessing()


WRITTEN = [
    Preprocessing(),
    Preprocessing((480, 800), pad_to=(640, 800)),
    Preprocessing((480, 640), "fit", (480, 640)),
    Preprocessing((640, 512), "stretch"),
    Preprocessing((1000, 1000), "table"),
    Preprocessing((480, 640), "facebook"),
    Preprocessing((64, 96), rescale=1.0, mean=(123.0, 116.0, 103.0), std=(58.0, 57.0, 56.0), interpolation="bicubic"),
    Preprocessing((64, 96), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), antialias=False, multiple_of=32),
]


@pytest.mark.parametrize("preprocessing", WRITTEN, ids=str)
def test_what_is_written_is_read(folder, preprocessing, caplog):
    assert read_processor(folder(**processor_of(preprocessing, SMALLEST))) == preprocessing
    told = preprocessing.rule == "facebook" or not preprocessing.antialias
    assert bool(caplog.records) == told  # that transformers does otherwise


def test_a_conditional_detr_has_its_own_processor():
    written = processor_of(Preprocessing(), ConditionalDETRConfig())
    assert written["image_processor_type"] == "ConditionalDetrImageProcessor"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {}),
        ({"size": None}, {}),
        ({"size": 600}, {"size": (600, 1333)}),
        ({"size": 600, "max_size": 1000}, {"size": (600, 1000)}),
        ({"size": {"longest_edge": 1000}}, {"size": (1000, 1000), "rule": "table"}),
        ({"size": {"height": 640, "width": 512}}, {"size": (640, 512), "rule": "stretch"}),
        ({"size": {"max_height": 480, "max_width": 640}}, {"size": (480, 640), "rule": "fit"}),
        ({"max_size": 1000}, {}),
        ({"pad_size": {"height": 700, "width": 900}}, {"pad_to": (700, 900)}),
        ({"pad_size": {"height": 700, "width": 900}, "do_pad": False}, {}),
        ({"do_pad": False}, {}),
        ({"image_mean": [0.4850, 0.45600001, 0.406], "rescale_factor": 0.003921569}, {}),
        ({"image_mean": [0.5, 0.5, 0.5], "image_std": 0.25}, {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}),
        ({"do_normalize": False, "image_mean": "any"}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
        ({"do_rescale": False, "rescale_factor": "any"}, {"rescale": 1.0}),
        ({"rescale_factor": 0.0078125}, {"rescale": 0.0078125}),
        ({"resample": 3}, {"interpolation": "bicubic"}),
        ({"resample": "BICUBIC"}, {"interpolation": "bicubic"}),
        ({"antialias": False}, {"antialias": False}),
        ({"format": "coco_panoptic", "do_convert_annotations": False, "do_convert_rgb": None}, {}),
        ({"do_center_crop": False, "crop_size": {"height": 224, "width": 224}, "size_divisor": None}, {}),
        ({"do_something_new": False, "something_newer": None}, {}),
    ],
)
def test_settings_that_are_followed_or_change_no_pixel(folder, settings, expected, caplog):
    assert read_processor(folder(**settings)) == Preprocessing(**expected)
    assert not caplog.records


def test_where_no_size_is_named_the_default_counts(folder):
    own = Preprocessing((1000, 1000), "table")
    assert read_processor(folder(image_mean=0.5), own) == dataclasses.replace(own, mean=(0.5, 0.5, 0.5))


REFUSED = {
    "size": [
        {"shortest_edge": 800},
        {"shortest_edge": 800, "longest_edge": 1333, "height": 640},
        {"shortest_edge": "800", "longest_edge": 1333},
        {"shortest_edge": 0, "longest_edge": 1333},
        {"height": 640},
        {"max_height": 640, "width": 640},
        {"height": 640, "width": 640.5},
        [640, 640],
        640.5,
        True,
        {},
    ],
    "pad_size": [640, {"height": 640}, {"height": 640, "width": None}, [640, 640]],
    "do_resize": [False, "true"],
    "do_rescale": [0, "no"],
    "do_normalize": [0, "no"],
    "rescale_factor": [0, -1, "1/255", True],
    "image_mean": [[0.485], ["0.485", "0.456", "0.406"], [], "imagenet", True],
    "image_std": [[0, 1, 1], 0, [1, 1]],
    "resample": [0, 1, 4, 5, "lanczos", True, 2.5],
    "do_center_crop": [True],
    "size_divisor": [32],
    "size_divisibility": [64],
    "do_pad": ["yes"],
    "antialias": ["no", 0],
    "multiple_of": [0, 1.5],
    "size_rule": ["tables", 3],
    "image_processor_type": ["ViTImageProcessor", "DFineImageProcessor", ["DetrImageProcessor"]],
    "feature_extractor_type": ["ViTFeatureExtractor"],
    "auto_map": [{"AutoImageProcessor": "own.Processor"}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in REFUSED.items() for value in values])
def test_settings_that_are_not_followed_are_refused_by_name(folder, key, value):
    with pytest.raises(ValueError, match=rf'preprocessor_config\.json says "{key}": ') as told:
        read_processor(folder(**PUBLISHED | {key: value}))
    assert json.dumps(value) in str(told.value)
    assert len(str(told.value).splitlines()) == 1


def test_edges_in_the_wrong_order_are_told_of_the_file(folder):
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: size must be .*, not \(800, 640\)"):
        read_processor(folder(size={"shortest_edge": 800, "longest_edge": 640}))


def test_a_size_that_is_given_otherwise_may_be_of_any_form(folder):
    found = read_processor(folder(size=[640], pad_size=3, image_mean=0.5), with_size=False)
    assert found == Preprocessing(mean=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="do_resize"):
        read_processor(folder(size=800, do_resize=False), with_size=False)


def test_unknown_settings_are_told(folder, caplog):
    assert read_processor(folder(**PUBLISHED, do_sharpen=True, gamma=2.2)) == Preprocessing()
    [told] = [record.getMessage() for record in caplog.records]
    assert told.endswith('are not followed: "do_sharpen": true, "gamma": 2.2')


@pytest.mark.parametrize("content", ["", "[]", "7", "{", '{"size": 1e999}', "[" * 100_000])
def test_a_file_that_holds_no_settings(tmp_path, content):
    (tmp_path / "preprocessor_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json "):
        read_processor(tmp_path)


def test_files_of_random_values():
    """Whatever stands in them, it is followed or refused."""
    rng, outcomes = random.Random(0), Counter()
    junk = (
        None,
        True,
        False,
        0,
        1,
        2,
        3,
        -1,
        0.5,
        1e300,
        float("nan"),
        "x",
        "",
        [],
        [1, 2, 3],
        [0.5] * 3,
        {},
        {"height": 3},
    )
    keys = [*NEWER, "antialias", "size_rule", "multiple_of", "max_size", "default_to_square"]
    for _ in range(600):
        told = NEWER | {rng.choice(keys): rng.choice(junk) for _ in range(rng.randint(1, 3))}
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "preprocessor_config.json").write_text(json.dumps(told))
            try:
                outcomes[type(read_processor(Path(folder))).__name__] += 1
            except ValueError:
                outcomes["ValueError"] += 1
    assert set(outcomes) == {"Preprocessing", "ValueError"}
    assert min(outcomes.values()) > 100


def test_no_file_means_what_the_authors_of_the_architecture_do(tmp_path, caplog):
    assert read_processor(tmp_path) is None
    table = PRESETS["table-transformer-structure-recognition"]
    with caplog.at_level(logging.INFO):
        assert _as_its_authors(SMALLEST, tmp_path) == SMALLEST
        assert _as_its_authors(dataclasses.replace(table, preprocessing=Preprocessing()), tmp_path) == table
    assert (
        "has no preprocessor_config.json, so images are prepared as its authors do: longer side to 1000" in caplog.text
    )
    caplog.clear()
    assert _as_its_authors(SMALLEST, {"a": 1}) == SMALLEST
    assert not caplog.records


def test_loading_weights_in_python_tells_what_is_not_followed(folder, caplog):
    assert _as_its_authors(SMALLEST, folder(**PUBLISHED)).preprocessing == Preprocessing()
    assert not caplog.records
    path = folder(size={"shortest_edge": 800}, do_normalize=False)
    found = _as_its_authors(SMALLEST, path).preprocessing
    assert found == Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # as far as it can be followed
    assert _as_its_authors(SMALLEST, folder(do_resize=False)).preprocessing == Preprocessing()
    for record, key in zip(caplog.records, ("size", "do_resize"), strict=True):
        assert f'says "{key}": ' in record.getMessage()
        assert "until model.preprocessing is set" in record.getMessage()


def test_the_command_line_refuses_what_is_not_followed(folder):
    path = folder(size={"shortest_edge": 800})
    with pytest.raises(ValueError, match='says "size"'):
        check_processor(path)
    check_processor(path, with_size=False)
    check_processor("no folder")
