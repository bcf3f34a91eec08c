"""Executes the notebooks and keeps what they print and draw: `python docs/notebooks/execute.py [NOTEBOOK …]`.

Each runs in an empty folder of its own. What goes to the log of the machine is left out, and large pictures are kept as
JPEG.
"""

import base64
import io
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
SECONDS = 300  # for one cell
LARGEST = 50_000  # characters of a picture as PNG
WIDEST = 1000  # pixels


def execute(path: Path, folder: str) -> nbformat.NotebookNode:
    """A notebook with its cells executed in a folder."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of day
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                shrink(output.get("data", {}))
    return notebook


def shrink(pictures: dict[str, str]) -> None:
    """Replaces a large PNG by a JPEG."""
    if len(pictures.get("image/png", "")) > LARGEST:
        image = Image.open(io.BytesIO(base64.b64decode(pictures.pop("image/png")))).convert("RGB")
        image.thumbnail((WIDEST, WIDEST * image.height))
        content = io.BytesIO()
        image.save(content, "JPEG", quality=85)
        pictures["image/jpeg"] = base64.b64encode(content.getvalue()).decode()


def main(paths: list[str]) -> None:
    """Executes the given notebooks, or all, in their place."""
    for path in map(Path, paths) if paths else sorted(HERE.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(execute(path, folder), path)


if __name__ == "__main__":
    main(sys.argv[1:])
