"""How fast do DETR, RT-DETR, D-FINE and RF-DETR detect? Ours against others' models, and against the machine.

    python benchmarks/inference.py [--repetitions 7] [--model detr-resnet-50 rf-detr-nano] [--size 800x1066x1 512x512x4]

All compute logits and boxes from pixels in memory; ours and Hugging Face's have the same weights (DETR also a mask
without padding), and their outputs are compared first. ZeroModels has random weights of the same shapes, takes no mask,
and is built for each size. Ours runs as the graph that `predict` builds, compiled by XLA, both again with batch
normalisation folded into the convolutions (`model.fold()`), and the folded graph in `mixed_bfloat16`; ZeroModels as a
graph and compiled by XLA; Hugging Face eagerly under `torch.inference_mode`, and by `torch.compile`. Each contender has
a process of its own, which is also where its peak memory is read, from the process's start. All run in turn, once a
round; figures are medians; compilation is not timed.

The machine's own rate is that of the faster of TensorFlow's and PyTorch's product of two float32 matrices, timed in the
same rounds. Multiplications of an image are counted by PyTorch's `FlopCounterMode` in Hugging Face's model.

RT-DETR's and D-FINE's queries are their best tokens, best first. Random weights score them nearly alike, so that a
rounding swaps some: each query is compared with the one that is nearest to it.

Beside D-FINE stands KerasHub's, too, as a graph and compiled by XLA, with random weights of the same shapes.

RF-DETR has nothing to fold, so ours in `mixed_bfloat16` is the plain graph. RF-DETR's own package, `rfdetr`, stands
beside Hugging Face's: with the same weights, eagerly as it predicts, and by `torch.compile` of what it exports. None
computes the groups that only training has. Random scales of all normalisations keep tokens' scores apart, since a
query's content is that of its rank: swapped ones would be other queries. ZeroModels, KerasHub and rfdetr are downloaded
on the first run into `benchmarks/.peers`, where only their own processes look.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness import kerashub
from harness.agreement import PARTS, apart
from harness.memory import peak_mib
from harness.multiplications import multiplications
from harness.peers import not_installed, peer_folder
from harness.rate import MATRIX, product
from harness.report import print_bar, print_header, print_table, rounded
from harness.rf_detr import configuration
from harness.rf_detr import missing as rfdetr_missing
from harness.workers import Worker, serve, take_turns

OURS, OURS_XLA, FOLDED, FOLDED_XLA = "ours, graph", "ours, XLA", "ours, folded graph", "ours, folded XLA"
HALF = "ours, folded graph, bfloat16"
PLAIN_HALF = "ours, graph, bfloat16"
EAGER, COMPILED = "transformers, eager", "transformers, torch.compile"
RFDETR, RFDETR_COMPILED = "rfdetr, eager", "rfdetr, torch.compile"
ZERO, ZERO_XLA = "ZeroModels, graph", "ZeroModels, XLA"
HUB, HUB_XLA = "KerasHub, graph", "KerasHub, XLA"
_OTHERS = (EAGER, COMPILED, ZERO, ZERO_XLA)
MATMUL_TENSORFLOW, MATMUL_TORCH = "matmul, tensorflow", "matmul, torch"
ZEROMODELS = ("zeromodels==1.3.6", "sentencepiece==0.2.1")  # which it imports
AGREEMENT = 1e-3  # of logits and boxes, absolute

Run = Callable[[], dict[str, np.ndarray]]


class Load(NamedTuple):
    """Sizes, and bars: times of our fastest by another's, and the least share of the machine's rate in per cent."""

    sizes: tuple[str, ...]  # height, width, batch
    eager: float  # by transformers', and by rfdetr's where it contends
    compiled: float | None
    zero: float | None
    rate: float | None
    contenders: tuple[str, ...] = (OURS, OURS_XLA, FOLDED, FOLDED_XLA, HALF, *_OTHERS)
    hub: float | None = None


# XLA does not compile ZeroModels' bicubic resizing of its positions.
_OF_RF_DETR = (OURS, OURS_XLA, PLAIN_HALF, RFDETR, RFDETR_COMPILED, EAGER, COMPILED, ZERO)
_OF_D_FINE = (OURS, OURS_XLA, FOLDED, FOLDED_XLA, HALF, *_OTHERS, HUB, HUB_XLA)
LOADS = {
    "detr-resnet-50": Load(("800x1066x1", "512x512x4"), 0.45, None, 0.8, 85),
    "rt-detr-r18": Load(("640x640x1",), 0.5, 0.8, 0.8, 80),
    "rt-detr-r50": Load(("640x640x1",), 0.5, 0.8, 0.8, 80),
    "d-fine-nano": Load(("640x640x1",), 1, 1, 1, None, _OF_D_FINE, hub=1),
    "d-fine-small": Load(("640x640x1",), 1, 1, 1, None, _OF_D_FINE, hub=1),
    "rf-detr-nano": Load(("384x384x1",), 0.6, None, None, None, _OF_RF_DETR),
    "rf-detr-small": Load(("512x512x1",), 0.6, None, None, None, _OF_RF_DETR),
}


def _pixels(size: Sequence[int]) -> np.ndarray:
    height, width, batch = size
    return np.random.default_rng(0).normal(size=(batch, height, width, 3)).astype(np.float32)


def write_weights(folder: Path, config: dict[str, Any]) -> None:
    """A random detector as transformers saves it, with batch normalisation that is not that of a fresh one.

    Called in PyTorch's process.

    Args:
        folder: to write to.
        config: what `config.json` says of it.
    """
    import torch

    from port_weights.pytorch.model import reference_model

    torch.manual_seed(0)
    model: Any = reference_model(config)
    for name, array in (*model.named_buffers(), *model.named_parameters()):
        if name.endswith("running_var"):
            array.data.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            array.data.uniform_(-0.1, 0.1)
        elif config["model_type"] in ("rf_detr", "d_fine") and array.is_floating_point() and not array.any():
            array.data.normal_(0, 0.1)  # what makes all boxes those of the anchors
    if config["model_type"] == "d_fine":  # in whose trunk nothing would be left of the image
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.data.normal_(0, (2 / module.weight[0].numel()) ** 0.5)
    norms: tuple[Any, ...] = (torch.nn.BatchNorm2d,)  # whose scales transformers' RT-DETR begins near 0
    if config["model_type"] == "rf_detr":
        norms = (torch.nn.LayerNorm,)
    for module in model.modules():
        if isinstance(module, norms):
            module.weight.data.uniform_(0.5, 1.5)
    model.save_pretrained(folder)


def _is_detr(name: str) -> bool:
    return name.startswith("detr")


def _ours(contender: str, name: str, folder: str, size: Sequence[int]) -> Run:
    import keras
    import tensorflow as tf

    import tfdetr_keras as td

    if contender in (HALF, PLAIN_HALF):
        keras.config.set_dtype_policy("mixed_bfloat16")
    model = td.from_pretrained(folder)
    model.auxiliary_outputs = False
    if contender in (FOLDED, FOLDED_XLA, HALF):
        model = model.fold()
    forward = tf.function(lambda inputs: model(inputs, training=False), jit_compile=contender in (OURS_XLA, FOLDED_XLA))
    pixels = _pixels(size)
    inputs = {"pixel_values": tf.constant(pixels)}
    if _is_detr(name):
        inputs["pixel_mask"] = tf.ones(pixels.shape[:3], tf.int32)
    return lambda: {part: value.numpy() for part, value in forward(inputs).items()}


def _zeromodels(contender: str, name: str, folder: str, size: Sequence[int]) -> Run:
    sys.path.append(str(peer_folder(ZEROMODELS)))
    import tensorflow as tf

    if _is_detr(name):
        from zeromodels.models.detr import DETRDetect

        model = DETRDetect(image_size=(*size[:2], 3))
    elif name.startswith("d-fine"):
        from zeromodels.models.dfine import DFineDetect

        from tfdetr_keras.models import PRESETS

        config = PRESETS[name]
        trunk, levels = config.backbone, config.num_feature_levels
        model = DFineDetect(
            stem_channels=(3, *trunk.stem_channels),
            stage_in_channels=(trunk.stem_channels[1], *trunk.channels[:-1]),
            stage_mid_channels=trunk.hidden_channels,
            stage_out_channels=trunk.channels,
            stage_num_blocks=trunk.depths,
            stage_numb_of_layers=(trunk.block_layers,) * len(trunk.channels),
            use_lab=trunk.learnable_affine,
            encoder_in_channels=trunk.channels[-levels:],
            encoder_hidden_dim=config.encoder_dim,
            encoder_ffn_dim=config.encoder_ffn_dim,
            encode_proj_layers=(levels - 1,),
            hidden_expansion=config.expansion,
            ccfm_num_blocks=config.fusion_blocks,
            hidden_dim=config.d_model,
            decoder_num_layers=config.decoder_layers,
            decoder_ffn_dim=config.decoder_ffn_dim,
            decoder_n_points=kerashub.points_of(config),
            num_feature_levels=levels,
            feat_strides=(8, 16, 32)[-levels:],
            num_queries=config.num_queries,
            image_size=size[0],
        )
    elif name.startswith("rf-detr"):
        from zeromodels.models.rf_detr import RFDETRDetect

        from tfdetr_keras.models import PRESETS

        config = PRESETS[name]
        model = RFDETRDetect(
            out_feature_indexes=config.backbone.taps,
            patch_size=config.backbone.patch_size,
            num_windows=config.backbone.windows,
            positional_encoding_size=config.backbone.table_side,
            resolution=size[0],
            dec_layers=config.decoder_layers,
        )
    else:
        from zeromodels.models.rt_detr import RTDETRDetect

        from tfdetr_keras.models import PRESETS

        config = PRESETS[name]
        model = RTDETRDetect(
            backbone_hidden_sizes=tuple(config.backbone.channels),
            backbone_block_repeats=tuple(config.backbone.depths),
            backbone_layer_type=config.backbone.block,
            encoder_in_channels=config.map_channels,
            hidden_expansion=config.expansion,
            decoder_num_layers=config.decoder_layers,
            image_size=(*size[:2], 3),
        )
    forward = tf.function(lambda inputs: model(inputs, training=False), jit_compile=contender == ZERO_XLA)
    inputs = tf.constant(_pixels(size))
    return lambda: {part: value.numpy() for part, value in forward(inputs).items()}


def _kerashub(contender: str, name: str, folder: str, size: Sequence[int]) -> Run:
    import tensorflow as tf

    from tfdetr_keras.models import PRESETS

    model = kerashub.network(PRESETS[name], size[:2])

    def detect(inputs: Any) -> dict[str, Any]:
        outputs = model(inputs, training=False)
        return {
            "logits": outputs["intermediate_logits"][:, -1],
            "pred_boxes": outputs["intermediate_reference_points"][:, -1],
        }

    forward = tf.function(detect, jit_compile=contender == HUB_XLA)
    inputs = tf.constant(_pixels(size))
    return lambda: {part: value.numpy() for part, value in forward(inputs).items()}


def _rfdetr(contender: str, name: str, folder: str, size: Sequence[int]) -> Run:
    import torch
    from safetensors.torch import load_file

    settings = configuration(name.rpartition("-")[2].title())
    from rfdetr.models.lwdetr import build_model

    model = build_model(settings)
    left = model.load_state_dict(load_file(Path(folder) / "model.safetensors"), strict=False)
    if left.unexpected_keys or left.missing_keys not in ([], ["_kp_active_mask"]):  # of keypoints, which there are none
        raise RuntimeError(f"the weights are not rfdetr's: {left}")
    model.eval()
    pixels = torch.from_numpy(np.ascontiguousarray(_pixels(size).transpose(0, 3, 1, 2)))
    if contender == RFDETR:
        forward = model
    else:
        model.export()
        forward = torch.compile(model)

    @torch.inference_mode()
    def run() -> dict[str, np.ndarray]:
        outputs = forward(pixels)
        if contender == RFDETR:
            return {"logits": outputs["pred_logits"].numpy(), "pred_boxes": outputs["pred_boxes"].numpy()}
        return {"logits": outputs[1].numpy(), "pred_boxes": outputs[0].numpy()}

    return run


def _transformers(contender: str, name: str, folder: str, size: Sequence[int]) -> Run:
    import torch
    import transformers

    model = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    pixels = torch.from_numpy(np.ascontiguousarray(_pixels(size).transpose(0, 3, 1, 2)))
    inputs = {"pixel_values": pixels}
    if _is_detr(name):
        inputs["pixel_mask"] = torch.ones(pixels.shape[0], *pixels.shape[2:], dtype=torch.int64)
    forward = torch.compile(model) if contender == COMPILED else model

    @torch.inference_mode()
    def run() -> dict[str, np.ndarray]:
        outputs = forward(**inputs)
        return {"logits": outputs.logits.numpy(), "pred_boxes": outputs.pred_boxes.numpy()}

    return run


def work(contender: str) -> None:
    """What a worker process does."""
    runs: list[Run] = []

    def first(name: str, folder: str, size: Sequence[int]) -> dict[str, list[Any]]:
        if contender in (MATMUL_TENSORFLOW, MATMUL_TORCH):
            multiply = product("torch" if contender == MATMUL_TORCH else "tensorflow")
            runs.append(lambda: {"product": multiply()})
        elif contender in (EAGER, COMPILED):
            runs.append(_transformers(contender, name, folder, size))
        elif contender in (RFDETR, RFDETR_COMPILED):
            runs.append(_rfdetr(contender, name, folder, size))
        elif contender in (ZERO, ZERO_XLA):
            runs.append(_zeromodels(contender, name, folder, size))
        elif contender in (HUB, HUB_XLA):
            runs.append(_kerashub(contender, name, folder, size))
        else:
            runs.append(_ours(contender, name, folder, size))
        outputs = runs[0]()
        if "product" in outputs:
            return {}
        return {part: outputs[part].tolist() for part in PARTS}

    def once() -> float:
        start = time.perf_counter()
        runs[0]()
        return time.perf_counter() - start

    serve(first=first, once=once, peak=peak_mib)


def _missing(contender: str) -> str | None:
    """Installs what a contender needs; returns why it cannot be had, if so."""
    if contender in (RFDETR, RFDETR_COMPILED):
        return rfdetr_missing()
    if contender in (HUB, HUB_XLA):
        return not_installed(kerashub.PACKAGE)
    return not_installed(ZEROMODELS) if contender in (ZERO, ZERO_XLA) else None


def measure(model: str, folder: str, size: Sequence[int], repetitions: int) -> dict[str, tuple[float, float, str]]:
    """Median seconds and peak MiB of each contender, and how far its outputs are from Hugging Face's."""
    names = [name for name in LOADS[model].contenders if not _missing(name)]
    workers = {name: Worker(name) for name in (*names, MATMUL_TENSORFLOW, MATMUL_TORCH)}
    outputs = {name: worker.ask("first", model, folder, size) for name, worker in workers.items()}
    differences = dict.fromkeys(workers, "")
    for name in names:
        if name in (EAGER, ZERO, ZERO_XLA, HUB, HUB_XLA):
            continue
        logits, boxes = apart(outputs[name], outputs[EAGER], _is_detr(model))
        differences[name] = f"{logits:.1e}, {boxes:.1e}"
        if name not in (HALF, PLAIN_HALF) and not max(logits, boxes) <= AGREEMENT:
            raise SystemExit(f"{name}: logits and boxes differ by {differences[name]}, so the times mean nothing")
    once = {name: partial(worker.ask, "once") for name, worker in workers.items()}
    seconds = take_turns(once, repetitions, seconds_per_figure=1e6)
    peaks = {name: worker.ask("peak") for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    return {name: (statistics.median(values), peaks[name], differences[name]) for name, values in seconds.items()}


def main() -> None:
    """Measures and prints the tables and the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--model", nargs="+", default=list(LOADS), choices=list(LOADS))
    parser.add_argument("--size", nargs="+", metavar="HEIGHTxWIDTHxBATCH", help="each model's own by default")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return

    from port_weights.architecture import hugging_face_config
    from port_weights.pytorch.process import run
    from tfdetr_keras.models import PRESETS

    print_header("Inference", ("tfdetr-keras", "tensorflow", "keras", "torch", "transformers"))
    for name in arguments.model:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / name
            folder.mkdir()
            run("inference:write_weights", folder, config=hugging_face_config(PRESETS[name]))
            for text in arguments.size or LOADS[name].sizes:
                report(name, str(folder), [int(side) for side in text.split("x")], arguments.repetitions)


def report(model: str, folder: str, size: Sequence[int], repetitions: int) -> None:
    """Measures one model at one size and prints its table and its bars."""
    from tfdetr_keras.models import PRESETS

    height, width, batch = size
    count = multiplications(PRESETS[model], height, width) * batch
    load, measured = LOADS[model], measure(model, folder, size, repetitions)
    machine = MATRIX**3 / min(measured[name][0] for name in (MATMUL_TENSORFLOW, MATMUL_TORCH))
    print(f"#### {model}, {height}×{width}, batch {batch}\n")
    print(f"n={repetitions}; {count / batch / 1e9:.1f} G multiplications an image; the machine's own ", end="")
    print(f"{machine / 1e9:.0f} G a second. Logits and boxes are at most so far from those of {EAGER}:\n")
    eager, zero = measured[EAGER][0], measured.get(ZERO, (None,))[0]
    columns = (
        "",
        "median ms",
        f"this / {EAGER}",
        f"this / {ZERO}",
        "% of the machine's rate",
        "peak MiB",
        "outputs apart",
    )
    rows = []
    for name in load.contenders:
        if name not in measured:
            rows.append((name, *["not installed"] * (len(columns) - 1)))
            continue
        seconds, peak, difference = measured[name]
        to_zero = "" if zero is None else rounded(seconds / zero)
        share = rounded(100 * count / seconds / machine)
        rows.append((name, rounded(1e3 * seconds), rounded(seconds / eager), to_zero, share, rounded(peak), difference))
    print_table(columns, rows)
    print("\nBars:\n")
    ours = [name for name in (FOLDED, FOLDED_XLA, OURS, OURS_XLA) if name in measured]
    fastest = min(ours, key=lambda name: measured[name][0])
    seconds = measured[fastest][0]
    print_bar(f"time of {fastest} / {EAGER}", seconds / eager, at_most=load.eager)
    if RFDETR in load.contenders:
        of_rfdetr = seconds / measured[RFDETR][0] if RFDETR in measured else None
        print_bar(f"time of {fastest} / {RFDETR}", of_rfdetr, at_most=load.eager)
    if load.compiled is not None:
        print_bar(f"time of {fastest} / {COMPILED}", seconds / measured[COMPILED][0], at_most=load.compiled)
    if load.zero is not None:
        zeros = [measured[name][0] for name in (ZERO, ZERO_XLA) if name in measured]
        ratio = seconds / min(zeros) if zeros else None
        print_bar(f"time of {fastest} / the faster ZeroModels", ratio, at_most=load.zero)
    if load.hub is not None:
        hubs = [measured[name][0] for name in (HUB, HUB_XLA) if name in measured]
        print_bar(f"time of {fastest} / the faster KerasHub", seconds / min(hubs) if hubs else None, at_most=load.hub)
    if load.rate is not None:
        share = 100 * count / seconds / machine
        print_bar(f"multiplications of {fastest}, % of the machine's rate", share, at_least=load.rate)
    print()


if __name__ == "__main__":
    main()
