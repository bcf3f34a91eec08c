"""The command line's stderr: its own lines and real errors, without the start-up notes of native libraries.

TensorFlow, XLA and CUDA write to the file descriptor itself, some lines before any of their settings is read. So the
descriptor leads into a pipe, and a child process passes on everything that is not such a note. The child outlives a
crash, so that its last words still appear. Python's own `sys.stderr` keeps the terminal.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import signal
import sys
import time
import warnings

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
VARIABLE = "TFDETR_LOG"
OURS = ("tfdetr_keras", "port_weights")
# Notes of Abseil's and TensorFlow's logging, by level I (information) and W (warning).
_NOTE = re.compile(
    rb"[IW]\d{4} \d\d:\d\d:\d+\.\d+ +\d+ [^ ]+:\d+\] "
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IW] [^ ]+:\d+\] "
    rb"|WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR"
    rb"|To enable the following instructions: "
)
# Logged as errors on machines with which nothing is wrong: one without a GPU, one with several CUDA plugins, and one
# whose processor is older.
_FALSE_ALARM = re.compile(
    rb"failed call to cuInit: |Unable to register cu\w+ factory: "
    rb"|oneDNN supports DT_INT64 only on platforms with AVX-512"
)
# What goes on with a note: where in a graph, or the tracebacks of a Python function that TensorFlow called, whose last
# line is an exception of any name. The error itself is raised, and told, as a Python exception.
_CONTINUED = re.compile(
    rb"\s|$|Traceback \(most recent call last\):|(\w+\.)*\w*(Error|Exception|Iteration|Interrupt)\b|(\w+\.)+\w+: "
    rb"|During handling of the above exception, |The above exception was the direct cause |\[\[|\{\{"
)
_LAST_WORDS = 1.0  # seconds that the end of the program waits for the child


def chosen_level() -> int:
    """Return the logging level that the environment variable TFDETR_LOG names; "info" by default.

    Raises:
        ValueError: it names no level.
    """
    name = os.environ.get(VARIABLE, "info").lower()
    if name not in LEVELS:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(LEVELS)}, not {name!r}")
    return LEVELS[name]


def configure(whole_process: bool) -> None:
    """Send the program's own log to stderr, and keep other libraries' notes out of it.

    With `TFDETR_LOG=debug` everything from every library is shown.

    Args:
        whole_process: whether the process runs only this program, so that its stderr may be filtered.

    Raises:
        ValueError: as `chosen_level`.
    """
    level = chosen_level()
    if level > logging.DEBUG and whole_process:
        warnings.simplefilter("ignore")
        _filter_descriptor()
    logging.basicConfig(
        level=logging.DEBUG if level == logging.DEBUG else logging.ERROR, format="%(levelname)s: %(message)s"
    )
    for name in OURS:
        logging.getLogger(name).setLevel(level)
    if level > logging.DEBUG:
        for name in ("tensorflow", "absl"):  # which set their own level
            logging.getLogger(name).setLevel(logging.ERROR)


def is_note(line: bytes) -> bool:
    """Return whether a line of stderr is a native library's note and not an error."""
    return bool(_NOTE.match(line) or _FALSE_ALARM.search(line))


class Filter:
    """A filter of lines: it drops notes and the further lines of a note."""

    def __init__(self) -> None:
        self._in_note = False

    def __call__(self, line: bytes) -> bool:
        """Return whether to show the next line."""
        self._in_note = is_note(line) or (self._in_note and bool(_CONTINUED.match(line)))
        return not self._in_note


def _filter_descriptor() -> None:
    """Let a child process filter what is written to file descriptor 2, bypassed by `sys.stderr`."""
    if not hasattr(os, "fork"):  # Windows
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        return
    if sys.stderr is None:  # the program was started without one
        return
    terminal = os.dup(2)
    reading, writing = os.pipe()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(writing)
        _pass_on(reading, terminal)
        os._exit(0)
    os.close(reading)
    os.dup2(writing, 2)
    os.close(writing)
    sys.stderr = os.fdopen(terminal, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
    atexit.register(_end, child, terminal)


def _pass_on(reading: int, terminal: int) -> None:
    """Copy lines that are not notes until the last writer is gone; leave Ctrl-C and kills to the program itself."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Descriptors of the parent's that are not its own, such as a pipe that its reader waits to see closed.
    os.dup2(terminal, 2)
    os.dup2(terminal, 1)
    begun, wanted = b"", Filter()
    while chunk := os.read(reading, 1 << 16):
        *lines, begun = (begun + chunk).split(b"\n")
        shown = b"".join(line + b"\n" for line in lines if wanted(line))
        with contextlib.suppress(OSError):  # nobody reads it any more
            os.write(terminal, shown)
    if begun and wanted(begun):
        with contextlib.suppress(OSError):
            os.write(terminal, begun)


def _end(child: int, terminal: int) -> None:
    """Close the pipe, and wait until the child has passed on its content."""
    with contextlib.suppress(OSError):
        os.dup2(terminal, 2)
    until = time.monotonic() + _LAST_WORDS
    with contextlib.suppress(ChildProcessError):
        # Not for ever: another child of the program may hold the pipe open.
        while os.waitpid(child, os.WNOHANG)[0] == 0 and time.monotonic() < until:
            time.sleep(0.005)
