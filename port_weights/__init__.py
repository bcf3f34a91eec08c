"""Weights between PyTorch checkpoints and Keras models: read once, without torch unless the file is a pickle.

Nothing is imported until a name is touched: PyTorch's process comes by here, and must not load Keras on its way. The
names stand here and not in a stub, which could not be read where the package lies in a zip file.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from port_weights.exports import export as export
    from port_weights.exports import export_pth as export_pth
    from port_weights.port import convert as convert
    from port_weights.port import load_model as load_model
    from port_weights.port import to_torch as to_torch

# No file has the name of one of these, or importing the file would put it in the function's place.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"exports": ["export", "export_pth"], "port": ["convert", "load_model", "to_torch"]}
)
