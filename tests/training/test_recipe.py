"""What is not said of a training is as the model's authors train it, and the run tells."""

import dataclasses
import json

import pytest
from smallest import SMALLEST

import tfdetr_keras as td
from tfdetr_keras.models.recipe import RECIPE
from tfdetr_keras.training.settings import NO_LIMIT, OF_RECIPE, Settings

OWN = {"learning_rate": 3e-3, "schedule": "constant", "augmentation": "none", "global_clipnorm": NO_LIMIT, "freeze": ""}


def test_detrs_own_recipe_is_that_of_before():
    before = {
        **{"augmentation": "paper", "learning_rate": 1e-4, "backbone_multiplier": 0.1, "schedule": "cosine"},
        **{"warmup_steps": 0, "weight_decay": 1e-4, "global_clipnorm": 0.1, "ema_momentum": 0.0},
        # What modern recipes add, and DETR's did not have.
        **{"multiscale": False, "plain_epochs": 0, "layer_decay": 1.0, "learning_rate_multipliers": {}},
        **{"weight_decay_exclude": (), "ema_ramp_steps": 0, "ema_restart_after": 0},
    }
    assert before == RECIPE
    assert set(before) == set(OF_RECIPE)
    assert td.DETR(SMALLEST).recipe == before
    settings = Settings().resolved(None)
    assert {name: getattr(settings, name) for name in before} == before


def test_presets_have_theirs():
    assert td.from_preset("detr-tiny").recipe == RECIPE | {
        **{"learning_rate": 4e-4, "backbone_multiplier": 0.5, "augmentation": "flip", "freeze": ""}
    }
    table = td.PRESETS["table-transformer-detection"].recipe
    assert table == {"learning_rate": 5e-5, "backbone_multiplier": 0.2, "augmentation": "none"}
    assert td.PRESETS["detr-resnet-50"].recipe == {}


def test_what_is_set_counts_more():
    model = td.DETR(dataclasses.replace(SMALLEST, recipe=OWN))
    settings = Settings(learning_rate=1.0, ema_momentum=0.9).resolved(model)
    assert (settings.learning_rate, settings.ema_momentum) == (1.0, 0.9)
    assert (settings.schedule, settings.global_clipnorm, settings.freeze) == ("constant", NO_LIMIT, "")
    assert settings.backbone_multiplier == RECIPE["backbone_multiplier"]
    assert settings.resolved(model) == settings
    assert Settings(masks=True).resolved(model).freeze is None  # the mask head alone is trained then


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"epochs": 3}, "the model's recipe has epochs, but may only have augmentation"),
        ({"learning_rate": -1}, "learning_rate must be a finite number above 0"),
        ({"lr": 1}, "the model's recipe has lr"),
    ],
)
def test_recipes_that_are_none(recipe, message):
    model = td.DETR(dataclasses.replace(SMALLEST, recipe=recipe))
    with pytest.raises(ValueError, match=message):
        Settings().resolved(model)


@pytest.mark.parametrize("recipe", [3, [("learning_rate", 1)], {1: 2}])
def test_what_is_no_recipe(recipe):
    with pytest.raises(ValueError, match="recipe must be settings of a training run by their names"):
        dataclasses.replace(SMALLEST, recipe=recipe)


@pytest.mark.slow
def test_a_run_goes_by_it_tells_it_and_goes_on(without_tracing, tmp_path):
    td.DETR(dataclasses.replace(SMALLEST, recipe=OWN)).save(tmp_path / "own.keras")
    records, names = td.data.load_shapes(8, seed=2, size=(40, 60))
    options = {"batch_size": 4, "size": (48, 64), "source": tmp_path / "own.keras", "weight_decay": 0.01}
    run = td.fit_detector(records, names, tmp_path / "run", epochs=1, **options)
    settings = run.config()["settings"]
    assert (settings["learning_rate"], settings["weight_decay"], settings["augmentation"]) == (3e-3, 0.01, "none")
    assert settings["global_clipnorm"] == NO_LIMIT
    assert run.config()["of_recipe"] == sorted({*OF_RECIPE, "freeze"} - {"weight_decay"})
    report = (run.path / "report.md").read_text()
    assert "| learning_rate | 0.003 * |" in report
    assert "| weight_decay | 0.01 |" in report
    assert "from the model's own recipe" in report
    assert run.load_model("last").recipe == RECIPE | OWN
    run = td.fit_detector(records, names, tmp_path / "run", resume=True, epochs=2, **options)
    with pytest.raises(ValueError, match=r"learning_rate was 0\.003, not 0.1"):
        td.fit_detector(records, names, tmp_path / "run", resume=True, epochs=3, learning_rate=0.1, **options)


@pytest.mark.parametrize(
    ("noted", "meant"), [({"global_clipnorm": None, "ema_momentum": None}, (NO_LIMIT, 0.0)), ({}, (0.1, 0.0))]
)
def test_null_of_an_earlier_version_was_none(noted, meant, tmp_path):
    settings = dataclasses.asdict(Settings().resolved(None)) | {"global_clipnorm": 0.1} | noted
    content = {"format": 1, "settings": settings, "class_names": ["a"]}
    (tmp_path / "config.json").write_text(json.dumps(content))
    read = td.training.RunFolder(tmp_path).config()["settings"]
    assert (read["global_clipnorm"], read["ema_momentum"]) == meant
