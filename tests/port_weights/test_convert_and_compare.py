"""`.keras` files in and out, and the command line with its exit codes."""

import keras
import numpy as np
import pytest

import port_weights.__main__ as command_line
from port_weights import compare as comparing
from port_weights import convert, load_model
from tfdetr_keras import from_preset
from tfdetr_keras.models import DETR


@pytest.fixture(scope="module")
def converted(hf_folder, tmp_path_factory):
    """The `.keras` file of `hf_folder`."""
    path = tmp_path_factory.mktemp("converted") / "detr.keras"
    convert(hf_folder, path)
    return path


def test_a_converted_file_is_a_keras_model(converted, ported, weights_of):
    loaded = keras.saving.load_model(converted)
    assert (loaded.config, loaded.criterion) == (ported.config, ported.criterion)
    expected = weights_of(ported)
    for path, array in weights_of(loaded).items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)
    assert [entry.name for entry in converted.parent.iterdir()] == ["detr.keras"]


def test_a_keras_file_is_a_source(converted, ported, weights_of, caplog):
    expected = weights_of(ported)
    for path, array in weights_of(DETR.from_pretrained(converted)).items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)
    assert caplog.text == ""
    changed = DETR.from_pretrained(str(converted), id2label={0: "a"}, num_queries=3)
    assert (changed.config.num_classes, changed.config.num_queries) == (1, 3)
    assert "new class head: 1 classes" in caplog.text
    assert "kept the first 3 of 5" in caplog.text
    np.testing.assert_array_equal(changed.query_embedding.embeddings, expected["detr/query_embedding/embeddings"][:3])


@pytest.mark.parametrize("failure", ["source", "saving"])
def test_a_conversion_that_fails_leaves_nothing_and_harms_nothing(hf_folder, tmp_path, monkeypatch, failure):
    target = tmp_path / "detr.keras"
    source = hf_folder
    if failure == "source":
        source = tmp_path / "absent.safetensors"
    else:

        def stop_halfway(model, path):
            path.write_bytes(b"half a model")
            raise ValueError("disk full")

        monkeypatch.setattr(DETR, "save", stop_halfway)
    with pytest.raises(ValueError, match="no such file" if failure == "source" else "disk full"):
        convert(source, target)
    assert list(tmp_path.iterdir()) == []
    target.write_bytes(b"an older model")
    with pytest.raises(ValueError, match="no such file" if failure == "source" else "disk full"):
        convert(source, target)
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == b"an older model"


def test_a_target_that_cannot_be(hf_folder, tmp_path):
    with pytest.raises(ValueError, match=r"detr\.h5: the file to write must end in \.keras"):
        convert(hf_folder, tmp_path / "detr.h5")
    with pytest.raises(ValueError, match=r"detr\.keras: the folder .*nowhere does not exist"):
        convert(hf_folder, tmp_path / "nowhere" / "detr.keras")


@pytest.mark.parametrize("kind", ["missing", "garbage", "truncated", "another-model"])
def test_a_keras_file_that_is_no_detr(converted, tmp_path, kind):
    path = tmp_path / "model.keras"
    if kind == "garbage":
        path.write_bytes(b"no model at all")
    elif kind == "truncated":
        path.write_bytes(converted.read_bytes()[:-2000])
    elif kind == "another-model":
        keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)]).save(path)
    message = {"missing": "no such file", "another-model": "holds a Sequential, not a detector"}
    with pytest.raises(ValueError, match=message.get(kind, "is not a complete .keras file")):
        load_model(path)


STAGES = [
    *("backbone.stage1", "backbone.stage2", "encoder.layer0", "decoder.layer0", "decoder.layer1", "logits"),
    "pred_boxes",
]


@pytest.mark.slow
def test_compare_agrees_stage_by_stage(hf_folder):
    rows, origin = comparing.compare(hf_folder, height=64, width=96)
    assert [row.stage for row in rows] == STAGES
    assert all(row.agrees for row in rows)
    assert origin == "read by transformers itself"
    assert {row.stage: row.tolerance for row in rows}["logits"] == 1e-4


@pytest.mark.slow
def test_other_names_are_compared_through_the_tables(facebook_state):
    rows, origin = comparing.compare(facebook_state, height=64, width=96, heads=2)
    assert [row.stage for row in rows] == STAGES
    assert all(row.agrees for row in rows)
    assert origin == "written from the ported model through the name tables"


@pytest.mark.parametrize("difference", [2e-4, np.nan])
def test_a_row_out_of_tolerance_does_not_agree(difference):
    row = comparing.Row("logits", difference, 1e-4)
    assert not row.agrees
    assert comparing.table([row]).splitlines()[1].endswith("OUT")


def test_the_smallest_gap_between_chosen_scores():
    scores = np.array([[5.0, 1.0, 3.0, 2.5, 0.9, 0.9], [9.0, 8.0, 7.0, 6.0, 1.0, 1.01]])
    assert comparing.smallest_gap(scores, 3) == 0.5
    assert comparing.smallest_gap(scores, 4) == pytest.approx(0.1)  # between the last and the first that is left out
    assert comparing.smallest_gap(scores, 5) == pytest.approx(0.01)  # of the second image; equal ones are not counted
    assert comparing.smallest_gap(np.array([[1.0], [2.0]]), 1) == np.inf


def test_images_are_drawn_until_the_choice_of_queries_is_clear(monkeypatch):
    model = from_preset("rt-detr-tiny")
    gaps = iter([1e-7, 3e-6, 1e-6, 2e-4, 1.0])
    monkeypatch.setattr(comparing, "smallest_gap", lambda scores, count: next(gaps))
    inputs, stages = comparing._clear_batch(model, 64, 64)
    assert next(gaps) == 1.0
    np.testing.assert_array_equal(inputs["pixel_values"], comparing.padded_batch(64, 64, 3, False)["pixel_values"])
    np.testing.assert_array_equal(stages["logits"], model.stages(inputs)["logits"])


def test_the_command_converts(hf_folder, tmp_path, capsys, ported):
    target = tmp_path / "detr.keras"
    assert command_line.main(["convert", str(hf_folder), str(target), "--num-classes", "7", "--num-queries", "4"]) == 0
    assert f"{target}: " in capsys.readouterr().out
    model = keras.saving.load_model(target)
    assert (model.config.num_classes, model.config.num_queries) == (7, 4)
    np.testing.assert_array_equal(model.box_head.stack[0].kernel, ported.box_head.stack[0].kernel)


def test_the_command_compares(hf_folder, capsys):
    assert command_line.main(["compare", str(hf_folder)]) == 0
    origin, header, *rows = capsys.readouterr().out.splitlines()
    assert origin == "PyTorch side: read by transformers itself"
    assert header.split() == ["stage", "max", "|Δ|", "tolerance", "verdict"]
    assert [row.split()[0] for row in rows] == STAGES
    assert {row.split()[-1] for row in rows} == {"ok"}


@pytest.mark.slow
def test_a_difference_is_the_commands_first_exit_code(hf_folder, capsys, monkeypatch):
    """A port that misplaces one bias is found, and from the stage on where it happened."""

    def tampered(*arguments, **options):
        model = load_model(*arguments, **options)
        bias = model.encoder.stack[0].feed_forward.outputs.bias
        bias.assign(bias[::-1])
        return model

    monkeypatch.setattr(comparing, "load_model", tampered)
    assert command_line.main(["compare", str(hf_folder)]) == 1
    verdicts = {row.split()[0]: row.split()[-1] for row in capsys.readouterr().out.splitlines()[2:]}
    assert [stage for stage, verdict in verdicts.items() if verdict == "OUT"] == STAGES[2:]


@pytest.mark.parametrize("command", [["compare", "absent.pth"], ["convert", "absent.pth", "out.keras"]])
def test_bad_input_is_the_commands_second_exit_code(command, capsys):
    assert command_line.main(command) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: absent.pth: no such file or folder")
