"""How long does porting take, and how much memory? DETR with ResNet-50 from both kinds of files.

    python benchmarks/port.py [--repetitions 5]

Each load runs in a fresh process, so that nothing is compiled or cached, in turn, the files being in the system's
cache. The time is that of the call alone, after imports; the memory is the most that the process has resident during
the call above what it had before, compared with the size of the file. PyTorch has to stay unimported; a `.pth` is
opened by a process of its own, whose peak, from its start, stands beside ours. So does what transformers needs to load
the same folder. All models answer alike, which is checked first.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness.memory import peak_mib, resident_mib
from harness.report import print_bar, print_header, print_table, rounded
from harness.workers import Worker, serve

SAFETENSORS, PICKLE, TRANSFORMERS = "ours, from .safetensors", "ours, from .pth", "transformers, from .safetensors"
CONTENDERS = (SAFETENSORS, PICKLE, TRANSFORMERS)
AGREEMENT = 1e-3  # of logits, absolute


def write_files(folder: Path) -> None:
    """The same random weights as transformers' folder and as facebookresearch's file."""
    import port_weights
    from port_weights.reference import write_random_checkpoint
    from tfdetr_keras.models import PRESETS

    write_random_checkpoint(folder / "detr-resnet-50", PRESETS["detr-resnet-50"])
    port_weights.export_pth(folder / "detr-resnet-50", folder / "detr-resnet-50.pth")


def _file(contender: str, folder: Path) -> Path:
    return folder / ("detr-resnet-50.pth" if contender == PICKLE else "detr-resnet-50/model.safetensors")


def work(contender: str) -> None:
    """What a worker process does: one load."""
    if contender == TRANSFORMERS:
        import torch
        import transformers

        transformers.DetrForObjectDetection  # noqa: B018  # a lazy import
    else:
        import port_weights
        import tfdetr_keras as td

        port_weights.load_model  # noqa: B018
        td.DETR  # noqa: B018

    def load(folder: str) -> dict[str, Any]:
        file = _file(contender, Path(folder))
        Path("/proc/self/clear_refs").write_text("5")  # begins the record of the peak anew
        before, start = resident_mib("VmRSS"), time.perf_counter()
        if contender == TRANSFORMERS:
            model: Any = transformers.DetrForObjectDetection.from_pretrained(file.parent)
        else:
            model = td.DETR.from_pretrained(file.parent if contender == SAFETENSORS else file)
        seconds, peak, with_torch = time.perf_counter() - start, peak_mib() - before, "torch" in sys.modules
        of_child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        pixels = np.random.default_rng(0).normal(size=(1, 96, 128, 3)).astype(np.float32)
        if contender == TRANSFORMERS:
            with torch.inference_mode():
                logits = model(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).logits.numpy()
        else:
            logits = np.array(model(pixels)["logits"])
        found = {"seconds": seconds, "mib": peak, "child": of_child, "torch": with_torch}
        return found | {"logits": logits.ravel().tolist()}

    serve(load=load)


def main() -> None:
    """Measures and prints the table and the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return

    print_header("Porting", ("tfdetr-keras", "tensorflow", "keras", "torch", "transformers", "safetensors"))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        sizes = {name: _file(name, Path(folder)).stat().st_size / 2**20 for name in CONTENDERS}
        for _ in range(arguments.repetitions):
            for name in CONTENDERS:
                worker = Worker(name)
                found[name].append(worker.ask("load", folder))
                worker.close()
    expected = found[TRANSFORMERS][0]["logits"]
    for name in CONTENDERS:
        difference = np.abs(np.subtract(found[name][0]["logits"], expected)).max()
        if not difference <= AGREEMENT:
            raise SystemExit(f"{name}: logits differ by {difference}, so the times mean nothing")
    figures = {
        name: [statistics.median(run[key] for run in runs) for key in ("seconds", "mib", "child")]
        for name, runs in found.items()
    }
    print(f"DETR with ResNet-50; n={arguments.repetitions} processes each; logits agree to {AGREEMENT:g}.\n")
    print_table(
        ("", "median s", "peak MiB", "file, MiB", "peak / file", "torch imported", "peak MiB of the other process"),
        [
            (
                name,
                rounded(seconds),
                rounded(mib),
                rounded(sizes[name]),
                rounded(mib / sizes[name]),
                "yes" if found[name][0]["torch"] else "no",
                rounded(child) if name == PICKLE else "",
            )
            for name, (seconds, mib, child) in figures.items()
        ],
    )
    print("\nBars:\n")
    seconds, mib, _ = figures[SAFETENSORS]
    print_bar(f"{SAFETENSORS}, s", seconds, at_most=5)
    print_bar(f"{SAFETENSORS}, time / that of transformers", seconds / figures[TRANSFORMERS][0], at_most=2.5)
    print_bar(f"{SAFETENSORS}, peak / file", mib / sizes[SAFETENSORS], at_most=2.5)
    print_bar(f"{SAFETENSORS}, imports of torch", float(found[SAFETENSORS][0]["torch"]), at_most=0)
    print_bar(f"{PICKLE}, peak / file", figures[PICKLE][1] / sizes[PICKLE], at_most=2.5)
    print_bar(f"{PICKLE}, imports of torch", float(found[PICKLE][0]["torch"]), at_most=0)


if __name__ == "__main__":
    main()
