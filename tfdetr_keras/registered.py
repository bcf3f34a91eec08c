"""Imports every class that stands in `.keras` files, and so registers it with Keras."""

from tfdetr_keras import models as models
from tfdetr_keras.models import attention as attention
from tfdetr_keras.models import conditional as conditional
from tfdetr_keras.models import detr as detr
from tfdetr_keras.models import segmentation as segmentation
from tfdetr_keras.training import optimizer as optimizer
from tfdetr_keras.training import schedules as schedules
