"""The main job in one run: port a checkpoint, compare it with PyTorch, fit a small DETR on `tf.data`, measure AP."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import keras

from port_weights.compare import compare, table
from tfdetr_keras import data
from tfdetr_keras.evaluation import evaluate_detections
from tfdetr_keras.models import DETR, PRESETS, DETRConfig, ResNetConfig
from tfdetr_keras.postprocess import post_process
from tfdetr_keras.pretraining import BackbonePretraining
from tfdetr_keras.visualize import draw_detections, plot_curves

STEPS = 3600
BATCH_SIZE = 16
LEARNING_RATE = 7e-4
WARMUP_STEPS = 200
STEPS_PER_EPOCH = 100
PRETRAINING_SHARE = 1 / 3  # of STEPS, spent on the trunk alone beforehand
PRETRAINING_BATCH_SIZE = 32
PRETRAINING_LEARNING_RATE = 2e-3
TRAINING_IMAGES, TRAINING_SEED = 12_000, 1
HELD_OUT_IMAGES, HELD_OUT_SEED = 256, 2
DRAWN = (48, 64)  # smallest and largest side of the images, pixels
# One canvas for training and evaluation, which the longer side fills. It is a multiple of the trunk's stride, 8: with
# only 8 positions a side, the rounding of the mask to positions would otherwise shift boxes by a tenth of the image.
SIDE = 64
INPUT: dict[str, Any] = {"size": (SIDE, SIDE), "pad_to": (SIDE, SIDE)}
PICTURES = 12


def run_demo(out: Path, steps: int | None = None, source: str | None = None) -> bool:
    """Runs the demo and writes `predictions.png`, `curves.png` and `report.json` into a folder.

    Args:
        out: the folder, made if it does not exist.
        steps: training steps.
        source: checkpoint to port and compare; a small random one where left out.

    Returns:
        Whether the port agrees with PyTorch.

    Raises:
        ValueError: a bad checkpoint, or `steps` below 1.
    """
    steps = STEPS if steps is None else steps
    if steps < 1:
        raise ValueError(f"--steps must be at least 1, not {steps}")
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)

    print("1/5  porting a PyTorch checkpoint and comparing it, stage by stage", flush=True)
    parity, agrees = _port_and_compare(source)

    held_out, names = data.load_shapes(HELD_OUT_IMAGES, seed=HELD_OUT_SEED, size=DRAWN)
    model = DETR.from_preset("detr-tiny", id2label=dict(enumerate(names)))
    print(f"2/5  COCO AP of the untrained model on {HELD_OUT_IMAGES} held-out images", flush=True)
    before = _average_precision(model, held_out, names)
    training, _ = data.load_shapes(TRAINING_IMAGES, seed=TRAINING_SEED, size=DRAWN)
    training = training.cache()  # drawn in the first epoch, then kept: 150 MB
    pretraining_steps = max(1, round(steps * PRETRAINING_SHARE))
    print(f"3/5  the trunk alone learns where each class is, {pretraining_steps} steps", flush=True)
    _pretrain(model, training, pretraining_steps)
    print(f"4/5  training on drawn shapes ({', '.join(names)}), {steps} steps of {BATCH_SIZE} images", flush=True)
    history = _train(model, training, steps)
    print(f"5/5  COCO AP of the trained model on the same {HELD_OUT_IMAGES} images", flush=True)
    after = _average_precision(model, held_out, names)

    _draw(model, held_out.take(PICTURES), names, out / "predictions.png")
    plot_curves(history, out / "curves.png")
    report = {
        "parity": parity,
        "before": before,
        "after": after,
        "steps": int(model.optimizer.iterations),
        "seconds": round(time.monotonic() - started, 1),
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"AP {before['AP']:.3f} → {after['AP']:.3f}, AP50 {before['AP50']:.3f} → {after['AP50']:.3f}")
    print(f"wrote predictions.png, curves.png and report.json to {out} in {report['seconds']:.0f} s")
    return agrees


def _port_and_compare(source: str | None) -> tuple[dict[str, float], bool]:
    if source is not None:
        rows, origin = compare(source)
    else:
        from port_weights.reference import write_random_checkpoint

        with tempfile.TemporaryDirectory() as folder:
            write_random_checkpoint(Path(folder), _small_checkpoint())
            rows, origin = compare(folder)
    print(f"PyTorch side: {origin}\n{table(rows)}", flush=True)
    difference = {row.stage: row.difference for row in rows}
    return {"logits": difference["logits"], "boxes": difference["pred_boxes"]}, all(row.agrees for row in rows)


def _small_checkpoint() -> DETRConfig:
    """The paper's architecture at a size that is written and compared in seconds."""
    return dataclasses.replace(
        PRESETS["detr-resnet-18"],
        backbone=ResNetConfig(block="basic", depths=(2, 2, 2, 2), channels=(32, 64, 96, 128), stem_channels=32),
        d_model=128,
        encoder_layers=3,
        decoder_layers=3,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
    )


def _average_precision(model: DETR, records: Any, names: list[str]) -> dict[str, float]:
    metrics = evaluate_detections(model, records, class_names=names, batch_size=BATCH_SIZE, **INPUT)
    print(f"     AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}", flush=True)
    return {name: float(metrics[name]) for name in ("AP", "AP50")}


def _batches(records: Any, batch_size: int) -> Any:
    return data.prepare(records, batch_size, training=True, augmentation="flip", repeat=True, **INPUT)


def _epochs(steps: int) -> dict[str, Any]:
    epochs = max(1, steps // STEPS_PER_EPOCH)
    # A bar for people, a line per epoch for logs.
    return {"steps_per_epoch": steps // epochs, "epochs": epochs, "verbose": 1 if sys.stdout.isatty() else 2}


def _pretrain(model: DETR, records: Any, steps: int) -> None:
    schedule = keras.optimizers.schedules.CosineDecay(PRETRAINING_LEARNING_RATE, steps)
    trunk = BackbonePretraining(model)
    trunk.compile(optimizer=keras.optimizers.AdamW(schedule, weight_decay=1e-4))
    trunk.fit(_batches(records, PRETRAINING_BATCH_SIZE), **_epochs(steps))


def _train(model: DETR, records: Any, steps: int) -> dict[str, list[float]]:
    warmup = min(WARMUP_STEPS, steps // 2)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, decay_steps=steps - warmup, warmup_target=LEARNING_RATE, warmup_steps=warmup
    )
    # Weight decay and clipping of the paper (section 4, "Technical details"). Clipped this hard, many gradients are
    # as small as Keras' default epsilon, which would then decide the step.
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=1e-4, global_clipnorm=0.1, epsilon=1e-8)
    model.compile(optimizer=optimizer)
    return model.fit(_batches(records, BATCH_SIZE), **_epochs(steps)).history


def _draw(model: DETR, records: Any, names: list[str], path: Path) -> None:
    (inputs, targets), *_ = data.prepare(records, PICTURES, **INPUT)
    detections = post_process(model.predict_on_batch(inputs), targets["orig_size"])
    truth = list(records.as_numpy_iterator())
    draw_detections([record["image"] for record in truth], detections, names, path, ground_truth=truth)
