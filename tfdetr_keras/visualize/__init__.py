"""Pictures to look at: detections and segments, where the decoder looks, what a model is fed, and curves."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
