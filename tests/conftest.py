import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def coco128() -> Path:
    """The folder of the COCO128 sample: `images/` and `annotations/instances_train2017.json`."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TFDETR_DATA", default)) / "coco128"
    if not folder.is_dir():
        pytest.skip("COCO128 is missing: set TFDETR_DATA to the folder that holds coco128/")
    return folder
