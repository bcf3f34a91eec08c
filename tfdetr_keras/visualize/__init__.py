"""Pictures to look at: detections over their images, what a model is fed, and the curves of a training run."""

from tfdetr_keras.visualize.batch import show_batch
from tfdetr_keras.visualize.curves import plot_curves
from tfdetr_keras.visualize.detections import draw_detections

__all__ = ["draw_detections", "plot_curves", "show_batch"]
