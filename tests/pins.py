"""What the pinned packages require of one another: `python tests/pins.py` writes tests/data/requires.json anew.

Most of them cannot be installed on a CPU. pip's dry run resolves each alone, for Python 3.12 on Linux, and reports its
metadata; where an index offers metadata apart from the wheels, nothing large is downloaded.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(__file__).parent / "data" / "requires.json"
PYTHON = "3.12"  # of environment.yml
GLIBC = ("2_28", "2_27", "2_24", "2_17")
CARD: dict[str, Any] = {
    **default_environment(), "python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "sys_platform": "linux",
    "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix", "extra": "",
}  # fmt: skip


def pins() -> dict[str, str]:
    """Every package that environment.yml or pyproject.toml pins, with its version; ValueError where it has two."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    lists = (project["dependencies"], *project["optional-dependencies"].values(), environment[-1]["pip"])
    pinned = sorted({tuple(line.split("==")) for lines in lists for line in lines if "==" in line})
    found: dict[str, str] = {canonicalize_name(name): version for name, version in pinned}
    if len(found) < len(pinned):
        raise ValueError(f"a package is pinned to two versions: {pinned}")
    return found


def without_extras(lines: Iterable[str]) -> list[str]:
    """Requirements that hold without any extra, in one spelling, sorted."""
    parsed = [Requirement(line) for line in lines]
    return sorted({str(r) for r in parsed if "extra ==" not in str(r.marker)})


def faults(pinned: dict[str, str], name: str, requires: Iterable[str]) -> list[str]:
    """The requirements of a package that another pin does not meet on a card's machine."""
    found = []
    for requirement in map(Requirement, requires):
        version = pinned.get(canonicalize_name(requirement.name))
        asked = requirement.marker is None or requirement.marker.evaluate(CARD)
        if version and asked and not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{name} {pinned[name]} requires {requirement}, but {version} is pinned")
    return found


def main() -> None:
    platforms = [f"--platform=manylinux_{version}_x86_64" for version in GLIBC]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet",
             "--report", report, "--target", folder, "--only-binary=:all:", "--implementation=cp", *platforms,
             "--python-version", PYTHON, "--abi=cp312", "--abi=abi3", "--abi=none",
             *(f"{name}=={version}" for name, version in pins().items())],
            check=True,
        )  # fmt: skip
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    data = {
        canonicalize_name(each["name"]): {
            "version": each["version"],
            "python": each.get("requires_python", ""),
            "requires": without_extras(each.get("requires_dist", [])),
        }
        for each in found
    }
    DATA.write_text(json.dumps(dict(sorted(data.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
