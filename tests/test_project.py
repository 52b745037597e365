"""The project's own files agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import geres

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def declared():
    project = PROJECT["project"]
    extras = [one for extra in project["optional-dependencies"].values() for one in extra]
    return [
        Requirement(one) for one in (*project["dependencies"], *extras, *PROJECT["dependency-groups"]["dev"])
    ]


def pinned():
    lines = (ROOT / "requirements-dev.txt").read_text().replace("\\\n", " ").splitlines()
    return {
        canonicalize_name(line.split("==")[0].partition("[")[0]): Requirement(line.split(" --hash")[0])
        for line in lines
    }


@pytest.mark.parametrize("wanted", declared(), ids=str)
def test_what_pyproject_asks_for_is_pinned_in_a_version_that_it_allows(wanted):
    found = pinned()[canonicalize_name(wanted.name)]

    [pin] = found.specifier
    assert pin.operator == "=="
    assert pin.version in wanted.specifier


def test_every_pin_has_a_hash_and_no_line_names_a_registry():
    text = (ROOT / "requirements-dev.txt").read_text().replace("\\\n", " ")

    assert all(" --hash=sha256:" in line for line in text.splitlines())
    assert "://" not in text
    assert not re.search(r"^-", text, re.MULTILINE)


def test_the_package_and_its_description_have_one_version():
    assert geres.__version__ == PROJECT["project"]["version"]


def test_the_changelog_begins_with_what_is_not_released():
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert headings[0] == "Unreleased"
