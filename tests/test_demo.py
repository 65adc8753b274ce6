"""The demo: what `make demo` shows, claim by claim, on one real run of the default configuration."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import needs_real

from r1track.ability import verdict, vqa
from r1track.core import config, files, models
from r1track.reporting import verify
from r1track.tracking import score

ROOT = config.ROOT


def snakemake(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The workflow in a folder of its own, so that no result of the repository is touched or used."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "all", *words]
    profile = ["--workflow-profile", str(ROOT / "profiles" / "default")]
    return subprocess.run([*command, *profile], cwd=folder, capture_output=True, text=True)


def workplace(folder: Path) -> Path:
    shutil.copy(ROOT / "config.yaml", folder)
    return folder


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = workplace(tmp_path_factory.mktemp("demo"))
    done = snakemake(folder)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    (folder / "printed.txt").write_text(done.stdout)  # Snakemake's own words go to the other stream
    return folder


def scores(demo: Path, model: str) -> dict[str, Any]:
    return files.read_json(demo / "results" / "demo" / "scores" / model / "toy-val.json")


def test_the_demo_ends_with_a_table(demo: Path) -> None:
    printed = (demo / "printed.txt").read_text()
    table = printed.split("SR.75")[-1]
    for model in ("base", "grpo", "static", "template", "oracle"):
        row = next(line for line in table.splitlines() if line.split()[:1] == [model])
        assert f"{scores(demo, model)['ao']:.3f}" in row
    assert "RETAINED" in printed


def test_grpo_tracks_better_than_the_base_by_fifteen_points_and_better_than_the_static_box(demo: Path) -> None:
    base, tuned, static = (scores(demo, model) for model in ("base", "grpo", "static"))
    assert tuned["sequences_count"] >= 30
    for name in ("ao", "sr50", "sr75"):
        assert 0 <= base[name] <= 1
    gain = score.paired_difference(*map(score.Scores.model_validate, (tuned, base)), 10000, 0)
    assert gain.value >= 0.15
    assert gain.low > 0
    assert tuned["ao"] > static["ao"]


def test_no_scored_sequence_was_trained_on(demo: Path) -> None:
    manifest = files.read_json(demo / "results" / "demo" / "pairs" / "manifest.json")
    seen = {name for split in manifest["splits"].values() for name in split["sequences"]}
    assert seen
    assert not seen & set(scores(demo, "grpo")["sequences"])
    frames = [set(map(files.hash_file, (demo / "scratch/demo/toy" / s).rglob("*.jpg"))) for s in ("train", "val")]
    assert not frames[0] & frames[1]


def test_general_ability_is_retained_on_a_thousand_questions_that_the_base_can_answer(demo: Path) -> None:
    found = files.read_json(demo / "results" / "demo" / "vqa" / "verdict.json")["models"]["grpo"]
    assert found["verdict"] == "RETAINED"
    asked = found["sets"]["easy-vqa"]
    assert asked["n"] >= 1000
    assert asked["base"] >= 70


def test_the_page_is_below_five_megabytes(demo: Path) -> None:
    assert (demo / "results" / "demo" / "report" / "index.html").stat().st_size < 5e6


def test_a_second_run_has_nothing_to_do(demo: Path) -> None:
    again = snakemake(demo)
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr


def test_every_stage_left_its_provenance(demo: Path) -> None:
    found = {json.loads(p.read_text())["stage"] for p in demo.rglob("*provenance.json")}
    assert found == set(config.NEEDS)


ALTERED = {
    "tracks/grpo/toy-val/Toy_Val_000001/Toy_Val_000001_001.txt": (rb"\n\d", b"\n9"),  # one box
    "vqa/grpo/easy-vqa.jsonl": (rb'"filtered_resps": "\w', b'"filtered_resps": "x'),  # one answer
    "scores/grpo/toy-val.json": (rb'"ao": 0\.', b'"ao": 0.9'),  # one figure
    "vqa/verdict.json": (rb'"interval": \[\n\s*', rb"\g<0>1"),
    "report/summary.json": (rb'"ao": 0\.', b'"ao": 0.9'),
    "report/summary.md": (rb"\| 0\.", b"| 0.9"),
    "report/index.html": (rb"0\.\d\d\d", b"0.9999"),
    "models/grpo/merge.json": (rb'"agreement": ', b'"agreement": 0'),
    "adapters/grpo/log.jsonl": (rb'"reward": ', b'"reward": 1'),
    "adapters/grpo/adapter_model.safetensors": (rb"(?s).\Z", b"~"),
    "pairs/manifest.json": (rb'"pairs": ', b'"pairs": 1'),
}


def verified(run: Path) -> dict[str, set[str]]:
    """The files of a run by the state that `verify` gives them."""
    every = [finding for each in verify.examine(run).values() for finding in each]
    return {state: {finding.file for finding in every if finding.state == state} for state in verify.STATES}


def test_verify_believes_the_demo(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo)
    found = verified(Path("results/demo"))
    assert not found["altered"] | found["stale"] | found["differs"]
    assert not found["missing"]  # the embedded base is found by its name
    assert found["agrees"] > ALTERED.keys()


@pytest.mark.parametrize("name", ALTERED)
def test_verify_names_the_one_file_of_the_demo_that_was_altered(
    demo: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(demo)
    run = shutil.copytree("results/demo", tmp_path / "demo")
    before = (run / name).read_bytes()
    (run / name).write_bytes(re.sub(*ALTERED[name], before, count=1))
    assert (run / name).read_bytes() != before
    assert verified(run)["altered"] == {name}


def test_a_broken_model_is_called_regressed(tmp_path: Path) -> None:
    settings = config.resolve({"preset": "demo", "vqa": {"sets": {"easy-vqa": {"items": 400, "max_tokens": 8}}}})
    broken = shutil.copytree(models.TINY, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, value in weights.items():
        if "layers.3.self_attn" in name and name.endswith("weight"):  # the last layer attends at random
            weights[name] = (torch.randn(value.shape, generator=generator) * value.float().std()).to(value.dtype)
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    for model, out in (("tiny", "base"), (str(broken), "tuned")):
        vqa.run(settings, model, tmp_path / out)
    verdict.run(settings, tmp_path / "base", [tmp_path / "tuned"], tmp_path / "verdict.json")
    found = files.read_json(tmp_path / "verdict.json")["models"]["tuned"]
    assert found["verdict"] == "REGRESSED", found["reasons"]
    with pytest.raises(ValueError, match="REGRESSED"):
        verdict.gate(tmp_path / "verdict.json", "fail")


@needs_real
def test_the_same_workflow_runs_on_real_clips_and_says_how_poorly_the_tiny_model_tracks_them(tmp_path: Path) -> None:
    folder = workplace(tmp_path)
    (folder / "tests").symlink_to(ROOT / "tests")
    done = snakemake(folder, "--configfile", "tests/configs/real_clips.yaml")
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    found = files.read_json(folder / "results" / "real-clips" / "report" / "summary.json")
    assert set(found["sets"]["real"]["models"]) >= {"base", "grpo", "static", "template", "oracle"}
