"""What the pages name is there: files, links, fields of the configuration, commands and their flags."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from r1track import cli
from r1track.core import config

ROOT = config.ROOT
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FIELDS = {path for path, _ in config.fields()}
BASES = (ROOT, ROOT / "r1track", ROOT / "docs")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", text):
        file = (page.parent / target) if target else page
        assert file.is_file(), f"{name(page)}: {target}"
        heads = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = re.sub(r"<[^>]*>", "", page.read_text(encoding="utf-8"))
    named = set(
        re.findall(r"(?:`|python )((?:r1track|tests|bench|tools|presets|docs|workflow|profiles)/[\w./-]+)", text)
    )
    named |= set(re.findall(r"`(\w+\.(?:py|md|smk))`", text))
    for file in named - {"summary.md", "compare.md"}:  # which the report writes
        assert any((base / file).exists() for base in BASES), f"{name(page)}: {file}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_fields_that_are_named_exist(page: Path) -> None:
    sections = {field.partition(".")[0] for field in FIELDS if "." in field}
    told = re.findall(r"`([a-z]+(?:\.[a-z_]+)+)(?:: [^`]*| [^`]*)?`", page.read_text(encoding="utf-8"))
    modules = {"score.paired_difference", "report.compare", "config.yaml", "merge.json", "verdict.json"}
    for field in {field for field in told if field.partition(".")[0] in sections} - modules:
        assert any(known == field or known.startswith(f"{field}.") for known in FIELDS), f"{name(page)}: {field}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_flags_that_are_shown_exist(page: Path) -> None:
    commands = get_command(cli.app).commands  # type: ignore[attr-defined]
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for stage, rest in re.findall(r"(?:^ {4}|`|^)r1track ([a-z][\w-]*)([^`\n]*)", text, re.MULTILINE):
        assert stage in commands, f"{name(page)}: r1track {stage}"
        flags = {option for parameter in commands[stage].params for option in parameter.opts} | {"--help"}
        assert set(re.findall(r"--[a-z]+[\w-]*", rest.partition("#")[0])) <= flags, f"{name(page)}: {stage}{rest}"
