"""Settings of a checkpoint's image processor: followed, of no effect, or refused by name; never defaults in silence."""

import json

import pytest

from port_weights.exports import _processor
from port_weights.processor import read_processor, tell_processor

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
    assert read_processor(folder(**settings)) == {"size": (800, 1333)}


@pytest.mark.parametrize("canvas", [None, (640, 800)])
def test_what_is_exported_is_read(folder, canvas):
    expected = {"size": (480, 800)} | ({"pad_to": canvas} if canvas else {})
    assert read_processor(folder(**_processor((480, 800), canvas))) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {}),
        ({"size": None}, {}),
        ({"size": 600}, {"size": (600, 1333)}),
        ({"size": 600, "max_size": 1000}, {"size": (600, 1000)}),
        ({"max_size": 1000}, {}),
        ({"pad_size": {"height": 700, "width": 900}}, {"pad_to": (700, 900)}),
        ({"pad_size": {"height": 700, "width": 900}, "do_pad": False}, {}),
        ({"do_pad": False}, {}),
        ({"image_mean": [0.4850, 0.45600001, 0.406], "rescale_factor": 0.003921569}, {}),
        ({"format": "coco_panoptic", "do_convert_annotations": False, "do_convert_rgb": None}, {}),
        ({"do_center_crop": False, "crop_size": {"height": 224, "width": 224}, "size_divisor": None}, {}),
        ({"do_something_new": False, "something_newer": None}, {}),
    ],
)
def test_settings_that_are_followed_or_change_no_pixel(folder, settings, expected, caplog):
    assert read_processor(folder(**settings)) == expected
    assert not caplog.records


REFUSED = {
    "size": [
        {"longest_edge": 1000},
        {"shortest_edge": 800},
        {"height": 640, "width": 640},
        {"max_height": 800, "max_width": 1333},
        {"shortest_edge": 800, "longest_edge": 1333, "height": 640},
        {"shortest_edge": "800", "longest_edge": 1333},
        {"shortest_edge": 0, "longest_edge": 1333},
        [640, 640],
        640.5,
        True,
        {},
    ],
    "pad_size": [640, {"height": 640}, {"height": 640, "width": None}, [640, 640]],
    "do_resize": [False, "true"],
    "do_rescale": [False],
    "do_normalize": [False, 0],
    "rescale_factor": [1, 0.0078125, "1/255", True],
    "image_mean": [[0.5, 0.5, 0.5], [0.485], 0.485, [123.675, 116.28, 103.53], ["0.485", "0.456", "0.406"], []],
    "image_std": [[0.5, 0.5, 0.5], [1, 1, 1]],
    "resample": [0, 1, 3, "bicubic", True],
    "do_center_crop": [True],
    "size_divisor": [32],
    "size_divisibility": [64],
    "do_pad": ["yes"],
    "antialias": [False],
    "image_processor_type": ["ViTImageProcessor", "RTDetrImageProcessor", ["DetrImageProcessor"]],
    "feature_extractor_type": ["ViTFeatureExtractor"],
    "auto_map": [{"AutoImageProcessor": "own.Processor"}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in REFUSED.items() for value in values])
def test_settings_that_are_not_followed_are_refused_by_name(folder, key, value):
    with pytest.raises(ValueError, match=rf'preprocessor_config\.json says "{key}": ') as told:
        read_processor(folder(**PUBLISHED | {key: value}))
    assert json.dumps(value) in str(told.value)
    assert len(str(told.value).splitlines()) == 1


def test_a_size_that_is_given_otherwise_may_be_of_any_form(folder):
    assert read_processor(folder(size={"height": 640, "width": 640}), with_size=False) == {}
    with pytest.raises(ValueError, match="do_normalize"):
        read_processor(folder(size=800, do_normalize=False), with_size=False)


def test_the_message_for_a_longest_edge_alone_says_what_to_give(folder):
    with pytest.raises(ValueError, match=r"give --size .*, here --size 1000 1000 --size-rule table$"):
        read_processor(folder(size={"longest_edge": 1000}))


def test_unknown_settings_are_told(folder, caplog):
    assert read_processor(folder(**PUBLISHED, do_sharpen=True, gamma=2.2)) == {"size": (800, 1333)}
    [told] = [record.getMessage() for record in caplog.records]
    assert told.endswith('are not followed: "do_sharpen": true, "gamma": 2.2')


@pytest.mark.parametrize("content", ["", "[]", "7", "{", '{"size": 1e999}', "[" * 100_000])
def test_a_file_that_holds_no_settings(tmp_path, content):
    (tmp_path / "preprocessor_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json "):
        read_processor(tmp_path)


def test_no_file(tmp_path):
    assert read_processor(tmp_path) == {}


def test_loading_weights_in_python_tells(folder, caplog):
    tell_processor(folder(do_normalize=False))
    tell_processor(folder(**PUBLISHED))
    tell_processor("no folder")
    tell_processor(None)
    [told] = [record.getMessage() for record in caplog.records]
    assert '"do_normalize": false, but images are always normalised' in told
