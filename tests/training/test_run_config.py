"""The configuration of a run that is damaged: whatever is read of it ends in a `ValueError` that names the file."""

import copy
import dataclasses
import json
import random
from collections import Counter

import keras
import pytest
from smallest import SMALLEST

import tfdetr_keras as td
from tfdetr_keras.models.registry import describe
from tfdetr_keras.training import RunFolder
from tfdetr_keras.training.settings import Settings

JUNK = (None, [], {}, "", "x", -1, 0, 2.5, True, 1e300, [1, "a", None], {"0": []}, [[]])
CONFIG = {
    "format": 1,
    "source": "detr-tiny",
    "settings": dataclasses.asdict(Settings()),
    "data": None,
    "counts": {"training": "8 images"},
    "class_names": ["cat", "dog"],
    "model": describe(SMALLEST),
    "criterion": keras.saving.serialize_keras_object(td.SetCriterion()),
}


def written(folder, content):
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return RunFolder(folder)


def mutated(rng):
    """The configuration, in which one value, at some depth, is of another kind or missing."""
    content = copy.deepcopy(CONFIG)
    holder = content
    while True:
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        if isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.7:
            holder = holder[key]
        else:
            break
    if rng.random() < 0.15:
        del holder[key]
    else:
        holder[key] = copy.deepcopy(rng.choice(JUNK))
    return content


def test_what_it_says_when_it_is_whole(tmp_path):
    run = written(tmp_path, CONFIG)
    assert run.preprocessing == td.Preprocessing()
    assert run.new_model().config == SMALLEST


def test_any_value_of_another_kind(tmp_path):
    rng, outcomes = random.Random(0), Counter()
    for index in range(500):
        run = written(tmp_path, mutated(rng))
        calls = [run.config, lambda run=run: run.preprocessing, lambda run=run: run.evaluation]
        for call in [*calls, run.new_model] if index < 12 else calls:
            try:
                call()
            except ValueError as error:
                outcomes["config.json" in str(error)] += 1
        assert isinstance(repr(run), str)
        assert run.is_start_alone() in (True, False)
    assert outcomes[True] > 50
    assert not outcomes[False]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must hold a JSON object, as a training run writes it, not a list"),
        ("null", "not a NoneType"),
        ('"text"', "not a str"),
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ({"model_type": "detr"}, "is not the configuration of a training run: it has no settings, class_names"),
        (CONFIG | {"settings": []}, "its settings must not be a list"),
        (CONFIG | {"class_names": "cat"}, "its class_names must not be a str"),
        (CONFIG | {"class_names": [1]}, "its class_names must be texts"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
    ],
)
def test_what_is_no_configuration(content, message, tmp_path):
    with pytest.raises(ValueError, match=rf"config\.json .*{message}"):
        written(tmp_path, content).config()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"class": "Net"}}, "no class 'Net' of models is known here"),
        ({"model": {"class": []}}, "no class"),
        ({"model": describe(SMALLEST) | {"depth": 3}}, "does not describe a DETR"),
        ({"model": describe(SMALLEST) | {"num_queries": "many"}}, "num_queries must be a whole number, not 'many'"),
        ({"criterion": {}}, "its criterion is no loss"),
        (
            {"criterion": CONFIG["criterion"] | {"module": "os", "registered_name": "os", "class_name": "x"}},
            "names a x of",
        ),
    ],
)
def test_a_model_that_is_none(changes, message, tmp_path):
    with pytest.raises(ValueError, match=rf"config\.json is damaged, or of another version: .*{message}|{message}"):
        written(tmp_path, CONFIG | changes).new_model().build(None)


def test_metrics_that_are_none(tmp_path):
    (tmp_path / "best.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"best\.json must hold a JSON object"):
        _ = RunFolder(tmp_path).metrics
