"""The hub's cache, as its own client keeps it: what is read from it, what is refused, and conversions that are kept."""

import argparse
import dataclasses
import hashlib
import json
import logging
import os

import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from port_weights import conversions, hub, load_model
from tfdetr_keras.cli import main
from tfdetr_keras.cli.model_options import chosen_preprocessing, read_model
from tfdetr_keras.models import ConditionalDETR, pretrained
from tfdetr_keras.preprocessing import Preprocessing

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"
ID = "somebody/detr"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty cache, and no network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TFDETR_CACHE", str(tmp_path / "conversions"))
    return tmp_path


def write_commit(root, commit, source, refs=()):
    """What downloading leaves: contents named after their hashes, and a folder of links for the commit."""
    repository = root / "hub" / f"models--{ID.replace('/', '--')}"
    for name in ("blobs", f"snapshots/{commit}", "refs"):
        (repository / name).mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        content = (source / name).read_bytes()
        if name == "model.safetensors":
            digest = hashlib.sha256(content).hexdigest()
        else:
            digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        (repository / "blobs" / digest).write_bytes(content)
        (repository / "snapshots" / commit / name).symlink_to(f"../../blobs/{digest}")
    for ref in refs:
        (repository / "refs" / ref).write_text(commit)
    return repository / "snapshots" / commit


@pytest.fixture
def cached(offline, hf_folder):
    """The folder of a commit, which is that of the main branch."""
    return write_commit(offline, COMMIT, hf_folder, ["main"])


@pytest.fixture
def no_porting(monkeypatch):
    def refuse(*_):
        raise AssertionError("ported")

    return lambda: monkeypatch.setattr(pretrained, "_ported", refuse)


def assert_same(model, other):
    for found, expected in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert model.config == other.config
    assert model.criterion == other.criterion


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_what_was_fetched_is_read_without_network(cached, hf_folder, revision):
    assert_same(load_model(ID, revision=revision), load_model(hf_folder))


def test_what_was_not_fetched(offline, cached):
    with pytest.raises(ValueError, match=r"^somebody/detr: .*the hub's cache does not hold it"):
        load_model(ID, revision="other")
    message = "^facebook/detr-none: there is no such file or folder here, the hub's cache does not hold it"
    with pytest.raises(ValueError, match=message):
        load_model("facebook/detr-none")


@pytest.mark.parametrize("source", ["../outside", "owner/..", "./x", "owner/name/../../../etc"])
def test_an_id_that_would_leave_the_cache(source, offline, monkeypatch):
    monkeypatch.chdir(offline)
    with pytest.raises(ValueError, match=r"no such file or folder|it holds"):
        load_model(source)


def test_a_folder_of_that_name_comes_first(cached, hf_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somebody").mkdir()
    (tmp_path / "somebody" / "detr").symlink_to(hf_folder)
    assert not hub.is_hub_id(ID)
    monkeypatch.setattr(hub, "fetch", None)
    load_model(ID)


def test_a_file_that_is_damaged(cached):
    for name in ("model.safetensors", "config.json"):
        blob = (cached / name).resolve()
        content = blob.read_bytes()
        blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=rf"{blob.name}: {name} of somebody/detr is damaged.*delete that file"):
            load_model(ID)
        blob.write_bytes(content)
    load_model(ID)


def test_a_link_that_leads_out_of_the_cache(cached, hf_folder):
    link = cached / "model.safetensors"
    link.unlink()
    link.symlink_to(hf_folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors leads to .* which is not in the cache of somebody/detr"):
        load_model(ID)


def test_a_cache_without_links(cached, hf_folder):
    """As it is on file systems that have none: then there is no hash to compare with."""
    for name in ("config.json", "model.safetensors"):
        (cached / name).unlink()
        (cached / name).write_bytes((hf_folder / name).read_bytes())
    assert_same(load_model(ID), load_model(hf_folder))


def test_the_second_start_takes_no_porting(cached, no_porting, caplog):
    expected = load_model(ID)
    (cached / "model.safetensors").resolve().unlink()  # nor are PyTorch's weights looked at
    no_porting()
    assert_same(load_model(ID), expected)
    assert_same(load_model(ID, revision=COMMIT), expected)
    assert expected.criterion.eos_coefficient == 0.3
    with caplog.at_level(logging.WARNING):
        changed = load_model(ID, id2label={0: "left", 1: "right"}, num_queries=3)
    assert "new class head: 2 classes instead of the checkpoint's 3" in caplog.text
    assert changed.id2label == {0: "left", 1: "right"}
    np.testing.assert_array_equal(
        changed.query_embedding.embeddings.numpy(), expected.query_embedding.embeddings.numpy()[:3]
    )


def test_the_first_start_may_ask_for_other_classes(cached, hf_folder, no_porting):
    """The checkpoint's own are kept all the same."""
    expected = load_model(hf_folder)
    load_model(ID, num_classes=7, num_queries=9)
    no_porting()
    assert_same(load_model(ID), expected)


def test_each_commit_has_its_conversion(offline, cached, make_hugging_face_model, pytorch, tmp_path):
    first = load_model(ID)
    pytorch.call("models:save", make_hugging_face_model(d_model=8), tmp_path / "other")
    write_commit(offline, OTHER, tmp_path / "other", ["main", "next"])
    assert load_model(ID, revision="next").config.d_model == load_model(ID).config.d_model == 8
    assert_same(load_model(ID, revision=COMMIT), first)


def kept(root):
    [file] = (root / "conversions").rglob("*.safetensors")
    return file


@pytest.mark.parametrize("harm", ["cut", "empty", "a header that is none", "weights of another release"])
def test_a_conversion_that_is_damaged(offline, cached, no_porting, harm):
    from safetensors.numpy import load_file, save_file

    expected = load_model(ID)
    file = kept(offline)
    content = file.read_bytes()
    if harm == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif harm == "empty":
        file.write_bytes(b"")
    elif harm == "a header that is none":
        save_file(load_file(file), file, metadata={"config": "{", "criterion": "{}", "lacking": "[]"})
    else:
        conversion = conversions.find(hub.fetch(ID))
        readers = {f"new/{path}": read for path, read in conversion.readers.items()}
        conversions.keep(hub.fetch(ID), dataclasses.replace(conversion, readers=readers))
    assert_same(load_model(ID), expected)
    assert kept(offline).stat().st_size == len(content)
    no_porting()  # since it was written anew
    assert_same(load_model(ID), expected)


@pytest.mark.skipif(os.name == "nt", reason="needs a file where a folder should be")
def test_a_place_that_cannot_be_written(offline, cached, hf_folder, caplog):
    (offline / "conversions").write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert_same(load_model(ID), load_model(hf_folder))
    assert "the conversion of somebody/detr could not be kept" in caplog.text


def test_what_the_user_says_of_the_architecture_is_not_kept(offline, cached):
    load_model(ID, heads=2)
    assert not (offline / "conversions").exists()


def test_where_conversions_lie(monkeypatch, tmp_path, cached):
    monkeypatch.delenv("TFDETR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    load_model(ID)
    [file] = (tmp_path / "mine" / "tfdetr_keras" / "somebody--detr").iterdir()
    assert file.name == f"{COMMIT}-{conversions.FORMAT}.safetensors"


def test_the_command_line_knows_the_size_of_the_images(cached):
    content = json.dumps({"size": {"shortest_edge": 64, "longest_edge": 96}})
    (cached / "preprocessor_config.json").write_text(content)
    options = argparse.Namespace(model=ID, size=None, pad_to=None, size_rule=None, last=False)
    assert chosen_preprocessing(options, read_model(options)) == Preprocessing((64, 96))


def test_a_commit_that_was_fetched_is_a_source(cached, hf_folder, monkeypatch):
    commit = hub.fetch(ID)
    monkeypatch.setattr(hub, "fetch", None)
    assert_same(load_model(commit), load_model(hf_folder))
    with pytest.raises(ValueError, match=r"^somebody/detr: .*ConditionalDETR"):
        load_model(commit, model_class=ConditionalDETR)


@pytest.mark.parametrize("size", [[], ["--size", "32", "48"]])
def test_a_command_asks_the_hub_once(cached, monkeypatch, tmp_path, size):
    content = json.dumps({"size": {"shortest_edge": 64, "longest_edge": 96}})
    (cached / "preprocessor_config.json").write_text(content)
    Image.new("RGB", (60, 40)).save(tmp_path / "photo.png")
    asked = []
    download = huggingface_hub.snapshot_download

    def count(hub_id, **options):
        asked.append(hub_id)
        return download(hub_id, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", count)
    photo, out = str(tmp_path / "photo.png"), str(tmp_path / "found")
    assert main(["predict", photo, "--model", ID, *size, "--out", out]) == 0
    assert asked == [ID]
