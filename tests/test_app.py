"""The page to try a model on: what it shows, and the page itself in a browser."""

import io
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import tfdetr_keras as td
from tfdetr_keras import app
from tfdetr_keras.cli import main
from tfdetr_keras.visualize import draw_detections, image_of_attention, image_of_detections

SIZE = (64, 128)
INPUT = td.Preprocessing(SIZE)
GAP = 8  # around the images of a grid


@pytest.fixture(scope="module")
def detector():
    return td.DETR.from_pretrained("detr-tiny")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A file of four shapes, with more that the model is less sure of."""
    records = list(td.data.load_shapes(6, seed=2, size=(96, 128))[0].as_numpy_iterator())
    path = tmp_path_factory.mktemp("images") / "shapes.png"
    Image.fromarray(records[5]["image"]).save(path)
    return path


@pytest.fixture(scope="module")
def look(detector, shapes):
    return app.look_at(detector, shapes, INPUT)


def equal(first, second):
    return np.array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize(("threshold", "count"), [(0.1, 6), (0.5, 4)])
def test_the_page_shows_what_detect_finds(detector, shapes, look, threshold, count):
    expected = detector.detect(shapes, SIZE, threshold)
    assert len(expected) == count
    seen = app.view(look, threshold)
    assert [name for _, name, _, _ in seen.rows] == expected.names
    assert [number for number, *_ in seen.rows] == list(range(1, count + 1))
    np.testing.assert_allclose([float(score) for _, _, score, _ in seen.rows], expected.scores, rtol=0, atol=0.006)
    corners = [[int(side) for side in box.split(", ")] for *_, box in seen.rows]
    np.testing.assert_allclose(corners, expected.boxes, rtol=0, atol=0.51)
    assert seen.choices[2] == (f"3: {expected.names[2]} {expected.scores[2]:.2f}", 2)
    assert f"<b>shapes.png</b>: {count} objects above {threshold:.2f}<" in seen.told
    attended = detector.detect(shapes, SIZE, threshold, attention=True)
    assert equal(seen.picture, image_of_detections(attended, app.LONGEST))
    assert max(seen.picture.size) == app.LONGEST


def test_one_object_and_none(detector, look, tmp_path):
    alone = app.view(look, float(look.found.scores[1]))
    assert "1 object above" in alone.told
    Image.new("RGB", (90, 70), "grey").save(tmp_path / "grey.png")
    nothing = app.view(app.look_at(detector, tmp_path / "grey.png", INPUT), 0.5, chosen=2)
    assert "nothing above 0.50; the highest score is 0.0" in nothing.told
    assert (nothing.rows, nothing.choices, nothing.chosen, nothing.attended) == ((), (), None, None)
    width, height = nothing.picture.size
    image = nothing.picture.crop((0, height - round(app.LONGEST * 70 / 90), width, height))
    assert image.getextrema() == ((128, 128),) * 3


def test_each_class_has_its_own_threshold(look):
    names, scores = look.found.names, look.found.scores
    limits = {"circle": 0.1, "square": 0.999, "triangle": 0.5}
    expected = [place for place, name in enumerate(names) if scores[place] > limits[name]]
    assert expected != list(range(len(expected)))  # others have a higher score, and are not shown
    seen = app.view(look, limits, chosen=expected[1])
    assert [(number - 1, name) for number, name, *_ in seen.rows] == [(place, names[place]) for place in expected]
    assert [place for _, place in seen.choices] == expected
    assert seen.chosen == expected[1]
    assert app.view(look, limits, chosen=0 if 0 not in expected else 99).chosen == expected[0]
    assert f"{len(expected)} objects above the thresholds of their classes" in seen.told


def test_before_the_first_image():
    seen = app.view(None, 0.5)
    assert "Drop an image" in seen.told
    assert (seen.picture, seen.attended, app.attended_by(None, 0)) == (None, None, None)


def test_the_choice_stays_while_its_object_is_shown(look):
    assert app.view(look, 0.5).chosen == 0
    assert app.view(look, 0.1, chosen=5).chosen == 5
    assert app.view(look, 0.5, chosen=5).chosen == 0
    assert equal(app.view(look, 0.1, chosen=5).attended, app.attended_by(look, 5))


@pytest.mark.parametrize("chosen", range(4))
def test_attention_is_that_of_the_chosen_object(look, chosen):
    picture = np.asarray(app.attended_by(look, chosen)).astype(int)
    attention = look.found.attention[chosen]
    row, column = np.unravel_index(attention.argmax(), attention.shape)
    y, x = ((place + 0.5) / count for place, count in zip((row, column), attention.shape, strict=True))
    brightest = picture[int(y * picture.shape[0]), int(x * picture.shape[1])]
    assert brightest[:2].min() > 0.6 * 255 > 0.4 * 255 > brightest[2]  # yellow
    assert not any(equal(picture, app.attended_by(look, other)) for other in range(4) if other != chosen)


def test_pictures_are_those_of_the_package(look, detector, tmp_path):
    found = look.found
    rows = {"boxes": found.boxes, "labels": found.labels, "scores": found.scores}
    draw_detections([found.image], [rows], list(detector.id2label.values()), tmp_path / "a.png", threshold=0)
    with Image.open(tmp_path / "a.png") as grid:
        picture = np.asarray(image_of_detections(found))  # in a grid, what is said is above it
        assert equal(np.asarray(grid)[-GAP - len(picture) : -GAP, GAP : GAP + picture.shape[1]], picture)
    with pytest.raises(ValueError, match="these detections are without attention"):
        image_of_attention(detector.detect(found.image, SIZE), 0)


def test_an_image_of_a_pixel_s_height(detector, tmp_path):
    Image.new("RGB", (2000, 1)).save(tmp_path / "line.png")
    picture = app.view(app.look_at(detector, tmp_path / "line.png", INPUT), 0.5).picture
    assert picture.width == app.LONGEST
    assert picture.height < 40  # the line, and a word that nothing was found


@pytest.fixture(scope="module")
def enlarged(shapes, tmp_path_factory):
    """The same at ten times its size, 960 x 1280 pixels."""
    path = tmp_path_factory.mktemp("images") / "large.png"
    with Image.open(shapes) as image:
        image.resize((1280, 960), Image.Resampling.NEAREST).save(path)
    return path


@pytest.mark.parametrize("most", [2**24, 2**19])
def test_of_a_large_image_a_small_picture_is_kept(detector, enlarged, monkeypatch, most):
    """Boxes are those of the whole image; with fewer pixels allowed, it is halved on being decoded."""
    monkeypatch.setattr(app, "MOST_PIXELS", most)
    expected = detector.detect(enlarged, SIZE, 0.5)
    look = app.look_at(detector, enlarged, INPUT)
    assert look.found.image.shape == (450, 600, 3)
    seen = app.view(look, 0.5)
    assert [name for _, name, _, _ in seen.rows] == expected.names
    corners = [[int(side) for side in box.split(", ")] for *_, box in seen.rows]
    np.testing.assert_allclose(corners, expected.boxes, rtol=0, atol=1 if most == 2**24 else 12)
    if most == 2**24:
        attended = detector.detect(enlarged, SIZE, 0.5, attention=True)
        assert equal(seen.picture, image_of_detections(attended, app.LONGEST))
        assert equal(seen.attended, image_of_attention(attended, 0, app.LONGEST))


def test_too_many_pixels_are_told(detector, enlarged, monkeypatch):
    monkeypatch.setenv("TFDETR_MAX_IMAGE_PIXELS", "1000000")
    assert "large.png has too many pixels: 960 x 1280" in app.view(app.look_at(detector, enlarged, INPUT), 0.5).told


def test_a_truncated_image_is_looked_at_and_told(detector, shapes, tmp_path):
    with Image.open(shapes) as image:
        image.save(tmp_path / "cut.jpg", quality=95)
    content = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[:-100])
    seen = app.view(app.look_at(detector, tmp_path / "cut.jpg", INPUT), 0.5)
    assert "It is truncated: " in seen.told
    assert seen.picture is not None


@pytest.mark.slow
def test_sessions_and_waiting_images_are_limited(detector, monkeypatch):
    gradio = pytest.importorskip("gradio", reason="the page needs gradio")
    launched = {}
    monkeypatch.setattr(
        gradio.Blocks, "launch", lambda self, **options: launched.update(options) or (None, "http://x/", None)
    )
    blocks = app.page(detector, "a model", SIZE)
    app.serve(blocks)
    assert launched["state_session_capacity"] == app.SESSIONS <= 100
    assert launched["max_file_size"] == app.LARGEST_FILE
    assert blocks._queue.max_size == app.WAITING


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"this is text", "is not an image that can be read"), (b"", "is not an image"), (None, "is damaged")],
)
def test_what_is_no_image_is_told(detector, shapes, tmp_path, content, message):
    path = tmp_path / "<i>&.png"
    path.write_bytes(shapes.read_bytes()[:2000] if content is None else content)
    look = app.look_at(detector, path, INPUT)
    assert look.found is None
    seen = app.view(look, 0.5)
    assert f"&lt;i&gt;&amp;.png {message}" in seen.told
    assert "wrong" in seen.told
    assert (seen.picture, seen.rows, seen.attended, app.attended_by(look, 0)) == (None, (), None, None)


def test_a_canvas(detector, shapes):
    on_canvas = app.look_at(detector, shapes, td.Preprocessing(SIZE, pad_to=(128, 128)))
    expected = detector.detect(shapes, SIZE, 0.0, attention=True, pad_to=(128, 128))
    np.testing.assert_array_equal(on_canvas.found.scores, expected.scores)


def test_the_model_runs_once_for_each_image(detector, shapes, monkeypatch):
    pytest.importorskip("gradio", reason="the page needs gradio")
    runs = []
    monkeypatch.setattr(detector, "detect", lambda *a, **o: runs.append(o) or td.DETR.detect(detector, *a, **o))
    blocks = app.page(detector, "a model", SIZE, (128, 128))
    behind = {function.name: function.fn for function in blocks.fns.values()}
    look, field, chosen = behind["dropped"](str(shapes))
    assert (field, chosen) == (None, None)
    counts = [len(behind["redrawn"](look, threshold, False, chosen)[2]) for threshold in (0.5, 0.0, 0.5)]
    assert counts == [4, detector.config.num_queries, 4]
    place, attended = behind["clicked"](look, SimpleNamespace(row_value=["2", "square", "1.00", "1, 2, 3, 4"]))
    assert place == 1
    assert equal(attended, app.attended_by(look, 1))
    assert [options["preprocessing"].pad_to for options in runs] == [(128, 128)]
    assert (blocks.title, blocks.analytics_enabled) == ("a model · tfdetr", False)


def test_impossible_sizes_are_told_before_there_is_an_image(detector):
    pytest.importorskip("gradio", reason="the page needs gradio")
    with pytest.raises(ValueError, match="size must be"):
        app.page(detector, "a model", (128, 64))


def test_without_gradio(detector, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "page" in runpy.run_path(app.__file__)  # the module itself needs none
    with pytest.raises(ValueError, match=r"pip install 'tfdetr-keras\[app\]'"):
        app.page(detector, "a model")
    monkeypatch.setattr(
        "tfdetr_keras.cli.app.read_model_for_inference", lambda _: pytest.fail("a model was loaded in vain")
    )
    assert main(["app", "--model", "detr-tiny"]) == 2
    assert "pip install 'tfdetr-keras[app]'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["app", "--help"])
    assert stopped.value.code == 0
    assert "--no-browser" in capsys.readouterr().out


@pytest.fixture
def served(monkeypatch):
    """What the command serves, for an instant."""
    asked = {"closed": False}
    blocks = SimpleNamespace(close=lambda verbose: asked.update(closed=True))
    monkeypatch.setattr(app, "page", lambda model, name, **sizes: asked.update(name=name, **sizes) or blocks)
    monkeypatch.setattr(app, "require_gradio", lambda: None)

    def serve(blocks, host, port, browser):
        asked.update(host=host, port=port, browser=browser)
        return f"http://{host}:{port}/"

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "serve", serve)
    monkeypatch.setattr("tfdetr_keras.cli.app.time.sleep", interrupted)
    return asked


def test_the_command(served, capsys):
    assert main(["app", "--model", "detr-tiny", "--port", "0", "--pad-to", "64", "64"]) == 0
    assert served.pop("port") > 0
    own = td.Preprocessing((64, 64), pad_to=(64, 64))
    expected = {"name": "detr-tiny", "preprocessing": own, "host": "127.0.0.1", "thresholds": None}
    assert served == expected | {"browser": True, "closed": True}
    assert "detr-tiny is at http://127.0.0.1:" in capsys.readouterr().out


def test_the_name_is_that_of_the_folder(served, detector, tmp_path, monkeypatch):
    (tmp_path / "cells").mkdir()
    detector.save(tmp_path / "cells" / "best.keras")
    monkeypatch.chdir(tmp_path / "cells")
    assert main(["app", "--model", ".", "--port", "0", "--no-browser"]) == 0
    assert (served["name"], served["browser"]) == ("cells", False)


def test_a_port_that_is_taken(served, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert main(["app", "--model", "detr-tiny", "--port", str(other.getsockname()[1])]) == 2
    assert main(["app", "--model", "detr-tiny", "--port", "99999"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert all(
        line.startswith("error: the page cannot be served there, give another --port or --host") for line in told
    )
    assert "name" not in served


BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


@pytest.fixture
def browser():
    """Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"there is no browser: none of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def command(request):
    """`tfdetr app` as a user starts it; gives the process and the page's address."""
    pytest.importorskip("gradio", reason="the page needs gradio")
    command = [sys.executable, "-m", "tfdetr_keras", "app", "--model", "detr-tiny"]
    with subprocess.Popen(
        [*command, "--size", *map(str, SIZE), "--port", "0", "--no-browser"],
        env={**os.environ, "PYTHONPATH": str(request.config.rootpath), "HTTP_PROXY": "http://127.0.0.1:9"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        limit = threading.Timer(120, process.kill)
        limit.start()
        line = process.stdout.readline()
        limit.cancel()
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert address, process.stderr.read()
        yield process, address[0]
        process.kill()


@pytest.mark.slow
def test_the_page_in_a_browser(browser, command, detector, shapes, tmp_path):
    process, address = command
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    errors, hosts = [], set()
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda asked: hosts.add(urlsplit(asked.url).hostname))
    page.goto(address)
    page.get_by_text("Drop an image to begin.").wait_for()
    assert page.title() == "detr-tiny · tfdetr"
    field, told = page.locator("input[type=file][accept='image/*']"), page.locator(".told")
    pictures = page.locator(".picture img")

    def names(count):
        """Of the table, once it has so many rows."""
        page.get_by_test_id(f"cell-{count - 1}-1").wait_for()
        page.get_by_test_id(f"cell-{count}-1").wait_for(state="detached")
        return [page.get_by_test_id(f"cell-{row}-1").inner_text().strip() for row in range(count)]

    def shown_after(act):
        """The address of the attention's picture, once it is another one."""
        before = pictures.nth(1).get_attribute("src")
        act()
        page.wait_for_function("s => document.querySelectorAll('.picture img')[1]?.src !== s", arg=before)
        return pictures.nth(1).get_attribute("src")

    field.set_input_files(shapes)
    page.get_by_text("shapes.png: 4 objects above 0.50").wait_for()
    assert names(4) == detector.detect(shapes, SIZE).names
    pictures.nth(1).wait_for()
    page.screenshot(path=tmp_path / "wide.png", full_page=True)

    page.get_by_label("number input for Threshold").fill("0.1")
    page.get_by_text("shapes.png: 6 objects above 0.10").wait_for()
    assert names(6) == detector.detect(shapes, SIZE, 0.1).names

    chosen = page.get_by_label("Attention of object")
    seen = {pictures.nth(1).get_attribute("src")}
    chosen.click()
    seen.add(shown_after(page.get_by_role("option", name="2: ").click))
    seen.add(shown_after(page.get_by_test_id("cell-2-1").click))
    assert len(seen) == 3
    assert chosen.input_value().startswith("3: ")
    shown = Image.open(io.BytesIO(page.request.get(pictures.nth(1).get_attribute("src")).body()))
    assert equal(shown, app.attended_by(app.look_at(detector.fold(), shapes, INPUT), 2))  # the page folds it

    page.set_viewport_size({"width": 420, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.screenshot(path=tmp_path / "narrow.png", full_page=True)

    (tmp_path / "text.png").write_text("this is no image")
    field.set_input_files(tmp_path / "text.png")
    page.get_by_text("text.png is not an image that can be read").wait_for()
    assert pictures.count() == 0
    assert "Traceback" not in page.content()
    page.screenshot(path=tmp_path / "wrong.png", full_page=True)
    assert told.count() == 1

    assert errors == []
    assert hosts == {"127.0.0.1"}
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert "Traceback" not in process.stderr.read()
