"""How photographs are resized for the exported models, and the canvas for all of them."""

SIZE, CANVAS = (128, 213), (224, 224)
