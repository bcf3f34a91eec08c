"""Worker processes that stay open, so that frameworks which cannot share a process are timed in turn, on one machine.

A worker is the benchmark's own file, started once more with `--worker NAME`. It reads a request per line, `[function,
arguments…]` in JSON, and answers with the function's result in a line of JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

# Nothing runs on an accelerator unless the caller's environment shows one: the bars are about the CPU.
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
FEWEST_REPETITIONS = 3
# A contender that takes long is repeated as often as the first allows; one that takes longer than the second runs once.
SECONDS_PER_FIGURE, LONG = 4.0, 10.0


class Worker:
    """A process that answers requests, one at a time."""

    def __init__(self, name: str, **environment: str) -> None:
        self.messages = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, sys.argv[0], "--worker", name],
            env={**ENVIRONMENT, **os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.messages,
            text=True,
        )
        self.name = name

    def ask(self, function: str, *arguments: Any) -> Any:
        """Runs a function of the worker's and returns its result."""
        print(json.dumps([function, *arguments]), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            self.messages.seek(0)
            sys.stderr.write(self.messages.read())
            raise RuntimeError(f"the worker {self.name!r} ended during {function}{arguments}; its messages stand above")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def serve(**functions: Callable[..., Any]) -> None:
    """Answers requests until the benchmark closes the pipe."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(functions[name](*arguments)), file=answers, flush=True)


def take_turns(
    run: Mapping[str, Callable[[], float]], repetitions: int, seconds_per_figure: float = SECONDS_PER_FIGURE
) -> dict[str, list[float]]:
    """Times contenders in turn, each once per round.

    Args:
        run: by name, a function that does the work once and returns the seconds it took.
        repetitions: number of rounds. Contenders for which these would take too long drop out earlier.
        seconds_per_figure: what is too long for all rounds of a contender.
    """
    seconds = {name: [once()] for name, once in run.items()}
    for round_ in range(1, repetitions):
        for name, once in run.items():
            duration = statistics.median(seconds[name])
            few = round_ < FEWEST_REPETITIONS and duration < LONG
            if few or (round_ + 1) * duration < seconds_per_figure:
                seconds[name].append(once())
    return seconds
