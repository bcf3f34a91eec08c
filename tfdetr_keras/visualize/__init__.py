"""Pictures to look at: detections and segments, where the decoder looks, what a model is fed, and curves."""

from tfdetr_keras.visualize.attention import draw_attention, image_of_attention
from tfdetr_keras.visualize.batch import show_batch
from tfdetr_keras.visualize.curves import plot_curves
from tfdetr_keras.visualize.detections import draw_detections, image_of_detections
from tfdetr_keras.visualize.mistakes import Verdict, draw_mistakes, verdict
from tfdetr_keras.visualize.segments import draw_segments, image_of_segments

__all__ = [
    "Verdict",
    "draw_attention",
    "draw_detections",
    "draw_mistakes",
    "draw_segments",
    "image_of_attention",
    "image_of_detections",
    "image_of_segments",
    "plot_curves",
    "show_batch",
    "verdict",
]
