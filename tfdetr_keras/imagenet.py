"""How the pixels of the published weights are normalised: by ImageNet's mean and standard deviation, per channel.

Levels are meant as 0 .. 1, channels as red, green, blue.
"""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
