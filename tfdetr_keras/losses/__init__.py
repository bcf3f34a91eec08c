"""The losses of a detector: the set criterion, its mask losses, denoising, and the targets that it takes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
