"""Training: the recipe's optimizer, AP during training, checkpoints to resume from, and a whole run in one call."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
