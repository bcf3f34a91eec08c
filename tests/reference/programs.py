"""Programs of PyTorch that a document shows, which a reader runs without TensorFlow."""

import contextlib
import io


def run(code, name, folder):
    """Runs a program in a folder; returns what it prints.

    Args:
        code: the program.
        name: of the file that it stands in, for tracebacks.
        folder: the current one meanwhile.
    """
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(code, str(name), "exec"), {"__name__": "__main__"})
    return output.getvalue()


def pipeline(folder, paths, threshold):
    """What transformers' pipeline finds in images, by its own preparation of them: for each a list of plain values."""
    import transformers

    find = transformers.pipeline("object-detection", model=str(folder), threshold=threshold)
    return [find(path) for path in paths]
