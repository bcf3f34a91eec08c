"""Imports of every class that occurs in `.keras` files, which registers them with Keras."""

from tfdetr_keras.layers import attention as attention
from tfdetr_keras.matching import classification as classification
from tfdetr_keras.models.registry import members
from tfdetr_keras.training import optimizer as optimizer
from tfdetr_keras.training import schedules as schedules

members()
