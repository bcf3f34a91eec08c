from .average_precision import AveragePrecision as AveragePrecision
from .averages import averaged_weights as averaged_weights
from .checkpoint import Checkpoint as Checkpoint
from .fitting import fit_detector as fit_detector
from .non_finite import StopAtNonFiniteLoss as StopAtNonFiniteLoss
from .optimizer import AdamW as AdamW
from .run_folder import RunFolder as RunFolder
from .settings import Settings as Settings
