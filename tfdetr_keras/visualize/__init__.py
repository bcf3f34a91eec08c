"""Pictures: detections and segments, the decoder's attention, the batches that a model is trained on, and curves."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
