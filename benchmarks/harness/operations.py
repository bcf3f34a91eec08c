"""How long each kind of TensorFlow operation takes, from the profiler's trace."""

from __future__ import annotations

import collections
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_OPERATION = re.compile(r"^[\w/.\-]+:([A-Za-z_]\w*)$")  # place in the graph, kind


class Kind(NamedTuple):
    """All operations of one kind."""

    seconds: float
    calls: int


def operations(run: Callable[[], object]) -> dict[str, Kind]:
    """Runs something once and gives the time by kind of operation, the longest first.

    An operation's time is from its start to its end on the clock; where two run side by side on the same cores, both
    count in full, and so the sum is more than the time that passed.
    """
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    seconds: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        run()
        tf.profiler.experimental.stop()
        [file] = Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace()
        space.ParseFromString(file.read_bytes())
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                if found := _OPERATION.match(plane.event_metadata[event.metadata_id].name):
                    kind = found[1].removeprefix("_MklNative").removeprefix("_Mkl")
                    seconds[kind] += event.duration_ps / 1e12
                    calls[kind] += 1
    return {kind: Kind(value, calls[kind]) for kind, value in seconds.most_common()}
