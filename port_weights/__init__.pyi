# No file has the name of one of these, or importing the file would put it in the function's place.
from .exports import export as export
from .exports import export_pth as export_pth
from .port import convert as convert
from .port import load_model as load_model
from .port import to_torch as to_torch
