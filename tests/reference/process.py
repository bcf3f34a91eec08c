"""The process in which the reference runs, and calling its functions from another one."""

import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Mapping

PACKAGE = __name__.rpartition(".")[0]
SECONDS_TO_RETURN = 10


class ReferenceFailure(Exception):
    """What a function of the reference raised, with its traceback; or that its process died."""


class PyTorch:
    """A child process that holds torch and transformers: started by the first call, and ended by `close`.

    It imports the modules of this package and none of the program that calls it. Should it die, the call fails and the
    next one starts another.
    """

    def __init__(self):
        self._process = self._pipe = None

    def call(self, function, /, *arguments, **options):
        """Calls a function of this package in the child.

        Args:
            function: `"module:name"`, for example `"stages:of_batch"`.
            *arguments: anything that can be pickled.
            **options: likewise.

        Returns:
            What the function returns; tensors arrive as arrays.

        Raises:
            ReferenceFailure: the function raised, or the process died.
        """
        if self._process is None:
            self._start()
        try:
            self._pipe.send((function, arguments, options))
            value, failure = self._pipe.recv()
        except (EOFError, ConnectionError):
            process = self._process
            self.close()
            raise ReferenceFailure(f"{function}: the process of PyTorch died with status {process.exitcode}") from None
        if failure is not None:
            raise ReferenceFailure(f"{function}: {failure}")
        return value

    def close(self):
        """Ends the child."""
        if self._process is not None:
            self._pipe.close()  # at which it returns, unless it is at work
            self._process.join(SECONDS_TO_RETURN)
            self._process.kill()
            self._process.join()
            self._process = self._pipe = None

    def _start(self):
        context = multiprocessing.get_context("spawn")  # a fork would hold TensorFlow
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()


def serve(pipe):
    """Answers calls until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which then close the pipe
    while True:
        try:
            request = pipe.recv_bytes()
        except EOFError:
            return
        try:
            answer = pickle.dumps((_answer(*pickle.loads(request)), None))
        except BaseException:
            answer = pickle.dumps((None, traceback.format_exc()))
        pipe.send_bytes(answer)


def _answer(function, arguments, options):
    if "torch" not in sys.modules:
        _prepare()
    module, name = function.split(":")
    return _plain(getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)(*arguments, **options))


def _prepare():
    """Quiet, and on one thread: on busy cores PyTorch's threads wait for each other."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _plain(value):
    """A value with arrays in place of tensors and a dict in place of each other mapping."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value


def loaded_modules():
    """The names of all modules and packages in this process that lie in no package, such as `torch`."""
    return {name for name in sys.modules if "." not in name}


def identity():
    """The number of this process."""
    return os.getpid()
