"""The main workflow in one run: port a trained checkpoint, compare it with PyTorch, fine-tune it on new classes; AP."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import keras

from port_weights import hub
from port_weights.compare import Row, compare, table
from port_weights.pytorch.process import PyTorchMissingError
from tfdetr_keras import data
from tfdetr_keras.evaluation.coco import evaluate_detections
from tfdetr_keras.models import from_pretrained
from tfdetr_keras.models.packaged import find_source
from tfdetr_keras.training import RunFolder, fit_detector

SOURCE = "rt-detr-tiny"
CLASSES = ("star", "cross", "ring", "arrow")  # none of which the checkpoint knows
STEPS = 900
STEPS_PER_EPOCH = 150
BATCH_SIZE = 16
TRAINING_IMAGES, TRAINING_SEED = STEPS_PER_EPOCH * BATCH_SIZE, 3
HELD_OUT_IMAGES, HELD_OUT_SEED = 256, 4
DRAWN = (48, 64)  # smallest and largest side of the images, pixels
# One canvas for training and evaluation, whatever the source: RT-DETR's images are stretched to it, of DETR's the
# longer side fills it. It is a multiple of detr-tiny's stride, 8: with only 8 positions a side, the rounding of the
# mask to positions would otherwise shift boxes by a tenth of the image.
SIDE = 64
INPUT: dict[str, Any] = {"size": (SIDE, SIDE), "pad_to": (SIDE, SIDE)}
WARMUP_STEPS = 50
RECIPE: dict[str, Any] = {
    "batch_size": BATCH_SIZE,
    "max_boxes": 8,
    "augmentation": "flip",
    "learning_rate": 8e-4,
    "backbone_multiplier": 1.0,
    "freeze": "",
}


def run_demo(out: Path, steps: int | None = None, source: str | None = None) -> bool:
    """Run the demo; the folder gets all files of a training run, and `report.json`.

    Args:
        out: the folder, made if it does not exist; an earlier demo in it is overwritten.
        steps: training steps.
        source: checkpoint to port, compare and start from; by default the packaged `rt-detr-tiny`.

    Returns:
        Whether the port agrees with PyTorch, as far as it was compared. Without torch and transformers it is not
        compared: one line says so, and `parity` in the report is null.

    Raises:
        ValueError: a bad checkpoint, or one that lies in the folder; `steps` below 1; a file in the folder's place. An
            earlier demo is then kept.
    """
    steps = STEPS if steps is None else steps
    if steps < 1:
        raise ValueError(f"--steps must be at least 1, not {steps}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: name a folder")
    started = time.monotonic()
    title = SOURCE if source is None else source
    place = find_source(title)
    if isinstance(place, (str, Path)) and Path(place).exists() and Path(place).resolve().is_relative_to(out.resolve()):
        raise ValueError(f"--source {title} lies in --out {out}, which the demo overwrites: give another --out")
    checkpoint: Any = hub.fetch(title) if hub.is_hub_id(title) else title  # asked for once, used three times
    keras.utils.set_random_seed(0)

    print(f"1/4  porting {title} and comparing it with PyTorch, stage by stage", flush=True)
    held_out, names = data.load_shapes(HELD_OUT_IMAGES, HELD_OUT_SEED, CLASSES, DRAWN)
    model = from_pretrained(checkpoint, id2label=dict(enumerate(names)))
    rows = _compared(checkpoint)
    difference = {row.stage: row.difference for row in rows}

    print(
        f"2/4  COCO AP of the port with a head for {', '.join(names)}, on {HELD_OUT_IMAGES} held-out images", flush=True
    )
    before = evaluate_detections(model, held_out, names, batch_size=BATCH_SIZE, **INPUT)
    print(f"     AP {before['AP']:.3f}, AP50 {before['AP50']:.3f}", flush=True)

    epochs = max(1, steps // STEPS_PER_EPOCH)
    print(f"3/4  fine-tuning on drawings of them, {steps} steps of {BATCH_SIZE} images", flush=True)
    training, _ = data.load_shapes(TRAINING_IMAGES, TRAINING_SEED, CLASSES, DRAWN)
    if out.is_dir():
        with RunFolder(out).held():  # by nobody else, who may be training in it
            RunFolder(out).remove()  # not before it is sure that there will be another
    run = fit_detector(
        training.cache(),  # drawn in the first epoch, then kept: 30 MB
        names,
        out,
        held_out,
        checkpoint,
        epochs=epochs,
        steps_per_epoch=steps // epochs,
        warmup_steps=min(WARMUP_STEPS, epochs * (steps // epochs)),
        evaluate_every=2,
        **INPUT,
        **RECIPE,
    )
    print("4/4  COCO AP of the best model on the same images", flush=True)
    after = run.metrics
    report = {
        "parity": {"logits": difference["logits"], "boxes": difference["pred_boxes"]} if rows else None,
        "before": {name: float(before[name]) for name in ("AP", "AP50")},
        "after": {name: float(after[name]) for name in ("AP", "AP50")},
        "steps": steps // epochs * epochs,
        "seconds": round(time.monotonic() - started, 1),
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"AP {before['AP']:.3f} → {after['AP']:.3f}, AP50 {before['AP50']:.3f} → {after['AP50']:.3f}")
    print(f"wrote report.md, report.json, predictions.png and curves.png to {out} in {report['seconds']:.0f} s")
    return all(row.agrees for row in rows)


def _compared(checkpoint: Any) -> list[Row]:
    """Return the comparison with PyTorch, and print it; no rows if PyTorch is not available."""
    try:
        rows, origin = compare(checkpoint)
    except PyTorchMissingError as error:
        print(f"     without parity: {error}", flush=True)
        return []
    print(f"PyTorch side: {origin}\n{table(rows)}", flush=True)
    return rows
