"""What `compiled` does to a function, seen from eager code, from graphs and from compiled graphs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tfdetr_keras.backend.compiler import compiled, is_for_xla, left_plain


def collatz(start):
    """How many steps each number takes to reach 1: a loop whose length depends on the data."""

    def step(number, steps):
        odd = ops.where(number % 2 == 1, 3 * number + 1, number // 2)
        return ops.where(number == 1, 1, odd), steps + ops.cast(number != 1, "int32")

    return ops.while_loop(lambda number, _: ops.any(number != 1), step, (start, ops.zeros_like(start)))[1]


NUMBERS = np.array([1, 2, 3, 7, 27], "int32")
STEPS = [0, 1, 7, 16, 111]


def test_result_is_the_functions():
    np.testing.assert_array_equal(compiled(collatz)(ops.convert_to_tensor(NUMBERS)), STEPS)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("length", [None, 5])
def test_inside_a_graph(jit_compile, length):
    outer = tf.function(
        compiled(collatz), jit_compile=jit_compile, input_signature=[tf.TensorSpec([length], tf.int32)], autograph=False
    )
    np.testing.assert_array_equal(outer(NUMBERS), STEPS)


def test_xla_compiles_it_also_inside_a_plain_graph():
    def digits(x):
        return tf.strings.length(tf.strings.as_string(x))  # XLA knows no strings

    np.testing.assert_array_equal(tf.function(digits)(tf.constant([1, 20])), [1, 2])
    within = tf.function(compiled(digits))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"(?i)unsupported operations"):
        within(tf.constant([1, 20]))
    with left_plain():
        np.testing.assert_array_equal(tf.function(compiled(digits))(tf.constant([1, 20])), [1, 2])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"(?i)unsupported operations"):
        within(tf.constant([1, 20]))


def test_inside_a_distribution_strategy():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    run = tf.function(lambda x: strategy.run(compiled(collatz), (x,)))
    np.testing.assert_array_equal(strategy.experimental_local_results(run(tf.constant(NUMBERS)))[0], STEPS)


def test_what_xla_compiles_is_known_while_it_is_traced():
    seen = []

    def see():
        seen.append(is_for_xla())
        return tf.zeros(())

    see()
    plain = tf.function(see)
    plain()
    tf.function(tf.function(see, jit_compile=True))()
    tf.function(tf.function(see), jit_compile=True)()
    tf.function(see, jit_compile=True).get_concrete_function()
    assert seen == [False, False, True, True, True]
    tf.function(plain, jit_compile=True)()  # which TensorFlow does not trace anew
    assert len(seen) == 5


def test_arguments_may_be_none():
    def add(x, y):
        return x if y is None else x + y

    assert float(compiled(add)(ops.ones(()), None)) == 1
    assert float(compiled(add)(ops.ones(()), ops.ones(()))) == 2


def test_compiled_once_for_each_shape():
    traced = []

    def double(x):
        traced.append(tuple(x.shape))
        return 2 * x

    function = compiled(double)
    for length in (3, 3, 4, 3):
        function(ops.ones((length,)))
    assert traced == [(3,), (4,)]


def test_keeps_name_and_docstring():
    assert compiled(collatz).__name__ == "collatz"
    assert compiled(collatz).__doc__ == collatz.__doc__


def test_runs_inside_fit_with_a_last_batch_of_another_size():
    class Steps(keras.layers.Layer):
        def call(self, number):
            return ops.cast(compiled(collatz)(ops.cast(number, "int32")), "float32") * self.scale

        def build(self, _):
            self.scale = self.add_weight(shape=(), initializer="ones")

    model = keras.Sequential([Steps()])
    model.compile(loss="mse", optimizer=keras.optimizers.SGD(0.0))
    history = model.fit(NUMBERS[:, None], np.array(STEPS, "float32")[:, None], batch_size=2, verbose=0)
    assert history.history["loss"] == [0.0]
