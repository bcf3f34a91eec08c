import subprocess
import sys

import pytest

# Four pipelines that are drawing when the interpreter starts to shut down.
SCRIPT = """
from tfdetr_keras.data import load_shapes
iterators = [iter(load_shapes(10**6)[0].prefetch(1000)) for _ in range(4)]
for iterator in iterators:
    next(iterator)
print("read", flush=True)
"""


@pytest.mark.slow
def test_a_process_with_running_pipelines_ends():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "read\n", done.stderr
    assert done.returncode == 0, done.stderr
