"""Pins: the versions of environment.yml and pyproject.toml accept one another, by the packages' own metadata."""

import json
from importlib.metadata import distributions, requires
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from pins import DATA, PYTHON, ROOT, faults, pins, without_extras

PINS = pins()
INSTALLED = {canonicalize_name(each.name): each.version for each in distributions()}
KNOWN: dict[str, dict[str, Any]] = json.loads(DATA.read_text())


def test_the_metadata_kept_here_are_those_of_the_pinned_versions() -> None:
    assert {name: each["version"] for name, each in KNOWN.items()} == PINS, "run `python tests/pins.py`"


@pytest.mark.parametrize("name", PINS)
def test_every_requirement_of_a_pinned_package_on_another_is_met(name: str) -> None:
    assert not faults(PINS, name, KNOWN[name]["requires"])


@pytest.mark.parametrize("name", PINS)
def test_every_pinned_package_runs_on_the_environments_python(name: str) -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert f"python={PYTHON}" in environment
    assert SpecifierSet(KNOWN[name]["python"]).contains(f"{PYTHON}.0")


@pytest.mark.parametrize("name", [name for name, pin in PINS.items() if INSTALLED.get(name) == pin])
def test_the_metadata_kept_here_are_those_of_the_installed_package(name: str) -> None:
    assert without_extras(requires(name) or []) == KNOWN[name]["requires"], "run `python tests/pins.py`"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"transformers": "5.18.0"}, "unsloth 2026.10.9 requires transformers"),
        ({"torch": "2.12.1"}, "torchvision 0.28.0 requires torch==2.13.0, but 2.12.1 is pinned"),
        ({"triton": "3.6.0"}, "torch 2.13.0 requires triton==3.7.1"),
        ({"datasets": "4.4.1"}, "unsloth-zoo 2026.10.9 requires datasets"),
    ],
)
def test_a_wrong_pin_is_found(changed: dict[str, str], message: str) -> None:
    found = [fault for name in PINS for fault in faults({**PINS, **changed}, name, KNOWN[name]["requires"])]
    assert any(fault.startswith(message) for fault in found), found
