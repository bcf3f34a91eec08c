"""The solvers that the assignment benchmark compares, each with the same interface, and where they come from."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from harness.loads import COST_BBOX, COST_CLASS, COST_GIOU, QUERIES
from harness.peers import not_installed, peer_folder

PEERS = {  # process → what it needs besides our own environment, without dependencies
    "garden": ("tf-models-official==2.20.0", "tf-keras==2.21.0"),
    "kerashub": ("keras-hub==0.32.0",),
    "optax": ("optax==0.2.8",),
}
OURS, SCIPY, GARDEN, GARDEN_XLA, KERASHUB = "ours, XLA", "scipy", "Model Garden, graph", "Model Garden, XLA", "KerasHub"
OWN_PADDING = ", own padding"
CONTENDERS = {  # column of the table → (process, Keras backend)
    OURS: ("ours-tensorflow", "tensorflow"),
    "ours, eager graph": ("ours-tensorflow", "tensorflow"),
    "ours, JAX": ("ours-jax", "jax"),
    SCIPY: ("scipy", "tensorflow"),
    GARDEN: ("garden", "tensorflow"),
    GARDEN_XLA: ("garden", "tensorflow"),
    KERASHUB: ("kerashub", "tensorflow"),
    "optax, vmap": ("optax", "jax"),
}
WITH_OWN_PADDING = {name + OWN_PADDING: CONTENDERS[name] for name in (GARDEN, GARDEN_XLA, KERASHUB)}
# No cost is as low as this (probability 1, GIoU 1, no distance).
LOW_PADDING = -COST_CLASS - COST_GIOU
# What the projects' own losses pad with: the largest cost that the weights allow but for the sign of GIoU; a constant.
GARDEN_PADDING, KERASHUB_PADDING = COST_CLASS + 4 * COST_BBOX + COST_GIOU, 1e9


def search_path(process: str) -> list[str]:
    """Where a worker process finds its packages, besides our own environment."""
    return [str(peer_folder(PEERS[process]))] if process in PEERS else []


def missing(process: str, backend: str) -> str | None:
    """Installs what a worker process needs; returns why it cannot run, if so."""
    if backend == "jax" and importlib.util.find_spec("jax") is None:
        return "no jax"
    return not_installed(PEERS[process]) if process in PEERS else None


# A solver takes costs and counts, and returns what is timed, and what makes the queries `(problems, targets)` of its
# result; entries of padded targets mean nothing.
Solver = tuple[Callable[[], Any], Callable[[Any], np.ndarray]]


def _is_real(cost: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.arange(cost.shape[1]) < counts[:, None]


def _squares(cost: np.ndarray, counts: np.ndarray, padding: float) -> np.ndarray:
    """`(problems, queries, queries)`: predictions × targets, with targets of cost `padding` behind the real ones."""
    squares = np.full((len(cost), QUERIES, QUERIES), padding, np.float32)
    squares[:, : cost.shape[1]] = np.where(_is_real(cost, counts)[:, :, None], cost, np.float32(padding))
    return squares.transpose(0, 2, 1).copy()


def _scipy(cost: np.ndarray, counts: np.ndarray) -> Solver:
    from scipy.optimize import linear_sum_assignment

    def run() -> list[np.ndarray]:
        return [linear_sum_assignment(matrix[:count])[1] for matrix, count in zip(cost, counts, strict=True)]

    def queries(found: list[np.ndarray]) -> np.ndarray:
        return np.stack([np.pad(row, (0, cost.shape[1] - len(row)), constant_values=-1) for row in found])

    return run, queries


def _ours_tensorflow(cost: np.ndarray, counts: np.ndarray, jit_compile: bool) -> Solver:
    import tensorflow as tf

    from tfdetr_keras.matching.assignment import linear_sum_assignment

    solve = tf.function(linear_sum_assignment, jit_compile=jit_compile)
    tensors = tf.constant(cost), tf.constant(_is_real(cost, counts))
    return lambda: solve(*tensors).numpy(), np.asarray


def _ours_jax(cost: np.ndarray, counts: np.ndarray) -> Solver:
    import jax

    from tfdetr_keras.matching.assignment import linear_sum_assignment

    solve = jax.jit(linear_sum_assignment)
    tensors = jax.device_put(cost), jax.device_put(_is_real(cost, counts))
    return lambda: np.asarray(solve(*tensors)), np.asarray


def _garden(cost: np.ndarray, counts: np.ndarray, padding: float, jit_compile: bool) -> Solver:
    import tensorflow as tf
    from official.projects.detr.ops.matchers import hungarian_matching

    @tf.function(jit_compile=jit_compile)
    def solve(squares: tf.Tensor) -> tf.Tensor:
        return tf.argmax(hungarian_matching(squares)[1], axis=1)  # as its training task does

    squares = tf.constant(_squares(cost, counts, padding))
    return lambda: solve(squares).numpy(), lambda found: found[:, : cost.shape[1]]


def _kerashub(cost: np.ndarray, counts: np.ndarray, padding: float) -> Solver:
    import tensorflow as tf

    # The package as a whole wants more than is installed; this file wants Keras alone.
    path = peer_folder(PEERS["kerashub"]) / "keras_hub/src/models/d_fine/d_fine_utils.py"
    spec = importlib.util.spec_from_file_location("d_fine_utils", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def solve_one(problem: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        square, count = problem
        solved = lambda: tf.cast(module.hungarian_assignment(square, QUERIES)[1], tf.int32)  # noqa: E731
        return tf.cond(count > 0, solved, lambda: tf.zeros(QUERIES, tf.int32))  # its loss skips images without targets

    @tf.function(jit_compile=True)
    def solve(squares: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(solve_one, (squares, counts), fn_output_signature=tf.TensorSpec(QUERIES, tf.int32))

    tensors = tf.constant(_squares(cost, counts, padding)), tf.constant(counts)
    return lambda: solve(*tensors).numpy(), lambda targets: _inverse(targets)[:, : cost.shape[1]]


def _optax(cost: np.ndarray, counts: np.ndarray) -> Solver:
    import jax
    from optax.assignment import hungarian_algorithm

    solve = jax.jit(jax.vmap(hungarian_algorithm))
    # Targets that cost nothing anywhere take what the real ones leave.
    padded = jax.device_put(np.where(_is_real(cost, counts)[:, :, None], cost, np.float32(0)))

    def queries(pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return np.take_along_axis(pairs[1], _inverse(pairs[0]), axis=1)

    return lambda: tuple(map(np.asarray, solve(padded))), queries


def _inverse(permutations: np.ndarray) -> np.ndarray:
    return np.argsort(permutations, axis=1, kind="stable")


def solver(contender: str, cost: np.ndarray, counts: np.ndarray) -> Solver:
    """Prepares a contender for costs `(problems, targets, queries)` float32, of which each problem's first count."""
    own_padding = contender.endswith(OWN_PADDING)
    contender = contender.removesuffix(OWN_PADDING)
    process = CONTENDERS[contender][0]
    if process == "ours-tensorflow":
        return _ours_tensorflow(cost, counts, jit_compile=contender == OURS)
    if process == "garden":
        padding = GARDEN_PADDING if own_padding else LOW_PADDING
        return _garden(cost, counts, padding, jit_compile=contender == GARDEN_XLA)
    if process == "kerashub":
        return _kerashub(cost, counts, KERASHUB_PADDING if own_padding else LOW_PADDING)
    return {"scipy": _scipy, "ours-jax": _ours_jax, "optax": _optax}[process](cost, counts)
