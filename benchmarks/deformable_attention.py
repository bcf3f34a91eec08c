"""How fast is deformable attention, and how much memory does it take? Ours against transformers'.

    python benchmarks/deformable_attention.py [--repetitions 15] [--loads encoder,decoder,RT-DETR,RF-DETR]

Every contender gets the same values, locations, weights and gradient of the outputs, as tensors of its own framework,
and computes outputs alone ("forward"), or outputs and the gradients of the other three ("forward and back"). Their
lengths are compared first. "Ours" is called inside a plain `tf.function`, as `fit` has it on a CPU, and compiles
itself; "ours, XLA" is called inside one that is compiled. The function reads rows again on the way back, by itself;
"kept" keeps those that it has read. transformers' is the class that its models use without
a kernel of their own: `grid_sample`, level by level.

All run in turn, once per round, short ones right after an untimed run, since threads of the one before may still wait
for work, and on the threads that each takes by itself. Figures are medians, and compilation is not timed. Peak memory
is that of a process of its own for each contender and load during its first run forward and back, above the level
before it; with compilation, some 100 MiB, where something is compiled. The same is told of the six layers of Deformable
DETR's encoder on the encoder's load, as a model has them.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness.memory import resident_mib
from harness.report import print_bar, print_header, print_row, print_table, rounded
from harness.workers import Worker, serve, take_turns


class Load(NamedTuple):
    """The sizes of one call; an encoder has as many queries as pixels."""

    batch: int
    queries: int
    levels: list[tuple[int, int]]
    heads: int
    points: int
    channels: int


_LARGE = [(100, 134), (50, 67), (25, 34), (13, 17)]  # 800×1072, strides 8 to 64
LOADS = {
    "encoder": Load(1, 17_821, _LARGE, 8, 4, 32),
    "decoder": Load(1, 300, _LARGE, 8, 4, 32),
    "RT-DETR": Load(4, 500, [(80, 80), (40, 40), (20, 20)], 8, 4, 32),
    "RF-DETR": Load(1, 300, [(40, 40)], 16, 2, 16),
}
OURS, KEPT, XLA, TRANSFORMERS = "ours", "ours, kept", "ours, XLA", "transformers"
JAX, PYTORCH = "ours, JAX", "ours, PyTorch"
CONTENDERS = {  # column of the table → (process, Keras backend)
    OURS: ("tensorflow", "tensorflow"),
    KEPT: ("tensorflow", "tensorflow"),
    XLA: ("tensorflow", "tensorflow"),
    JAX: ("jax", "jax"),
    PYTORCH: ("torch", "torch"),
    TRANSFORMERS: ("transformers", "torch"),
}
FORWARD, BACK = "forward", "forward and back"
BARS = {("encoder", KEPT): 0.25, ("encoder", OURS): 0.35, ("decoder", OURS): 0.6, ("RT-DETR", OURS): 0.5}
ENCODER_LAYERS, ENCODER_BAR = 6, 1.2  # bar for the memory
SPREAD = 0.05  # of points around a reference, relative to the image
SHORT = 0.1  # seconds; longer runs do not notice what ran before them
AGREEMENT = 1e-4  # of the lengths of outputs and gradients, relative

Arrays = tuple[np.ndarray, ...]
Run = Callable[[], list[Any]]


def draw(load: Load) -> Arrays:
    """Value, locations, weights and the gradient of the outputs; locations `(batch, queries, heads, points, 2)`."""
    rng = np.random.default_rng(0)
    tokens, points = sum(height * width for height, width in load.levels), load.points * len(load.levels)
    if load.queries == tokens:
        centres = [((np.indices(size) + 0.5) / np.reshape(size, (2, 1, 1))).reshape(2, -1).T for size in load.levels]
        references = np.broadcast_to(np.concatenate(centres)[:, ::-1], (load.batch, tokens, 2))
    else:
        references = rng.uniform(size=(load.batch, load.queries, 2))
    offsets = rng.normal(0, SPREAD, (load.batch, load.queries, load.heads, points, 2))
    weights = rng.uniform(size=offsets.shape[:-1])
    arrays = (
        rng.normal(size=(load.batch, tokens, load.heads, load.channels)),
        references[:, :, None, None] + offsets,
        weights / weights.sum(-1, keepdims=True),
        rng.normal(size=(load.batch, load.queries, load.heads * load.channels)),
    )
    return tuple(array.astype(np.float32) for array in arrays)


def _tensorflow(load: Load, arrays: Arrays, recompute: bool | None, jit_compile: bool) -> dict[str, Run]:
    import tensorflow as tf

    import tfdetr_keras as td

    def attend(value: Any, locations: Any, weights: Any) -> Any:
        return td.deformable_attention(value, load.levels, locations, weights, recompute=recompute)

    def back(*given: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(given)
            outputs = attend(*given)
        return outputs, *tape.gradient(outputs, given, d_outputs)

    *given, d_outputs = map(tf.constant, arrays)
    graphs = {FORWARD: lambda *given: (attend(*given),), BACK: back}

    def run(graph: Any) -> list[np.ndarray]:
        return [result.numpy() for result in graph(*given)]

    return {direction: partial(run, tf.function(graph, jit_compile=jit_compile)) for direction, graph in graphs.items()}


def _jax(load: Load, arrays: Arrays) -> dict[str, Run]:
    import jax

    import tfdetr_keras as td

    def attend(value: Any, locations: Any, weights: Any) -> Any:
        return td.deformable_attention(value, load.levels, locations, weights)

    def back(*given: Any) -> Any:
        outputs, gradient = jax.vjp(attend, *given)
        return outputs, *gradient(d_outputs)

    *given, d_outputs = map(jax.device_put, arrays)
    graphs = {FORWARD: jax.jit(lambda *given: (attend(*given),)), BACK: jax.jit(back)}

    def run(graph: Any) -> list[np.ndarray]:
        return [np.asarray(result) for result in graph(*given)]

    return {direction: partial(run, graph) for direction, graph in graphs.items()}


def _torch(arrays: Arrays, attend: Callable[..., Any]) -> dict[str, Run]:
    import torch

    *given, d_outputs = map(torch.from_numpy, arrays)
    leaves = [one.requires_grad_() for one in given]

    def forward() -> list[np.ndarray]:
        with torch.no_grad():
            return [attend(*given).numpy()]

    def back() -> list[np.ndarray]:
        outputs = attend(*leaves)
        return [one.detach().numpy() for one in (outputs, *torch.autograd.grad(outputs, leaves, d_outputs))]

    return {FORWARD: forward, BACK: back}


def _keras_on_torch(load: Load, arrays: Arrays) -> dict[str, Run]:
    import tfdetr_keras as td

    def attend(value: Any, locations: Any, weights: Any) -> Any:
        return td.deformable_attention(value, load.levels, locations, weights)

    return _torch(arrays, attend)


def _transformers(load: Load, arrays: Arrays) -> dict[str, Run]:
    import torch
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    kernel, shapes, by_level = MultiScaleDeformableAttention(), torch.tensor(load.levels), (len(load.levels), -1)

    def attend(value: Any, locations: Any, weights: Any) -> Any:
        locations = locations.reshape(*locations.shape[:3], *by_level, 2)
        weights = weights.reshape(*weights.shape[:3], *by_level)
        return kernel(value, shapes, load.levels, None, locations, weights, 64)

    return _torch(arrays, attend)


def runs_of(contender: str, load: Load) -> dict[str, Run]:
    """What is timed of a contender, by direction."""
    arrays = draw(load)
    if contender in (OURS, KEPT, XLA):
        recompute = False if contender == KEPT else None
        return _tensorflow(load, arrays, recompute=recompute, jit_compile=contender == XLA)
    return {JAX: _jax, PYTORCH: _keras_on_torch, TRANSFORMERS: _transformers}[contender](load, arrays)


def _our_encoder(load: Load) -> Callable[[], None]:
    import tensorflow as tf

    from tfdetr_keras.layers.deformable_transformer import DeformableEncoder

    width, levels = load.heads * load.channels, len(load.levels)
    options = {"heads": load.heads, "hidden": 4 * width, "levels": levels, "points": load.points}
    encoder = DeformableEncoder(ENCODER_LAYERS, width, **options)
    encoder.build((None, None, width))
    x, position, references, _ = map(tf.constant, _tokens(load))

    @tf.function
    def back() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            mask = tf.ones(x.shape[:2], tf.bool)
            outputs = encoder(x, position, references, mask, spatial_shapes=load.levels, training=True)[-1]
        return tape.gradient(outputs, [x, *(variable.value for variable in encoder.trainable_variables)])

    return lambda: [one.numpy() for one in back()] and None


def _encoder_of_transformers(load: Load) -> Callable[[], None]:
    import torch
    from transformers import DeformableDetrConfig, ResNetConfig
    from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrEncoder

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    width, levels = load.heads * load.channels, len(load.levels)
    config = DeformableDetrConfig(
        use_timm_backbone=False,
        backbone_config=ResNetConfig(),
        d_model=width,
        encoder_layers=ENCODER_LAYERS,
        encoder_ffn_dim=4 * width,
        encoder_attention_heads=load.heads,
        encoder_n_points=load.points,
        num_feature_levels=levels,
        dropout=0.0,
    )
    encoder = DeformableDetrEncoder(config).train()
    x, position, _, ratios = map(torch.from_numpy, _tokens(load))
    x.requires_grad_()
    sizes = torch.tensor(load.levels)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), sizes.prod(1).cumsum(0)[:-1]])

    def back() -> None:
        outputs = encoder(
            inputs_embeds=x,
            attention_mask=torch.ones(x.shape[:2], dtype=torch.bool),
            spatial_position_embeddings=position,
            spatial_shapes=sizes,
            spatial_shapes_list=load.levels,
            level_start_index=starts,
            valid_ratios=ratios,
        ).last_hidden_state
        outputs.sum().backward()

    return back


def _tokens(load: Load) -> Arrays:
    """Tokens and their positions, references on each level, and the shares of the levels that are image: all."""
    rng, width = np.random.default_rng(0), load.heads * load.channels
    tokens = [rng.normal(size=(load.batch, load.queries, width)).astype(np.float32) for _ in range(2)]
    centres = [((np.indices(size) + 0.5) / np.reshape(size, (2, 1, 1))).reshape(2, -1).T for size in load.levels]
    references = np.concatenate(centres)[None, :, None, ::-1].astype(np.float32)
    shape = (load.batch, load.queries, len(load.levels), 2)
    return (*tokens, np.broadcast_to(references, shape).copy(), np.ones((load.batch, len(load.levels), 2), np.float32))


def work() -> None:
    """What a worker process does: prepares contenders for a load, times single runs, and weighs them."""
    prepared: dict[str, dict[str, Run]] = {}

    def prepare(contender: str, load: str) -> list[float]:
        prepared[contender] = runs_of(contender, LOADS[load])
        lengths = [float(np.linalg.norm(result)) for result in prepared[contender][BACK]()]
        prepared[contender][FORWARD]()
        return lengths

    def once(contender: str, direction: str) -> float:
        for _ in range(2):
            start = time.perf_counter()
            prepared[contender][direction]()
            if (seconds := time.perf_counter() - start) > SHORT:
                break
        return seconds

    def peak(contender: str, load: str) -> float:
        return _peak_mib(runs_of(contender, LOADS[load])[BACK])

    def peak_of_encoder(contender: str) -> float:
        make = _encoder_of_transformers if contender == TRANSFORMERS else _our_encoder
        return _peak_mib(make(LOADS["encoder"]))

    serve(prepare=prepare, once=once, peak=peak, peak_of_encoder=peak_of_encoder)


def _peak_mib(run: Callable[[], Any]) -> float:
    """Peak MiB of a run, above the level before it."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the record of the peak
    before = resident_mib("VmRSS")
    run()
    return resident_mib("VmHWM") - before


def measure(workers: dict[str, Worker], load: str, repetitions: int) -> dict[tuple[str, str], float]:
    """Median seconds by contender and direction."""
    lengths = {name: np.array(worker.ask("prepare", name, load)) for name, worker in workers.items()}
    for name, found in lengths.items():
        if np.abs(found / lengths[TRANSFORMERS] - 1).max() > AGREEMENT:
            raise SystemExit(
                f"{load}: results of {name} differ from transformers', so the times mean nothing: {lengths}"
            )
    asks = {
        (name, direction): partial(worker.ask, "once", name, direction)
        for direction in (FORWARD, BACK)
        for name, worker in workers.items()
    }
    seconds = take_turns(asks, repetitions)
    return {key: statistics.median(values) for key, values in seconds.items()}


def peak_of(contender: str, function: str, *arguments: str) -> float:
    """Peak MiB of a contender's first run, in a process of its own."""
    process, backend = CONTENDERS[contender]
    worker = Worker(process, KERAS_BACKEND=backend)
    peak = worker.ask(function, contender, *arguments)
    worker.close()
    return peak


def main() -> None:
    """Measures all loads and prints the tables and the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--loads", default=",".join(LOADS))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work()
        return

    contenders = {
        name: place for name, place in CONTENDERS.items() if name != JAX or importlib.util.find_spec("jax") is not None
    }
    processes = {place: Worker(place[0], KERAS_BACKEND=place[1]) for place in set(contenders.values())}
    workers = {name: processes[place] for name, place in contenders.items()}
    print_header("Deformable attention, ms", ("tfdetr-keras", "tensorflow", "keras", "jax", "torch", "transformers"))
    print(f"In brackets the ratio to {TRANSFORMERS}; n={arguments.repetitions}, fewer where a run takes long.\n")
    print_table(["load", "direction", *workers])
    medians = {}
    for load in arguments.loads.split(","):
        medians[load] = measure(workers, load, arguments.repetitions)
        for direction in (FORWARD, BACK):
            row = {name: medians[load][name, direction] for name in workers}
            cells = [f"{rounded(1e3 * row[name])} ({rounded(row[name] / row[TRANSFORMERS])}×)" for name in workers]
            print_row([load, direction, *cells])
    for worker in processes.values():
        worker.close()
    print("\nPeak MiB of a run forward and back:\n")
    print_table(["load", *workers])
    for load in medians:
        print_row([load, *(rounded(peak_of(name, "peak", load)) for name in workers)])
    of_encoder = {}
    if "encoder" in medians:
        of_encoder = {name: peak_of(name, "peak_of_encoder") for name in (OURS, TRANSFORMERS)}
        figures = ", ".join(f"{name} {rounded(mib)}" for name, mib in of_encoder.items())
        print(f"\nOf {ENCODER_LAYERS} layers of the encoder: {figures}.")
    print("\nBars, forward and back:\n")
    for (load, name), bar in BARS.items():
        row = medians.get(load)
        ratio = None if row is None else row[name, BACK] / row[TRANSFORMERS, BACK]
        print_bar(f"{load}: time of {name} / {TRANSFORMERS}", ratio, at_most=bar)
    ratio = of_encoder[OURS] / of_encoder[TRANSFORMERS] if of_encoder else None
    print_bar(f"{ENCODER_LAYERS} layers of the encoder: memory of {OURS} / {TRANSFORMERS}", ratio, at_most=ENCODER_BAR)


if __name__ == "__main__":
    main()
