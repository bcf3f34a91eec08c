"""Every setting of a run: what cannot work or has no effect is refused; NumPy's numbers are numbers."""

import json
import math

import numpy as np
import pytest

import tfdetr_keras as td
from tfdetr_keras.training.settings import Settings, check_against_steps

WHOLE_FROM_1 = (
    *("epochs", "batch_size", "gradient_accumulation_steps", "evaluate_every", "max_boxes", "num_queries"),
    "steps_per_epoch",
)
WHOLE_FROM_0 = ("pretraining_epochs", "warmup_steps", "seed")
ABOVE_0 = ("learning_rate", "global_clipnorm")
FROM_0 = ("weight_decay", "backbone_multiplier")
SHARES = ("ema_momentum", "dropout")
FLAGS = ("color_jitter", "random_weights", "masks", "tensorboard", "jit_compile", "recompute")
WORDS = ("schedule", "precision", "batch_norm", "augmentation")
NO_NUMBERS = (
    "3",
    [3],
    (3,),
    {},
    True,
    np.bool_(True),
    1j,
    math.nan,
    math.inf,
    -math.inf,
    -1,
    np.float32("nan"),
    object(),
)


@pytest.mark.parametrize("name", [*WHOLE_FROM_1, *WHOLE_FROM_0])
@pytest.mark.parametrize("value", [2.5, 2.0, np.float64(3), *NO_NUMBERS])
def test_what_is_no_whole_number(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be (a whole number|at least)"):
        Settings(**{name: value})


@pytest.mark.parametrize("name", [*ABOVE_0, *FROM_0, *SHARES])
@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_number(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be "):
        Settings(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in (*WHOLE_FROM_1, *ABOVE_0)),
        *((name, None) for name in ("epochs", "batch_size", "seed", "masks")),
        *((name, value) for name in SHARES for value in (1, 1.5)),
        *((name, value) for name in FLAGS for value in ("no", 0, 1, 2.0)),
        *((name, value) for name in WORDS for value in ("none at all", 3, ["flip"])),
        ("seed", 2**32),
        *(("size", value) for value in (32, "32", (32,), (32, 32, 3), (64, 32), (0, 32), (32.0, 32), (True, True))),
        *(("pad_to", value) for value in (32, "bucket", (32,), (0, 32), (32.5, 32), ((32, 32), (64, 64)))),
        *(("freeze", value) for value in (3, ("stem", 3), True)),
    ],
)
def test_what_cannot_work(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be "):
        Settings(**{name: value})


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_whole_numbers_of_numpy(kind):
    given = {name: kind(3) for name in (*WHOLE_FROM_1, *WHOLE_FROM_0)} | {"size": [kind(32), kind(64)]}
    settings = Settings(**given)
    assert settings == Settings(**{name: 3 for name in given if name != "size"}, size=(32, 64))
    json.dumps([getattr(settings, name) for name in given])


def test_other_numbers_of_numpy_and_whole_ones_for_real_ones():
    settings = Settings(
        learning_rate=np.float32(0.5), weight_decay=0, dropout=0, masks=np.bool_(True), global_clipnorm=1
    )
    assert settings == Settings(learning_rate=0.5, weight_decay=0.0, dropout=0.0, masks=True, global_clipnorm=1.0)
    json.dumps(vars(settings))


@pytest.mark.parametrize("name", ["gradient_accumulation_steps", "warmup_steps"])
def test_settings_beyond_the_end_of_the_run(name):
    check_against_steps(Settings(epochs=2, **{name: 6}), 3)
    with pytest.raises(ValueError, match=rf"^{name} must be at most 6, the steps .*\(2 epochs of 3\), not 7: "):
        check_against_steps(Settings(epochs=2, **{name: 7}), 3)


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            {name: value}
            for name in ("global_clipnorm", "clipnorm", "clipvalue")
            for value in (0, -1, math.nan, math.inf)
        ),
        *({name: value} for name in ("learning_rate", "weight_decay") for value in (-1, math.nan, math.inf)),
        *({"learning_rate_multipliers": {"backbone": value}} for value in (-1, math.nan, math.inf, "0.1")),
    ],
)
def test_what_the_optimizer_cannot_work_with(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=name):
        td.AdamW(**arguments)
