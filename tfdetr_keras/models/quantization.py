"""Quantised models: which layers `quantize` has changed, as it is saved with a model and done again when one is loaded.

Keras quantises layer by layer, and each layer then has other variables than it was built with. A model that is made of
its configuration alone therefore has to be quantised in the same way before its weights fit.
"""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
from keras import layers

MODES = ("int8", "int4", "float8")
# Convolutions stay in float, also where Keras could quantise them: the backbone and the mask head use their kernels
# directly, scaled by the normalisation or cut in two.
QUANTIZABLE = (layers.Dense, layers.EinsumDense, layers.Embedding)

Filters = str | Sequence[str] | Callable[[keras.layers.Layer], bool] | None


def check_mode(mode: Any) -> None:
    """Raise a `ValueError` for a mode of quantisation that these models do not have.

    Args:
        mode: as Keras resolved it from `mode` or `config`.
    """
    if mode not in MODES:
        raise ValueError(
            f"mode {mode!r}: these models can be quantised as {', '.join(map(repr, MODES))}. GPTQ and AWQ take a stack "
            "of blocks of which each feeds the next; a DETR is none"
        )


def selects(filters: Filters, mode: str) -> Callable[[keras.layers.Layer], bool]:
    """Return which layers are quantised: those that can be and are not yet, and that the caller's filters let through.

    Args:
        mode: of quantisation; Keras has no float8 for embeddings.
        filters: as for Keras' `quantize`: a regular expression or several, searched for in the layer's name, or a
            function of the layer.
    """

    def is_selected(layer: keras.layers.Layer) -> bool:
        if type(layer) not in QUANTIZABLE or (mode == "float8" and type(layer) is layers.Embedding):
            return False
        if layer.quantization_mode is not None or filters is None:
            return layer.quantization_mode is None
        if callable(filters):
            return bool(filters(layer))
        return any(re.search(pattern, layer.name) for pattern in ([filters] if isinstance(filters, str) else filters))

    return is_selected


@contextlib.contextmanager
def without_full_collections() -> Iterator[None]:
    """Keep Python's garbage collections short while it is open.

    For each layer Keras deletes the old kernel and collects garbage in the whole process: a quarter of a second for
    each of a model's fifty or hundred layers. Here a collection looks only at what came into being meanwhile.
    """
    if gc.get_freeze_count():  # by somebody who would miss it
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def mode_of(model: keras.Model) -> str | None:
    """Return the mode in which a model is quantised, `"int8"`, `"int4"` or `"float8"`; None if it is not."""
    return next((layer.quantization_mode for layer in _quantized(model).values()), None)


def is_integer(model: keras.Model) -> bool:
    """Whether some of a model's weights are integers, which no gradient changes."""
    return any(layer.quantization_mode in ("int8", "int4") for layer in _quantized(model).values())


def check_trainable(model: keras.Model) -> None:
    """Raise a `ValueError` for a model whose weights are integers, which no gradient changes."""
    if is_integer(model):
        raise ValueError(
            f"this model is quantised ({mode_of(model)}): its integer weights cannot be trained. Train the original, "
            "then quantise it"
        )


def describe_quantization(model: keras.Model, within: keras.Model | None = None) -> list[dict[str, Any]]:
    """Describe as plain values how a model is quantised; `quantize_as` does it again.

    Args:
        model: the model.
        within: a model with fewer layers, of which alone is told.

    Returns:
        `[{"config": a serialised `keras.quantizers.QuantizationConfig`, "layers": [path, …]}, …]`; empty for a model
        that is not quantised. Paths are without the model's own name.
    """
    described: list[dict[str, Any]] = []
    wanted = None if within is None else {_path(layer) for layer in _leaves(within)}
    for path, layer in _quantized(model).items():
        if wanted is not None and path not in wanted:
            continue
        config = keras.saving.serialize_keras_object(layer.quantization_config)
        group = next((group for group in described if group["config"] == config), None)
        if group is None:
            described.append(group := {"config": config, "layers": []})
        group["layers"].append(path)
    return described


def quantize_as(model: keras.Model, described: Sequence[Mapping[str, Any]]) -> None:
    """Quantise a fresh model in the way that `describe_quantization` described.

    Args:
        model: of the same architecture; its weights are to be replaced afterwards.
        described: what `describe_quantization` returned.

    Raises:
        ValueError: a layer that the model does not have.
    """
    if not described:
        return
    known = {_path(layer): layer for layer in _leaves(model)}
    with without_full_collections():
        for group in described:
            config = keras.saving.deserialize_keras_object(group["config"])
            for path in group["layers"]:
                if path not in known:
                    raise ValueError(f"the layer {path!r}, which is said to be quantised, is not one of this model")
                known[path].quantize(config.mode, config=config)


def _quantized(model: keras.Model) -> dict[str, keras.layers.Layer]:
    return {_path(layer): layer for layer in _leaves(model) if layer.quantization_mode is not None}


def _leaves(model: keras.Model) -> list[keras.layers.Layer]:
    return [layer for layer in model._flatten_layers() if type(layer) in QUANTIZABLE]


def _path(layer: keras.layers.Layer) -> str:
    """Return a layer's place in the model, as in the paths of its variables."""
    return layer.path.split("/", 1)[1]
