"""A small run, each stage made twice without a disturbance: what trials are compared with."""

from pathlib import Path
from typing import NamedTuple

import pytest
from trials import STAGES, content, make_config, trial, words


class Undisturbed(NamedTuple):
    """A run; the operations on files of each stage, and its result's hashes, None where two runs differ (times)."""

    run: Path
    operations: dict[str, int]
    contents: dict[str, dict[str, str | None]]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    run, again = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("again")
    make_config(run)
    operations: dict[str, int] = {}
    contents: dict[str, dict[str, str | None]] = {}
    for stage in STAGES:
        for folder in (run, again):
            code, operations[stage], output = trial(words(stage, run, folder), folder)
            assert code == 0, f"{stage}: {output}"
        first, second = content(run / stage), content(again / stage)
        assert first.keys() == second.keys()
        contents[stage] = {name: digest if digest == second[name] else None for name, digest in first.items()}
    return Undisturbed(run, operations, contents)
