"""How unsure a model is of an image: which ones a person should label first.

Source:
    Lewis and Gale 1994, "A Sequential Algorithm for Training Text Classifiers", uncertainty sampling.
"""

from __future__ import annotations

import numpy as np

LEAST = 0.1  # a detection's score; what is surer to be nothing counts for nothing


def uncertainty(scores: np.ndarray) -> float:
    """Return how many of an image's detections are expected to be misjudged, if those above 0.5 count as objects.

    A detection with a score of 0.9 is wrong in one of ten cases, one with 0.4 is left out wrongly in four of ten. Where
    the model is sure of everything, this is 0; it grows with the number of detections that it is unsure of.

    Args:
        scores: of all detections in the image; those below `LEAST` are left out.
    """
    counted = np.asarray(scores, np.float64)
    counted = counted[counted > LEAST]
    return float(np.minimum(counted, 1 - counted).sum())
