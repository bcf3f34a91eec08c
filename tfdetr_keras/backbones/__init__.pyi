from .config import BackboneConfig as BackboneConfig
from .resnet import ResNetConfig as ResNetConfig
