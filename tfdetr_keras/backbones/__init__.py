"""Backbones, one file each with its configuration: pixels in, feature maps out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
