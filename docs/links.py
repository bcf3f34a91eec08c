"""A hook of the site's: pages from outside of `docs/` belong to it, too, and links are as they are in the repository.

So README and results are written once, and every link leads somewhere: on the site, where people read the files, and,
as README's links have the repository's address, on the index page of a package.
"""

import posixpath
import re
from pathlib import Path
from urllib.parse import urlsplit

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

REPOSITORY = Path(__file__).parents[1]
# Where a reader of the repository finds a file: pages under the first address, pictures under the second.
ADDRESSES = (
    "https://github.com/tfdetr-keras/tfdetr-keras/blob/main/",
    "https://raw.githubusercontent.com/tfdetr-keras/tfdetr-keras/main/",
)
# File of the repository → page of the site.
OUTSIDE = {
    "README.md": "index.md",
    "benchmarks/RESULTS.md": "results.md",
    "tfdetr_keras/checkpoints/detr-tiny/README.md": "detr-tiny.md",
    "tfdetr_keras/checkpoints/rt-detr-tiny/README.md": "rt-detr-tiny.md",
    "tfdetr_keras/checkpoints/rf-detr-tiny/README.md": "rf-detr-tiny.md",
    "tfdetr_keras/checkpoints/d-fine-tiny/README.md": "d-fine-tiny.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
# What pages link to that is no page.
ASSETS = (
    "LICENSE",
    "tfdetr_keras/checkpoints/detr-tiny/metrics.csv",
    "tfdetr_keras/checkpoints/rt-detr-tiny/metrics.csv",
    "tfdetr_keras/checkpoints/rf-detr-tiny/metrics.csv",
    "tfdetr_keras/checkpoints/d-fine-tiny/metrics.csv",
)
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def on_files(files, config):
    """Adds the pages from outside."""
    for path in (*OUTSIDE, *ASSETS):
        files.append(File.generated(config, _page_of(path), abs_src_path=str(REPOSITORY / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links between files of the repository into links between pages of the site."""
    here = next((path for path, name in OUTSIDE.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")

    def resolve(match):
        target = file_of(match[2], here)
        if target is None:
            return match[0]
        if match[2].startswith(ADDRESSES):
            if not (REPOSITORY / target).exists():
                raise PluginError(f"{here} links to {match[2]}, and there is no {target} in the repository")
            if files.get_file_from_path(_page_of(target)) is None:
                return match[0]  # a file that is not on the site
        fragment = urlsplit(match[2]).fragment
        link = posixpath.relpath(_page_of(target), posixpath.dirname(page.file.src_uri) or ".")
        return f"{match[1]}{link}{'#' + fragment if fragment else ''}{match[3]}"

    return _LINK.sub(resolve, markdown)


def on_page_content(html, page, config, files):
    """The same for notebooks, which come as HTML."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html

    def resolve(match):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), match[1]))
        return f'href="{files.get_file_from_path(target).url_relative_to(page.file)}{match[2] or ""}"'

    return re.sub(r'href="([^"#:]+\.md)(#[^"]*)?"', resolve, html)


def file_of(link, here):
    """The file of the repository that a link names, by its address or from the file `here`; None for other links."""
    for address in ADDRESSES:
        if link.startswith(address):
            return urlsplit(link.removeprefix(address)).path
    parts = urlsplit(link)
    if parts.scheme or not parts.path:
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), parts.path))


def _page_of(path):
    """The place on the site of a file of the repository."""
    return OUTSIDE.get(path, path.removeprefix("docs/"))
