"""Whether a change of the code changes a number: outputs, losses, gradients and ten training steps, bit for bit.

    python tests/before_and_after.py COMMIT

runs the same program with the code of a commit and with that of this checkout, in a process each, and compares what
they write: of DETR with ResNet-18, ResNet-50 and DC5, Table Transformer, Conditional DETR, DAB-DETR and segmentation,
on a padded batch, with weights drawn by their names, deterministic operations and no dropout. Exits with 1 where
anything differs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).parents[1]
PRESETS = (
    *("detr-resnet-18", "detr-resnet-50", "detr-resnet-50-dc5", "table-transformer-detection"),
    *("conditional-detr-resnet-50", "dab-detr-resnet-50", "detr-resnet-50-panoptic"),
)
STEPS, HEIGHT, WIDTH = 10, 96, 128
NO_DROPOUT = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)


def write(path: Path, presets: Sequence[str]) -> None:
    """Write the numbers of this process's code as an `.npz` file."""
    import keras
    import tensorflow as tf

    import tfdetr_keras as td

    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(2, HEIGHT, WIDTH, 3)).astype(np.float32)
    mask = np.ones((2, HEIGHT, WIDTH), np.int32)
    mask[1, 70:] = mask[1, :, 100:] = 0
    inputs = {"pixel_values": pixels * mask[..., None], "pixel_mask": mask}
    targets = {"labels": np.array([[0, 1, 1], [1, -1, -1]]), "boxes": rng.uniform(0.2, 0.4, (2, 3, 4)).astype("f")}
    masks = rng.uniform(size=(2, 3, HEIGHT, WIDTH)) > 0.5
    found: dict[str, np.ndarray] = {}
    for name in presets:
        model = td.from_preset(name, num_classes=2, frozen="stem+stage1", **NO_DROPOUT)
        for variable in model.weights:
            start = np.random.default_rng(zlib.crc32(variable.path.split("/", 1)[1].encode()))
            scale = (
                0.01 if "variance" not in variable.path else 0.0
            )  # with 0.05 gradients are rounding errors in the main
            variable.assign(np.asarray(variable) + scale * start.normal(size=variable.shape).astype(np.float32))
        own = targets | ({"masks": masks} if "panoptic" in name else {})
        tensors = {key: tf.constant(value) for key, value in own.items()}

        def losses(model: Any = model, tensors: Any = tensors) -> Any:
            return model.compute_loss(inputs, tensors, model(inputs, training=True))

        outputs = {key: value for key, value in model(inputs, training=False).items() if key != "mask_inputs"}
        with tf.GradientTape() as tape:
            loss = losses()
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        # Not traced: what TensorFlow makes of a graph adds up in another order from process to process.
        model.compile(optimizer=td.AdamW(1e-4), jit_compile=False, run_eagerly=True)
        logs = [model.train_on_batch(inputs, own) for _ in range(STEPS)]
        found |= {f"{name}: output {key}": np.asarray(value) for key, value in outputs.items()}
        found[f"{name}: loss"] = np.asarray(loss)
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
            dense = np.zeros(variable.shape) if gradient is None else np.asarray(tf.convert_to_tensor(gradient))
            found[f"{name}: gradient {variable.path.split('/', 1)[1]}"] = dense
        found[f"{name}: losses of {STEPS} steps"] = np.asarray(logs, np.float32).ravel()
        for variable in model.weights:
            found[f"{name}: after {STEPS} steps {variable.path.split('/', 1)[1]}"] = np.asarray(variable)
    np.savez(path, **found)


def _kind(name: str) -> str:
    """What an array is: the second word of its name and those behind, without the weight's path."""
    words = name.split(": ")[1].split()
    return " ".join(word for word in words[:3] if "/" not in word)


def compare(before: Path, after: Path) -> int:
    """Print how many numbers of each kind are equal bit for bit; return the exit status."""
    with np.load(before) as old, np.load(after) as new:
        names = sorted({*old.files, *new.files})
        differ = 0
        for preset in sorted({name.split(": ")[0] for name in names}):
            own = [name for name in names if name.startswith(f"{preset}: ")]
            apart = {
                name: float("nan") if name not in old or name not in new else float(np.abs(old[name] - new[name]).max())
                for name in own
                if name not in old or name not in new or old[name].tobytes() != new[name].tobytes()
            }
            differ += len(apart)
            print(f"{preset:28s} {len(own):5d} arrays: {'not ' * bool(apart)}all equal bit for bit")
            for kind in sorted({_kind(name) for name in apart}):
                name, worst = max(
                    ((name, gap) for name, gap in apart.items() if _kind(name) == kind), key=lambda item: item[1]
                )
                count = sum(_kind(each) == kind for each in apart)
                print(f"    {kind}: {count} of {sum(_kind(each) == kind for each in own)}, most {worst:.1e} ({name})")
    return int(differ > 0)


def main() -> int:
    """Run both sides and compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", help="to compare this checkout with")
    parser.add_argument("--presets", nargs="+", default=PRESETS, help="architectures to compare (default: all)")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write(arguments.write, arguments.presets)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        archive = subprocess.run(
            ["git", "-C", REPOSITORY, "archive", arguments.commit], capture_output=True, check=True
        ).stdout
        (folder / "old").mkdir()
        subprocess.run(["tar", "-x", "-C", folder / "old"], input=archive, check=True)
        for code, name in ((folder / "old", "before"), (REPOSITORY, "after")):
            command = [sys.executable, __file__, arguments.commit, "--presets", *arguments.presets]
            command += ["--write", folder / f"{name}.npz"]
            subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(code)}, cwd=folder)
        return compare(folder / "before.npz", folder / "after.npz")


if __name__ == "__main__":
    sys.exit(main())
