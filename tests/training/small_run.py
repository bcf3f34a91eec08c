"""A training run that takes moments, for processes of its own: everything is imported before they are forked."""

import contextlib
import os
import random
import resource
import time

import keras
import tensorflow as tf
from safetensors.numpy import load_file

import tfdetr_keras as td
import tfdetr_keras.backend.atomic
import tfdetr_keras.training.state_file
from tfdetr_keras.models import PRESETS
from tfdetr_keras.training.fitting import fit_detector

EPOCHS, SIDE = 4, 32
SETTINGS = {
    "source": "detr-smallest",
    "epochs": EPOCHS,
    "batch_size": 4,
    "size": (SIDE, SIDE),
    "pad_to": (SIDE, SIDE),
    "max_boxes": 8,
    "augmentation": "flip",
    "color_jitter": True,
    "dropout": 0.1,
    "learning_rate": 1e-3,
    "warmup_steps": 4,
    "gradient_accumulation_steps": 2,
    "ema_momentum": 0.9,
    "evaluate_every": 2,
    "jit_compile": False,
}
SMALLEST = td.DETRConfig(
    backbone=td.ResNetConfig(block="basic", depths=(1,), channels=(8,), stem_channels=8),
    num_queries=6,
    d_model=8,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=1,
    decoder_attention_heads=1,
    encoder_ffn_dim=8,
    decoder_ffn_dim=8,
)


# Two that draw denoising queries in every step.
_DENOISING = {
    "num_queries": 6,
    "d_model": 8,
    "encoder_dim": 8,
    "encoder_ffn_dim": 8,
    "encoder_attention_heads": 1,
    "fusion_blocks": 1,
    "decoder_layers": 2,
    "decoder_attention_heads": 1,
    "decoder_ffn_dim": 8,
    "num_denoising": 6,
    "preprocessing": td.Preprocessing((SIDE, SIDE), "stretch", mean=(0, 0, 0), std=(1, 1, 1), multiple_of=32),
}
RT_DETR = td.RTDETRConfig(
    td.ResNetConfig("basic", (1, 1, 1, 1), (8, 8, 8, 8), 8, variant="vd", batch_norm="trainable"), **_DENOISING
)
D_FINE = td.DFINEConfig(td.HGNetV2Config((4, 8), (4, 4, 4, 4), (8, 8, 8, 8), (1, 1, 1, 1), 1), **_DENOISING)


@contextlib.contextmanager
def smallest_preset():
    """While it is open, the smallest architectures have names that runs can start from."""
    own = {"detr-smallest": SMALLEST, "rt-detr-smallest": RT_DETR, "d-fine-smallest": D_FINE}
    PRESETS.update(own)
    try:
        yield
    finally:
        for name in own:
            del PRESETS[name]


def sets(masks=False):
    """Training records, validation records and class names."""
    records, names = td.data.load_shapes(11, seed=1, size=(24, SIDE), masks=masks)
    return *td.data.split(records, 3 / 11), names


def train(folder, moments=None, resume=False, eagerly=True, files=False, **changes):
    """One run; `moments`, a pipe, hears of every step and every state half written, with `files` of every file, too.

    Eagerly, since tracing takes most of so short a run's time.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    tf.config.experimental.enable_op_determinism()
    tf.config.run_functions_eagerly(eagerly)
    random.seed(os.getpid())  # a run must not depend on what the program did before
    callbacks = []
    if moments is not None:
        callbacks.append(_Heard(moments))
        _hear(moments, "state half written")
        if files:
            _hear_files(moments)
    training, validation, names = sets()
    with smallest_preset():
        fit_detector(training, names, folder, validation, resume=resume, callbacks=callbacks, **SETTINGS | changes)
    if moments is not None:
        moments.send("done")


def train_limited(folder, words, limit):
    """One resumed run that may write no file larger than so many bytes; `words`, a pipe, hears how it ends."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        train(folder, resume=True)
        words.send(("done", ""))
    except Exception as error:
        words.send((type(error).__name__, str(error)))


class _Heard(keras.callbacks.Callback):
    def __init__(self, moments):
        super().__init__()
        self.moments = moments

    def on_train_batch_end(self, batch, logs=None):
        self.moments.send("step")

    def on_epoch_end(self, epoch, logs=None):
        self.moments.send("epoch")


def _hear(moments, text):
    """Sends word between the two halves of writing the state."""
    module = tfdetr_keras.training.state_file
    whole_file = module.whole_file

    @contextlib.contextmanager
    def in_halves(path, needed):
        with whole_file(path, needed) as partial:
            yield partial
            content = partial.read_bytes()
            partial.write_bytes(content[: len(content) // 2])
            moments.send(text)
            time.sleep(1)  # so that a kill meets it so
            partial.write_bytes(content)

    module.whole_file = in_halves


def _hear_files(moments):
    """Sends word of each file that is about to be written, and of each that stands."""
    scratch = tfdetr_keras.backend.atomic._scratch

    @contextlib.contextmanager
    def heard(path):
        with scratch(path) as folder:
            moments.send(f"begins {path.name}")
            time.sleep(0.02)  # so that a kill meets it so
            yield folder
            moments.send(f"wrote {path.name}")
            time.sleep(0.02)

    tfdetr_keras.backend.atomic._scratch = heard


def state_of(folder):
    """The arrays of the state that a run ended with."""
    return load_file(folder / "state.safetensors")
