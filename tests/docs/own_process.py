"""A function in a process of its own: what a page's programs hold in memory, gigabytes of graphs, ends with it."""

import multiprocessing
import os
import traceback

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["code_blocks"])  # TensorFlow is imported once


def in_own_process(function, folder, *arguments):
    """Calls a module's function in a folder; what it raises fails the test with the traceback."""
    here, there = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_call, args=(there, function, folder, arguments))
    process.start()
    there.close()
    try:
        told = here.recv()
    except EOFError:
        process.join()
        told = f"the process died with status {process.exitcode}"
    process.join()
    assert told is None, told


def _call(pipe, function, folder, arguments):
    os.chdir(folder)
    try:
        function(*arguments)
    except BaseException:
        pipe.send(traceback.format_exc())
    else:
        pipe.send(None)
