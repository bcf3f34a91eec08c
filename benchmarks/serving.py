"""How large and how fast are exported models, and what do smaller weights cost in AP?

    python benchmarks/serving.py [--repetitions 7] [--images 300]

DETR with ResNet-50 in every format of `td.export`, on a raw photograph of 480×640 that is resized to 800×1066; beside
it ONNX Runtime on PyTorch's own export of Hugging Face's model with the same weights, which gets its pixels resized and
normalised already: its users do that themselves. Each runs in a process of its own; processes run in turn; figures are
medians. Scores are compared first.

AP is that of `detr-tiny` in each format on drawn shapes, on the canvas of its training, by pycocotools.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness.memory import peak_mib
from harness.report import print_header, print_table, rounded
from harness.workers import Worker, serve, take_turns

HEIGHT, WIDTH = 480, 640
SIZE, CANVAS = (800, 1333), (800, 1088)  # which holds the photograph once it is resized
SHAPES_SIZE, SHAPES_CANVAS = (48, 64), (64, 64)
SHAPES_SEED = 5
THEIRS = "PyTorch's export, ONNX Runtime"
FORMATS = {
    "SavedModel, TensorFlow": "served",
    "ONNX, ONNX Runtime": "detector.onnx",
    "LiteRT, float32": "float32.tflite",
    "LiteRT, float16": "float16.tflite",
    "LiteRT, int8": "int8.tflite",
}
AGREEMENT = 1e-3  # of scores in float32

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def write(
    model: Any, folder: Path, size: tuple[int, int], canvas: tuple[int, int], is_canvas_for_all: bool = False
) -> None:
    """Exports a model in all formats; but for LiteRT, which needs one, on a canvas only where it is for all."""
    from tfdetr_keras import export

    for_others = canvas if is_canvas_for_all else None
    export.saved_model(model, folder / "served", size, for_others)
    export.onnx(model, folder / "detector.onnx", size, for_others)
    for precision in ("float32", "float16", "int8"):
        export.litert(model, folder / f"{precision}.tflite", size, canvas, precision)


def write_theirs(model: Any, file: Path) -> None:
    """Exports Hugging Face's model with the weights of ours, by PyTorch, in a process of its own."""
    from safetensors.numpy import save_file

    from port_weights import to_torch
    from port_weights.architecture import hugging_face_config
    from port_weights.families import family_of
    from port_weights.pytorch import TENSORS
    from port_weights.pytorch.process import run

    with tempfile.TemporaryDirectory() as temporary:
        arrays = to_torch(model, family_of(model.config).reference_scheme(model.config))
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, Path(temporary, TENSORS))
        run("serving:export_theirs", Path(temporary), config=hugging_face_config(model.config), file=str(file))


def export_theirs(folder: Path, config: dict[str, Any], file: str) -> None:
    """Exports the model whose tensors lie in a folder. Called in PyTorch's process."""
    import torch
    from safetensors.numpy import load_file

    from port_weights.pytorch import TENSORS
    from port_weights.pytorch.model import load_weights, reference_model

    theirs: Any = reference_model(config)
    load_weights(theirs, load_file(folder / TENSORS))

    class Outputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.detector = theirs

        def forward(self, pixel_values: Any) -> Any:
            outputs = self.detector(pixel_values=pixel_values)
            return outputs.logits, outputs.pred_boxes

    pixels = torch.zeros(1, 3, 800, 1066)
    names = {"input_names": ["pixel_values"], "output_names": ["logits", "pred_boxes"]}
    torch.onnx.export(Outputs().eval(), (pixels,), file, dynamo=False, opset_version=17, **names)


def _loaded(name: str, path: str) -> Run:
    """A runtime with a model; it takes `(1, height, width, 3)` uint8."""
    if name.startswith("SavedModel"):
        import tensorflow as tf

        signature = tf.saved_model.load(path).signatures["serving_default"]
        return lambda images: {key: value.numpy() for key, value in signature(images=tf.constant(images)).items()}
    if name.startswith("LiteRT"):
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(path, num_threads=2)
        shape: list[tuple[int, ...]] = []

        def run(images: np.ndarray) -> dict[str, np.ndarray]:
            if shape != [images.shape]:
                interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], images.shape)
                interpreter.allocate_tensors()
                shape[:] = [images.shape]
            return interpreter.get_signature_runner()(images=images)

        return run
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    if name != THEIRS:
        return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))
    pixels: list[np.ndarray] = []

    def run_theirs(images: np.ndarray) -> dict[str, np.ndarray]:
        if not pixels:  # not timed: the first call is not
            pixels.append(_prepared(images))
        logits, boxes = session.run(names, {"pixel_values": pixels[0]})
        probabilities = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities = (probabilities / probabilities.sum(-1, keepdims=True))[..., :-1]
        return {"scores": -np.sort(-probabilities.max(-1)), "boxes": boxes}

    return run_theirs


def _prepared(images: np.ndarray) -> np.ndarray:
    import tfdetr_keras as td
    from tfdetr_keras.data.image_files import records_of

    inputs, _ = next(iter(td.data.prepare(records_of(list(images)), 1, size=SIZE)))
    return np.ascontiguousarray(inputs["pixel_values"].numpy().transpose(0, 3, 1, 2))


def _photograph() -> np.ndarray:
    """Smooth and colourful, as photographs are, so that resizing leaves something."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (1, HEIGHT // 16, WIDTH // 16, 3))
    return coarse.repeat(16, axis=1).repeat(16, axis=2).astype(np.uint8)


def work(what: str) -> None:
    """What a worker process does."""
    name, _, path = what.partition("|")
    run, image = _loaded(name, path), _photograph()

    def scores() -> list[float]:
        return run(image)["scores"][0].tolist()

    def once() -> float:
        start = time.perf_counter()
        run(image)
        return time.perf_counter() - start

    serve(scores=scores, once=once, peak=peak_mib)


def _mib(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 2**20


def report_times(folder: Path, repetitions: int) -> None:
    """Prints the table of sizes and times."""
    paths = {name: folder / file for name, file in FORMATS.items()} | {THEIRS: folder / "theirs.onnx"}
    workers = {name: Worker(f"{name}|{path}") for name, path in paths.items()}
    scores = {name: np.array(worker.ask("scores")) for name, worker in workers.items()}
    apart = {name: np.abs(found - scores[THEIRS]).max() for name, found in scores.items()}
    for name in ("SavedModel, TensorFlow", "ONNX, ONNX Runtime"):
        if not apart[name] <= AGREEMENT:
            raise SystemExit(f"{name}: scores differ by {apart[name]}, so the times mean nothing")
    once = {name: partial(worker.ask, "once") for name, worker in workers.items()}
    seconds = {name: statistics.median(s) for name, s in take_turns(once, repetitions, 1e6).items()}
    rows = [
        (
            name,
            rounded(_mib(paths[name])),
            rounded(1e3 * seconds[name]),
            rounded(seconds[name] / seconds[THEIRS]),
            rounded(workers[name].ask("peak")),
            f"{apart[name]:.1e}",
        )
        for name in paths
    ]
    for worker in workers.values():
        worker.close()
    print_table(("", "MiB", "median ms", f"this / {THEIRS}", "peak MiB", "scores apart"), rows)


def report_ap(folder: Path, images: int) -> None:
    """Prints the table of AP."""
    import tfdetr_keras as td

    records, names = td.data.load_shapes(images, seed=SHAPES_SEED, size=SHAPES_SIZE)
    write(td.DETR.from_pretrained("detr-tiny"), folder, SHAPES_SIZE, SHAPES_CANVAS, is_canvas_for_all=True)
    truth = list(records.as_numpy_iterator())
    rows, first = [], None
    for name, file in FORMATS.items():
        run, found = _loaded(name, str(folder / file)), []
        for record in truth:
            detections = run(record["image"][None])
            found.append({key: detections[key][0] for key in ("scores", "labels", "boxes")})
            found[-1]["image_id"] = int(record["image_id"])
        metrics = td.evaluation.coco_metrics(truth, found, names)
        first = first or metrics
        figures = [100 * metrics["AP"], 100 * (metrics["AP"] - first["AP"]), 100 * metrics["AP50"]]
        rows.append((name, f"{figures[0]:.2f}", f"{figures[1]:+.2f}", f"{figures[2]:.2f}"))
    print_table(("", "AP, %", "to the first", "AP50, %"), rows)


def main() -> None:
    """Exports, measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return

    import keras

    import tfdetr_keras as td

    packages = ("tfdetr-keras", "tensorflow", "keras", "onnxruntime", "ai-edge-litert", "torch", "transformers")
    print_header("Serving", packages)
    with tempfile.TemporaryDirectory() as folder:
        keras.utils.set_random_seed(0)
        model = td.DETR.from_preset("detr-resnet-50", num_classes=91)
        write(model, Path(folder), SIZE, CANVAS)
        write_theirs(model, Path(folder) / "theirs.onnx")
        del model
        print(
            f"DETR with ResNet-50, a photograph of {HEIGHT}×{WIDTH} at 800×1066, batch 1; n={arguments.repetitions}.\n"
        )
        report_times(Path(folder), arguments.repetitions)
    print(f"\n`detr-tiny` on {arguments.images} images of drawn shapes:\n")
    with tempfile.TemporaryDirectory() as folder:
        report_ap(Path(folder), arguments.images)


if __name__ == "__main__":
    main()
