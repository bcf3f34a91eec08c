"""What is loaded when, and what stands on stderr: each program is a process of its own."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tfdetr_keras.cli import standard_error

HEAVY = ("absl", "jax", "keras", "matplotlib", "numpy", "PIL", "pycocotools", "tensorflow", "torch", "transformers")
COMMANDS = ("demo", "inspect-data", "train", "resume", "evaluate", "predict", "app", "export")
MISSING = "none.keras: no such file or folder"


def run(*arguments, **variables):
    """Runs Python; variables that are None are taken out of its environment."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": None, "TFDETR_LOG": None, **variables}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in environment.items() if value is not None},
    )


def loaded_by(program):
    """Which heavy packages a program has loaded at its end."""
    report = f"import sys; print('loaded', *sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = run("-c", f"{textwrap.dedent(program)}\n{report}")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def command_line(*arguments, package="tfdetr_keras.cli"):
    """A program that runs the command line and goes on behind its exit."""
    return f"""
    from {package} import main
    try:
        print("status", main({list(arguments)!r}))
    except SystemExit as end:
        print("status", end.code)
    """


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import tfdetr_keras as td; assert td.__version__; assert 'DETR' in dir(td)") == set()


def test_a_name_loads_what_it_needs():
    assert loaded_by("import tfdetr_keras as td; td.training.Settings()") == set()
    assert loaded_by("import tfdetr_keras as td; td.Detections") <= {"numpy", "PIL"}
    assert {"keras", "numpy"} <= loaded_by("import tfdetr_keras as td; td.DETR")


def test_every_public_name_is_there():
    program = """
    import tfdetr_keras as td
    for package in (td, td.training, td.data, td.export, td.visualize):
        for name in package.__all__:
            assert getattr(package, name) is not None
    """
    assert "tensorflow" in loaded_by(program)
    done = run("-c", "import tfdetr_keras as td; td.nothing_of_that_name")
    assert "AttributeError" in done.stderr
    assert "nothing_of_that_name" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        [],
        ["no-such-command"],
        *([command, "--help"] for command in COMMANDS),
        *([command, "--no-such-flag"] for command in COMMANDS),
        ["evaluate", "--data", "shapes", "--model", "none.keras"],
        ["evaluate", "--data", "coco", "--images", ".", "--annotations", "none.json", "--model", "detr-tiny"],
        ["train", "--data", "shapes", "--from", "none.keras", "--out", "run"],
        ["train", "--data", "voc", "--images", "none", "--annotations", ".", "--from", "detr-tiny", "--out", "run"],
        ["train", "--data", "yolo", "--images", "none", "--from", "detr-tiny", "--out", "run"],
        ["inspect-data", "--data", "coco", "--images", "none", "--annotations", "none.json", "--out", "a.png"],
        ["predict", ".", "--model", "./none"],
        ["export", "--model", "none.keras", "--format", "keras", "--out", "a.keras"],
        ["app", "--model", "none.pth"],
        ["resume", "none"],
    ],
    ids=" ".join,
)
def test_help_and_mistyped_names_load_nothing_heavy(arguments):
    assert loaded_by(command_line(*arguments)) == set()


@pytest.mark.parametrize(
    "start", [["-m", "tfdetr_keras"], ["-c", "import sys; from tfdetr_keras.cli import main; sys.exit(main())"]]
)
def test_version(start):
    done = run(*start, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("tfdetr ")
    for package in ("Keras", "TensorFlow", "Python"):
        assert f"{package} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--data", "shapes", "--model", "none.keras"], MISSING),
        (["train", "--data", "shapes", "--from", "none.keras", "--out", "run"], MISSING),
        (["resume", "none"], "there is no folder none"),
        (["evaluate", "--data", "yolo", "--model", "detr-tiny"], None),
    ],
)
def test_an_error_is_one_line(arguments, message):
    done = run("-m", "tfdetr_keras", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message is None or message in line


@pytest.mark.slow
def test_nothing_but_the_program_writes_to_stderr(tmp_path):
    """Loads TensorFlow, makes a graph, runs it, reads files, draws: every start-up note there is on this machine."""
    arguments = ["inspect-data", "--data", "shapes", "--count", "2", "--size", "64", "64", "--batch-size", "2"]
    done = run("-m", "tfdetr_keras", *arguments, "--out", str(tmp_path / "a.png"))
    assert (done.returncode, done.stderr) == (0, "")
    loud = run("-m", "tfdetr_keras", *arguments, "--out", str(tmp_path / "a.png"), TFDETR_LOG="debug")
    assert loud.returncode == 0
    assert "DEBUG: " in loud.stderr


def test_the_log_level_is_checked():
    done = run("-m", "tfdetr_keras", "resume", "none", TFDETR_LOG="chatty")
    assert done.returncode == 2
    assert done.stderr == "error: TFDETR_LOG must be one of debug, info, warning, error, not 'chatty'\n"


NOTES = [
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "I0000 00:00:1795917680.534523    4929 port.cc:153] oneDNN custom operations are on. You may see slightly",
    "W0000 00:00:1795917680.534523    4929 computation_placer.cc:177] computation placer already registered.",
    "2026-11-29 01:55:03.123456: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.",
    "2026-11-29 01:55:03.123456: W tensorflow/core/framework/local_rendezvous.cc:404] Local rendezvous is aborting",
    "To enable the following instructions: AVX2 AVX512F FMA, in other operations, rebuild TensorFlow with the",
    "E0000 00:00:1795917684.517008    4929 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error: Failed",
    "E0000 00:00:1795917684.517008    4929 cuda_dnn.cc:8579] Unable to register cuDNN factory: Attempting to",
]
WORDS = [
    "error: there is no file a.json",
    "INFO: going on after epoch 3 of 5",
    "F0000 00:00:1795917684.517008    4929 tensor.cc:733] Check failed: 1 == dims() (1 vs. 2)",
    "E0000 00:00:1795917684.517008    4929 cuda_driver.cc:1] failed to allocate 16.00GiB: out of memory",
    "2026-11-29 01:55:03.123456: E tensorflow/core/common_runtime/gpu.cc:1] out of memory",
    "free(): invalid pointer",
    "Segmentation fault (core dumped)",
    "",
]


def test_notes_are_told_from_errors():
    assert [line for line in NOTES if not standard_error.is_note(line.encode())] == []
    assert [line for line in WORDS if standard_error.is_note(line.encode())] == []


def test_last_words_of_a_crash_are_seen():
    """What native code writes last, in pieces and without a line's end, and Python's own lines, all of them."""
    lines = "\n".join([*NOTES, *WORDS])
    program = f"""
    import os, sys
    from tfdetr_keras.cli import standard_error
    standard_error.configure(whole_process=True)
    print("of Python", file=sys.stderr)
    text = {lines!r}.encode()
    for start in range(0, len(text), 37):
        os.write(2, text[start : start + 37])
    os.write(2, b"terminate called")
    os.abort()
    """
    done = run("-c", textwrap.dedent(program))
    assert done.returncode == -signal.SIGABRT
    said = done.stderr.split("\n")
    assert "of Python" in said
    said.remove("of Python")
    assert said == [*WORDS[:-1], "terminate called"]


def test_stopped_by_ctrl_c():
    program = """
    import os, signal, sys
    import tfdetr_keras.cli as cli
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what runs in the background
    def interrupted(options):
        os.kill(os.getpid(), signal.SIGINT)
        import time
        time.sleep(30)
    cli.demo.run = interrupted
    sys.argv = ["tfdetr", "demo"]
    sys.exit(cli.main())
    """
    done = run("-c", textwrap.dedent(program))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


def test_without_a_terminal_or_stderr():
    program = """
    import os, sys
    from tfdetr_keras.cli import standard_error
    os.close(2)
    sys.stderr = None
    standard_error.configure(whole_process=True)
    """
    assert run("-c", textwrap.dedent(program)).returncode == 0


NOTE = "2026-01-01 00:00:00.000000: W tensorflow/core/framework/op_kernel.cc:1829] INVALID_ARGUMENT: ValueError: a.png"


@pytest.mark.parametrize("kind", ["ValueError", "a.b.UnreadableImage", "__main__.Fault", "KeyboardInterrupt"])
@pytest.mark.parametrize("chain", ["During handling of the above exception, another exception occurred:", None])
def test_the_tracebacks_that_go_on_with_a_note_are_left_out_with_it(kind, chain):
    """As TensorFlow writes them where a function of a pipeline raises; what comes after is shown again."""
    traceback = ["Traceback (most recent call last):", "", '  File "a.py", line 1, in f', "", f"{kind}: is damaged", ""]
    lines = [NOTE, *traceback, *([chain, "", *traceback] if chain else []), "\t [[{{node PyFunc}}]]", ""]
    wanted = standard_error.Filter()
    assert not any(wanted(line.encode()) for line in lines)
    for line in ("error: a.png is damaged", *traceback[:1], traceback[4]):
        assert wanted(line.encode()), line
