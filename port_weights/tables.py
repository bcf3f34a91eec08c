"""Tables of names, read in both directions: the names of a checkpoint's tensors and the paths of Keras' variables.

A row holds a PyTorch name, a Keras path and the layout between them. `{i}` stands for a number, the same on both sides;
`{i-1}` on the PyTorch side for that number less one.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from port_weights.layouts import Layout

Row = tuple[str, str, Layout]
# What PyTorch's code keeps beside a variable although the architecture tells it: a PyTorch name, the path of the Keras
# variable that it stands beside, and what it holds in a model of a configuration.
Buffer = tuple[str, str, Callable[[Any], np.ndarray]]

# Counters of ordinary batch norm and of averaged weights, which some checkpoints carry and nothing reads; what RT-DETR
# makes of its configuration or of a fixed size of images; classifiers of a backbone alone.
IGNORED = re.compile(
    r"(.*\.)?(num_batches_tracked|(n|num)_points_scale|decoder\.(anchors|valid_mask)|encoder\.pos_embed\d+)|n_averaged"
    r"|fc\.(weight|bias)|classifier\.1\.(weight|bias)|(.*\.)?_kp_active_mask"
)


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One way of naming a checkpoint's tensors.

    Args:
        title: what to call it.
        rows: the table, PyTorch names with the prefixes of this checkpoint.
        copies: other names of tensors, which hold the same values: written with them, and read where they are there.
        buffers: what is written beside variables, and never read.
    """

    title: str
    rows: tuple[Row, ...]
    copies: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, hash=False)
    buffers: tuple[Buffer, ...] = ()

    def torch_name(self, path: str) -> tuple[str, Layout] | None:
        """Return the PyTorch name and layout of a Keras variable's path; None where this scheme does not hold it."""
        for torch_pattern, keras_pattern, layout in self.rows:
            if match := _expression(keras_pattern).fullmatch(path):
                return _fill(torch_pattern, {key: int(value) for key, value in match.groupdict().items()}), layout
        return None

    def buffers_beside(self, path: str) -> Iterator[tuple[str, Callable[[Any], np.ndarray]]]:
        """Give the PyTorch names, and contents by configuration, of what is written beside a Keras variable."""
        given = set()
        for torch_pattern, keras_pattern, content in self.buffers:
            match = _expression(keras_pattern).fullmatch(path)
            if match and content not in given:  # of several rows for one thing the first, as of variables
                given.add(content)
                yield _fill(torch_pattern, {key: int(value) for key, value in match.groupdict().items()}), content

    def keras_paths(self, name: str) -> Iterator[tuple[str, Layout]]:
        """Give the Keras path and layout of a PyTorch tensor: three of a packed one, none of an unknown one."""
        for torch_pattern, keras_pattern, layout in self.rows:
            if match := _expression(torch_pattern).fullmatch(name):
                numbers = {key: int(value) for key, value in match.groupdict().items()}
                offsets = {key: offset for key, offset in _placeholders(torch_pattern)}
                yield _fill(keras_pattern, {key: value - offsets[key] for key, value in numbers.items()}), layout


_PLACEHOLDER = re.compile(r"\{(\w)(-1)?\}")


def _placeholders(pattern: str) -> list[tuple[str, int]]:
    return [(key, int(offset or 0)) for key, offset in _PLACEHOLDER.findall(pattern)]


@functools.cache
def _expression(pattern: str) -> re.Pattern[str]:
    parts, seen, end = [], set(), 0
    for match in _PLACEHOLDER.finditer(pattern):
        key = match.group(1)
        parts += [re.escape(pattern[end : match.start()]), f"(?P={key})" if key in seen else f"(?P<{key}>\\d+)"]
        seen.add(key)
        end = match.end()
    return re.compile("".join([*parts, re.escape(pattern[end:])]))


def _fill(pattern: str, numbers: dict[str, int]) -> str:
    return _PLACEHOLDER.sub(lambda match: str(numbers[match[1]] + int(match[2] or 0)), pattern)


def held(buffers: Iterable[Buffer], names: Iterable[str]) -> tuple[Buffer, ...]:
    """Return the buffers that a checkpoint of these names holds."""
    names = tuple(names)
    return tuple(buffer for buffer in buffers if any(_expression(buffer[0]).fullmatch(name) for name in names))


def prefixed(rows: Iterable[Row], prefix: str) -> list[Row]:
    """Put a prefix before the PyTorch names of rows."""
    return [(prefix + name, path, layout) for name, path, layout in rows]
