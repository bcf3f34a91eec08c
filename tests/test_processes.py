"""PyTorch and TensorFlow are in processes of their own: what the tests import, and how the reference is called."""

import ast
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from reference.process import PyTorch, ReferenceFailure

TESTS = Path(__file__).parent
FORBIDDEN = {"torch", "transformers"}
# torch alone imports no triton; transformers does. Nobody else may import either.
ALLOWED = {
    "port_weights/test_state_dicts.py": {"torch"},  # a state dict in the memory of the user's process is a source
    "port_weights/damaged_pickles.py": {"torch"},  # a program, which does what PyTorch's own process does
    "golden/record_rt_detr.py": {"torch"},  # likewise
    "golden/record_group_detrs.py": {"torch"},  # likewise
    "golden/record_deformable_detr.py": {"torch"},  # a program, which runs beside a checkout of the authors' code
}


def imported(file):
    """The packages that a file imports anywhere in it, by a statement or by name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("import_module", "importorskip"):
            yield from (
                str(argument.value).split(".")[0] for argument in node.args if isinstance(argument, ast.Constant)
            )


def test_only_the_reference_imports_pytorch():
    found = {}
    for file in TESTS.rglob("*.py"):
        name = file.relative_to(TESTS).as_posix()
        if not name.startswith("reference/") and (packages := FORBIDDEN & set(imported(file))):
            found[name] = packages
    assert found == ALLOWED


def test_the_reference_imports_nothing_that_is_tested():
    for file in (TESTS / "reference").glob("*.py"):
        assert not {"tensorflow", "keras", "tfdetr_keras", "port_weights"} & set(imported(file)), file


def test_the_processes_hold_their_own_libraries(pytorch):
    there = pytorch.call("process:loaded_modules")
    assert there >= FORBIDDEN
    assert not {"tensorflow", "keras", "tfdetr_keras", "port_weights"} & there
    assert not {"transformers", "triton"} & sys.modules.keys()


def test_tensors_arrive_as_arrays(pytorch):
    state, given, value = pytorch.call("layers:attention", d_model=8, heads=2, length=3)
    assert {type(array) for array in (*state.values(), given, value)} == {np.ndarray}
    assert value.shape == (2, 3, 8)


def test_an_error_arrives_with_its_traceback(pytorch):
    with pytest.raises(
        ReferenceFailure, match=r"layers:activation: Traceback[\s\S]*layers\.py[\s\S]*KeyError: .*unheard"
    ):
        pytorch.call("layers:activation", "unheard-of", np.zeros(1, np.float32))
    assert pytorch.call("layers:activation", "relu", np.float32([-1, 2])).tolist() == [0, 2]


def test_a_process_that_died_is_a_failure_and_is_followed_by_another():
    process = PyTorch()
    try:
        first = process.call("process:identity")
        assert first != os.getpid()
        assert process.call("process:identity") == first
        os.kill(first, signal.SIGKILL)
        with pytest.raises(ReferenceFailure, match="process:identity: the process of PyTorch died with status -9"):
            process.call("process:identity")
        assert process.call("process:identity") not in (first, os.getpid())
    finally:
        process.close()
