"""The documentation's site is built without a warning, names all of the public face, and its pictures are as drawn."""

import re
import runpy
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from code_blocks import DOCS, REPOSITORY
from mkdocs.exceptions import PluginError
from PIL import Image

import tfdetr_keras as td

LINKS = SimpleNamespace(**runpy.run_path(str(DOCS / "links.py")))
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
PACKAGES = (td.data, td.export, td.training, td.visualize)


def test_it_is_built_without_a_warning(site):
    folder, said = site
    assert "WARNING" not in said
    assert "ERROR" not in said
    assert (folder / "index.html").is_file()


def test_every_page_of_the_repository_is_in_it(site):
    folder, _ = site
    for page in DOCS.rglob("*.md"):
        place = page.relative_to(DOCS).with_suffix("")
        place = place.parent if place.name == "index" else place
        assert (folder / place / "index.html").is_file(), page


def test_links_to_the_repository_became_links_of_the_site(site):
    folder, _ = site
    for page in folder.rglob("*.html"):
        text = re.sub(r"<(code|pre)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r'href="([^"#:]+\.md)[#"]', text):
            raise AssertionError(f"{page.relative_to(folder)} links to {link}")


def test_readmes_links_and_pictures_name_files_and_lead_to_pages(site):
    """An index page shows README beside no file of the repository, so that none of its links may be relative."""
    folder, _ = site
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", readme, flags=re.DOTALL))
    assert len(links) > 20
    assert all(link.startswith("https://") for link in links)
    files = [link.removeprefix(address) for link in links for address in LINKS.ADDRESSES if link.startswith(address)]
    assert len(files) >= len(links) - 3  # the repository itself, PyTorch's builds, the paper
    for file in files:
        assert (REPOSITORY / file.split("#")[0]).is_file(), file
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", readme)
    assert pictures
    assert all(picture.startswith(LINKS.ADDRESSES[1]) for picture in pictures)
    home = (folder / "index.html").read_text(encoding="utf-8")
    assert not any(address in home for address in LINKS.ADDRESSES)
    assert config_of_site()["repo_url"] + "/blob/main/" == LINKS.ADDRESSES[0]


def config_of_site():
    """The plain part of mkdocs.yml."""
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    return dict(re.findall(r"^(\w+): (\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize("address", LINKS.ADDRESSES)
def test_a_link_by_address_to_a_file_that_is_not_there_ends_the_build(address):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    with pytest.raises(PluginError, match=r"README.md links to .*there is no docs/nowhere.md"):
        LINKS.on_page_markdown(f"[words]({address}docs/nowhere.md)", page, {}, None)


def test_links_are_words():
    """Not the names of files, which say nothing to a reader of the site."""
    pages = [*DOCS.rglob("*.md"), *(REPOSITORY / path for path in LINKS.OUTSIDE)]
    for page in pages:
        for words in re.findall(r"\[([^\]]+)\]\([^)]+\)", page.read_text(encoding="utf-8")):
            assert not re.search(r"\.(md|ipynb)\b", words), f"{page.relative_to(REPOSITORY)}: [{words}]"


def test_formulas_are_mathml(site):
    folder, _ = site
    for page, formulas in (("matcher", 3), ("evaluate", 1), ("fine-tuning", 1)):
        html = (folder / page / "index.html").read_text(encoding="utf-8")
        assert html.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') == formulas
    for page in folder.rglob("index.html"):
        text = re.sub(r"<(code|pre|script|style)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert 'class="arithmatex">\\' not in text, page
        assert "$$" not in text, page
        for formula in re.findall(r"<math\b.*?</math>", text, re.DOTALL):
            assert "\\" not in formula, f"{page}: {formula}"  # a command that was not understood


@pytest.mark.parametrize("package", [td, *PACKAGES], ids=lambda package: package.__name__)
def test_the_public_face_is_in_the_reference(site, package):
    folder, _ = site
    reference = "".join(page.read_text(encoding="utf-8") for page in (folder / "api").rglob("index.html"))
    pages_of_their_own = {name.__name__.rsplit(".", 1)[-1] for name in PACKAGES}
    pages_of_their_own |= {"evaluation", "inference", "losses", "tables"}
    described = {path.rsplit(".", 1)[-1] for path in re.findall(r'<h2 id="(tfdetr_keras[\w.]+)"', reference)}
    assert set(package.__all__) - pages_of_their_own <= described


def test_no_notebook_tells_of_the_machine_that_ran_it():
    assert len(NOTEBOOKS) == 2
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            outputs = cell.get("outputs", [])
            assert cell.cell_type != "code" or cell.execution_count, "docs/notebooks/execute.py was not run"
            assert not re.search(r"/(home|root|tmp|work|Users)/", str([o.get("text") for o in outputs])), path


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "notebooks")
    from execute import execute

    before = nbformat.read(path, as_version=4)
    after = execute(path, str(tmp_path))
    for old, new in zip(before.cells, after.cells, strict=True):
        assert [o.output_type for o in new.get("outputs", [])] == [o.output_type for o in old.get("outputs", [])]


def assert_as_kept(drawn):
    again, kept = (
        np.asarray(Image.open(path).convert("RGB"), np.float32) for path in (drawn, DOCS / "images" / drawn.name)
    )
    assert again.shape == kept.shape
    assert np.abs(again - kept).mean() < 2  # levels of 255: fonts and rounding


@pytest.mark.slow
def test_the_matchers_figure_is_what_its_script_draws(tmp_path):
    subprocess.run([sys.executable, DOCS / "figures" / "matching.py", tmp_path / "matching.png"], check=True)
    assert_as_kept(tmp_path / "matching.png")


@pytest.mark.slow
def test_the_figures_of_the_augmentation_are_what_their_script_draws(tmp_path):
    subprocess.run([sys.executable, DOCS / "figures" / "augmentation.py", tmp_path], check=True)
    assert_as_kept(tmp_path / "augmentation.jpg")
    assert_as_kept(tmp_path / "multiscale.jpg")
