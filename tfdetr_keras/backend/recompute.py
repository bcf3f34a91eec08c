"""Layers whose intermediate results are computed again in the backward pass instead of being kept: less memory.

`keras.RematScope` does this for layers without state of their own. Called a second time, dropout would draw another
mask, batch normalisation would move its running statistics twice, and JAX refuses to let either change a variable. So
here a layer runs as a function of its variables' values, and what its first call makes of them is assigned once.

Source:
    Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras


def called(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a layer; in training, if its `recompute` is set, keep only its inputs for the backward pass.

    Args:
        layer: of any kind.
        *args: of its `call`.
        **kwargs: likewise; `training` says whether there will be a backward pass.
    """
    if not getattr(layer, "recompute", False) or not kwargs.get("training"):
        return layer(*args, **kwargs)
    leaves = keras.tree.flatten((args, kwargs))
    if any(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
        return layer(*args, **kwargs)  # shapes alone are asked for
    variables = layer.variables
    with _unrounded(variables):
        values = [keras.ops.copy(variable.value) for variable in variables]
    # Gradients flow to what is floating; all else is the same in both calls.
    given = [*leaves, *values]
    places = [place for place, leaf in enumerate(given) if _is_floating(leaf)]
    changing = layer.non_trainable_variables

    def function(*floating: Any) -> tuple[Any, list[Any]]:
        merged = list(given)
        for place, value in zip(places, floating, strict=True):
            merged[place] = value
        args_, kwargs_ = keras.tree.pack_sequence_as((args, kwargs), merged[: len(leaves)])
        state = zip(variables, merged[len(leaves) :], strict=True)
        with keras.StatelessScope(state_mapping=list(state)) as scope:
            outputs = layer(*args_, **kwargs_)
        return outputs, [scope.get_current_value(variable) for variable in changing]

    outputs, after = _run(function, [given[place] for place in places])
    for variable, value in zip(changing, after, strict=True):
        variable.assign(value)
    return outputs


def _run(function: Callable[..., Any], inputs: Sequence[Any]) -> Any:
    """Return the outputs of a function, to be recomputed, and the state after the first of its calls."""
    if keras.backend.backend() == "jax":  # from whose function nothing may get out but what it returns
        return keras.remat(function)(*inputs)
    states: list[Any] = []

    def outputs(*floating: Any) -> Any:
        found, after = function(*floating)
        states.append(after)
        return found

    return keras.remat(outputs)(*inputs), states[0]


@contextlib.contextmanager
def _unrounded(variables: Sequence[Any]) -> Iterator[None]:
    """Let variables be read as they are within a layer of lower precision, to whose dtype Keras would cast them."""
    before = [variable._autocast for variable in variables]
    try:
        for variable in variables:
            variable._autocast = False
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable._autocast = value


def _is_floating(leaf: Any) -> bool:
    return keras.ops.is_tensor(leaf) and "float" in keras.backend.standardize_dtype(leaf.dtype)
