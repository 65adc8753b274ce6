"""A stage that is killed at any moment: the same command goes on to the same bytes, and nothing is left behind.

`KILLS=100` sets the number of kills over all stages (`make torture`); by default each stage is killed twice.
"""

import os
from pathlib import Path

import pytest
from conftest import Undisturbed
from trials import STAGES, content, hidden, trial, words

KILLS = int(os.environ.get("KILLS", 2 * len(STAGES)))


def moments(operations: int, count: int) -> list[int]:
    """Evenly spread moments, the last operation among them: work is most easily lost where names change, at the end."""
    return sorted({max(1, round(operations * (k + 1) / count)) for k in range(count)})


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_goes_on_to_the_same_bytes_without_a_hand(stage, undisturbed: Undisturbed, tmp_path: Path):
    for moment in moments(undisturbed.operations[stage], max(1, KILLS // len(STAGES))):
        folder = tmp_path / str(moment)
        folder.mkdir()
        command = words(stage, undisturbed.run, folder)
        code, _, output = trial(command, folder, kill_at=moment)
        assert code == -9, output
        code, _, output = trial(command, folder)
        assert code == 0, f"killed at {moment}: {output}"
        result, expected = content(folder / stage), undisturbed.contents[stage]
        assert result.keys() == expected.keys(), f"killed at {moment}"
        assert {name for name, digest in expected.items() if digest not in (None, result[name])} == set()
        assert hidden(folder) == [], f"killed at {moment}"
