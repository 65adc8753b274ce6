"""The sources of a stage: which modules it depends on, and which jobs a changed line of one of them reruns."""

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from dry_runs import ROOT, finish, planned

from r1track import plan
from r1track.core import config


def test_every_stage_takes_its_own_configuration_and_source_files_as_inputs() -> None:
    text = "\n".join(file.read_text() for file in (ROOT / "workflow" / "rules").glob("*.smk"))
    rules = dict(re.findall(r"^rule (\w+):\n(.*?)(?=^rule |\Z)", text, re.MULTILINE | re.DOTALL))
    assert set(rules) == {"settings", "gate", "submit", "part", "link", "compare", *config.NEEDS}
    assert 'sources=plan.sources("submit")' in rules["submit"]
    for stage in config.NEEDS:
        assert f'sources=plan.sources("{stage}")' in rules[stage]
        file = "{configuration.stage_file('train', w.arm)}" if stage == "train" else stage
        assert f"/config/{file}.json" in rules[stage]


def test_a_stage_has_the_sources_that_it_imports_and_no_others() -> None:
    assert "r1track/core/prompts.py" in relative(plan.sources("track"))
    assert "r1track/core/prompts.py" not in relative(plan.sources("score"))


def relative(files: list[str]) -> set[str]:
    return {Path(file).resolve().relative_to(ROOT).as_posix() for file in files}


@pytest.mark.parametrize("stage", config.NEEDS)
def test_sources_of_a_stage_are_its_modules_without_configuration_and_command_line(stage: str) -> None:
    found = relative(plan.sources(stage))
    assert {path.split("/")[-1] for path in found} >= {f"{stage}.py"}
    assert not found & {"r1track/core/config.py", "r1track/core/files.py", "r1track/cli.py", "r1track/plan.py"}


def test_imports_inside_functions_count_as_sources(tmp_path: Path) -> None:
    file = tmp_path / "stage.py"
    file.write_text("import os\nfrom r1track.core.boxes import iou\ndef f():\n    from r1track.core import crops\n")
    assert plan._imports(file) >= {"r1track.core.boxes", "r1track.core.crops"}
    assert "os" not in plan._imports(file)


@pytest.fixture(scope="module")
def cloned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of the repository whose modules may be changed, and a folder in which its demo is done."""
    root = tmp_path_factory.mktemp("clone")
    for name in ("r1track", "workflow"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(ROOT / name, root)
    return root, finish(tmp_path_factory.mktemp("done"), root)


def after_a_changed_line(module: str, cloned: tuple[Path, Path]) -> Counter[str]:
    """The jobs that are planned after a line was added to a module."""
    root, folder = cloned
    file = root / "r1track" / module
    text = file.read_text()
    file.write_text(f"{text}\nCHANGED = True\n")
    try:
        return planned(folder, {}, root=root)
    finally:
        file.write_text(text)


@pytest.mark.parametrize("module", ["training/progress.py", "data/export.py", "tracking/endpoint.py"])
def test_display_export_and_endpoint_code_reruns_nothing(module: str, cloned: tuple[Path, Path]) -> None:
    assert after_a_changed_line(module, cloned) == Counter()


def test_code_that_results_depend_on_reruns_them(cloned: tuple[Path, Path]) -> None:
    found = after_a_changed_line("core/prompts.py", cloned)
    assert {"train", "merge", "track", "vqa"} <= found.keys()
    assert "toy" not in found
