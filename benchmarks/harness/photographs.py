"""Where the photographs are that benchmarks read."""

import os
from pathlib import Path

COCO128 = Path(os.environ.get("TFDETR_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "coco128"
