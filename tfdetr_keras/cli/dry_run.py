"""`tfdetr train … --dry-run`: all the steps of a run, once, so that what would stop it shows within a minute."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

IMAGES = 4  # that are measured
# Settings that would make a run of one step impossible, or longer.
ONCE = {
    "epochs": 1,
    "steps_per_epoch": 1,
    "gradient_accumulation_steps": 1,
    "warmup_steps": 0,
    "plain_epochs": 0,
    "ema_restart_after": 0,
    "pretraining_epochs": 0,
    "evaluate_every": 1,
    "tensorboard": False,
}


def dry_run(
    records: Any, class_names: Sequence[str], validation: Any, source: str, settings: Mapping[str, Any]
) -> None:
    """Take one training step, measure a few images, and export the model; keep nothing, and print how it went.

    Args:
        records: to train on.
        class_names: name of each label.
        validation: records to measure; None takes some of the training records.
        source: of the starting model.
        settings: of the run.

    Raises:
        ValueError: as `fit_detector`, or an error of the evaluation or the export.
    """
    from tfdetr_keras.export import saved_model
    from tfdetr_keras.training import fit_detector
    from tfdetr_keras.training.average_precision import summary

    held_out = (records if validation is None else validation).take(IMAGES)
    with tempfile.TemporaryDirectory(prefix="tfdetr-dry-run-") as scratch:
        start = time.monotonic()
        run = fit_detector(records, class_names, Path(scratch, "run"), held_out, source, **{**settings, **ONCE})
        seconds, memory = time.monotonic() - start, _peak_gb()
        told = "" if memory is None else f", and {memory:.1f} GB of memory at most"
        print(f"one step, one evaluation and one checkpoint: {seconds:.0f} s, with tracing{told}")
        print(f"measured: {summary(run.metrics)}")
        model = run.load_model("last")
        path = saved_model(model, Path(scratch, "served"))
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        print(f"exported: a SavedModel of {size / 1e6:.0f} MB")
    print(f"images are prepared so: {model.preprocessing}")
    print("the run can begin: repeat the command without --dry-run")


def _peak_gb() -> float | None:
    """Return the highest memory use of this process, in GB; None if the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
