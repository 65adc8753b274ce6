"""Claims about `r1track verify`, on a small run: an honest report passes, and a file that was altered is named."""

import os
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from runs import SETTINGS, make_report, make_run, make_tracks
from toys import toy_split
from typer.testing import CliRunner

from r1track import cli
from r1track.core import config, files, models
from r1track.core.provenance import Provenance
from r1track.reporting import verify
from r1track.tracking import score


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with its report, and the folder that holds it and the split."""
    folder = tmp_path_factory.mktemp("whole")
    results = make_run(folder / "results" / "run", toy_split(folder / "toy" / "val", sequences=3))
    make_report(results)
    return results


@pytest.fixture
def results(whole, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(whole, tmp_path / "run")


def faults(results):
    """Every finding that contradicts the report, as (state, file, words)."""
    return [tuple(finding) for finding in findings(results) if finding.state not in ("agrees", "missing")]


def findings(results):
    """All findings in one list."""
    return [finding for rows in verify.examine(results).values() for finding in rows]


def alter(path, old, new):
    text = path.read_text()
    changed = re.sub(old, new, text, count=1)
    assert changed != text
    path.write_text(changed)


ALTERED = {
    "tracks/grpo/toy-val/Toy_Val_000001/Toy_Val_000001_001.txt": (r"\n\d", "\n9"),
    "tracks/grpo/toy-val/Toy_Val_000001/Toy_Val_000001_status.csv": ("ok", "held"),
    "vqa/grpo/easy-vqa.jsonl": ('"filtered_resps": "red"', '"filtered_resps": "green"'),
    "vqa/grpo/manifest.json": (r'"strict": 9\d', '"strict": 99'),
    "scores/grpo/toy-val.json": (r'"sr50": \d\.', '"sr50": 0.1'),
    "vqa/verdict.json": (r'"difference": -\d', '"difference": -1'),
    "report/summary.json": (r'"ao": 0\.', '"ao": 0.9'),
    "report/summary.md": (r"\| 0\.", "| 0.9"),
    "report/index.html": (r'<td class="">0\.', '<td class="">0.9'),
    "models/grpo/merge.json": ("0.984375", "1.0"),
    "adapters/grpo/log.jsonl": ('"iou": 0', '"iou": 1'),
    "adapters/grpo/adapter_model.safetensors": ("weights", "Weights"),
    "pairs/manifest.json": ('"pairs": 8', '"pairs": 9'),
}


def test_an_untouched_run_passes_wherever_it_lies(whole, results):
    assert faults(whole) == faults(results) == []
    assert faults(results.rename(results.with_name("other"))) == []


@pytest.mark.parametrize("name", ["run3", "0", "ru", "report"])
def test_a_copy_of_any_name_agrees_also_when_its_report_is_made_there(whole, tmp_path, name):
    copy = shutil.copytree(whole, tmp_path / "results" / name)
    elsewhere = whole.rename(whole.with_name("moved"))  # or the copy's sources would be found there
    try:
        assert faults(copy) == []
        missing = [finding.file for finding in findings(copy) if finding.state == "missing"]
        make_report(copy)
        assert files.read_json(copy / "report/summary.json")["run"] == name
        assert faults(copy) == []
        assert [finding.file for finding in findings(copy) if finding.state == "missing"] == missing
    finally:
        elsewhere.rename(whole)


@pytest.mark.parametrize("name", ["0", "1", "grpo"])
def test_the_name_of_a_run_hides_nothing(results, name):
    copy = results.rename(results.with_name(name))
    make_report(copy)
    text = (copy / "report/index.html").read_text()
    (copy / "report/index.html").write_text(text.replace(">0.", f">{name}0.", 1))
    forge(copy, "report/index.html")
    assert [fault[:2] for fault in faults(copy)] == [("differs", "report/index.html")]


def test_every_altered_value_is_found_and_its_file_named_and_no_other(results):
    for name, change in ALTERED.items():
        alter(results / name, *change)
    assert {file for state, file, _ in faults(results) if state == "altered"} == ALTERED.keys()


def forge(results, name):
    """Write the hashes of a result anew, as a forger would who knows of them."""
    path = results / name
    beside = path.with_name(f"{path.name}.provenance.json")
    place = (
        beside
        if beside.is_file()
        else next(p / "provenance.json" for p in path.parents if (p / "provenance.json").is_file())
    )
    hashes = {n: files.hash_file(place.parent / n) for n in files.read_json(place)["outputs"]}
    files.write_json(place, {**files.read_json(place), "outputs": hashes})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tracks/grpo/toy-val/Toy_Val_000001/Toy_Val_000001_001.txt", ("scores/grpo/toy-val.json", "ao: recorded 0.")),
        ("vqa/grpo/easy-vqa.jsonl", ("vqa/grpo/easy-vqa.jsonl", "line: 3: strict: recorded 1.0, now 0.0")),
        ("vqa/grpo/manifest.json", ("vqa/grpo/manifest.json", "strict: recorded 99.3")),
        ("scores/grpo/toy-val.json", ("scores/grpo/toy-val.json", "sr50: recorded 0.1")),
        ("vqa/verdict.json", ("vqa/verdict.json", "models: grpo: difference: recorded -1.66")),
        ("report/summary.json", ("report/summary.json", "base: ao: recorded 0.9")),
        ("report/summary.md", ("report/summary.md", "| base | 0.9")),
        ("report/index.html", ("report/index.html", '<td class="">0.9')),
        ("models/grpo/merge.json", ("report/summary.json", "merge: agreement: recorded 0.984375, now 1.0")),
    ],
)  # fmt: skip
def test_an_alteration_whose_hashes_were_forged_is_found_by_computing_again(results, name, expected):
    alter(results / name, *ALTERED[name])
    forge(results, name)
    named, (place, part) = faults(results), expected
    assert "altered" not in [fault[0] for fault in named]
    assert [words for state, file, words in named if state != "stale" and file == place and part in words], named


def test_what_the_configuration_does_not_name_is_named(results):
    for name in ("scores/grpo", "tracks/grpo", "adapters/grpo", "models/grpo", "vqa/grpo"):
        shutil.copytree(results / name, results / name.replace("grpo", "sft"))
    shutil.copy(results / "scores/grpo/toy-val.json", results / "scores/grpo/old-val.json")
    files.write_text(results / "submission/sft.zip", "")
    (results / "tracks/grpo/.toy-val.partial").mkdir()  # an unfinished one is no result
    names = {file for state, file, words in faults(results) if "the configuration names no such result" in words}
    assert names == {
        "scores/sft/toy-val.json", "scores/grpo/old-val.json", "tracks/sft/toy-val", "adapters/sft", "models/sft",
        "vqa/sft", "submission/sft.zip",
    }  # fmt: skip


def test_a_file_that_was_added_is_named(results):
    (results / "vqa/grpo/more.jsonl").write_text("")
    assert ("altered", "vqa/grpo/more.jsonl") in [fault[:2] for fault in faults(results)]


def test_touching_files_and_making_the_report_again_is_no_fault(results):
    for path in results.rglob("*"):
        os.utime(path)
    make_report(results)
    assert faults(results) == []


def rescore(results, draws):
    settings = SETTINGS.model_copy(update={"score": SETTINGS.score.model_copy(update={"draws": draws})})
    files.write_json(results / "config/score.json", config.stage_values(settings, "score"))
    for place in (results / "scores").rglob("*.provenance.json"):
        inputs = files.read_json(place)["inputs"]
        tracks, listing = (Path(inputs[name]["path"]) for name in ("tracks", "list"))
        own = results / "tracks" / tracks.parent.name / tracks.name
        score.run(own, listing.parent, place.with_name(place.name.removesuffix(".provenance.json")), draws)


def test_a_report_made_before_its_scores_is_called_stale_and_true_once_it_is_made_anew(results):
    rescore(results, 300)
    named = faults(results)
    assert {fault[1] for fault in named} == {"report", "report/summary.json", "report/summary.md", "report/index.html"}
    assert ("stale", "report") in [fault[:2] for fault in named]
    assert "altered" not in {fault[0] for fault in named}
    make_report(results)
    assert faults(results) == []


def test_scores_made_before_their_tracks_are_called_stale(results, whole):
    root = whole.parent.parent / "toy" / "val"
    out = results / "tracks" / "grpo" / "toy-val"
    scores = shutil.copytree(results / "scores", results.parent / "kept")
    shutil.rmtree(out)
    make_tracks(results, root, "grpo", "static", SETTINGS)
    shutil.rmtree(results / "scores")
    shutil.copytree(scores, results / "scores")
    place = out / "provenance.json"
    files.write_json(place, {**files.read_json(place), "finished": "2999-01-01T00:00:00Z"})
    named = faults(results)
    assert [fault[0] for fault in named if fault[1] == "scores/grpo/toy-val.json"] == ["stale", "stale"]
    assert "altered" not in {fault[0] for fault in named}


def test_a_stage_that_was_not_run_again_after_its_settings_changed_is_named(results):
    path = results / "config/train.json"
    files.write_json(path, {**files.read_json(path), "seed": 5})
    named = faults(results)
    assert ("stale", "adapters/grpo", "seed: recorded 0, now 5") in named
    assert ("stale", "report") in [fault[:2] for fault in named]


def test_a_report_that_cannot_be_made_again_fails(results):
    shutil.rmtree(results / "adapters/grpo/")
    (fault,) = faults(results)
    assert fault[:2] == ("differs", "report")
    assert "adapters/grpo/log.jsonl: no such file" in fault[2]


def test_what_is_missing_is_counted_and_no_fault(results):
    (results / "adapters/grpo/adapter_model.safetensors").unlink()
    shutil.rmtree(results / "tracks/grpo/toy-val/Toy_Val_000002")
    missing = [finding for finding in findings(results) if finding.state == "missing"]
    names = {finding.file for finding in missing}
    assert "adapters/grpo/adapter_model.safetensors" in names
    assert "scores/grpo/toy-val.json" in names  # cannot be scored again
    assert [finding.words for finding in missing if "Toy_Val_000002/Toy_Val_000002_001.txt" in finding.words]


def test_a_result_is_held_against_the_embedded_base_that_it_was_made_from(results):
    place = results / "vqa/base/provenance.json"
    base = Provenance("vqa", {"model": "tiny"}).inputs["model"].model_dump()
    assert base == {"path": "tiny", "sha256": files.hash_path(models.TINY)}
    for source, state in ((base, "agrees"), ({"path": "tiny", "sha256": "0" * 64}, "stale")):
        files.write_json(place, {**files.read_json(place), "inputs": {"model": source}})
        sources = [finding for finding in verify.examine(results)["sources"] if finding.file == "vqa/base"]
        assert sources[0].state == state
    assert "made from tiny" in sources[0].words


def test_a_base_on_the_hub_is_recorded_by_its_commit_and_held_against_the_cached_copy(results, tmp_path, monkeypatch):
    cache, name, commit = tmp_path / "hub", "somebody/their-model", "0123456789" * 4
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    home = cache / "models--somebody--their-model"
    files.write_text(home / "refs/main", commit)
    copy = shutil.copytree(models.TINY, home / "snapshots" / commit)
    assert models.resolve_model_dir(name) == files.resolve_path(name, commit) == copy
    record = Provenance("vqa", {"model": name})
    assert record.inputs
    newer = shutil.copytree(copy, home / "snapshots" / ("f" * 40))
    files.write_text(home / "refs/main", newer.name)  # one that comes out while the stage runs
    record.write(tmp_path / "made/provenance.json")
    written = files.read_json(tmp_path / "made/provenance.json")
    assert written["base"] == commit
    assert written["inputs"] == {"model": {"path": name, "sha256": files.hash_path(copy)}}
    place = results / "vqa/base/provenance.json"
    files.write_json(place, {**files.read_json(place), "base": commit, "inputs": written["inputs"]})

    def state():
        sources = verify.examine(results)["sources"]
        return next(finding.state for finding in sources if finding.file == "vqa/base")

    assert state() == "agrees"
    files.write_text(copy / "config.json", "{}")
    assert state() == "stale"
    shutil.rmtree(copy)
    assert state() == "missing"


def test_a_run_whose_data_is_missing_passes_as_far_as_it_can_be_checked(tmp_path):
    results = make_run(tmp_path / "run", toy_split(tmp_path / "val", sequences=2))
    make_report(results)
    shutil.rmtree(tmp_path / "val")
    missing = {finding.file: finding.words for finding in findings(results) if finding.state == "missing"}
    assert missing["scores/grpo/toy-val.json"] == "cannot be checked: the boxes or the true boxes are not there"
    assert {"scores/grpo/toy-val.json", "tracks/grpo/toy-val", "report/index.html"} <= missing.keys()
    assert faults(results) == []
    alter(results / "report/summary.json", *ALTERED["report/summary.json"])
    assert ("altered", "report/summary.json") in [fault[:2] for fault in faults(results)]


def test_a_score_without_provenance_fails(results):
    (results / "scores/grpo/toy-val.json.provenance.json").unlink()
    assert ("differs", "scores/grpo/toy-val.json") in [fault[:2] for fault in faults(results)]


def test_a_broken_file_is_named_and_stops_nothing(results):
    (results / "vqa/grpo/easy-vqa.jsonl").write_text("{")
    named = faults(results)
    assert ("altered", "vqa/grpo/easy-vqa.jsonl") in [fault[:2] for fault in named]
    assert [words for state, file, words in named if (state, file) == ("differs", "vqa/verdict.json")]


@pytest.mark.usefixtures("logging_as_it_was")
def test_the_command_says_it_in_one_line_and_by_its_exit_code(results):
    passed = CliRunner().invoke(cli.app, ["verify", str(results)])
    assert (passed.exit_code, passed.exception and type(passed.exception)) == (0, None)
    assert passed.output.splitlines()[-1].startswith("Verified: 0 of ")
    alter(results / "report/index.html", *ALTERED["report/index.html"])
    failed = CliRunner().invoke(cli.app, ["verify", str(results)])
    assert failed.exit_code == 1
    assert "altered  report/index.html  SHA-256: recorded " in failed.output
    assert failed.output.splitlines()[-1].startswith("Verification failed: 2 of ")


def test_a_folder_without_a_report_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"report/summary\.json: no such file; run the stage `report`"):
        verify.examine(tmp_path)
