"""What would stop a run stops it in its first minute: the base is tried, and what is to be downloaded is named."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_mirror import Mirror, serving

from r1track import plan
from r1track.core import config

ROOT = config.ROOT
# Stands in for `r1track`: notes stage and model, makes what the stage would; training fails.
STAND_IN = """#!/bin/bash
stage=$3; out=; model=
while [ $# -gt 0 ]; do
  case $1 in --out) out=$2 ;; --model) model=$2 ;; esac
  shift
done
echo "$stage $model" >> "$ORDER"
[ "$stage" != train ] || exit 1
case $out in
  *.json) mkdir -p "${out%/*}"; touch "$out" ;;
  *) mkdir -p "$out/train" "$out/val"; touch "$out"/{train,val}/list.txt ;;
esac
"""
NO_SUCH_SET = "preset: demo\nvqa: {sets: {gone: {source: no-one/no-such-set}}}\n"


def snakemake(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), *words]
    profile = ["--workflow-profile", str(ROOT / "profiles" / "default"), "--cores", "1"]
    place = {**os.environ, "HF_HOME": str(folder / "hub"), **env}
    return subprocess.run([*command, *profile], cwd=folder, env=place, capture_output=True, text=True)


def test_with_one_core_base_questions_and_base_tracking_come_before_training(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "r1track").write_text(STAND_IN)
    (tmp_path / "bin" / "r1track").chmod(0o755)
    (tmp_path / "env.sh").write_text(f"PATH={tmp_path}/bin:$PATH\n")  # read by every shell of the workflow
    (tmp_path / "config.yaml").write_text("preset: demo\n")
    done = snakemake(tmp_path, BASH_ENV=str(tmp_path / "env.sh"), ORDER=str(tmp_path / "order"))
    order = (tmp_path / "order").read_text().splitlines()
    assert done.returncode != 0
    assert order[-1] == "train tiny", done.stderr
    assert order[0] == "vqa tiny"
    assert order.index("track tiny") < order.index("sample ") < order.index("train tiny")


def seconds_of_work() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_a_question_set_that_does_not_exist_stops_the_demo_within_a_minute_of_work_before_training(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.yaml").write_text(NO_SUCH_SET)
    before = seconds_of_work()
    with serving(Mirror({})) as mirror:
        done = snakemake(tmp_path, HF_ENDPOINT=mirror.url)
    assert seconds_of_work() - before < 60
    assert done.returncode != 0
    assert "gone: cannot load split 'test' of 'no-one/no-such-set'" in done.stderr
    assert "run `r1track fetch`" in done.stderr
    assert not list(tmp_path.glob("results/demo/logs/train/*"))


def test_a_dry_run_names_what_is_to_be_downloaded_and_offline_refuses_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(NO_SUCH_SET)
    named = "vqa.sets.gone (no-one/no-such-set at the newest commit)"
    done = snakemake(tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"To be downloaded; `r1track fetch` does it beforehand, `r1track doctor --online` checks it:\n  {named}" in (
        done.stderr
    )
    done = snakemake(tmp_path, "--dry-run", HF_HUB_OFFLINE="1")
    assert done.returncode != 0
    assert f"HF_HUB_OFFLINE is set, and the hub's cache lacks {named}; run `r1track fetch`" in done.stderr


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"model": {"base": "qwen"}}, "model.base = 'qwen'"),
        ({"sample": {"hub": "./pairs"}}, "sample.hub = './pairs'"),
        ({"track": {"extra": {"their": {"model": "theirs"}}}}, "track.extra.their.model = 'theirs'"),
        (
            {"track": {"extra": {"their": {"model": "tiny", "adapter": "lora"}}}},
            "track.extra.their.adapter = 'lora'",
        ),
    ],
)
def test_weights_and_pairs_whose_folder_is_missing_are_refused_before_a_job_runs(
    values: dict[str, Any], field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        config.ConfigError, match=f"^{re.escape(field)}: no such folder; give a folder, or an id on the"
    ):
        plan.make_plan(config.resolve(values))
    (tmp_path / field.split("'")[1]).mkdir()
    assert plan.make_plan(config.resolve(values)).results == "results/demo"


def test_a_dry_run_refuses_a_question_set_whose_folder_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("preset: demo\nvqa: {sets: {mine: {source: ./questions}}}\n")
    done = snakemake(tmp_path, "--dry-run")
    assert done.returncode != 0
    assert "vqa.sets.mine.source = './questions': no such folder; give a folder" in done.stderr
