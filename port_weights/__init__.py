"""Weights between PyTorch checkpoints and Keras models: read once, without torch unless the file is a pickle.

Nothing is imported until a name is touched: PyTorch's process comes by here, and must not load Keras on its way. The
names are listed in `__init__.pyi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
