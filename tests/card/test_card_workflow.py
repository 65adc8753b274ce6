"""The whole workflow of a small demo over the emulated card, on both backends, as `snakemake --cores all` runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from r1track.core import config, files

ROOT = config.ROOT
SMALL = """
preset: demo
toy: {train_sequences: 12, val_sequences: 3, length: 10}
sample: {pairs: 48, val_pairs: 12}
train:
  backend: BACKEND
  arms: [sft, grpo]
  start: sft
  steps: 2
  prompts_per_step: 4
  micro_batch: 16
  save_every: 2
  sft: {steps: 2, batch: 16, micro_batch: 8}
merge: {check_pairs: 8}
track: {batch: 3}
score: {draws: 200}
vqa: {sets: {easy-vqa: {items: 40, max_tokens: 8}}}
verdict: {min_items: 20, on_regression: warn}
"""


@pytest.mark.parametrize(("backend", "taken"), [("auto", "unsloth"), ("transformers", "transformers")])
def test_the_workflow_ends_well_and_says_card_backend_and_versions(backend: str, taken: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(SMALL.replace("BACKEND", backend))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "all"]
    profile = ["--workflow-profile", str(ROOT / "profiles" / "default")]
    done = subprocess.run([*command, *profile], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    results = tmp_path / "results" / "demo"
    assert (results / "report" / "index.html").is_file()
    for arm, trainer in (("sft", "SFTTrainer"), ("grpo", "SharedPrefixTrainer")):
        record = files.read_json(results / "adapters" / arm / "provenance.json")
        assert (record["backend"], record["trainer"]) == (taken, trainer)
        assert record["hardware"]["gpu"]["name"] == "NVIDIA GeForce RTX 4090"
        assert {"unsloth", "unsloth_zoo", "triton", "trl", "peft"} <= record["versions"].keys()
        assert files.read_json(results / "models" / arm / "merge.json")["agreement"] >= 0.9
