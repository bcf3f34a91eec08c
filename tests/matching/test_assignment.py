"""The assignment against `scipy.optimize.linear_sum_assignment`, problem by problem."""

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import optimize

from tfdetr_keras.matching.assignment import linear_sum_assignment


def assert_optimal(cost, assigned, row_mask=None, column_mask=None, resolution=None):
    """Asserts that every problem of `(problems, rows, columns)` got a valid assignment of the least total cost.

    The total may miss the optimum by a few float32 roundings, at the scale of the costs, for each pair.
    """
    problems, rows, columns = cost.shape
    row_mask = np.ones((problems, rows), bool) if row_mask is None else row_mask
    column_mask = np.ones((problems, columns), bool) if column_mask is None else column_mask
    assigned = np.asarray(assigned)
    assert assigned.shape == (problems, rows)
    assert assigned.dtype == np.int32
    for problem in range(problems):
        real_rows, real_columns = np.flatnonzero(row_mask[problem]), np.flatnonzero(column_mask[problem])
        pairs = min(len(real_rows), len(real_columns))
        got_rows = np.flatnonzero(assigned[problem] >= 0)
        got_columns = assigned[problem, got_rows]
        assert len(got_rows) == pairs
        assert len(set(got_columns)) == pairs
        assert set(got_rows) <= set(real_rows)
        assert set(got_columns) <= set(real_columns)
        real = cost[problem][np.ix_(real_rows, real_columns)].astype(np.float64)
        least = real[optimize.linear_sum_assignment(real)].sum()
        total = cost[problem, got_rows, got_columns].astype(np.float64).sum()
        scale = np.abs(real).max(initial=0.0)
        allowed = 4 * np.finfo(np.float32).eps * scale * max(pairs, 1) if resolution is None else resolution
        assert abs(total - least) <= allowed, (problem, total, least)


def masks(rng, problems, size):
    mask = np.arange(size) < rng.integers(0, size + 1, (problems, 1))
    return rng.permuted(mask, axis=1)


SIZES = [(1, 1), (1, 7), (20, 3), (25, 100), (40, 40)]


def random_cost(rng, kind, shape):
    *_, rows, columns = shape
    uniform = rng.uniform(-1, 1, shape)
    if kind == "uniform":
        cost = uniform
    elif kind == "ties":
        cost = rng.integers(0, 4, shape)
    elif kind == "constant":
        cost = np.full(shape, 3.25)
    elif kind == "same rows":
        cost = np.broadcast_to(uniform[..., :1, :], shape)
    elif kind == "same columns":
        cost = np.broadcast_to(uniform[..., :, :1], shape)
    elif kind == "alike":
        cost = uniform[..., :1, :] + uniform[..., :, :1] + 1e-3 * rng.uniform(size=shape)
    elif kind == "product":  # the hardest known family for shortest augmenting paths
        cost = np.broadcast_to(np.arange(1.0, rows + 1)[:, None] * np.arange(1.0, columns + 1), shape)
    elif kind == "offset":
        cost = 1000 + uniform
    elif kind == "huge":
        cost = 1e30 * uniform
    elif kind == "tiny":
        cost = 1e-30 * uniform
    return np.ascontiguousarray(cost, dtype=np.float32)


KINDS = ["uniform", "ties", "constant", "same rows", "same columns", "alike", "product", "offset", "huge", "tiny"]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_total_cost_is_scipys(size):
    # All kinds in one batch, so that each size compiles once.
    rng = np.random.default_rng(sum(size))
    cost = np.concatenate([random_cost(rng, kind, (4, *size)) for kind in KINDS])
    assert_optimal(cost, linear_sum_assignment(cost))


@pytest.mark.parametrize("size", [(100, 300), (300, 100)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_large_problems(size):
    rng = np.random.default_rng(0)
    cost = np.concatenate([random_cost(rng, kind, (1, *size)) for kind in ("uniform", "ties", "alike", "offset")])
    assert_optimal(cost, linear_sum_assignment(cost))


@pytest.mark.parametrize(
    ("size", "masked"), [((9, 6), "rows"), ((9, 6), "columns"), ((9, 6), "both"), ((25, 40), "both")]
)
def test_masks(size, masked):
    rng = np.random.default_rng(sum(size))
    cost = np.concatenate([random_cost(rng, kind, (5, *size)) for kind in KINDS])
    row_mask = masks(rng, len(cost), size[0]) if masked != "columns" else None
    column_mask = masks(rng, len(cost), size[1]) if masked != "rows" else None
    assert_optimal(cost, linear_sum_assignment(cost, row_mask, column_mask), row_mask, column_mask)


def test_padding_may_hold_anything():
    rng = np.random.default_rng(0)
    cost = rng.uniform(size=(8, 12, 15)).astype("float32")
    row_mask, column_mask = masks(rng, 8, 12), masks(rng, 8, 15)
    real = row_mask[:, :, None] & column_mask[:, None, :]
    expected = linear_sum_assignment(np.where(real, cost, 0), row_mask, column_mask)
    for rubbish in (np.nan, np.inf, -np.inf, 3e38, -3e38):
        assigned = linear_sum_assignment(np.where(real, cost, np.float32(rubbish)), row_mask, column_mask)
        np.testing.assert_array_equal(assigned, expected)


def test_everything_masked():
    cost = np.random.default_rng(0).uniform(size=(3, 4, 6))
    nothing = np.full((3, 4), -1)
    np.testing.assert_array_equal(linear_sum_assignment(cost, row_mask=np.zeros((3, 4), bool)), nothing)
    np.testing.assert_array_equal(linear_sum_assignment(cost, column_mask=np.zeros((3, 6), bool)), nothing)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [(6, 11), (11, 6)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_entries_that_are_not_finite_are_a_last_resort(bad, size):
    rng = np.random.default_rng(1)
    cost = rng.uniform(size=(60, *size)).astype("float32")
    forbidden = rng.uniform(size=cost.shape) < np.linspace(0, 1, 60)[:, None, None]
    assigned = np.asarray(linear_sum_assignment(np.where(forbidden, np.float32(bad), cost)))
    # As few of them as possible, and then the least cost; both at once, as one costs more than all others together.
    assert_optimal(np.where(forbidden, np.float32(64), cost), assigned, resolution=1e-4)


def test_all_entries_not_finite():
    for bad in (np.nan, np.inf, -np.inf):
        assigned = np.asarray(linear_sum_assignment(np.full((2, 5, 8), bad)))
        assert all(len(set(row)) == 5 and min(row) >= 0 for row in assigned)


@pytest.mark.parametrize("axes", [(), (2, 3)])
def test_leading_axes(axes):
    rng = np.random.default_rng(0)
    cost = rng.uniform(size=(*axes, 4, 6)).astype("float32")
    row_mask, column_mask = rng.uniform(size=(*axes, 4)) < 0.7, rng.uniform(size=(*axes, 6)) < 0.7
    assigned = np.asarray(linear_sum_assignment(cost, row_mask, column_mask))
    assert assigned.shape == (*axes, 4)
    flat = cost.reshape(-1, 4, 6), assigned.reshape(-1, 4), row_mask.reshape(-1, 4), column_mask.reshape(-1, 6)
    assert_optimal(*flat)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (3, 0, 5), (3, 5, 0), (0, 4, 5)])
def test_empty(shape):
    assigned = np.asarray(linear_sum_assignment(np.zeros(shape)))
    assert assigned.dtype == np.int32
    np.testing.assert_array_equal(assigned, np.full(shape[:-1], -1))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int32"])
def test_dtypes(dtype):
    cost = np.random.default_rng(0).permutation(200).reshape(2, 10, 10)
    assert_optimal(cost.astype("float32"), linear_sum_assignment(keras.ops.cast(cost, dtype)))


def problems_with_masks(sizes=(9, 12), problems=40):
    rng = np.random.default_rng(5)
    cost = random_cost(rng, "uniform", (problems, *sizes))
    cost[::3] = random_cost(rng, "ties", cost[::3].shape)
    return cost, masks(rng, problems, sizes[0]), masks(rng, problems, sizes[1])


@pytest.mark.parametrize(("jit_compile", "sizes"), [(False, (9, 12)), (True, (9, 12)), (True, (12, 9))])
def test_inside_a_graph(jit_compile, sizes):
    cost, row_mask, column_mask = problems_with_masks(sizes)
    graph = tf.function(linear_sum_assignment, jit_compile=jit_compile)
    expected = linear_sum_assignment(cost, row_mask, column_mask)
    np.testing.assert_array_equal(graph(tf.constant(cost), tf.constant(row_mask), tf.constant(column_mask)), expected)


@pytest.mark.parametrize(
    ("unknown", "with_masks"),
    [
        ((0,), False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [((1,), False), ((2,), False), ((0, 1, 2), False)]),
        ((0, 1, 2), True),
    ],
)
def test_sizes_unknown_to_the_graph(unknown, with_masks):
    def spec(array, axes, dtype):
        return tf.TensorSpec([None if axis in unknown else array.shape[axis] for axis in axes], dtype)

    cost, *_ = problems_with_masks((9, 12))
    signature = [spec(cost, (0, 1, 2), tf.float32)]
    if with_masks:
        signature += [spec(cost, (0, 1), tf.bool), spec(cost, (0, 2), tf.bool)]
    graph = tf.function(linear_sum_assignment, input_signature=signature)
    for sizes in [(9, 12), (16, 5)]:
        rows, columns = sizes[0] if 1 in unknown else 9, sizes[1] if 2 in unknown else 12
        cost, *mask_pair = problems_with_masks((rows, columns))
        given = mask_pair if with_masks else []
        assert_optimal(cost, graph(cost, *given), *given)


def test_sizes_unknown_to_a_compiled_graph():
    graph = tf.function(linear_sum_assignment, input_signature=[tf.TensorSpec([None] * 3)], jit_compile=True)
    for sizes in [(9, 12), (12, 9)]:
        cost, _, _ = problems_with_masks(sizes)
        assert_optimal(cost, graph(cost))


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0)])
def test_sizes_unknown_to_the_graph_and_zero(shape):
    solve = tf.function(linear_sum_assignment, input_signature=[tf.TensorSpec([None] * 3)])
    np.testing.assert_array_equal(solve(tf.zeros(shape)), np.full(shape[:-1], -1))


def test_no_gradient():
    cost = tf.Variable(np.random.default_rng(0).uniform(size=(2, 3, 4)).astype("float32"))
    with tf.GradientTape() as tape:
        column = tf.maximum(linear_sum_assignment(cost), 0)
        total = tf.reduce_sum(tf.gather(cost, column, batch_dims=2))
    gradient = tf.convert_to_tensor(tape.gradient(total, cost))
    np.testing.assert_array_equal(gradient, tf.one_hot(column, 4))


@pytest.mark.parametrize(
    ("cost", "given", "message"),
    [
        ((5,), {}, r"cost must have shape \(\.\.\., rows, columns\), got \(5,\)"),
        ((2, 3, 4), {"row_mask": (2, 4)}, r"row_mask must have shape \(2, 3\).*got \(2, 4\)"),
        ((2, 3, 4), {"row_mask": (3,)}, r"row_mask must have shape \(2, 3\).*got \(3,\)"),
        ((2, 3, 4), {"column_mask": (2, 3)}, r"column_mask must have shape \(2, 4\).*got \(2, 3\)"),
    ],
)
def test_wrong_shapes(cost, given, message):
    with pytest.raises(ValueError, match=message):
        linear_sum_assignment(np.zeros(cost), **{name: np.ones(shape, bool) for name, shape in given.items()})


PUBLISHED = [
    # The examples of optax.assignment.hungarian_algorithm, 0.2.8, with their unique solutions.
    ([[8, 4, 7], [5, 2, 3], [9, 6, 7], [9, 4, 8]], [0, 2, -1, 1]),
    ([[90, 80, 75, 70], [35, 85, 55, 65], [125, 95, 90, 95], [45, 110, 95, 115], [50, 100, 90, 100]], [3, 2, 1, 0, -1]),
    # Those that the TensorFlow Model Garden tests its DETR matcher by, 2.20, solved by hand there.
    ([[4, 1, 3], [2, 0, 5], [3, 2, 2]], [1, 0, 2]),
    ([[1, 4, 3], [0, 2, 5], [2, 3, 2]], [0, 1, 2]),
    ([[1, 3, 4], [0, 5, 2], [2, 2, 3]], [0, 2, 1]),
]


@pytest.mark.parametrize(("cost", "solution"), PUBLISHED)
def test_published_examples(cost, solution):
    cost, got = np.array(cost), np.array(linear_sum_assignment(cost))
    np.testing.assert_array_equal(got >= 0, np.array(solution) >= 0)
    chosen = [(row, column) for row, column in enumerate(got) if column >= 0]
    expected = [(row, column) for row, column in enumerate(solution) if column >= 0]
    assert sum(cost[pair] for pair in chosen) == sum(cost[pair] for pair in expected)
    assert len({column for _, column in chosen}) == len(chosen) == min(cost.shape)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends(backend, tmp_path):
    pytest.importorskip(backend)
    cost, row_mask, column_mask = problems_with_masks()
    np.savez(tmp_path / "given.npz", cost=cost, row_mask=row_mask, column_mask=column_mask)
    script = """
        import sys
        import keras
        import numpy as np
        from tfdetr_keras.matching.assignment import linear_sum_assignment

        given = dict(np.load(sys.argv[1]))
        tensors = {name: keras.ops.convert_to_tensor(array) for name, array in given.items()}
        swapped = (keras.ops.swapaxes(tensors["cost"], 1, 2), tensors["column_mask"], tensors["row_mask"])
        outcome = {
            "plain": linear_sum_assignment(tensors["cost"]),
            "masked": linear_sum_assignment(**tensors),
            "swapped": linear_sum_assignment(*swapped),
        }
        if keras.backend.backend() == "jax":
            import jax

            outcome["jitted"] = jax.jit(linear_sum_assignment)(**tensors)
        np.savez(sys.argv[2], **{name: keras.ops.convert_to_numpy(array) for name, array in outcome.items()})
    """
    paths = [str(tmp_path / "given.npz"), str(tmp_path / "outcome.npz")]
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *paths],
        check=True,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    outcome = np.load(paths[1])
    assert_optimal(cost, outcome["plain"])
    assert_optimal(cost, outcome["masked"], row_mask, column_mask)
    assert_optimal(cost.swapaxes(1, 2), outcome["swapped"], column_mask, row_mask)
    if backend == "jax":
        np.testing.assert_array_equal(outcome["jitted"], outcome["masked"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "size", [(4, 6), (9, 9), (16, 7), (25, 100), (50, 60), (100, 100)], ids=lambda s: f"{s[0]}x{s[1]}"
)
def test_many_random_problems(size):
    rng = np.random.default_rng(sum(size))
    for _ in range(2):
        cost = np.concatenate([random_cost(rng, kind, (100, *size)) for kind in KINDS])
        row_mask, column_mask = masks(rng, len(cost), size[0]), masks(rng, len(cost), size[1])
        assert_optimal(cost, linear_sum_assignment(cost, row_mask), row_mask)
        assert_optimal(cost, linear_sum_assignment(cost, row_mask, column_mask), row_mask, column_mask)


def spoiled(rng, cost):
    """A tenth of the problems gets entries that are NaN or infinite."""
    bad = rng.choice([np.nan, np.inf, -np.inf], cost.shape)
    where = (rng.uniform(size=cost.shape) < 0.05) & (rng.uniform(size=(len(cost), 1, 1)) < 0.1)
    return np.where(where, bad, cost).astype(np.float32), where.any((1, 2))


def assert_few_bad_pairs(cost, assigned, row_mask, column_mask):
    """The pairs that cannot be avoided are as few as scipy needs, and the others cost the least beside them."""
    for matrix, columns, rows, allowed in zip(cost, np.asarray(assigned), row_mask, column_mask, strict=True):
        real = matrix[np.ix_(rows, allowed)].astype(np.float64)
        finite = np.isfinite(real)
        spread = np.ptp(real[finite]) if finite.any() else 0.0
        filled = np.where(finite, real, real[finite].max(initial=0.0) + (1 + max(spread, 1.0)) * len(rows))
        best = optimize.linear_sum_assignment(filled)
        pairs = np.flatnonzero(columns >= 0)
        chosen = matrix[pairs, columns[pairs]].astype(np.float64)
        assert len(pairs) == len(set(columns[pairs])) == min(real.shape)
        assert rows[pairs].all()
        assert allowed[columns[pairs]].all()
        assert np.isfinite(chosen).sum() == finite[best].sum()
        least, scale = real[best][finite[best]].sum(), np.abs(real[finite]).max(initial=0.0)
        # The penalty of a bad pair is as large as all other costs together, and takes as many digits from the total.
        total = chosen[np.isfinite(chosen)].sum()
        assert abs(total - least) <= 16 * np.finfo(np.float32).eps * scale * max(len(pairs), 1) ** 2


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(100, 300), (300, 100)], ids=["wide", "tall"])
def test_problems_of_every_size(shape):
    """5,400 problems a shape, of 1 to 100 by 1 to 300: as wide, as tall and as empty as the masks make them."""
    rng = np.random.default_rng(shape[0])
    for _ in range(9):
        cost = np.concatenate([random_cost(rng, kind, (60, *shape)) for kind in KINDS])
        cost, is_bad = spoiled(rng, cost)
        row_mask, column_mask = masks(rng, len(cost), shape[0]), masks(rng, len(cost), shape[1])
        row_mask[::50] = False
        assigned = np.array(linear_sum_assignment(cost, row_mask, column_mask))
        good = ~is_bad
        assert_optimal(cost[good], assigned[good], row_mask[good], column_mask[good])
        assert_few_bad_pairs(cost[is_bad], assigned[is_bad], row_mask[is_bad], column_mask[is_bad])
