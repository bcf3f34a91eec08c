"""Why the hub gave nothing, in a line each: a server on the loopback answers as the hub does."""

import http.server
import json
import socket
import threading

import huggingface_hub.constants
import pytest

from port_weights import hub, load_model
from tfdetr_keras.models.presets import PUBLISHED

# Repository → status and the hub's own code of the error.
ANSWERS = {
    "somebody/missing": (401, "RepoNotFound"),
    "facebook/detr-resnet50": (404, "RepoNotFound"),
    "somebody/gated": (403, "GatedRepo"),
    "somebody/detr": (404, "RevisionNotFound"),
    "somebody/broken": (503, ""),
}


class Hub(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Says nothing."""

    def do_GET(self):
        owner, name = self.path.split("?")[0].removeprefix("/api/models/").split("/")[:2]
        status, code = ANSWERS[f"{owner}/{name}"]
        content = json.dumps({"error": "said the server"}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Request-Id", "1-2-3")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TFDETR_CACHE", str(tmp_path / "conversions"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def answering(empty_cache, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


def message(hub_id, revision=None):
    with pytest.raises(ValueError, match=f"^{hub_id}: ") as error:
        hub.fetch(hub_id, revision, known=PUBLISHED)
    text = str(error.value)
    assert "\n" not in text
    assert "Request ID" not in text
    return text


def test_no_such_repository_or_a_private_one(answering):
    assert message("somebody/missing") == (
        "somebody/missing: there is no such file or folder here, and on the hub no such model, or it is a private one, "
        "for which HF_TOKEN must be set"
    )
    assert message("facebook/detr-resnet50").endswith("; did you mean facebook/detr-resnet-50?")


def test_one_with_conditions(answering):
    text = message("somebody/gated")
    assert "accepted its conditions" in text
    assert "HF_TOKEN" in text


def test_no_such_revision(answering):
    assert message("somebody/detr", "v2") == "somebody/detr: the hub has this model, but no branch, tag or commit v2"


def test_a_hub_that_is_broken(answering):
    text = message("somebody/broken")
    assert "the hub did not give it (" in text
    assert "503" in text
    assert "a folder with config.json and model.safetensors will do instead" in text


LOCAL = (
    "a folder with config.json and model.safetensors will do instead (elsewhere: hf download facebook/detr-resnet-50 "
    "--local-dir FOLDER), a .safetensors or .pth file, or a checkpoint that comes with the package, "
    "such as rt-detr-tiny"
)


def test_no_network(empty_cache, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    text = message("facebook/detr-resnet-50")
    assert "the hub's cache does not hold it, and the hub cannot be reached (" in text
    assert "refused" in text
    assert text.endswith(f"; {LOCAL}")


def test_network_is_forbidden(empty_cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    text = message("facebook/detr-resnet-50")
    assert "HF_HUB_OFFLINE forbids to ask the hub" in text
    assert text.endswith(f"; {LOCAL}")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("detr-tinny", "did you mean detr-tiny?"),
        ("detr-resnet50", "did you mean detr-resnet-50?"),
        ("zzz", "expected d-fine-tiny, detr-tiny, rf-detr-tiny, rt-detr-tiny, facebook/detr-resnet-50, "),
        ("detr-resnet-50", "its published weights are facebook/detr-resnet-50, td.from_preset makes it with random"),
        ("detr-resnet-18", "of which the package has no weights: td.from_preset makes it with random"),
    ],
)
def test_a_name_that_is_neither(name, told, empty_cache):
    with pytest.raises(ValueError, match=f"^{name}") as error:
        load_model(name)
    assert told in str(error.value)
