"""A Python process for PyTorch, beside the one that holds TensorFlow: the asking end and the answering end."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_ANSWER = "answer.json"
_ROOT = str(Path(__file__).parents[2])  # where this package lies, a zip file perhaps
# Isolated, so that nothing but the search path below says what is imported.
_START = """\
import json, sys
request = json.load(sys.stdin.buffer)
sys.path[:] = request.pop("path")
from port_weights.pytorch.process import answer
answer(**request)
"""
_LAST_LINES = 12  # of what a process that failed has printed


class PyTorchMissingError(ValueError):
    """Raised where torch, or transformers, is not installed or cannot be imported."""


def require(*packages: str) -> None:
    """Raise unless packages are installed, without importing them.

    Raises:
        PyTorchMissingError: one of them is not.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise PyTorchMissingError(f"No module named {package!r}")


def run(task: str, folder: Path, **arguments: Any) -> Any:
    """Call a function in a new process with this one's search path, and wait for its result.

    What the process prints is kept off the terminal, and shown only as part of an error.

    Args:
        task: `"module:function"`, called as `function(folder, **arguments)`.
        folder: where the two leave arrays for each other.
        **arguments: values that JSON has.

    Returns:
        The function's result, by way of JSON.

    Raises:
        PyTorchMissingError: the module imports what is not installed, or does not work.
        ValueError: as the function raises it; or the process failed, of which the message has the last lines.
        OSError: as the function raises it.
    """
    if not sys.executable:
        raise ValueError("PyTorch runs in a Python process of its own, and sys.executable names no interpreter")
    path = [os.fspath(entry) for entry in sys.path]
    request = {"path": [*path, _ROOT], "task": task, "folder": os.fspath(folder), "arguments": arguments}
    (folder / _ANSWER).unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-I", "-c", _START],
        input=json.dumps(request).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        raise ValueError(_failure(task, done.returncode, done.stdout.decode(errors="replace")))
    result = json.loads((folder / _ANSWER).read_text(encoding="utf-8"))
    if "result" in result:
        return result["result"]
    raise {"import": PyTorchMissingError, "value": ValueError, "system": OSError}[result["kind"]](result["error"])


def answer(task: str, folder: str, arguments: dict[str, Any]) -> None:
    """Call the function that `run` asked for, in the new process, and leave its result in the folder."""
    module, _, function = task.partition(":")
    content: dict[str, Any]
    try:
        try:
            call = getattr(importlib.import_module(module), function)
        except OSError as error:  # a library that torch loads is not there
            raise ImportError(str(error)) from error
        content = {"result": call(Path(folder), **arguments)}
    except ImportError as error:  # of a call, too: transformers imports its models when they are asked for
        content = {"kind": "import", "error": str(error)}
    except ValueError as error:
        content = {"kind": "value", "error": str(error)}
    except OSError as error:
        content = {"kind": "system", "error": str(error)}
    Path(folder, _ANSWER).write_text(json.dumps(content), encoding="utf-8")


def _failure(task: str, status: int, printed: str) -> str:
    how = f"ended with status {status}"
    if status < 0:
        try:
            how = f"was ended by {signal.Signals(-status).name}"
        except ValueError:
            how = f"was ended by signal {-status}"
        if -status == getattr(signal, "SIGKILL", None):
            how += ", perhaps because memory ran out"
    last = [line for line in printed.splitlines() if line.strip()][-_LAST_LINES:]
    words = "\n  ".join(["; it printed:", *last]) if last else " and printed nothing"
    return f"the PyTorch process ({task}) {how}{words}"
