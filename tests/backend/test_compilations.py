"""XLA compiles each step once per shape, in the first epoch, and never again."""

import os
import re
import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
    import sys
    import keras
    import tfdetr_keras as td

    if keras.backend.backend() == "jax":
        import jax
        jax.config.update("jax_log_compiles", True)
    backbone = td.ResNetConfig(block="basic", depths=(1,), channels=(8,), stem_channels=8)
    small = dict(encoder_layers=1, decoder_layers=1, encoder_attention_heads=1, decoder_attention_heads=1)
    small |= dict(num_queries=6, d_model=8, encoder_ffn_dim=8, decoder_ffn_dim=8, backbone=backbone)
    model = td.DETR.from_preset("detr-tiny", num_classes=3, **small)
    records, _ = td.data.load_shapes(16, seed=1, size=(40, 64))
    canvases = {"fixed": (64, 64), "buckets": [(48, 64), (64, 48)]}[sys.argv[1]]
    batches = td.data.prepare(
        records, 2, training=True, size=(48, 64), pad_to=canvases, max_boxes=8, augmentation="flip"
    )
    shapes = {tuple(inputs["pixel_values"].shape) for inputs, _ in batches}
    model.compile(optimizer=td.AdamW(), jit_compile=True)
    for part, run in (
        ("fit", lambda: model.fit(batches, epochs=1, verbose=0)),
        ("fit again", lambda: model.fit(batches, epochs=2, verbose=0)),
        ("evaluate", lambda: model.evaluate(batches, verbose=0)),
        ("predict", lambda: model.predict(batches, verbose=0)),
        ("all again", lambda: (model.evaluate(batches, verbose=0), model.predict(batches, verbose=0))),
    ):
        print(f"PART {part}, {len(shapes)} shapes", file=sys.stderr, flush=True)
        run()
"""
# What the backends write to stderr when they have compiled a step.
COMPILED = {
    "jax": r"Finished XLA compilation of jit\((?:train|test|predict)_step\)",
    "tensorflow": "Compilation of XLA executable time",
}


@pytest.mark.slow
@pytest.mark.parametrize("canvases", ["fixed", "buckets"])
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_one_compilation_a_shape(backend, canvases):
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), canvases],
        check=True,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "TF_CPP_MIN_LOG_LEVEL": "0",
            "TF_CPP_VMODULE": "device_compiler=1",
        },
    )
    parts = re.split(r"PART (.*), (\d) shapes\n", process.stderr)[1:]
    found = {name: len(re.findall(COMPILED[backend], told)) for name, told in zip(parts[::3], parts[2::3], strict=True)}
    shapes = {"fixed": 1, "buckets": 2}[canvases]
    assert set(parts[1::3]) == {str(shapes)}
    assert found == {"fit": shapes, "fit again": 0, "evaluate": shapes, "predict": shapes, "all again": 0}
