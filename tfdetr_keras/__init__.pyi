# The public names, and where each is defined: read by `lazy_loader`, by type checkers and by editors.
from . import data as data
from . import evaluation as evaluation
from . import export as export
from . import inference as inference
from . import losses as losses
from . import training as training
from . import visualize as visualize
from .backbones.resnet import ResNetConfig as ResNetConfig
from .inference import tables as tables
from .inference.detection import detect as detect
from .inference.detections import Detections as Detections
from .inference.postprocess import post_process as post_process
from .inference.segments import Segments as Segments
from .inference.segments import post_process_instance as post_process_instance
from .inference.segments import post_process_masks as post_process_masks
from .inference.segments import post_process_panoptic as post_process_panoptic
from .inference.segments import post_process_semantic as post_process_semantic
from .loading import load_model as load_model
from .losses.criterion import SetCriterion as SetCriterion
from .matching.assignment import linear_sum_assignment as linear_sum_assignment
from .models.conditional_detr import ConditionalDETR as ConditionalDETR
from .models.conditional_detr import ConditionalDETRConfig as ConditionalDETRConfig
from .models.detr import DETR as DETR
from .models.detr import DETRConfig as DETRConfig
from .models.detr_segmentation import DETRForSegmentation as DETRForSegmentation
from .models.detr_segmentation import SegmentationConfig as SegmentationConfig
from .models.presets import PRESETS as PRESETS
from .models.pretrained import from_pretrained as from_pretrained
from .models.registry import from_preset as from_preset
from .models.table_transformer import TableTransformer as TableTransformer
from .models.table_transformer import TableTransformerConfig as TableTransformerConfig
from .preprocessing import Preprocessing as Preprocessing
from .training.fitting import fit_detector as fit_detector
from .training.optimizer import AdamW as AdamW
from .training.pretraining import BackbonePretraining as BackbonePretraining

__version__: str
