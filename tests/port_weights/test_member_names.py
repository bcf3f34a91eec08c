"""Every published name of every member's weights leads to the same weights, and back, bit for bit."""

import json

import numpy as np
import pytest
from members import of_members
from ports import weights_of
from safetensors.numpy import load_file

import tfdetr_keras as td
from port_weights import export, export_pth, load_model, to_torch
from port_weights.schemes import detect_scheme
from port_weights.tables import IGNORED

LOSS_FIELDS = {  # of `config.json`, those that are there
    *("class_cost", "bbox_cost", "giou_cost", "eos_coefficient", "focal_alpha", "cls_loss_coefficient"),
    *("mask_loss_coefficient", "dice_loss_coefficient", "bbox_loss_coefficient", "giou_loss_coefficient"),
}


@pytest.fixture(scope="module")
def states(answers):
    """The weights of a member by each of its namings."""

    def named(member):
        on_disk = load_file(answers(member.case).checkpoint / "model.safetensors")
        in_memory = answers(member.case).arrays("state")
        found = {"on disk": on_disk}
        in_memory = {name: array for name, array in in_memory.items() if "num_batches_tracked" not in name}
        if in_memory.keys() != on_disk.keys():  # transformers did not rename all of them
            found["in memory"] = in_memory
        return found | {title: rename(on_disk) for title, rename in member.namings.items()}

    return named


def assert_same(got, expected):
    got, expected = weights_of(got), weights_of(expected)
    assert got.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(got[path], array, err_msg=path)


@of_members()
def test_class_settings_and_loss_come_from_the_folder(member, answers, port):
    model, folder = port(member.case), answers(member.case).checkpoint
    assert type(model) is type(td.from_pretrained(folder)) is type(member.kind.from_pretrained(folder)) is member.kind
    assert model.config == member.config
    assert model.criterion == member.criterion


@of_members()
def test_every_naming_is_of_the_same_weights_in_both_directions(member, states, port):
    """By the tables of names, without a model."""
    weights, found = weights_of(port(member.case)), states(member)
    assert len({frozenset(state) for state in found.values()}) == len(found)
    for naming, state in found.items():
        scheme, read, names = detect_scheme(state), {}, {}
        copies = {copy: name for name, copies in scheme.copies.items() for copy in copies}
        assert copies.keys() <= state.keys(), naming
        for name in copies:
            np.testing.assert_array_equal(state[name], state[copies[name]], err_msg=f"{naming}: {name}")
        originals = {
            name: tensor for name, tensor in state.items() if name not in copies and not IGNORED.fullmatch(name)
        }
        for name, tensor in originals.items():
            for path, layout in scheme.keras_paths(name):
                assert path not in read, (naming, path)
                read[path] = layout.read(tensor, weights[path].shape)
                assert scheme.torch_name(path) == (name, layout), (naming, path)
                names.setdefault(name, {})[layout.part] = layout.to_torch(weights[path])
        assert read.keys() == weights.keys(), naming
        assert names.keys() == originals.keys(), naming
        for path, array in read.items():
            np.testing.assert_array_equal(array, weights[path], err_msg=f"{naming}: {path}")
        for name, parts in names.items():
            back = np.concatenate([parts[place] for place in range(len(parts))])
            np.testing.assert_array_equal(back, state[name], err_msg=f"{naming}: {name}")


@of_members()
def test_a_model_has_every_naming(member, states, port):
    for naming, state in states(member).items():
        back = to_torch(port(member.case), detect_scheme(state))
        assert back.keys() == state.keys(), naming
        for name, array in state.items():
            np.testing.assert_array_equal(back[name], array, err_msg=f"{naming}: {name}")


@of_members()
def test_tensors_without_a_configuration_make_the_same_model(member, states, port):
    """Of the last naming, the authors'."""
    state = list(states(member).values())[-1]
    model = load_model(state, **member.options)
    assert type(model) is member.kind
    assert_same(model, port(member.case))


@pytest.mark.slow
@of_members()
def test_tensors_of_every_naming_make_the_same_model(member, states, port):
    for naming, state in states(member).items():
        model = load_model(state, **member.options)
        assert type(model) is member.kind, naming
        assert_same(model, port(member.case))


@of_members()
def test_export_writes_what_save_pretrained_wrote(member, answers, port, tmp_path):
    model, folder = port(member.case), answers(member.case).checkpoint
    export(model, tmp_path / "again")
    written, on_disk = (load_file(one / "model.safetensors") for one in (tmp_path / "again", folder))
    assert written.keys() == on_disk.keys()
    for name, array in on_disk.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)
    theirs, ours = (json.loads((one / "config.json").read_text()) for one in (folder, tmp_path / "again"))
    for name in ("model_type", "architectures", "num_queries", "id2label", *LOSS_FIELDS & set(ours) & set(theirs)):
        assert ours[name] == theirs[name], name
    again = load_model(tmp_path / "again")
    assert_same(again, model)
    assert (again.config, again.criterion) == (model.config, model.criterion)
    processor = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())["image_processor_type"]
    own = {"ConditionalDETR": "ConditionalDetr", "DABDETR": "ConditionalDetr", "DeformableDETR": "DeformableDetr"}
    own |= {"RTDETR": "RTDetr", "RTDETRV2": "RTDetr", "DFINE": "RTDetr", "LWDETR": "DeformableDetr"}
    own |= {"RFDETR": "RfDetr", "RFDETRForSegmentation": "RfDetr"}
    assert processor.startswith(own.get(member.name, "Detr"))


@pytest.mark.slow
@of_members()
def test_transformers_computes_the_same_from_an_export(member, pytorch, port, tmp_path):
    export(port(member.case), tmp_path / "again")
    batch = member.case.sizes[0].batch()
    architecture = member.case.reference.architecture
    expected = pytorch.call("models:outputs_of_folder", architecture, tmp_path / "again", batch)
    for name, value in port(member.case)(batch).items():
        if not name.startswith("aux"):
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=member.case.limits.of_stage(name))


@pytest.mark.slow
@of_members()
def test_a_pth_file_holds_the_same_model(member, tmp_path):
    original = member.new(**member.of_pth)
    model = export_pth(original, tmp_path / "model.pth")
    again = load_model(tmp_path / "model.pth")
    assert type(again) is member.kind
    assert_same(again, original)
    assert again.criterion == model.criterion == original.criterion
