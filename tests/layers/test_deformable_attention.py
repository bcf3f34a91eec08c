"""Deformable attention against PyTorch's `grid_sample`, level by level in float64, and against transformers."""

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec

import keras
import numpy as np
import pytest
import tensorflow as tf
from some_slow import some_slow

import tfdetr_keras as td
from tfdetr_keras.backend.compiler import left_plain
from tfdetr_keras.layers import deformable_attention as module

# Errors of outputs, and of gradients relative to the largest of each kind.
OUTPUT, GRADIENT = 2e-6, 1e-5
CASES = {  # levels, points of each, batch, queries, heads, channels
    "two levels": ([(5, 8), (3, 4)], [3, 3], 2, 7, 4, 6),
    "one level": ([(6, 5)], [4], 1, 9, 2, 8),
    "unequal points": ([(4, 7), (3, 2), (2, 2)], [3, 6, 1], 2, 5, 2, 4),
    "a level of one pixel": ([(3, 5), (1, 1)], [2, 2], 2, 6, 2, 4),
    "one pixel high": ([(1, 9), (7, 1)], [2, 2], 1, 6, 2, 4),
    "one head, one channel": ([(4, 4), (2, 2)], [1, 1], 3, 2, 1, 1),
}


def arrays_of(case, low=-0.4, high=1.4):
    """Random value, locations (some far outside), weights that sum to 1, and a gradient of the outputs."""
    levels, points, batch, queries, heads, channels = CASES[case]
    rng = np.random.default_rng(len(case))
    tokens = sum(height * width for height, width in levels)
    weights = rng.uniform(size=(batch, queries, heads, sum(points)))
    arrays = (
        rng.normal(size=(batch, tokens, heads, channels)),
        rng.uniform(low, high, size=(*weights.shape, 2)),
        weights / weights.sum(-1, keepdims=True),
        rng.normal(size=(batch, queries, heads * channels)),
    )
    return tuple(array.astype("float32") for array in arrays)


def outputs_and_gradients(case, arrays, **options):
    """A function of value, locations, weights and a gradient: outputs and the gradients of the first three."""
    levels, points, *_ = CASES[case]

    def run(value, locations, weights, d_outputs):
        given = [value, locations, weights]
        with tf.GradientTape() as tape:
            tape.watch(given)
            outputs = td.deformable_attention(value, levels, locations, weights, points, **options)
        return outputs, tape.gradient(outputs, given, d_outputs, unconnected_gradients="zero")

    return run, tuple(map(tf.constant, arrays))


def assert_close(found, expected, output=OUTPUT, gradient=GRADIENT):
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=output)
    for name, ours, theirs in zip(("value", "locations", "weights"), found[1], expected[1], strict=True):
        allowed = gradient * max(np.abs(theirs).max(), 1e-3)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=allowed, err_msg=name)


@pytest.fixture
def reference(pytorch):
    def of(case, arrays, **options):
        value, locations, weights, d_outputs = arrays
        levels, points, *_ = CASES[case]
        return pytorch.call(
            "layers:deformable_attention", value, levels, locations, weights, points, d_outputs, **options
        )

    return of


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("case", some_slow(CASES, "one level", "one pixel high", "one head, one channel"))
def test_outputs_and_gradients_are_those_of_grid_sample(reference, case, recompute):
    arrays = arrays_of(case)
    run, given = outputs_and_gradients(case, arrays, recompute=recompute)
    assert_close(run(*given), reference(case, arrays))


def test_the_kernel_of_transformers(pytorch):
    for case in ("two levels", "one level"):
        value, locations, weights, _ = arrays_of(case)
        levels = CASES[case][0]
        expected = pytorch.call("layers:transformers_deformable_attention", value, levels, locations, weights)
        found = td.deformable_attention(value, levels, locations, weights)
        np.testing.assert_allclose(found, expected, rtol=0, atol=OUTPUT)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("case", ["two levels", "unequal points", "a level of one pixel"])
def test_discrete_sampling_is_rt_detr_v2s(pytorch, reference, case, recompute):
    arrays = value, locations, weights, _ = arrays_of(case)
    levels, points, *_ = CASES[case]
    run, given = outputs_and_gradients(case, arrays, sampling="discrete", recompute=recompute)
    found = run(*given)
    theirs = pytorch.call(
        "layers:transformers_discrete_attention", value, list(levels), locations, weights, list(points)
    )
    np.testing.assert_allclose(found[0], theirs, rtol=0, atol=OUTPUT)
    expected = reference(case, arrays, sampling="discrete")
    assert_close(found, expected)
    np.testing.assert_array_equal(found[1][1], 0.0)


def test_borders_corners_and_centres(reference):
    """Where a gradient is one-sided it depends on rounding; values do not, and neither do the other two gradients."""
    case = "two levels"
    value, locations, weights, d_outputs = arrays_of(case)
    (height, width), _ = CASES[case][0]
    centres = [(x + 0.5) / width for x in range(-2, width + 2)]
    special = np.array([0, 1, 0.5, -1 / (2 * width), 1 + 1 / (2 * width), -1 / (2 * height), *centres], "float32")
    locations = np.random.default_rng(0).choice(special, locations.shape)
    arrays = value, locations, weights, d_outputs
    run, given = outputs_and_gradients(case, arrays)
    outputs, gradients = run(*given)
    expected, expected_gradients = reference(case, arrays)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=OUTPUT)
    for which in (0, 2):
        theirs = expected_gradients[which]
        np.testing.assert_allclose(gradients[which], theirs, rtol=0, atol=GRADIENT * np.abs(theirs).max())


def test_a_point_at_the_centre_of_a_pixel_reads_it():
    value = np.arange(12, dtype="float32").reshape(1, 12, 1, 1)
    y, x = np.mgrid[:3, :4]
    locations = np.stack([(x + 0.5) / 4, (y + 0.5) / 3], -1).reshape(1, 12, 1, 1, 2)
    found = td.deformable_attention(value, [(3, 4)], locations, np.ones((1, 12, 1, 1)))
    np.testing.assert_allclose(np.ravel(found), np.arange(12), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampling", ["bilinear", "discrete"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("bad", [1e30, -np.inf, np.nan])
def test_locations_far_away_read_nothing_beyond_the_table(bad, recompute, sampling):
    """Zero, or NaN where the location is NaN or infinite; the others keep their results."""
    case = "two levels"
    value, locations, weights, d_outputs = arrays_of(case)
    run, given = outputs_and_gradients(case, (value, locations, weights, d_outputs), sampling=sampling)
    expected = run(*given)[0]
    locations[0, 0] = bad
    run, given = outputs_and_gradients(
        case, (value, locations, weights, d_outputs), sampling=sampling, recompute=recompute
    )
    outputs, _ = run(*given)
    np.testing.assert_allclose(outputs[1], expected[1], rtol=0, atol=OUTPUT)
    np.testing.assert_allclose(outputs[0, 1:], expected[0, 1:], rtol=0, atol=OUTPUT)
    if sampling == "bilinear" and np.isfinite(bad):
        np.testing.assert_array_equal(outputs[0, 0], 0.0)


@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["kept", "recomputed"])
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
def test_in_a_graph_of_known_and_unknown_sizes(reference, jit_compile, recompute):
    case = "two levels"
    arrays = arrays_of(case)
    run, given = outputs_and_gradients(case, arrays, recompute=recompute)
    expected = reference(case, arrays)
    assert_close(tf.function(run, jit_compile=jit_compile)(*given), expected)
    (*_, heads, channels), points = arrays[0].shape, arrays[2].shape[3]
    signature = [
        tf.TensorSpec(shape)
        for shape in (
            (None, None, heads, channels),
            (None, None, heads, points, 2),
            (None, None, heads, points),
            (None, None, heads * channels),
        )
    ]
    graph = tf.function(run, input_signature=signature, jit_compile=jit_compile)
    assert_close(graph(*given), expected)
    fewer = [array[:1, :5] if index else array[:1] for index, array in enumerate(given)]
    assert_close(graph(*fewer), reference(case, tuple(array.numpy() for array in fewer)))


def test_shapes_of_levels_may_be_numbers_arrays_or_tensors():
    value, locations, weights, _ = arrays_of("two levels")
    levels = CASES["two levels"][0]
    expected = td.deformable_attention(value, levels, locations, weights)
    unknown = tf.function(
        lambda shapes: td.deformable_attention(value, shapes, locations, weights),
        input_signature=[tf.TensorSpec((None, 2), tf.int32)],
    )
    mixed = tf.function(
        lambda height: td.deformable_attention(value, [(height, 8), (3, 4)], locations, weights),
        input_signature=[tf.TensorSpec((), tf.int32)],
    )
    for found in (
        td.deformable_attention(value, np.array(levels), locations, weights),
        td.deformable_attention(value, tf.constant(levels), locations, weights),
        unknown(tf.constant(levels)),
        mixed(tf.constant(5)),
    ):
        np.testing.assert_array_equal(found, expected)


def test_levels_of_the_same_number_of_tokens_compile_once():
    value, locations, weights, _ = arrays_of("two levels")
    kept = module._READING["bilinear"]
    td.deformable_attention(value, [(5, 8), (3, 4)], locations, weights)
    before = number_of_traces(kept)
    td.deformable_attention(value, [(8, 5), (2, 6)], locations, weights)
    assert number_of_traces(kept) == before


@pytest.mark.parametrize("recompute", [False, True])
def test_what_a_compiled_step_is_given_is_no_constant_of_it(recompute):
    """Or XLA would compile it for each batch anew, as where shapes pass from one compiled function to another."""
    value, locations, weights, d_outputs = arrays_of("two levels")

    @tf.function(jit_compile=True)
    def step(*given):
        with tf.GradientTape() as tape:
            tape.watch(given)
            outputs = td.deformable_attention(given[0], [(5, 8), (3, 4)], *given[1:], recompute=recompute)
        return tape.gradient(outputs, given, d_outputs)

    given = list(map(tf.constant, (value, locations, weights)))
    program = step.experimental_get_compiler_ir(*given)(stage="hlo")
    entry = program[program.index("ENTRY") :]
    assert sum(" parameter(" in line for line in entry.splitlines()) == len(given)


def number_of_traces(function):
    compile_once = next(cell.cell_contents for cell in function.__closure__)
    return compile_once().experimental_get_tracing_count()


def test_few_sizes_are_compiled_of_those_unknown():
    sizes = {int(module._round_up(tf.zeros((1, size)), tf.constant(size)).shape[1]) for size in range(1030, 4096, 30)}
    assert len(sizes) <= 2 * 8 + 1
    for size in (1, 7, 8, 9, 127, 128, 129, 1000, 17_821, 2**20 + 1):
        padded = module._round_up(tf.ones((1, size)), tf.constant(size))
        assert size <= padded.shape[1] <= max(8, size * 9 / 8 + 8)
        assert float(tf.reduce_sum(padded)) == size


@pytest.mark.parametrize("sampling", ["bilinear", "discrete"])
@pytest.mark.parametrize("queries_of_a_block", [1, 3])
def test_blocks_of_any_size_give_the_same(monkeypatch, queries_of_a_block, sampling):
    case = "two levels"
    arrays = arrays_of(case)
    _, points, _, _, heads, channels = CASES[case]
    row = 4 * 4 * heads * sum(points) * channels
    monkeypatch.setattr(module, "BLOCK_BYTES", queries_of_a_block * row)
    monkeypatch.setitem(module._RECOMPUTING, sampling, module._recomputing(module._AXES[sampling]))
    run, given = outputs_and_gradients(case, arrays, recompute=True, sampling=sampling)
    expected, _ = outputs_and_gradients(case, arrays, recompute=False, sampling=sampling)
    assert_close(run(*given), expected(*given), output=1e-6, gradient=1e-6)


def test_rows_are_recomputed_where_it_is_compiled_or_they_are_large(monkeypatch):
    """Unless the caller says otherwise."""
    case = "two levels"
    value, locations, weights, _ = arrays_of(case)
    levels, points, batch, queries, heads, channels = CASES[case]
    called = []

    def spy(name):
        return lambda table, locations, *_: called.append(name) or tf.zeros((batch, queries, heads, channels))

    monkeypatch.setattr(module, "_RECOMPUTING", {"bilinear": spy("recomputing")})
    monkeypatch.setattr(module, "_KEEPING", {"bilinear": spy("keeping")})
    size = 16 * batch * queries * heads * sum(points) * channels
    for limit, recompute in ((size, None), (size - 1, None), (0, False), (size, True)):
        monkeypatch.setattr(module, "KEPT_BYTES", limit)
        with left_plain():
            td.deformable_attention(value, levels, locations, weights, recompute=recompute)
    assert called == ["keeping", "recomputing", "keeping", "recomputing"]
    called.clear()
    for recompute in (None, False):
        td.deformable_attention(value, levels, locations, weights, recompute=recompute)
    assert called == ["recomputing", "keeping"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_a_value_of_half_precision(reference, dtype, recompute):
    """Outputs and gradient of value are rounded once; locations keep float32."""
    case = "two levels"
    value, locations, weights, d_outputs = arrays_of(case)
    value = tf.cast(value, dtype)
    arrays = (
        tf.cast(value, "float32").numpy(),
        locations,
        weights,
        tf.cast(tf.cast(d_outputs, dtype), "float32").numpy(),
    )
    run, _ = outputs_and_gradients(case, arrays, recompute=recompute)
    outputs, gradients = run(value, *map(tf.constant, (locations, weights)), tf.cast(d_outputs, dtype))
    assert outputs.dtype == gradients[0].dtype == dtype
    assert gradients[1].dtype == gradients[2].dtype == "float32"
    expected, expected_gradients = reference(case, arrays)
    rounding = {"bfloat16": 2**-8, "float16": 2**-11}[dtype]
    assert np.abs(np.asarray(outputs, "float32") - expected).max() <= rounding * np.abs(expected).max()
    value_gradient = expected_gradients[0]
    assert np.abs(np.asarray(gradients[0], "float32") - value_gradient).max() <= rounding * np.abs(value_gradient).max()
    for which in (1, 2):
        theirs = expected_gradients[which]
        np.testing.assert_allclose(gradients[which], theirs, rtol=0, atol=GRADIENT * np.abs(theirs).max())


def test_many_updates_of_one_pixel_in_half_precision_are_summed_in_float32():
    """4,096 times 1 into one pixel: bfloat16 would stop at 256."""
    value, locations = tf.zeros((1, 1, 1, 1), "bfloat16"), tf.fill((1, 4096, 1, 1, 2), 0.5)
    for recompute in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(value)
            outputs = td.deformable_attention(value, [(1, 1)], locations, tf.ones((1, 4096, 1, 1)), recompute=recompute)
        assert float(tape.gradient(outputs, value)[0, 0, 0, 0]) == 4096


def test_double_precision(reference):
    case = "unequal points"
    arrays = tuple(array.astype("float64") for array in arrays_of(case))
    for recompute in (False, True):
        run, given = outputs_and_gradients(case, arrays, recompute=recompute)
        assert_close(run(*given), reference(case, arrays), output=1e-13, gradient=1e-12)


def test_no_queries():
    value, locations, weights, _ = arrays_of("two levels")
    for recompute in (None, False, True):
        found = td.deformable_attention(
            value, CASES["two levels"][0], locations[:, :0], weights[:, :0], recompute=recompute
        )
        assert found.shape == (2, 0, 24)


WRONG = [
    ({"value": (2, 52, 24)}, r"value must have shape \(batch, tokens, heads, channels\), got \(2, 52, 24\)"),
    (
        {"locations": (2, 7, 4, 6)},
        r"locations must have shape \(batch, queries, heads, points, 2\), got \(2, 7, 4, 6\)",
    ),
    ({"locations": (2, 7, 4, 6, 4)}, r"locations must have shape .* got \(2, 7, 4, 6, 4\)"),
    ({"value": (1, 52, 4, 6)}, r"the same batch: value has shape \(1, 52, 4, 6\), locations have \(2, 7, 4, 6, 2\)"),
    ({"value": (2, 52, 8, 3)}, r"the same heads: value has shape \(2, 52, 8, 3\), locations have \(2, 7, 4, 6, 2\)"),
    ({"weights": (2, 7, 4, 2, 3)}, r"weights must have the shape of locations .*\(2, 7, 4, 6\), got \(2, 7, 4, 2, 3\)"),
    ({"weights": (2, 6, 4, 6)}, r"weights must have the shape of locations .*\(2, 7, 4, 6\), got \(2, 6, 4, 6\)"),
    ({"value": (2, 51, 4, 6)}, r"value has 51 tokens, but .* have 5·8 \+ 3·4 = 52 pixels"),
]


@pytest.mark.parametrize(("shapes", "message"), WRONG)
def test_wrong_shapes(shapes, message):
    given = {"value": (2, 52, 4, 6), "locations": (2, 7, 4, 6, 2), "weights": (2, 7, 4, 6)} | shapes
    arrays = {name: np.zeros(shape, "float32") for name, shape in given.items()}
    with pytest.raises(ValueError, match=message):
        td.deformable_attention(spatial_shapes=[(5, 8), (3, 4)], **arrays)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_shapes": [5, 8]}, r"spatial_shapes must have shape \(levels, 2\), height and width, got \(2,\)"),
        ({"spatial_shapes": [(5, 8, 1), (3, 4, 1)]}, r"spatial_shapes must have shape \(levels, 2\).*got \(2, 3\)"),
        ({"spatial_shapes": []}, r"spatial_shapes must have shape \(levels, 2\)"),
        ({"spatial_shapes": [(5, 8), (-3, -4)]}, r"spatial_shapes must be positive, got \[\[5, 8\], \[-3, -4\]\]"),
        ({"spatial_shapes": [(5, 8), (2, 2), (2, 2), (2, 2)]}, r"6 points, which 4 levels cannot share equally"),
        ({"points_per_level": [6]}, r"points_per_level must have an entry for each of the 2 levels, got \[6\]"),
        ({"points_per_level": [2, 3]}, r"points_per_level must sum to the 6 points .* got \[2, 3\], sum 5"),
        ({"points_per_level": [7, -1]}, r"points_per_level must sum to the 6 points .* got \[7, -1\]"),
        ({"sampling": "nearest"}, r"sampling must be one of 'bilinear', 'discrete', got 'nearest'"),
    ],
)
def test_wrong_options(options, message):
    value, locations, weights, _ = arrays_of("two levels")
    with pytest.raises(ValueError, match=message):
        td.deformable_attention(
            **{"spatial_shapes": [(5, 8), (3, 4)]} | options, value=value, locations=locations, weights=weights
        )


def test_unknown_heads_are_named():
    graph = tf.function(
        lambda value, locations, weights: td.deformable_attention(value, [(5, 8), (3, 4)], locations, weights)
    )
    signature = [tf.TensorSpec((2, 52, None, 6)), tf.TensorSpec((2, 7, None, 6, 2)), tf.TensorSpec((2, 7, None, 6))]
    with pytest.raises(ValueError, match="heads, channels and points must be known"):
        graph.get_concrete_function(*signature)


# Runs on another backend: the same arrays, outputs and gradients into a file.
SCRIPT = """
    import sys
    import keras
    import numpy as np
    from tfdetr_keras.layers.deformable_attention import deformable_attention

    given = dict(np.load(sys.argv[1]))
    levels, points = given.pop("levels").tolist(), given.pop("points").tolist()
    names = ("value", "locations", "weights")

    def found(sampling, recompute):
        def attend(value, locations, weights):
            return deformable_attention(value, levels, locations, weights, points, sampling, recompute)

        if keras.backend.backend() == "jax":
            import jax

            def run(*arrays):
                outputs, back = jax.vjp(attend, *arrays)
                return outputs, *back(given["d_outputs"])

            return jax.jit(run)(*(given[name] for name in names))
        import torch

        tensors = [torch.from_numpy(given[name]).requires_grad_() for name in names]
        outputs = attend(*tensors)
        gradients = torch.autograd.grad(outputs, tensors, torch.from_numpy(given["d_outputs"]), allow_unused=True)
        return outputs, *(torch.zeros_like(t) if g is None else g for t, g in zip(tensors, gradients))

    outcome = {}
    for sampling in ("bilinear", "discrete"):
        for recompute in (False, True):
            for index, array in enumerate(found(sampling, recompute)):
                outcome[f"{sampling}-{recompute}-{index}"] = keras.ops.convert_to_numpy(array)
    np.savez(sys.argv[2], **outcome)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends(reference, backend, tmp_path):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    case = "unequal points"
    arrays = arrays_of(case)
    names = ("value", "locations", "weights", "d_outputs")
    given = dict(zip(names, arrays, strict=True)) | {"levels": CASES[case][0], "points": CASES[case][1]}
    np.savez(tmp_path / "given.npz", **given)
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "given.npz"), str(tmp_path / "found.npz")],
        check=True,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    found = np.load(tmp_path / "found.npz")
    for sampling in ("bilinear", "discrete"):
        expected = reference(case, arrays, sampling=sampling)
        for recompute in (False, True):
            outputs, *gradients = (found[f"{sampling}-{recompute}-{index}"] for index in range(4))
            assert_close((outputs, gradients), expected)


def test_eager_functions(without_tracing):
    """As debugging has it: nothing is compiled."""
    case = "two levels"
    arrays = arrays_of(case)
    for recompute in (False, True):
        run, given = outputs_and_gradients(case, arrays, recompute=recompute)
        assert run(*given)[0].shape == (2, 7, 24)
    assert keras.backend.backend() == "tensorflow"
