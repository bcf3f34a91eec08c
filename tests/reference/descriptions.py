"""What a model of the reference is, as plain data: the tests write it down, and `models` builds it."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class HuggingFace:
    """A detector of transformers over its own ResNet or vision transformer, with random weights.

    Args:
        architecture: the name of its class.
        backbone: fields of its `ResNetConfig`, or of the configuration of its vision transformer.
        fields: fields of its own configuration.
        values: how its weights are drawn: the name of a function in `weights`.
        seed: for drawing them.
    """

    architecture: str
    backbone: Mapping[str, Any]
    fields: Mapping[str, Any]
    values: str = "telling"
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Facebook:
    """A `facebook.FacebookDetr` with random weights.

    Args:
        fields: its arguments.
        values: how its weights are drawn: the name of a function in `weights`.
        seed: for drawing them.
    """

    fields: Mapping[str, Any]
    values: str = "telling"
    seed: int = 0
