"""What models with a mask for each query have in common: segments of images, and stages with masks or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tfdetr_keras.models.detector import Detector
from tfdetr_keras.preprocessing import Preprocessing, SizeRule


class Segmenter(Detector):
    """A detector whose queries have masks; it stands before the detector among the bases of a class."""

    has_masks = True
    segment_threshold: ClassVar[float] = 0.5  # of queries that become segments

    def segment(
        self,
        images: Any,
        size: tuple[int, int] | None = None,
        threshold: float | None = None,
        things: Sequence[bool] | None = None,
        urls: bool = False,
        pad_to: tuple[int, int] | None = None,
        size_rule: SizeRule | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> Any:
        """Divide images as people have them into segments: things and stuff, each pixel in one of them at most.

        Args:
            images: see `tfdetr_keras.inference.detect_images`.
            size: of images, in place of that of the preprocessing, see `td.Preprocessing`.
            threshold: only queries with a higher score become segments; by default 0.85 of a DETR, 0.5 of an RF-DETR.
            things: of each label, whether it is a thing, see `td.data.coco_things`; the others are stuff, of which an
                image has one segment a label. By default all are things.
            urls: whether text that begins with http:// or https:// is fetched.
            pad_to: (height, width) of a fixed canvas, pixels, in place of that of the preprocessing.
            size_rule: by which images are resized, in place of that of the preprocessing.
            preprocessing: how images are prepared; by default the model's own.

        Returns:
            `td.Segments`, of one image or a list of them.

        Raises:
            ValueError: something is no image, or cannot be read; `things` of another number of classes.
        """
        from tfdetr_keras.inference.detection import segment_images  # an upper floor, called only when it is wanted

        threshold = self.segment_threshold if threshold is None else threshold
        return segment_images(self, images, size, threshold, things, urls, pad_to, size_rule, preprocessing)

    def stages(
        self,
        inputs: Any,
        attention: bool = False,
        training: bool = False,
        targets: Any = None,
        denoising: Mapping[str, Any] | None = None,
        masks: bool = True,
    ) -> dict[str, Any]:
        """Run the model and hand out every intermediate result by name, see `Detector.stages`.

        Of a DETR there is also `mask_attention` (batch, queries, h, w, heads).

        Args:
            inputs: as for the model.
            attention: whether the decoder's attention to the image is wanted, too, of models that can give it.
            training: whether the model runs as in training.
            targets: not looked at.
            denoising: not looked at.
            masks: whether the masks of all queries are made. Without, there is `"mask_inputs"` in place of
                `"pred_masks"`, of which `masks_of` makes those of some.
        """
        outputs, stages = self._forward(inputs, training=training, attention=attention, masks=masks)  # type: ignore[call-arg]
        return {**stages, **outputs}
