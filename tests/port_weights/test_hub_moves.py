"""A repository that serves any form of weights, moves on, or cannot be reached: a server on the loopback is the hub."""

import hashlib
import http.server
import json
import logging
import threading

import huggingface_hub.constants
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from some_slow import some_slow

from port_weights import conversions, hub, load_model
from tfdetr_keras.models import pretrained

ID = "some/detr"
FIRST, SECOND = "a" * 40, "b" * 40


CLOSED_PORT = 9  # that of a service that nobody runs any more


def turn_to(monkeypatch, port):
    endpoint = f"http://127.0.0.1:{port}"
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


class Repository:
    """What the hub has: a commit, and its files."""

    def __init__(self, files):
        self.commit, self.files, self.asked = FIRST, files, []


@pytest.fixture
def repository(monkeypatch, tmp_path, hf_folder):
    """A hub with one repository, and an empty cache."""
    served = Repository({name: (hf_folder / name).read_bytes() for name in ("config.json", "model.safetensors")})

    class Hub(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            """Says nothing."""

        def answer(self, body, headers=()):
            self.send_response(200)
            for name, value in (("Content-Length", str(len(body))), *headers):
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            path = self.path.split("?")[0]
            name = path.split("/")[-1]
            blobs = {n: hashlib.sha1(b"blob %d\0" % len(c) + c).hexdigest() for n, c in served.files.items()}
            if "/tree/" in path:
                entries = [
                    {"type": "file", "oid": blobs[n], "size": len(c), "path": n} for n, c in served.files.items()
                ]
                self.answer(json.dumps(entries).encode(), [("Content-Type", "application/json")])
            elif path.startswith("/api/models/"):
                siblings = [{"rfilename": name} for name in served.files]
                content = {"id": ID, "modelId": ID, "sha": served.commit, "siblings": siblings}
                self.answer(json.dumps(content).encode(), [("Content-Type", "application/json")])
            elif name in served.files:
                served.asked.append(name)
                content = served.files[name]
                tag = f'"{hashlib.sha256(content).hexdigest()}"'
                self.answer(content, [("X-Repo-Commit", served.commit), ("ETag", tag)])
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    turn_to(monkeypatch, server.server_port)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("TFDETR_CACHE", str(tmp_path / "conversions"))
    monkeypatch.chdir(tmp_path)
    yield served
    server.shutdown()
    server.server_close()


def bytes_of(write, content, path):
    write(path, content)
    return path.read_bytes()


def halves(state, kind):
    """Two shards' names and tensors, and the index of them."""
    names = sorted(state)
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    parts = {f"{stem}-0000{i + 1}-of-00002.{suffix}": {n: state[n] for n in names[i::2]} for i in range(2)}
    index = {"metadata": {}, "weight_map": {n: file for file, part in parts.items() for n in part}}
    return parts, f"{stem}.{suffix}.index.json", json.dumps(index).encode()


@pytest.mark.parametrize(
    "form", some_slow(["safetensors", "one pickle", "shards of safetensors", "shards of pickles"], "shards of pickles")
)
def test_every_form_of_weights(form, repository, state, ported, pytorch, tmp_path):
    files, scratch = repository.files, tmp_path / "scratch"
    files["README.md"], files["optimizer.bin"] = b"read me", b"0" * 1000
    if form != "safetensors":
        del files["model.safetensors"]
    if form == "one pickle":
        files["pytorch_model.bin"] = bytes_of(lambda p, c: pytorch.call("pickles:write", p, c), state, scratch)
    elif form.startswith("shards"):
        kind = "safetensors" if "safetensors" in form else "pickles"
        parts, index, content = halves(state, kind)
        files[index] = content
        for name, part in parts.items():
            pickled = lambda p, c: pytorch.call("pickles:write", p, c)  # noqa: E731
            files[name] = bytes_of(pickled if kind == "pickles" else lambda p, c: save_file(c, p), part, scratch)
    model = load_model(ID)
    for found, expected in zip(model.get_weights(), ported.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not {"README.md", "optimizer.bin"} & set(repository.asked)
    assert load_model(ID).config == ported.config  # of the kept conversion


def test_a_pickle_beside_safetensors_is_not_fetched(repository):
    repository.files["pytorch_model.bin"] = b"something else"
    load_model(ID)
    assert "pytorch_model.bin" not in repository.asked


def test_a_repository_without_weights(repository):
    del repository.files["model.safetensors"]
    repository.files["tf_model.h5"] = b"weights of another kind"
    with pytest.raises(ValueError, match=r"^some/detr: the hub has none of model\.safetensors, .*pytorch_model\.bin"):
        load_model(ID)


def test_an_index_that_names_a_pattern_or_a_place_elsewhere(repository):
    del repository.files["model.safetensors"]
    for name in ("*", "../model.safetensors", "a/b.safetensors", "model*.safetensors"):
        repository.commit = hashlib.sha1(name.encode()).hexdigest()
        content = json.dumps({"weight_map": {"a": name}}).encode()
        repository.files["model.safetensors.index.json"] = content
        with pytest.raises(ValueError, match="which is not"):
            load_model(ID)


def move(repository, change=1.0):
    """The main branch moves to a commit with other weights."""
    import safetensors.numpy

    state = safetensors.numpy.load(repository.files["model.safetensors"])
    repository.files["model.safetensors"] = safetensors.numpy.save({n: t + change for n, t in state.items()})
    repository.commit = SECOND


def test_a_branch_that_moved_is_converted_anew(repository, ported, caplog):
    first = load_model(ID)
    move(repository)
    second = load_model(ID)
    np.testing.assert_allclose(second.class_head.bias, first.class_head.bias + 1.0, rtol=1e-6)
    again = load_model(ID, revision=FIRST)
    np.testing.assert_array_equal(again.class_head.bias, first.class_head.bias)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("how", ["told", "unreachable"])
def test_offline_what_was_fetched_last_is_used_and_told(how, repository, monkeypatch, caplog):
    first = load_model(ID)
    move(repository)
    if how == "told":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        turn_to(monkeypatch, CLOSED_PORT)
    monkeypatch.setattr(pretrained, "_ported", None)  # what is kept is used
    np.testing.assert_array_equal(load_model(ID).class_head.bias, first.class_head.bias)
    assert f"this is commit {FIRST}, which was fetched last" in caplog.text
    caplog.clear()
    load_model(ID, revision=FIRST)  # a commit does not move
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("harm", ["another repository's", "another commit's", "other files'", "a number"])
def test_a_conversion_that_is_not_of_the_commit(harm, repository, tmp_path, ported, caplog):
    load_model(ID)
    [kept] = (tmp_path / "conversions").rglob("*.safetensors")
    if harm == "a number":
        content = bytearray(kept.read_bytes())
        content[-3] ^= 1
        kept.write_bytes(content)
    else:
        from safetensors import safe_open

        with safe_open(kept, framework="numpy") as file:
            header = file.metadata()
        origin = json.loads(header["origin"])
        key = {"another repository's": "repository", "another commit's": "commit", "other files'": "model.safetensors"}
        assert origin[key[harm]]
        origin[key[harm]] = "0" * 40
        arrays = {name: array + 1 for name, array in load_file(kept).items()}
        sums = {name: conversions._sum(array) for name, array in arrays.items()}
        save_file(arrays, kept, metadata=header | {"origin": json.dumps(origin), "sums": json.dumps(sums)})
    model = load_model(ID)
    np.testing.assert_array_equal(model.class_head.bias, ported.class_head.bias)
    assert "cannot be used, so some/detr is ported again" in caplog.text
    assert conversions.find(hub.fetch(ID)) is not None  # written anew
