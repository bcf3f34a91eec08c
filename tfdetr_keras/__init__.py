"""DETR for TensorFlow and Keras 3: exact in-graph matching, ported PyTorch weights, `tf.data` straight into `fit`.

Importing the package loads neither Keras nor TensorFlow; a name does so on first access. The names are
listed in `__init__.pyi`.
"""

import sys

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# Whoever has Keras already wants to load files with it, and Keras finds in them only classes that are registered.
if "keras" in sys.modules:
    from tfdetr_keras import registered as registered
