"""`--out` never replaces what another hand or another stage wrote: nothing is touched, and the error says why."""

from pathlib import Path

import pytest
from runs import make_run
from toys import toy_split
from typer.testing import CliRunner

from r1track.cli import app
from r1track.core import files, folders


def run(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a split, a run's results, a file, a link, the user's own folder, and a working folder."""
    folder = tmp_path_factory.mktemp("place")
    toy_split(folder / "val", sequences=2, length=6)
    make_run(folder / "run", folder / "val")
    (folder / "notes" / "deep").mkdir(parents=True)
    (folder / "notes" / "mine.txt").write_text("mine")
    (folder / "file.txt").write_text("mine")
    (folder / "link").symlink_to(folder / "notes")
    (folder / "work" / "here").mkdir(parents=True)
    return folder


FORBIDDEN = (
    dict.fromkeys(
        ("val", "run", "run/pairs", "run/adapters/grpo", "run/models/grpo", "run/tracks", "notes"), "did not write"
    )
    | {"file.txt": "is a file", "link": "is a link"}
    | dict.fromkeys((".", "..", "../.."), "holds the working folder")
)
COMMANDS = {
    "sample": ("sample", "--config", "{run}/config/sample.json", "--root", "{val}"),
    "track": ("track", "--config", "{run}/config/track.json", "--model", "peer:static", "--root", "{val}"),
    "report": ("report", "--results", "{run}"),
    "train": ("train", "--config", "{run}/config/train.json", "--arm", "grpo", "--model", "tiny", "--pairs",
              "{run}/pairs", "--scratch", "{scratch}"),
    "merge": ("merge", "--config", "{run}/config/merge.json", "--model", "tiny", "--adapter", "{run}/adapters/grpo"),
}  # fmt: skip
OWN = {"sample": "run/pairs", "train": "run/adapters/grpo", "merge": "run/models/grpo"}


@pytest.mark.parametrize("where", FORBIDDEN)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_the_stage_did_not_write_is_not_replaced(
    command: str, where: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if OWN.get(command) == where:
        pytest.skip("the stage's own")
    monkeypatch.chdir(place / "work" / "here")
    before = files.hash_path(place)
    out = Path(where) if where.startswith(".") else place / where
    names = {"run": place / "run", "val": place / "val", "scratch": tmp_path / "scratch"}
    code, output = run(*(word.format(**names) for word in COMMANDS[command]), "--out", out)
    assert code == 2
    assert FORBIDDEN[where] in output
    assert files.hash_path(place) == before
    assert not [path for path in place.rglob(".*") if path.name.endswith((".part", ".partial", ".lock", ".old"))]


def test_a_stage_replaces_its_own_result_and_an_empty_folder(place: Path, tmp_path: Path) -> None:
    words = ("track", "--config", place / "run/config/track.json", "--model", "peer:static", "--root", place / "val")
    (tmp_path / "tracks").mkdir()
    for _ in range(2):
        assert run(*words, "--out", tmp_path / "tracks")[0] == 0
    assert (tmp_path / "tracks" / "provenance.json").is_file()


def test_the_check_is_made_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out: holds files that `train` did not write.*give another --out"):
        folders.check_replaceable(tmp_path / "out", "train")
    with pytest.raises(ValueError, match="is not empty"), folders.atomic_folder(tmp_path / "out"):
        pytest.fail("the work began")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
