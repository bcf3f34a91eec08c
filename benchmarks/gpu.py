"""Are the assignment, deformable attention and the members right on the accelerator that is here, and how fast?

    python benchmarks/gpu.py [--backends jax,torch,tensorflow] [--members NAME …] [--side 640] [--batch 4]

Each backend that is installed runs in a process of its own, on whatever device it finds first; the table names it.
"Assignment" solves the costs of 16 images and 6 decoder layers with 25 objects each; right means totals as scipy's.
"Deformable attention" has the loads of `deformable_attention.py`, forward and forward and back; right means outputs and
all three gradients as on the CPU. A member's "forward" and "step" are its outputs and `train_on_batch` on random images
and boxes; right means outputs as on the CPU, for one image of 256 × 256; for RT-DETR, whose queries random weights put
into no certain order, those of the nearest query. Differences are relative to the largest value.

Figures are medians of runs that wait for their results; compilation is not timed. On the CPU a run of all members takes
very long: name some, and a smaller side.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from deformable_attention import LOADS, draw
from harness.agreement import PARTS, apart
from harness.report import print_bar, print_header, print_row, print_table, rounded
from harness.workers import Worker, serve

BACKENDS = ("jax", "torch", "tensorflow")
MEMBERS = (
    "detr-resnet-50",
    "conditional-detr-resnet-50",
    "dab-detr-resnet-50",
    "deformable-detr-with-box-refine",
    "deformable-detr-with-box-refine-two-stage",
    "rt-detr-r18",
    "rt-detr-r50",
)
PROBLEMS, OBJECTS, QUERIES = 96, 25, 300
TOLERANCE = 1e-4  # of the CPU's largest value; matrices of tensor cores are left off
SMALL = 256  # side of the image whose outputs are compared
LEAST_SECONDS, MOST_RUNS = 1.0, 50


def device_name() -> str:
    """What the backend computes on."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return str(jax.devices()[0].device_kind)
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    import tensorflow as tf

    others = [device.name for device in tf.config.list_physical_devices() if device.device_type != "CPU"]
    return others[0] if others else "cpu"


def cpu() -> str:
    """The processor's name to Keras; on PyTorch a number would copy variables, which are none then."""
    import keras

    return "cpu" if keras.backend.backend() == "torch" else "cpu:0"


def finished(results: Any) -> list[np.ndarray]:
    """The results on the host, which waits for them."""
    import keras

    return [np.asarray(keras.ops.convert_to_numpy(one)) for one in keras.tree.flatten(results)]


def milliseconds(run: Callable[[], Any]) -> float:
    """The median of some runs, after two untimed ones."""
    finished(run()), finished(run())
    seconds: list[float] = []
    while len(seconds) < MOST_RUNS and sum(seconds) < LEAST_SECONDS:
        start = time.perf_counter()
        finished(run())
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def difference(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """The largest difference, each relative to the largest wanted value of its array."""
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, wanted, strict=True))


def assignment() -> dict[str, float]:
    """Time of the solver, and by how much its totals differ from scipy's."""
    from keras import ops
    from scipy.optimize import linear_sum_assignment

    import tfdetr_keras as td

    costs = np.random.default_rng(0).uniform(-2, 8, (PROBLEMS, OBJECTS, QUERIES)).astype(np.float32)
    given = ops.convert_to_tensor(costs)
    [queries] = finished(td.linear_sum_assignment(given))
    totals = np.take_along_axis(costs, queries[..., None], axis=2).sum((1, 2))
    best = np.array([cost[linear_sum_assignment(cost)].sum() for cost in costs])
    return {
        "difference": difference([totals], [best]),
        "forward": milliseconds(lambda: td.linear_sum_assignment(given)),
    }


def _with_gradients(load: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Functions that compute outputs, and outputs and gradients, on the current device."""
    import keras

    import tfdetr_keras as td

    levels = LOADS[load].levels
    *given, d_outputs = map(keras.ops.convert_to_tensor, draw(LOADS[load]))

    def attend(*arguments: Any) -> Any:
        return td.deformable_attention(arguments[0], levels, *arguments[1:])

    if keras.backend.backend() == "jax":
        import jax

        def back_(*arguments: Any) -> Any:
            outputs, gradient = jax.vjp(attend, *arguments)
            return outputs, *gradient(d_outputs)

        forward_, back_ = jax.jit(attend), jax.jit(back_)
        return lambda: forward_(*given), lambda: back_(*given)
    if keras.backend.backend() == "torch":
        import torch

        leaves = [one.requires_grad_() for one in given]

        def back() -> Any:
            outputs = attend(*leaves)
            return [one.detach() for one in (outputs, *torch.autograd.grad(outputs, leaves, d_outputs))]

        return lambda: attend(*leaves).detach(), back
    import tensorflow as tf

    @tf.function
    def graph_back(*arguments: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            outputs = attend(*arguments)
        return outputs, *tape.gradient(outputs, arguments, d_outputs)

    graph = tf.function(attend)
    return lambda: graph(*given), lambda: graph_back(*given)


def attention(load: str) -> dict[str, float]:
    """Times of a load, and by how much outputs and gradients differ from the CPU's."""
    import keras

    forward, back = _with_gradients(load)
    found = finished(back())
    with keras.device(cpu()):
        wanted = finished(_with_gradients(load)[1]())
    return {"difference": difference(found, wanted), "forward": milliseconds(forward), "back": milliseconds(back)}


def member(name: str, side: int, batch: int) -> dict[str, float]:
    """Times of a member with random weights, and by how much its outputs differ from the CPU's."""
    import keras

    import tfdetr_keras as td

    keras.utils.set_random_seed(0)
    model = td.from_preset(name)
    rng = np.random.default_rng(0)
    one = rng.normal(size=(1, SMALL, SMALL, 3)).astype(np.float32)
    with keras.device(cpu()):
        there = td.from_preset(name)
        there.set_weights(model.get_weights())
        wanted = there(one)
    found = model(one)
    on_device, on_cpu = (dict(zip(PARTS, finished([x[part] for part in PARTS]), strict=True)) for x in (found, wanted))
    is_ordered = not name.startswith("rt-detr")
    largest = max(
        by / np.abs(on_cpu[part]).max() for by, part in zip(apart(on_device, on_cpu, is_ordered), PARTS, strict=True)
    )
    del there

    pixels = rng.normal(size=(batch, side, side, 3)).astype(np.float32)
    boxes = np.concatenate([rng.uniform(0.3, 0.7, (batch, 10, 2)), rng.uniform(0.05, 0.3, (batch, 10, 2))], -1)
    targets = {
        "labels": rng.integers(0, model.config.num_classes, (batch, 10)).astype(np.int32),
        "boxes": boxes.astype(np.float32),
    }
    model.compile(optimizer=td.AdamW(1e-5))
    forward = milliseconds(lambda: list(model.predict_on_batch(pixels).values()))
    return {
        "difference": float(largest),
        "forward": forward,
        "back": milliseconds(lambda: [model.train_on_batch(pixels, targets)]),
    }


def work() -> None:
    """What a worker process does."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_default_matmul_precision", "highest")
    serve(device_name=device_name, assignment=assignment, attention=attention, member=member)


def main() -> None:
    """Measures and prints a table for each backend."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--members", nargs="*", default=list(MEMBERS), choices=MEMBERS)
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work()
        return

    print_header("On an accelerator", ("tfdetr-keras", "keras", "jax", "torch", "tensorflow"))
    asks = [
        ("assignment", "assignment"),
        *((f"deformable attention, {load}", "attention", load) for load in LOADS),
        *((name, "member", name, arguments.side, arguments.batch) for name in arguments.members),
    ]
    differences: dict[str, float] = {}
    for backend in arguments.backends.split(","):
        if importlib.util.find_spec(backend) is None:
            continue
        # An accelerator is what this is about: nothing is hidden from the process.
        worker = Worker(backend, KERAS_BACKEND=backend, CUDA_VISIBLE_DEVICES=visible(), JAX_PLATFORMS="")
        print(f"\n#### Keras on {backend}: {worker.ask('device_name')}\n")
        print_table(["", "forward, ms", "forward and back or step, ms", "difference"])
        for title, function, *given in asks:
            found = worker.ask(function, *given)
            back = rounded(found["back"]) if "back" in found else ""
            print_row([title, rounded(found["forward"]), back, f"{found['difference']:.1e}"])
            differences[f"{title}, {backend}"] = found["difference"]
        worker.close()
    print("\nBars:\n")
    worst = max(differences, key=lambda title: differences[title])
    print_bar(f"largest difference ({worst})", differences[worst], at_most=TOLERANCE)


def visible() -> str:
    """The devices that the caller's environment shows; all where it does not say."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0")


if __name__ == "__main__":
    main()
