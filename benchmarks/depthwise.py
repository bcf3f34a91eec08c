"""How fast are convolutions of each channel alone on one CPU thread? Ours against Keras' and PyTorch's.

    python benchmarks/depthwise.py [--repetitions 31] [--loads issue,B0,B4]

Every contender gets the same map, kernel and gradient of the outputs, float32, one image, and computes outputs alone
("forward"), or outputs and the gradients of the other two ("forward and back"). Their lengths are compared first.
"Keras'" is `keras.ops.depthwise_conv` on a map that is padded as ours pads it, in a plain `tf.function` ("graph"), in
one that is compiled ("XLA"), and in `jax.jit`; PyTorch's is its own convolution, whose maps have the channels first.

Each process is kept on one core. All run in turn, once per round, each right after an untimed run; figures are medians,
and compilation is not timed. Loads are those of HGNetV2 at 640×640: 5×5 in the blocks of the stages of strides 16 and
32, and 3×3 with a stride of 2 before the stages of strides 8, 16 and 32, with the channels of its sizes B0 and B4.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from harness.report import print_bar, print_header, print_row, print_table, rounded
from harness.workers import Worker, serve, take_turns


class Load(NamedTuple):
    """The sizes of one call; maps are squares."""

    side: int
    channels: int
    kernel: int
    stride: int

    def __str__(self) -> str:
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}×{self.kernel}{stride}, {self.side}×{self.side}×{self.channels}"


LOADS = {
    "issue": [Load(40, 256, 5, 1)],
    "B0": [Load(40, 64, 5, 1), Load(20, 128, 5, 1), Load(160, 64, 3, 2), Load(80, 256, 3, 2), Load(40, 512, 3, 2)],
    "B4": [Load(40, 192, 5, 1), Load(20, 384, 5, 1), Load(160, 128, 3, 2), Load(80, 512, 3, 2), Load(40, 1024, 3, 2)],
}
GRAPH, XLA, JAX = "ours, graph", "ours, XLA", "ours, JAX"
KERAS_GRAPH, KERAS_XLA, KERAS_JAX = "Keras, graph", "Keras, XLA", "Keras, JAX"
PYTORCH = "PyTorch"
CONTENDERS = {  # column of the table → (process, Keras backend)
    GRAPH: ("tensorflow", "tensorflow"),
    KERAS_GRAPH: ("tensorflow", "tensorflow"),
    XLA: ("tensorflow", "tensorflow"),
    KERAS_XLA: ("tensorflow", "tensorflow"),
    JAX: ("jax", "jax"),
    KERAS_JAX: ("jax", "jax"),
    PYTORCH: ("torch", "torch"),
}
FORWARD, BACK = "forward", "forward and back"
MILLISECONDS = 10.0  # bar for the load, forward
BARS = {XLA: (KERAS_XLA, 0.3), JAX: (KERAS_JAX, 0.3), GRAPH: (KERAS_GRAPH, 1.1)}  # of the whole of a load's calls
AGREEMENT = 1e-4  # of the lengths of outputs and gradients, relative

Arrays = tuple[np.ndarray, ...]
Run = Callable[[], list[np.ndarray]]


def draw(load: Load) -> Arrays:
    """Map, kernel, and the gradient of the outputs."""
    rng, smaller = np.random.default_rng(0), -(-load.side // load.stride)
    shapes = (
        (1, load.side, load.side, load.channels),
        (load.kernel, load.kernel, load.channels, 1),
        (1, smaller, smaller, load.channels),
    )
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def _convolution(contender: str, load: Load) -> Callable[[Any, Any], Any]:
    """The function of map and kernel, in Keras."""
    from keras import ops

    from tfdetr_keras.layers.depthwise import depthwise_convolution

    if contender in (GRAPH, XLA, JAX):
        return lambda x, kernel: depthwise_convolution(x, kernel, load.stride)
    if load.stride == 1:
        return lambda x, kernel: ops.depthwise_conv(x, kernel, padding="same")
    around = [load.kernel // 2] * 2
    return lambda x, kernel: ops.depthwise_conv(
        ops.pad(x, [[0, 0], around, around, [0, 0]]), kernel, load.stride, "valid"
    )


def _tensorflow(contender: str, load: Load, arrays: Arrays) -> dict[str, Run]:
    import tensorflow as tf

    convolve = _convolution(contender, load)

    def back(*given: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(given)
            outputs = convolve(*given)
        return outputs, *tape.gradient(outputs, given, d_outputs)

    *given, d_outputs = map(tf.constant, arrays)
    graphs = {FORWARD: lambda *given: (convolve(*given),), BACK: back}

    def run(graph: Any) -> list[np.ndarray]:
        return [result.numpy() for result in graph(*given)]

    options = {"jit_compile": contender in (XLA, KERAS_XLA), "autograph": False}
    return {direction: partial(run, tf.function(graph, **options)) for direction, graph in graphs.items()}


def _jax(contender: str, load: Load, arrays: Arrays) -> dict[str, Run]:
    import jax

    convolve = _convolution(contender, load)

    def back(*given: Any) -> Any:
        outputs, gradient = jax.vjp(convolve, *given)
        return outputs, *gradient(d_outputs)

    *given, d_outputs = map(jax.device_put, arrays)
    graphs = {FORWARD: jax.jit(lambda *given: (convolve(*given),)), BACK: jax.jit(back)}

    def run(graph: Any) -> list[np.ndarray]:
        return [np.asarray(result) for result in graph(*given)]

    return {direction: partial(run, graph) for direction, graph in graphs.items()}


def _torch(contender: str, load: Load, arrays: Arrays) -> dict[str, Run]:
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(1)
    x, kernel, d_outputs = map(torch.from_numpy, arrays)
    x, d_outputs = (one.permute(0, 3, 1, 2).contiguous() for one in (x, d_outputs))
    leaves = [one.requires_grad_() for one in (x, kernel.permute(2, 3, 0, 1).contiguous())]

    def convolve(*given: Any) -> Any:
        return F.conv2d(*given, stride=load.stride, padding=load.kernel // 2, groups=load.channels)

    def forward() -> list[np.ndarray]:
        with torch.no_grad():
            return [convolve(*leaves).numpy()]

    def back() -> list[np.ndarray]:
        outputs = convolve(*leaves)
        return [one.detach().numpy() for one in (outputs, *torch.autograd.grad(outputs, leaves, d_outputs))]

    return {FORWARD: forward, BACK: back}


def work() -> None:
    """What a worker process does: prepares contenders for a load, and times single runs."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    prepared: dict[str, dict[str, Run]] = {}

    def prepare(contender: str, load: list[int]) -> list[float]:
        make = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[CONTENDERS[contender][0]]
        sizes = Load(*load)
        prepared[contender] = make(contender, sizes, draw(sizes))
        return [float(np.linalg.norm(result)) for result in prepared[contender][BACK]()]

    def once(contender: str, direction: str) -> float:
        run = prepared[contender][direction]
        run()
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    serve(prepare=prepare, once=once)


def measure(workers: dict[str, Worker], load: Load, repetitions: int) -> dict[tuple[str, str], float]:
    """Median seconds by contender and direction."""
    lengths = {name: np.array(worker.ask("prepare", name, load)) for name, worker in workers.items()}
    for name, found in lengths.items():
        if np.abs(found / lengths[PYTORCH] - 1).max() > AGREEMENT:
            raise SystemExit(f"{load}: results of {name} differ from PyTorch's, so the times mean nothing: {lengths}")
    asks = {
        (name, direction): partial(worker.ask, "once", name, direction)
        for direction in (FORWARD, BACK)
        for name, worker in workers.items()
    }
    seconds = take_turns(asks, repetitions)
    return {key: statistics.median(values) for key, values in seconds.items()}


def main() -> None:
    """Measures all loads and prints the table and the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=31)
    parser.add_argument("--loads", default=",".join(LOADS))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work()
        return

    contenders = {
        name: place
        for name, place in CONTENDERS.items()
        if place[0] != "jax" or importlib.util.find_spec("jax") is not None
    }
    processes = {place: Worker(place[0], KERAS_BACKEND=place[1]) for place in set(contenders.values())}
    workers = {name: processes[place] for name, place in contenders.items()}
    print_header("Convolutions of each channel alone, ms", ("tfdetr-keras", "tensorflow", "keras", "jax", "torch"))
    print(f"One image, one thread, float32; n={arguments.repetitions}, fewer where a run takes long.\n")
    print_table(["map", "of", "direction", *workers])
    medians, names = {}, arguments.loads.split(",")
    for name in names:
        for load in LOADS[name]:
            medians[name, load] = measure(workers, load, arguments.repetitions)
            for direction in (FORWARD, BACK):
                cells = [rounded(1e3 * medians[name, load][one, direction]) for one in workers]
                print_row([str(load), name, direction, *cells])
    for worker in processes.values():
        worker.close()

    print("\nBars:\n")
    for name in (GRAPH, XLA):
        found = [1e3 * medians["issue", load][name, FORWARD] for load in LOADS["issue"] if ("issue", load) in medians]
        print_bar(f"ms of {name}, {LOADS['issue'][0]}", found[0] if found else None, at_most=MILLISECONDS)
    for ours, (theirs, bar) in BARS.items():
        for direction in (FORWARD, BACK):
            sums = [sum(times.get((one, direction), 0) for times in medians.values()) for one in (ours, theirs)]
            ratio = sums[0] / sums[1] if sums[1] else None
            print_bar(f"time of {ours} / {theirs}, {direction}, all maps together", ratio, at_most=bar)


if __name__ == "__main__":
    main()
