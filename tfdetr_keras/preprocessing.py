"""How an image becomes the model's input, by name: what data, inference, export and the command line agree on."""

from typing import Literal

# Whose rule says to which size an image is resized, see `tfdetr_keras.data.sizes.target_size`.
SizeRule = Literal["huggingface", "facebook", "table"]

SIZE = (800, 1333)  # shortest and longest edge, pixels: what published DETRs were trained and measured with
