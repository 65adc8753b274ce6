"""What another hand or another stage wrote is never replaced: nothing is touched, and the error says why."""

import os
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


def state(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Everything below a folder, hidden or not: what a change of a file, or a file put in its place, would change."""
    stats = {path: path.lstat() for path in folder.rglob("*")}
    return {
        path: (s.st_mode, s.st_ino, *(() if path.is_dir() else (s.st_size, s.st_mtime_ns, s.st_ctime_ns)))
        for path, s in stats.items()
    }


SUFFIXES = ("mp4", "jpg", "zip", "json")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a split, a run's results, the user's own files, links and folders, and a working folder."""
    folder = tmp_path_factory.mktemp("place")
    toy_split(folder / "val", sequences=2, length=6)
    make_run(folder / "run", folder / "val")
    (folder / "notes" / "deep").mkdir(parents=True)
    (folder / "notes" / "mine.txt").write_text("mine")
    for name in ("file.txt", "table.csv", *(f"mine.{kind}" for kind in SUFFIXES)):
        (folder / name).write_text("mine")
    (folder / "link").symlink_to(folder / "notes")
    (folder / "pairs-easyr1").mkdir()
    (folder / "pairs-easyr1" / "mine.txt").write_text("mine")
    (folder / "work" / "here").mkdir(parents=True)
    for kind in SUFFIXES:
        (folder / f"link.{kind}").symlink_to(folder / f"mine.{kind}")
        (folder / f"dangling.{kind}").symlink_to(folder / "gone")
        (folder / f"itself.{kind}").symlink_to(folder / f"itself.{kind}")
        os.mkfifo(folder / f"pipe.{kind}")
        (folder / f"empty.{kind}").mkdir()
        (folder / f"full.{kind}" / "deep").mkdir(parents=True)
        (folder / f"full.{kind}" / "mine.txt").write_text("mine")
        (folder / f"alone.{kind}.provenance.json").write_text('{"stage": "another"}')
        files.write_json(folder / f"other.{kind}.provenance.json", {"stage": "another"})
        (folder / f"other.{kind}").write_text("another's")
    return folder


FOLDERS = (
    dict.fromkeys(
        ("val", "run", "run/pairs", "run/adapters/grpo", "run/models/grpo", "run/tracks", "run/vqa/grpo", "notes"),
        "did not write",
    )
    | {"file.txt": "is a file", "link": "is a link", "file.txt/deep/new": "lies below a file"}
    | dict.fromkeys((".", "..", "../.."), "holds the working folder")
)
MODEL = ("--model", "tiny")
WRITES_A_FOLDER = {
    "toy": ("toy", "--config", "{run}/config/toy.json"),
    "sample": ("sample", "--config", "{run}/config/sample.json", "--root", "{val}"),
    "train": ("train", "--config", "{run}/config/train.json", "--arm", "grpo", *MODEL, "--pairs", "{run}/pairs",
              "--scratch", "{new}"),
    "merge": ("merge", "--config", "{run}/config/merge.json", *MODEL, "--adapter", "{run}/adapters/grpo"),
    "track": ("track", "--config", "{run}/config/track.json", "--model", "peer:static", "--root", "{val}"),
    "vqa": ("vqa", "--config", "{run}/config/vqa.json", *MODEL),
    "report": ("report", "--results", "{run}"),
    "report --compare": ("report", "--compare", "{run}", "{run}"),
}  # fmt: skip
OWN = {("sample", "run/pairs"), ("train", "run/adapters/grpo"), ("merge", "run/models/grpo"), ("vqa", "run/vqa/grpo")}


@pytest.mark.parametrize("where", FOLDERS)
@pytest.mark.parametrize("command", WRITES_A_FOLDER)
def test_what_the_stage_did_not_write_is_not_replaced(
    command: str, where: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (command, where) in OWN:
        pytest.skip("the stage's own")
    monkeypatch.chdir(place / "work" / "here")
    (place / "run" / "pairs" / "train").mkdir(exist_ok=True)
    (place / "run" / "pairs" / "train" / "0.parquet").touch()
    before = state(place)
    out = Path(where) if where.startswith(".") else place / where
    names = {"run": place / "run", "val": place / "val", "new": tmp_path / "scratch"}
    code, output = run(*(word.format(**names) for word in WRITES_A_FOLDER[command]), "--out", out)
    assert (code, FOLDERS[where] in output) == (2, True), output
    assert state(place) == before


FILES = {
    "a file of the user": "mine.{kind}",
    "a link to a file": "link.{kind}",
    "a link to nothing": "dangling.{kind}",
    "a link to itself": "itself.{kind}",
    "a pipe": "pipe.{kind}",
    "an empty folder": "empty.{kind}",
    "a folder": "full.{kind}",
    "a result of another stage": "other.{kind}",
    "a provenance of another stage": "alone.{kind}",
    "below a file": "file.txt/new.{kind}",
    "far below a file": "file.txt/deep/new.{kind}",
    "an input": "{input}",
    "a result of another stage in the run": "run/config/score.json",
}
VIDEO = ("video", "{val}/Toy_Val_000001", "--model", "peer:static", "--box", "8,8,20,20")
# The suffix of the file, an input, and the words of the command.
WRITES_A_FILE = {
    "video --out": ("mp4", "mine.mp4", (*VIDEO, "--out", "{out}")),
    "video --preview": ("jpg", "val/Toy_Val_000001/00000001.jpg",
                        (*VIDEO, "--out", "{new}/new.mp4", "--preview", "{out}")),
    "submit": ("zip", "run/tracks/base/toy-val/Toy_Val_000001/Toy_Val_000001_001.txt",
               ("submit", "--tracks", "{run}/tracks/base/toy-val", "--out", "{out}")),
    "score": ("json", "val/list.txt",
              ("score", "--tracks", "{run}/tracks/base/toy-val", "--root", "{val}", "--out", "{out}")),
    "verdict": ("json", "run/vqa/base/easy-vqa.jsonl",
                ("verdict", "--config", "{run}/config/verdict.json", "--base", "{run}/vqa/base", "--tuned",
                 "{run}/vqa/grpo", "--out", "{out}")),
}  # fmt: skip


@pytest.mark.parametrize("where", FILES)
@pytest.mark.parametrize("command", WRITES_A_FILE)
def test_a_file_that_the_command_did_not_write_is_not_replaced(
    command: str, where: str, place: Path, tmp_path: Path
) -> None:
    kind, given, words = WRITES_A_FILE[command]
    if kind in ("mp4", "jpg") and where == "a provenance of another stage":
        pytest.skip("video writes no provenance")
    before = state(place)
    out = place / FILES[where].format(kind=kind, input=given)
    names = {"run": place / "run", "val": place / "val", "new": tmp_path, "out": out}
    code, output = run(*(word.format(**names) for word in words))
    reason = "not an .mp4" if command == "video --out" and out.suffix != ".mp4" else "this command did not write it"
    assert (code, reason in output) == (2, True), output
    assert state(place) == before
    assert list(tmp_path.iterdir()) == []


def test_the_table_of_a_video_the_frames_folder_and_an_export_are_guarded_too(place: Path, tmp_path: Path) -> None:
    before, clip = state(place), place / "val" / "Toy_Val_000001"
    for words in (
        ("video", clip, *VIDEO[2:], "--out", place / "table.mp4"),
        ("video", clip, *VIDEO[2:], "--out", clip / "new.mp4"),
        ("video", clip, *VIDEO[2:], "--out", tmp_path / "new.mp4", "--preview", clip / "new.jpg"),
        ("video", clip, *VIDEO[2:], "--out", tmp_path / "new.mp4", "--preview", tmp_path / "new.mp4"),
        ("video", clip, *VIDEO[2:], "--out", tmp_path / "new.mp4", "--preview", tmp_path / "new.csv"),
        ("sample", "--config", place / "run/config/sample.json", "--root", place / "val", "--out", place / "pairs",
         "--export", "easyr1"),
        ("--log", place / "file.txt", "gate", "--verdict", place / "run/vqa/verdict.json", "--on-regression", "warn"),
    ):  # fmt: skip
        code, output = run(*words)
        assert code == 2, output
        assert state(place) == before
        assert list(tmp_path.iterdir()) == []


def test_a_command_replaces_its_own_file(place: Path, tmp_path: Path) -> None:
    for name in ("score", "verdict"):
        words = [
            word.format(run=place / "run", val=place / "val", out=tmp_path / name) for word in WRITES_A_FILE[name][2]
        ]
        assert [run(*words)[0] for _ in range(2)] == [0, 0]


def test_a_stage_replaces_its_own_result_and_an_empty_folder(place: Path, tmp_path: Path) -> None:
    words = ("track", "--config", place / "run/config/track.json", "--model", "peer:static", "--root", place / "val")
    (tmp_path / "tracks").mkdir()
    for _ in range(2):
        assert run(*words, "--out", tmp_path / "tracks")[0] == 0
    assert (tmp_path / "tracks" / "provenance.json").is_file()


def test_the_tables_have_every_command_that_writes() -> None:
    """A new command with an option that names what it writes must join them."""
    writing = {command for command in app.registered_commands if {"out"} & command.callback.__annotations__.keys()}
    names = {command.name or command.callback.__name__ for command in writing}
    assert names == {words[0] for words in WRITES_A_FOLDER.values()} | {
        words[0] for _, _, words in WRITES_A_FILE.values()
    }


def test_the_check_is_made_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out: holds files that `train` did not write.*give another --out"):
        folders.check_replaceable(tmp_path / "out", "train")
    with pytest.raises(ValueError, match="is not empty"), folders.atomic_folder(tmp_path / "out"):
        pytest.fail("the work began")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
