"""Versions are written once, or compared here: of Python, of the dependencies, and of the package."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import tfdetr_keras

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
WRITTEN = [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]
REQUIREMENTS = {
    canonicalize_name(requirement.name): requirement
    for requirement in map(Requirement, WRITTEN)
    if requirement.name != PROJECT["name"]
}
# What the metrics are computed by: another minor version comes in after the tests have compared it with pycocotools.
COMPUTING = ("hotcoco",)


def pins_of(name: str) -> dict[str, Requirement]:
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    by_name = {canonicalize_name(pin.name): pin for pin in pins}
    assert len(by_name) == len(pins), f"{name} has a package twice"
    return by_name


def test_each_requirement_has_a_lower_bound_alone():
    for name, requirement in REQUIREMENTS.items():
        operators = sorted(specifier.operator for specifier in requirement.specifier)
        assert operators == (["<", ">="] if name in COMPUTING else [">="]), name


def test_the_floors_are_the_lower_bounds():
    floors = {name: (pin.extras, str(pin.specifier)) for name, pin in pins_of("floors.txt").items()}
    assert floors == {
        name: (requirement.extras, f"=={lower.version}")
        for name, requirement in REQUIREMENTS.items()
        for lower in requirement.specifier
        if lower.operator == ">="
    }


def test_every_requirement_is_pinned_where_it_is_allowed():
    pins = pins_of("constraints.txt")
    for name, requirement in REQUIREMENTS.items():
        (pin,) = pins[name].specifier
        assert requirement.specifier.contains(pin.version), f"{name} {pin}"


def test_python():
    """What pip lets in, what an index page shows and what `make` accepts."""
    allowed = SpecifierSet(PROJECT["requires-python"])
    versions = [f"3.{minor}" for minor in range(30) if allowed.contains(f"3.{minor}.1")]
    shown = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in PROJECT["classifiers"]]
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert [match[1] for match in shown if match] == versions
    assert re.search(r"^SUPPORTED := (.+)$", makefile, re.MULTILINE)[1].split() == versions


def test_the_metadata_takes_the_version_from_the_package(metadata):
    assert metadata.version.public == tfdetr_keras.__version__


@pytest.mark.parametrize("extra", EXTRAS)
def test_extras_reach_an_index_page(metadata, extra):
    assert extra in metadata.provides_extra
