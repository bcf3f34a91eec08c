"""Measures of a model: COCO's average precision of boxes and masks, and panoptic quality."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
