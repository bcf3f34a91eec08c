"""The source archive and the wheel: what they hold, what an index page shows of them, and that tests run from them."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from readme_renderer import markdown

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tracked():
    """The files that git has, by their paths in the repository."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (REPOSITORY / ".git").exists():
        pytest.skip("this is no checkout: git does not say which files there are")
    return {path for path in done.stdout.split("\0") if (REPOSITORY / path).is_file()}


def test_the_source_archive_is_the_repository(sdist, tracked):
    held = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    assert not tracked - held
    made = {path for path in held - tracked if path in {"PKG-INFO", "setup.cfg"} or ".egg-info/" in path}
    assert not {path for path in held - tracked - made if "__pycache__" in path or path.startswith((".venv", "out/"))}


def test_the_wheel_holds_the_packages_and_nothing_else(wheel, tracked):
    packages = {path for path in tracked if path.startswith(("tfdetr_keras/", "port_weights/"))}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packages <= held
    assert all(name.startswith(("tfdetr_keras/", "port_weights/")) for name in held)
    assert {"tfdetr_keras/py.typed", "port_weights/py.typed"} <= held
    names = ("detr-tiny", "rt-detr-tiny", "rf-detr-tiny", "d-fine-tiny")
    assert {f"tfdetr_keras/checkpoints/{name}/model.safetensors" for name in names} <= held


def test_what_an_index_page_shows(metadata):
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.license_files == ["LICENSE"]
    assert metadata.author == "The tfdetr_keras authors"
    assert set(metadata.project_urls) == {"Homepage", "Documentation", "Repository", "Changelog", "Issues"}
    assert "Typing :: Typed" in metadata.classifiers
    assert metadata.summary


class _Targets(HTMLParser):
    """The places that a page's links and pictures lead to."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in {"href", "src"}]


def test_the_long_description_is_rendered_and_its_links_lead_somewhere(metadata):
    """An index shows the README without the repository beside it."""
    assert metadata.description_content_type == "text/markdown"
    page = markdown.render(metadata.description)
    assert page, "an index would show the plain text"
    targets = _Targets()
    targets.feed(page)
    assert targets.found
    # A link within the page stays there.
    relative = [link for link in targets.found if not link.startswith("#") and urlsplit(link).scheme != "https"]
    assert not relative


@pytest.mark.slow
def test_tests_run_from_the_source_archive(sdist):
    names = ["tests/test_boxes.py", "tests/models/test_config.py", "tests/data/test_voc.py", "tests/packaging"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *names]
    environment = {**os.environ, "PYTHONPATH": str(sdist)}
    done = subprocess.run(command, cwd=sdist, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
