"""What is wrong with an option is said by the option's name, as the user typed it."""

import argparse

import pytest
from PIL import Image

from tfdetr_keras.cli import main, parser
from tfdetr_keras.cli.grammar import Parser
from tfdetr_keras.training.durations import UNITS

# Small, should an option be taken after all.
TRAIN = ["train", "--data", "shapes", "--from", "detr-tiny", "--out", "run", "--size", "32", "32", "--epochs", "1"]


def message_of(arguments, capsys):
    """What a command says before it exits with 2."""
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 2
    return capsys.readouterr().err.splitlines()[-1]


def train_options():
    """The options of `train` that take a number, with how many each takes."""
    options = parser().parse_args(TRAIN)
    return {
        action.option_strings[0]: action.nargs or 1 for action in options.parser._actions if action.type in (int, float)
    }


# Values of the wrong range, for every option with a number; those that are missing here take any number.
BAD = {
    "--val-split": ("0", "1", "20", "-0.1", "nan", "inf"),
    "--count": ("0", "-1"),
    "--drawn-size": ("8 20", "40 20", "0 0", "-1 20"),
    "--drawn-seed": ("-1",),
    "--val-drawn-seed": ("-1",),
    "--val-count": ("0", "-1"),
    "--batch-size": ("0", "-1", "100000"),
    "--size": ("0 0", "-1 10", "60 40"),
    "--pad-to": ("0 10", "-1 -1"),
    "--max-boxes": ("0", "-1"),
    "--seed": ("-1", "99999999999"),
    "--num-queries": ("0", "-1"),
    "--num-denoising": ("-1",),
    "--dropout": ("-1", "1", "nan"),
    "--epochs": ("0", "-1"),
    "--steps-per-epoch": ("0", "-1"),
    "--learning-rate": ("-1", "nan", "inf"),
    "--backbone-multiplier": ("-1", "nan", "inf"),
    "--layer-decay": ("0", "-1", "1.5", "nan"),
    "--weight-decay": ("-1", "nan", "inf"),
    "--global-clipnorm": ("0", "-1", "nan", "inf"),
    "--gradient-accumulation-steps": ("0", "-1"),
    "--ema-momentum": ("-1", "1", "nan"),
    "--pretraining-epochs": ("-1",),
    "--evaluate-every": ("0", "-1"),
}


def test_every_option_with_a_number_is_tried():
    assert set(BAD) == set(train_options())


def typed(option, value):
    """The option with its value, and what it needs beside it."""
    words = [*value.split()]
    given = [f"{option}={words[0]}"] if len(words) == 1 else [option, *words]
    return [*given, "--val-drawn-seed", "1"] if option == "--val-count" else given


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in BAD.items() for value in values])
def test_a_bad_number_names_its_option(option, value, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = message_of([*TRAIN, *typed(option, value)], capsys)
    assert message.startswith(("error: ", "tfdetr train: error: "))
    assert f"{option} " in f"{message} ".replace(":", " ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [name.replace("_", "-") for name in UNITS])
@pytest.mark.parametrize("value", ["-1", "2.5", "soon", "2 years"])
def test_a_duration_names_its_option(option, value, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = message_of([*TRAIN, f"--{option}={value}"], capsys)
    assert message.startswith(f"error: --{option} must be ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--batch-norm", "thawed"], "argument --batch-norm: 'thawed' is not frozen, trainable or PART=WORD"),
        (["--batch-norm", "frozen", "stem=frozen"], "--batch-norm takes one word for the whole backbone, or PART=WORD"),
        (["--batch-norm", "stem5=frozen"], "--batch-norm: 'stem5' is no part of this backbone"),
        (["--learning-rate-multipliers", "head"], "--learning-rate-multipliers: 'head' is not PART=FACTOR"),
        (["--learning-rate-multipliers", "class_head=-1"], "--learning-rate-multipliers must be finite numbers"),
        (["--plain-epochs", "2"], "--plain-epochs must be at most 1, the epochs of the run, not 2"),
    ],
)
def test_parts_that_are_none(arguments, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert told in message_of([*TRAIN, "--count", "4", *arguments], capsys)


@pytest.mark.parametrize("option", BAD)
def test_a_text_names_its_option(option, capsys):
    arguments = [*TRAIN, option, *["text"] * train_options()[option]]
    assert f"argument {option}: invalid " in message_of(arguments, capsys)


def test_a_percentage_is_no_share(capsys):
    message = message_of([*TRAIN, "--val-split", "20"], capsys)
    assert message == "error: --val-split must be between 0 and 1, not 20: 20 % is 0.2, so write 0.2"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trian"], "did you mean train?"),
        ([*TRAIN[:1], "--data", "cocco"], "did you mean coco?"),
        ([*TRAIN, "--schedule", "cosin"], "did you mean cosine?"),
        ([*TRAIN, "--augmentation", "Paper"], "did you mean paper?"),
        ([*TRAIN, "--max-box", "3", "--batchsize", "3"], "arguments: --batchsize 3; did you mean --batch-size?"),
        (["export", "--model", "detr-tiny", "--format", "liteRT2", "--out", "a"], "did you mean litert?"),
        ([*TRAIN, "--freeze", "backbon"], "--freeze: 'backbon' is no part of this model; there are backbone, stem"),
        ([*TRAIN, "--freeze", "backbon"], "did you mean backbone?"),
        ([*TRAIN, "--from", "detr-tinny"], "did you mean detr-tiny?"),
        ([*TRAIN, "--from", "detr-resnet18"], "did you mean detr-resnet-18?"),
        (["predict", ".", "--model", "detr-tinny"], "did you mean detr-tiny?"),
        (["predict", ".", "--model", "detr-resnet-50"], "its published weights are facebook/detr-resnet-50"),
    ],
)  # fmt: skip
def test_a_mistyped_name_is_told_the_nearest(arguments, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "predict":
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert told in message_of(arguments, capsys)


@pytest.mark.parametrize(
    ("text", "its_format"),
    [
        ("tflite", "litert"),
        ("TFLite", "litert"),
        ("savedmodel", "saved-model"),
        ("saved_model", "saved-model"),
        ("tf", "saved-model"),
        ("onnx", "onnx"),
    ],
)
def test_a_format_by_its_other_names(text, its_format):
    arguments = ["export", "--model", "detr-tiny", "--out", "a", "--format", text]
    assert parser().parse_args(arguments).format == its_format


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("max_boxes must be at least 1, not 0", "--max-boxes must be at least 1, not 0"),
        ("a.png has 3 objects, more than max_boxes = 2", "a.png has 3 objects, more than --max-boxes = 2"),
        ("epochs must be at least 1", "--epochs must be at least 1"),
        ("the epochs must be", "the epochs must be"),
        ("there is no file runs/max_boxes/a.png", "there is no file runs/max_boxes/a.png"),
        ("max_boxes.json is no file", "max_boxes.json is no file"),
        ("load_coco(max_boxes=1) and --max-boxes", "load_coco(--max-boxes=1) and --max-boxes"),
    ],
)
def test_words_that_are_no_arguments_stay(message, expected):
    grammar = Parser()
    grammar.add_argument("--max-boxes", type=int)
    grammar.add_argument("--epochs", type=int)
    assert grammar.in_options(message) == expected


def test_commands_know_their_parser():
    options = parser().parse_args(TRAIN)
    assert options.parser.prog == "tfdetr train"
    assert isinstance(options, argparse.Namespace)


def test_the_modern_recipe_reaches_the_run(monkeypatch, tmp_path):
    """Options of parts, kinds, factors and durations arrive as the settings that they name."""
    import tfdetr_keras.training

    given = {}

    def taken(*arguments, **settings):
        given.update(settings)
        raise ValueError("far enough")

    monkeypatch.setattr(tfdetr_keras.training, "fit_detector", taken)
    arguments = [
        *("--augmentation", "strong", "--multiscale", "--plain-epochs", "25 steps", "--layer-decay", "0.8"),
        *("--learning-rate-multipliers", "class_head=2", "backbone/stem=0.1", "--weight-decay-exclude", "norms"),
        *("--warmup-steps", "0.5 epochs", "--ema-momentum", "0.99", "--ema-ramp-steps", "7", "--recompute"),
        *("--ema-restart-after", "1", "--batch-norm", "stem=frozen", "stage2=trainable"),
    ]
    assert main([*TRAIN, "--out", str(tmp_path / "run"), *arguments]) == 2
    expected = {
        **{"augmentation": "strong", "multiscale": True, "plain_epochs": "25 steps", "layer_decay": 0.8},
        **{"learning_rate_multipliers": {"class_head": 2.0, "backbone/stem": 0.1}, "weight_decay_exclude": ["norms"]},
        **{"warmup_steps": "0.5 epochs", "ema_momentum": 0.99, "ema_ramp_steps": 7, "recompute": True},
        **{"ema_restart_after": "1", "batch_norm": {"stem": "frozen", "stage2": "trainable"}},
    }
    found = {name: given[name] for name in expected}
    assert found | {"ema_restart_after": str(found["ema_restart_after"])} == expected
