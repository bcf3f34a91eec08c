"""What every backbone's configuration says, whichever network it is."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Self

from keras import layers

from tfdetr_keras.layers.batch_norm import BatchNorm


@dataclasses.dataclass(frozen=True)
class BackboneConfig(abc.ABC):
    """The architecture of a backbone: pixels in, feature maps out, the finest first.

    The layer that `make` gives has `parts`, a mapping of the names in `parts` here to its layers.
    """

    @property
    @abc.abstractmethod
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that can be frozen, in the order of computation."""

    @property
    @abc.abstractmethod
    def channels(self) -> tuple[int, ...]:
        """Channels of each feature map."""

    @property
    def batch_norm(self) -> BatchNorm | Mapping[str, BatchNorm] | None:
        """How batch normalisation is done, in all parts or in each; None where there is none."""
        return None

    @property
    def title(self) -> str:
        """What to call it in a sentence, with an article."""
        return f"a {type(self).__name__.removesuffix('Config')}"

    @abc.abstractmethod
    def make(self, **kwargs: Any) -> layers.Layer:
        """Make the backbone: `(batch, height, width, 3)` → a list of `(batch, h, w, channels)`.

        Args:
            **kwargs: `name` and `dtype`, as for `keras.layers.Layer`.
        """

    @property
    def is_foldable(self) -> bool:
        """Whether there is batch normalisation that can be folded into convolutions."""
        return False

    def folded(self) -> Self:
        """Return the same backbone as it computes with batch normalisation folded."""
        return self


def whole_number(name: str, value: Any) -> None:
    """Raise a `ValueError` unless a field is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def share(name: str, value: Any) -> None:
    """Raise a `ValueError` unless a field is a number from 0 to 1."""
    if not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, not {value!r}")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise a `ValueError` unless a field is one of some words."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}")
