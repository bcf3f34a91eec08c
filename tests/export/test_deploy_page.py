"""What docs/deploy.md says works as written: commands, programs, and the request to a server."""

import base64
import http.server
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tensorflow as tf
from photograph_sizes import CANVAS, SIZE

import tfdetr_keras as td
from tfdetr_keras.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"
SERVER = 8501  # TensorFlow Serving's port, as the page has it


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, coco128):
    """With a run and a photograph, in which the page's export commands were given."""
    folder = tmp_path_factory.mktemp("deploy")
    shutil.copy(min((coco128 / "images").glob("*.jpg")), folder / "photo.jpg")
    records, names = td.data.load_shapes(4, seed=1, size=(48, 64))
    settings = {"epochs": 1, "batch_size": 2, "size": SIZE, "pad_to": CANVAS}
    td.fit_detector(records, names, folder / "run", None, "detr-tiny", **settings)
    commands = [line for line in blocks("bash")[0].splitlines() if line.startswith("tfdetr")]
    assert len(commands) == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in commands:
            assert main(shlex.split(command, comments=True)[1:]) == 0, command
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("block", range(3))
def test_the_programs_run(folder, block):
    program = blocks("python")[block]
    run = subprocess.run([sys.executable, "-c", program], check=False, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's request is made with curl")
def test_the_request_is_answered(folder):
    """By a stand-in for TensorFlow Serving that knows this one form of its REST interface."""
    served = tf.saved_model.load(str(folder / "served")).signatures

    class StandIn(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/models/detector:predict"
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            files = [base64.b64decode(file["b64"]) for file in request["inputs"]["files"]]
            found = served[request["signature_name"]](files=tf.constant(files))
            answer = json.dumps({"outputs": {key: value.numpy().tolist() for key, value in found.items()}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    [command] = [block for block in blocks("bash") if "curl" in block]
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", SERVER), StandIn)
    except OSError:
        pytest.skip(f"port {SERVER} is taken")
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        run = subprocess.run(["bash", "-c", command], check=True, cwd=folder, capture_output=True, text=True)
        server.shutdown()
    outputs = json.loads(run.stdout)["outputs"]
    expected = served["files"](files=tf.constant([(folder / "photo.jpg").read_bytes()]))
    assert {key: len(value[0]) for key, value in outputs.items()} == {"scores": 25, "labels": 25, "boxes": 25}
    assert outputs["labels"] == expected["labels"].numpy().tolist()
