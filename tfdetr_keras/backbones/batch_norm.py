"""How batch normalisation is done in each part of a backbone: one word for all parts, or a word for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tfdetr_keras.layers.batch_norm import BatchNorm
from tfdetr_keras.names.spelling import did_you_mean

WORDS = ("frozen", "trainable", "folded")


def by_part(value: Any, parts: Sequence[str]) -> BatchNorm | dict[str, BatchNorm]:
    """Return the setting in its shortest form: one word, or a mapping that names every part.

    Args:
        value: "frozen", "trainable" or "folded", or a mapping of parts to one of the first two; parts that it does not
            name are "trainable".
        parts: of the backbone.

    Raises:
        ValueError: another word, or a part that does not exist.
    """
    if not isinstance(value, Mapping):
        if value not in WORDS:
            raise ValueError(
                f"batch_norm={value!r} must be one of {', '.join(map(repr, WORDS))}, or a mapping of parts"
            )
        return value
    for part, word in value.items():
        if part not in parts:
            raise ValueError(
                f"batch_norm: {part!r} is no part of this backbone; there are {', '.join(parts)}"
                f"{did_you_mean(str(part), list(parts))}"
            )
        if word not in WORDS[:2]:
            raise ValueError(f"batch_norm[{part!r}]={word!r} must be one of {', '.join(map(repr, WORDS[:2]))}")
    words = {part: value.get(part, "trainable") for part in parts}
    return next(iter(words.values())) if len(set(words.values())) == 1 else words


def of_part(batch_norm: BatchNorm | Mapping[str, BatchNorm], part: str) -> BatchNorm:
    """Return the word of one part."""
    return batch_norm[part] if isinstance(batch_norm, Mapping) else batch_norm
