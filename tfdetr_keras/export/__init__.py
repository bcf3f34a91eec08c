"""A model in the formats of other runtimes, from raw images to boxes in pixels.

| | file | runtime | images |
|---|---|---|---|
| `saved_model` | folder | TensorFlow, TensorFlow Serving | pixels, or JPEG, PNG, GIF and BMP files |
| `onnx` | `.onnx` | ONNX Runtime and others | pixels |
| `litert` | `.tflite` | LiteRT (TensorFlow Lite), on phones too | pixels, on one canvas |

Each takes images of any size, in batches, and returns `scores`, `labels` and `boxes`; see `ServingGraph`. `hub` writes
the folder of a run for the Hugging Face hub, with its model card.
"""

from tfdetr_keras.export.hub import hub
from tfdetr_keras.export.litert import Precision, litert
from tfdetr_keras.export.onnx import onnx
from tfdetr_keras.export.saved_model import saved_model
from tfdetr_keras.export.serving_graph import ServingGraph

__all__ = ["Precision", "ServingGraph", "hub", "litert", "onnx", "saved_model"]
