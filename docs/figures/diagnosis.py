"""Puts charts of a diagnosis side by side for the page on evaluation.

tfdetr evaluate --data shapes --count 100 --drawn-size 48 64 --drawn-seed 2 --model detr-tiny --out diagnosis --plots
python docs/figures/diagnosis.py diagnosis [docs/images]
"""

import sys
from pathlib import Path

from PIL import Image

CHARTS = ("errors", "confusion", "precision_recall", "f1")
COLUMNS, WIDTH, GAP = 2, 600, 20  # pixels
HERE = Path(__file__).parent


def main():
    """Writes diagnosis.png."""
    folder = Path(sys.argv[1])
    images = Path(sys.argv[2]) if sys.argv[2:] else HERE.parent / "images"
    charts = [Image.open(folder / f"{name}.png").convert("RGB") for name in CHARTS]
    charts = [chart.resize((WIDTH, round(chart.height * WIDTH / chart.width))) for chart in charts]
    rows = [charts[place : place + COLUMNS] for place in range(0, len(charts), COLUMNS)]
    heights = [max(chart.height for chart in row) for row in rows]
    whole = Image.new("RGB", (COLUMNS * (WIDTH + GAP) - GAP, sum(heights) + GAP * (len(rows) - 1)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for place, chart in enumerate(row):
            whole.paste(chart, (place * (WIDTH + GAP), top + (height - chart.height) // 2))
        top += height + GAP
    whole.quantize(256).save(images / "diagnosis.png", optimize=True)


if __name__ == "__main__":
    main()
