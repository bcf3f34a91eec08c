"""What earlier versions wrote: `.keras` files and descriptions of Table Transformers, states of runs with dropout."""

import json
import re
import zipfile
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from smallest import SMALLEST

import tfdetr_keras as td
from tfdetr_keras.models.registry import config_of, describe
from tfdetr_keras.training import checkpoint

FIELDS = {name: value for name, value in SMALLEST.to_dict().items() if name != "frozen"}
TABLE = td.TableTransformerConfig(**FIELDS)


def as_before(path, pre_norm):
    """Rewrite a file as an earlier version wrote it: every model a DETR, and a field that says which."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    content = json.loads(members["config.json"])
    content |= {"class_name": "DETR", "registered_name": "tfdetr_keras>DETR", "module": "tfdetr_keras.models.detr"}
    content["config"]["config"]["pre_norm"] = pre_norm
    members["config.json"] = json.dumps(content).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(("kind", "config"), [(td.DETR, SMALLEST), (td.TableTransformer, TABLE)])
def test_a_keras_file(kind, config, tmp_path):
    model = kind(config)
    model.compile(optimizer=td.AdamW(1e-4))
    model.save(tmp_path / "now.keras")
    model.save(tmp_path / "before.keras")
    path = as_before(tmp_path / "before.keras", pre_norm=kind is td.TableTransformer)
    pixels = np.random.default_rng(0).normal(size=(1, 32, 48, 3)).astype(np.float32)
    for load in (td.load_model, td.from_pretrained):
        loaded = load(path)
        assert type(loaded) is kind
        assert loaded.config == config
        np.testing.assert_array_equal(loaded(pixels)["logits"], model(pixels)["logits"])
    assert td.load_model(path).optimizer is not None


def test_keras_own_loading_names_what_reads_it(tmp_path):
    td.TableTransformer(TABLE).save(tmp_path / "before.keras")
    path = as_before(tmp_path / "before.keras", pre_norm=True)
    with pytest.raises(ValueError, match=r"describes a Table Transformer, .* td\.load_model\(path\) reads it"):
        keras.saving.load_model(path)


def test_the_description_of_a_run():
    description = describe(TABLE) | {"class": "DETR", "pre_norm": True}
    assert config_of(description) == TABLE
    assert config_of(describe(SMALLEST) | {"pre_norm": False}) == SMALLEST
    with pytest.raises(ValueError, match="pre_norm: this describes a Table Transformer"):
        config_of(describe(td.ConditionalDETRConfig(**FIELDS)) | {"pre_norm": True})


def test_a_state_with_more_seeds_is_said_to_be_of_an_earlier_version(tmp_path):
    model = td.DETR(SMALLEST)
    model.compile(optimizer=td.AdamW(1e-4), jit_compile=False)
    variables = checkpoint._variables(model)
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    before = {"model/00002/seed_generator/seed_generator_state": (2,)}
    for name, shape in shapes.items():
        place = int(re.search(r"/(\d{5})/", name)[1])
        shifted = place + (name.startswith("model/") and place >= 2)
        before[re.sub(r"/\d{5}/", f"/{shifted:05d}/", name)] = shape
    state = SimpleNamespace(path=tmp_path / "state.safetensors", shapes=before)
    with pytest.raises(ValueError, match=r"written by an earlier version .* start a new one from .*last\.keras"):
        checkpoint._refuse_other_variables(state, variables)
    checkpoint._refuse_other_variables(SimpleNamespace(path=state.path, shapes=shapes), variables)
    other = SimpleNamespace(path=state.path, shapes=shapes | {"model/99999/other/kernel": (2, 2)})
    with pytest.raises(ValueError, match="of another model or optimizer: 1 variables differ"):
        checkpoint._refuse_other_variables(other, variables)
