"""A page in the browser to try out a model: drop an image, move the threshold, see objects and the model's attention.

The model runs once for each image. The threshold and the choice of an object only redraw what it found then. Gradio
makes the page, and is set to load nothing from other machines and to report nothing to them.
"""

# Without `from __future__ import annotations`: gradio reads the annotations of the functions that it calls.

import dataclasses
import html
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tfdetr_keras.data.images import LARGEST_FILE, TURNED, decode_reduced
from tfdetr_keras.inference.detections import Detections
from tfdetr_keras.inference.postprocess import threshold_of_each
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.preprocessing import Preprocessing, SizeRule, preprocessing_for
from tfdetr_keras.visualize import image_of_attention, image_of_detections
from tfdetr_keras.visualize.drawing import fitted

THRESHOLD = 0.5  # at the start
LONGEST = 600  # pixels, the longer side of the pictures
MOST_PIXELS = 2**24  # of an image that is looked at in full; larger ones are halved, or more, on being decoded
KEPT = 3600  # seconds, after which files of pictures and what was found are deleted; when the page ends, all are
SESSIONS = 64  # whose last image is kept, half a megabyte to one each; of the one that came first it goes first
WAITING = 32  # images that wait for the model; a further one is told to come later
HEADERS = ("#", "name", "score", "box")
FONT, CODE_FONT = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # those of the reader's machine
STYLE = """
.told {margin: 0; font-size: var(--text-lg)}
.told.wrong {color: var(--error-text-color)}
.picture .image-frame {padding-top: 2rem}
.picture img {max-height: 28rem; object-fit: contain}
"""


class Look(NamedTuple):
    """The result of one image.

    Attributes:
        file: its name.
        found: all objects that the model found, with any score, the highest-scoring first, in a picture of at most
            `LONGEST` pixels; None if there was an error.
        wrong: the error.
        scale: pixels of the image in one of the picture, across and down.
        noted: a remark that may be worth a look, such as that the file is truncated.
    """

    file: str
    found: Detections | None
    wrong: str = ""
    scale: tuple[float, float] = (1.0, 1.0)
    noted: str = ""


class View(NamedTuple):
    """The page's display of a look.

    Attributes:
        told: a line of HTML that sums it up.
        picture: the image with the objects.
        rows: of the table: number from 1, name, score, and corners in pixels.
        choices: description and place of each object that can be chosen.
        chosen: the place of the object whose attention is shown.
        attended: the picture of it.
    """

    told: str
    picture: Image.Image | None = None
    rows: tuple[tuple[int, str, str, str], ...] = ()
    choices: tuple[tuple[str, int], ...] = ()
    chosen: int | None = None
    attended: Image.Image | None = None


def require_gradio() -> None:
    """Raise a `ValueError` if gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("to try a model in the browser, install gradio: pip install 'tfdetr-keras[app]'")


def look_at(
    model: Detector,
    path: str | Path,
    preprocessing: Preprocessing,
) -> Look:
    """Run a model over a file, which may not be an image.

    An image with more than `MOST_PIXELS` is reduced to a half, a quarter or an eighth, as long as that has twice the
    pixels per side that the model sees.

    Args:
        model: to try out.
        path: the file.
        preprocessing: how images are prepared.
    """
    file = Path(path).name
    notes: list[str] = []

    def notice(kind: str, what: str) -> None:
        if kind != TURNED:  # there are no annotations
            notes.append(f"It {what}.")

    try:
        pixels, (height, width) = decode_reduced(
            Path(path).read_bytes(), MOST_PIXELS, 2 * min(preprocessing.size), notice
        )
    except ValueError as error:
        return Look(file, None, f"{file} {error}")
    try:
        # Without masks: of all queries they would fill the memory, and the page shows boxes.
        found = model.detect(pixels, threshold=0.0, attention=True, masks=False, preprocessing=preprocessing)
    except ValueError as error:  # it does not fit the canvas
        return Look(file, None, f"{file}: {error}")
    picture, ratio = (pixels, 1.0) if max(pixels.shape) <= LONGEST else _smaller(pixels)
    scale = (width / pixels.shape[1] / ratio, height / pixels.shape[0] / ratio)
    found = dataclasses.replace(found, image=picture, boxes=found.boxes * np.float32(ratio))
    return Look(file, found, "", scale, " ".join(notes))


def _smaller(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the part of an image that is kept, and its scale: keeping it whole would fill the memory in a session."""
    picture, ratio = fitted(pixels, LONGEST)
    return np.asarray(picture), ratio


def view(look: Look | None, threshold: float | Mapping[str, float], chosen: int | None = None) -> View:
    """Return the display of a look.

    Args:
        look: None before the first one.
        threshold: only objects with a higher score are shown; one for all, or one by the name of each class.
        chosen: the place of the object whose attention is shown; the highest-scoring one that is shown if this is not.
    """
    if look is None:
        return View('<p class="told">Drop an image to begin.</p>')
    if look.found is None:
        return View(f'<p class="told wrong" role="alert">{html.escape(look.wrong)}</p>')
    places = _above(look.found, threshold)
    confident = _at(look.found, places)
    level = f"above {threshold:.2f}" if not isinstance(threshold, Mapping) else "above the thresholds of their classes"
    if len(confident):
        summary = f"{len(confident)} object{'s' * (len(confident) > 1)} {level}"
        chosen = chosen if chosen is not None and chosen in places else int(places[0])
    else:
        summary = f"nothing {level}; the highest score is {look.found.scores.max():.2f}"
        chosen = None
    corners = [", ".join(f"{side:.0f}" for side in row["box"] * np.array(look.scale * 2)) for row in confident]
    noted = f"<br>{html.escape(look.noted)}" if look.noted else ""
    rows = list(zip(places.tolist(), confident, corners, strict=True))
    return View(
        f'<p class="told" role="status"><b>{html.escape(look.file)}</b>: {summary}{noted}</p>',
        image_of_detections(confident, LONGEST),
        tuple((place + 1, row["name"], f"{row['score']:.2f}", box) for place, row, box in rows),
        tuple((f"{place + 1}: {row['name']} {row['score']:.2f}", place) for place, row, _ in rows),
        chosen,
        attended_by(look, chosen),
    )


def attended_by(look: Look | None, chosen: int | None) -> Image.Image | None:
    """Return the picture of one object's attention."""
    if look is None or look.found is None or chosen is None:
        return None
    return image_of_attention(look.found, chosen, LONGEST)


def _above(found: Detections, threshold: float | Mapping[str, float]) -> np.ndarray:
    """Return the places of the objects with a higher score."""
    limits = threshold_of_each(found.names, threshold)
    return np.flatnonzero(found.scores > limits)


def _at(found: Detections, places: np.ndarray) -> Detections:
    """Return the objects at some places."""
    kept = {name: getattr(found, name)[places] for name in ("scores", "labels", "boxes", "attention")}
    return dataclasses.replace(found, names=[found.names[place] for place in places], **kept)


def page(
    model: Detector,
    name: str,
    size: tuple[int, int] | None = None,
    pad_to: tuple[int, int] | None = None,
    size_rule: SizeRule | None = None,
    preprocessing: Preprocessing | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Any:
    """Build the page.

    Args:
        model: to try out.
        name: of the model, for the title.
        size: of images, instead of the preprocessing's, see `td.Preprocessing`.
        pad_to: (height, width) of a fixed canvas, pixels, instead of the preprocessing's.
        size_rule: by which images are resized, instead of the preprocessing's.
        preprocessing: how images are prepared; by default the model's own.
        thresholds: the score that objects of each class have to exceed, by its name, which the page can be set to.

    Returns:
        `gradio.Blocks`, for `serve`.

    Raises:
        ValueError: gradio is not installed, or the sizes are invalid.
    """
    require_gradio()
    import gradio

    chosen_preprocessing = preprocessing_for(model, preprocessing, size, pad_to, size_rule)

    def dropped(path: str) -> tuple[Look, None, None]:
        return (
            look_at(model, path, chosen_preprocessing),
            None,
            None,
        )  # nothing is chosen yet, and the field waits for more

    def redrawn(look: Look | None, threshold: float, own: bool, chosen: int | None) -> tuple[Any, ...]:
        seen = view(look, thresholds if own and thresholds else threshold, chosen)
        choice = gradio.Dropdown(choices=list(seen.choices), value=seen.chosen)
        return seen.told, seen.picture, list(seen.rows), choice, seen.attended

    def clicked(look: Look | None, event: gradio.SelectData) -> tuple[int, Image.Image | None]:
        place = int(event.row_value[0]) - 1
        return place, attended_by(look, place)

    image: dict[str, Any] = {
        "format": "png",
        "interactive": False,
        "buttons": ["download"],
        "elem_classes": "picture",
    }
    with gradio.Blocks(title=f"{name} · tfdetr", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as blocks:
        look = gradio.State(time_to_live=KEPT)
        gradio.Markdown(f"<h1>{html.escape(name)}</h1>")
        with gradio.Row():
            with gradio.Column(min_width=320):
                field = gradio.File(label="Image", file_types=["image"], height=140)
            with gradio.Column(min_width=320):
                threshold = gradio.Slider(0, 1, THRESHOLD, step=0.01, label="Threshold", buttons=[])
                own = gradio.Checkbox(bool(thresholds), label="Each class's own threshold", visible=bool(thresholds))
                told = gradio.HTML(view(None, THRESHOLD).told)
        with gradio.Row():
            with gradio.Column(min_width=320):
                picture = gradio.Image(label="Objects", **image)
                table = gradio.Dataframe(
                    label="Boxes: left, top, right, bottom in pixels",
                    headers=list(HEADERS),
                    interactive=False,
                    buttons=[],
                )
            with gradio.Column(min_width=320):
                attended = gradio.Image(label="Attention", **image)
                chosen = gradio.Dropdown([], label="Attention of object", interactive=True)

        redraw: dict[str, Any] = {
            "fn": redrawn,
            "inputs": [look, threshold, own, chosen],
            "outputs": [told, picture, table, chosen, attended],
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        looked = field.upload(
            dropped, field, [look, field, chosen], show_progress_on=[picture], api_visibility="private"
        )
        looked.then(**redraw)
        threshold.change(**redraw, trigger_mode="always_last")
        own.change(**redraw, trigger_mode="always_last")
        chosen.input(attended_by, [look, chosen], attended, show_progress="hidden", api_visibility="private")
        table.select(clicked, look, [chosen, attended], show_progress="hidden", api_visibility="private")
    return blocks.queue(max_size=WAITING, default_concurrency_limit=1)


def serve(blocks: Any, host: str = "127.0.0.1", port: int = 7860, browser: bool = False) -> str:
    """Serve the page in the background, until `blocks.close()`.

    Args:
        blocks: the page.
        host: address to listen at; "0.0.0.0" lets other machines in.
        port: to listen at.
        browser: whether the page is opened in the user's browser.

    Returns:
        The page's address.
    """
    import gradio

    # Gradio asks for its own page before it says that it is ready: past any proxy, which would not find it.
    direct = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY", ""), host, "localhost")
    os.environ["no_proxy"] = ",".join(filter(None, direct))
    _, address, _ = blocks.launch(
        server_name=host,
        server_port=port,
        inbrowser=browser,
        inline=False,
        share=False,
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=LARGEST_FILE,
        state_session_capacity=SESSIONS,
        theme=gradio.themes.Default(font=FONT, font_mono=CODE_FONT),
        css=STYLE,
    )
    return address
