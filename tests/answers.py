"""What the reference computed of a case, read from files that are kept between test runs.

They lie in pytest's cache, `.pytest_cache/d/reference`, under a hash of all that they depend on: the case, the batches,
the code of `tests/reference`, and the versions of PyTorch and transformers. So PyTorch is started for new cases alone.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import shutil
from pathlib import Path

import numpy as np
from once import once

LIBRARIES = ("torch", "transformers", "numpy")


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a PyTorch model is and computes.

    Args:
        folder: as `reference.answers.write` fills it.
    """

    folder: Path

    @property
    def checkpoint(self):
        """The folder that `save_pretrained` wrote."""
        return self.folder / "checkpoint"

    def arrays(self, name):
        """Return the arrays of one of the files by name: `state`, `stages0`, …, `losses`, `gradients`."""
        with np.load(self.folder / f"{name}.npz") as file:
            return dict(file)


def answers_of(case, pytorch, cache):
    """Return what the reference computes of a case, from the folder `cache` if it is there.

    Args:
        case: of `members`.
        pytorch: the process in which the reference runs.
        cache: a folder.
    """
    batches = [size.batch() for size in case.sizes]
    training_batch = case.training_batch() if case.has_gradients else None
    asked = (case.reference, batches, training_batch, case.loss, case.limits.in_double)
    folder = Path(cache) / case.name / _key(asked)

    def fill(empty):
        for old in folder.parent.glob("[0-9a-f]*"):  # of other code
            if old.is_dir():
                shutil.rmtree(old)
        description, *rest = asked
        pytorch.call("answers:write", description, empty, *rest)

    return Answers(once(folder, fill))


def _key(asked):
    digest = hashlib.sha256(_of_the_reference())
    for part in _flat(asked):
        digest.update(part)
    return digest.hexdigest()[:16]


def _flat(value):
    """The bytes of a value made of tuples, lists, dicts, arrays and what `repr` tells."""
    if isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, dict):
        for key, one in value.items():
            yield str(key).encode()
            yield from _flat(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _flat(one)
    else:
        yield repr(value).encode()


@functools.cache
def _of_the_reference():
    """The code of the reference, and the versions of what it runs on."""
    files = sorted((Path(__file__).parent / "reference").glob("*.py"))
    versions = [f"{name} {importlib.metadata.version(name)}".encode() for name in LIBRARIES]
    return b"\0".join([*(file.read_bytes() for file in files), *versions])
