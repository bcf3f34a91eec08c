"""The code of README and documentation runs as it stands there.

Each page has a folder of its own with small stand-ins for what it speaks of; see `workplace`.
"""

import pytest
from code_blocks import DOCS, READ, REPOSITORY, RUN, blocks_of, run_page
from stand_ins import write_voc

# Pages whose code needs more than a folder with stand-ins have a test of their own.
ELSEWHERE = {
    "deploy.md": "tests/export/test_deploy_page.py",
    "getting-started.md": "tests/docs/test_getting_started.py",
    "scale.md": "tests/docs/test_scale_page.py",
}
README = REPOSITORY / "README.md"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_run_or_there_to_be_read(name):
    for block in blocks_of(DOCS / name):
        assert block.language in RUN + READ, f"docs/{name}, line {block.line}: a block of {block.language!r}"


@pytest.mark.parametrize("test", ELSEWHERE.values())
def test_the_pages_own_tests_exist(test):
    assert (REPOSITORY / test).is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name for name in PAGES if name not in ELSEWHERE and any(b.language in RUN for b in blocks_of(DOCS / name))],
)
def test_the_page_runs_as_written(name, workplace):
    stage = STAGES.get(name)
    run_page(DOCS / name, {"__name__": "page", **(stage(workplace) or {} if stage else {})})


# What a page needs beyond the workplace: each writes into its folder, and may give names that its programs know.
STAGES = {
    "data/voc.md": lambda folder: write_voc(folder / "JPEGImages", folder / "Annotations", 6),
}
