"""The profile for SLURM and the recipe of the image: what they name is there. Neither SLURM nor a builder is needed."""

import re
import subprocess

import yaml
from dry_runs import ROOT

RULES = set(re.findall(r"(?m)^rule (\w+):", "".join(file.read_text() for file in ROOT.glob("workflow/rules/*.smk"))))


def test_the_profile_for_slurm_plans_memory_and_time_for_rules_that_there_are() -> None:
    profile = yaml.safe_load((ROOT / "profiles/slurm/profile.yaml").read_text())
    asking = {rule for rule in RULES if rule in ("train", "merge", "track", "part", "vqa", "sample")}
    assert profile["set-resources"].keys() == asking
    assert all(row.keys() == {"runtime", "mem_mb"} for row in profile["set-resources"].values())
    assert {group.split("=")[0] for group in profile["groups"]} < RULES
    assert "resources" not in profile, "a `gpu: 1` would be one card for the whole cluster"


def test_the_recipe_installs_what_the_environment_of_a_card_names() -> None:
    recipe = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    (command,) = re.findall(r"RUN (sed .*) > /tmp/requirements.txt\s+&& pip install", recipe)
    lines = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert [*lines] == " ".join(environment[-1]["pip"]).split()
    (python,) = (line.partition("=")[2] for line in environment if isinstance(line, str) and "=" in line)
    assert recipe.count(f"ARG BASE=python:{python}-slim\nFROM ${{BASE}}\n") == 1


def test_the_rules_run_in_the_image_alone_and_name_no_conda_environment() -> None:
    assert 'container: "r1track.sif"' in (ROOT / "Snakefile").read_text()
    assert not [file for file in ROOT.glob("workflow/rules/*.smk") if "conda:" in file.read_text()]
