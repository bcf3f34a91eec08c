"""Matching of queries to objects: the costs, and the assignment with the least total cost."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
