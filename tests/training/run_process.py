"""Training in processes that can be killed, and what is heard of them."""

import multiprocessing

TIMEOUT = 600  # seconds to wait for a sign of life


def with_tensorflow():
    """Makes processes that have TensorFlow imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["small_run"])
    return context


def start(processes, target, folder, *arguments, **options):
    """The process, and the end of a pipe at which it is heard."""
    here, there = processes.Pipe(duplex=False)
    process = processes.Process(target=target, args=(folder, there, *arguments), kwargs=options)
    process.start()
    there.close()
    return process, here


def heard(pipe, number):
    """The next so many words, fewer where the process ends before."""
    words = []
    while len(words) < number:
        assert pipe.poll(TIMEOUT)
        try:
            words.append(pipe.recv())
        except EOFError:
            break
    return words
