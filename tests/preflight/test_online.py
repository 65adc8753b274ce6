"""What is asked of the hub, and fetched from it, against a mirror on 127.0.0.1; and what is said without a network."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hub_mirror import COMMIT, Mirror, serving
from PIL import Image
from safetensors.numpy import save_file

from r1track.core import models

NOWHERE = "http://127.0.0.1:9"  # where nobody listens
SETS = {
    "right": {"source": "some/Right-Set"},
    "pinned": {"source": "some/Right-Set", "revision": COMMIT},
    "wrong-id": {"source": "some/wrong"},
    "wrong-commit": {"source": "some/Right-Set", "revision": "abcdef0"},
    "wrong-column": {"source": "some/Right-Set", "question": "query", "id": "number"},
    "wrong-split": {"source": "some/Right-Set", "split": "lite"},
    "wrong-subset": {"source": "some/Right-Set", "subset": "chart"},
    "gated": {"source": "some/gated"},
    "script": {"source": "some/script"},
    "odd-readme": {"source": "some/odd-readme"},
}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    folder = tmp_path_factory.mktemp("set")
    pictures = [Image.new("RGB", (56, 56), (40 * k, 0, 0)) for k in range(6)]
    rows = {"image": pictures, "question": ["Which?"] * 6, "answer": ["red"] * 6}
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    (folder / "data").mkdir()
    data.to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    adapter = tmp_path_factory.mktemp("adapter")
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"weight": np.zeros(2_500_000, np.float32)}, adapter / "adapter_model.safetensors")
    names = {("datasets", "some/Right-Set"): folder, ("datasets", "some/gated"): folder}
    for name, (file, text) in {
        "script": ("script.py", "import datasets"),
        "odd-readme": ("README.md", "---\nconfigs: [a: b: c\n---\n"),
    }.items():
        names["datasets", f"some/{name}"] = tmp_path_factory.mktemp(name)
        (names["datasets", f"some/{name}"] / file).write_text(text)
    names |= {("models", "some/tracker"): models.TINY, ("models", "some/adapter"): adapter}
    names |= {("models", "some/closed"): models.TINY}
    with serving(Mirror(names, {"some/gated", "some/closed"})) as served:
        yield served


def run(folder: Path, command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A command in a folder with a hub's cache of its own; `r1track` and `hf` are those of this environment."""
    program, *words = shlex.split(command)
    path = [sys.executable, "-m", "r1track"] if program == "r1track" else [str(Path(sys.executable).parent / program)]
    place = {**os.environ, "HF_HOME": str(folder / "hub"), "COLUMNS": "500", **env}
    return subprocess.run([*path, *words], cwd=folder, env=place, capture_output=True, text=True)


def configure(
    folder: Path, sets: dict[str, Any], extra: str | None = None, adapter: str | None = None, **changes: Any
) -> None:
    extras = {"rival": {"model": extra, "adapter": adapter}} if extra else {}
    values = {"preset": "demo", "vqa": {"sets": sets}, "track": {"extra": extras}, **changes}
    (folder / "config.yaml").write_text(json.dumps(values))


def lines(output: str) -> dict[str, str]:
    """The doctor's lines about what is on the hub, by the name of the set or the field: state and finding."""
    fields = ("vqa.sets.", "track.extra.", "sample.hub", "model.base")
    rows = [line.split(maxsplit=2) for line in output.splitlines() if any(field in line for field in fields)]
    return {field.removeprefix("vqa.sets."): f"{state}: {finding}" for state, field, finding in rows}


def test_the_doctor_opens_each_set_and_model_and_says_what_is_wrong(mirror: Mirror, tmp_path: Path) -> None:
    configure(tmp_path, SETS, "some/tracker", "some/adapter")
    done = run(tmp_path, "r1track doctor --online", HF_ENDPOINT=mirror.url)
    found = lines(done.stdout)
    assert done.returncode == 1, done.stderr
    read = f"some/Right-Set at {COMMIT}, one row of 'test' read, 0.00 GB; not in the cache"
    assert found["right"] == found["pinned"] == f"ok: {read}"
    assert found["track.extra.rival.model"] == f"ok: some/tracker at {COMMIT}, qwen2_5_vl, 0.00 GB; not in the cache"
    newest, page = "some/Right-Set at the newest commit", "https://huggingface.co/datasets/some"
    assert found["track.extra.rival.adapter"] == f"ok: some/adapter at {COMMIT}, LORA, 0.01 GB; not in the cache"
    assert found["wrong-id"].startswith("error: some/wrong at the newest commit: there is no such repository; correct")
    assert found["wrong-commit"] == (
        f"error: some/Right-Set at abcdef0: there is no such commit; look for one at {page}/Right-Set/commits, or set "
        "the revision to null"
    )
    assert found["wrong-column"] == f"error: {newest}: no column query, number; its columns: answer, image, question"
    assert found["wrong-split"].startswith(f"error: {newest}: Bad split: lite. Available splits: ['test']; correct")
    assert found["wrong-subset"].startswith(f"error: {newest}: BuilderConfig 'chart' not found.")
    assert found["script"].startswith(
        "error: some/script at the newest commit: Dataset scripts are no longer supported, but found script.py; correct"
    )
    assert found["odd-readme"].startswith("error: some/odd-readme at the newest commit: while parsing a flow sequence")
    assert found["gated"] == (
        "error: some/gated at the newest commit: its owner asks you to accept conditions; accept them at "
        f"{page}/gated, then run `hf auth login`"
    )


def test_the_base_a_third_party_model_and_the_pairs_are_opened_like_the_question_sets(
    mirror: Mirror, tmp_path: Path
) -> None:
    pairs = datasets.Dataset.from_dict(
        {"images": [[Image.new("RGB", (56, 56))] * 2], "problem": ["?"], "answer": ["[]"]}
    )
    tables = {
        "pairs": pairs.cast_column("images", datasets.List(datasets.Image())),
        "odd": pairs.remove_columns("images"),
    }
    for name, table in tables.items():
        (tmp_path / name / "data").mkdir(parents=True)
        table.to_parquet(tmp_path / name / "data" / "train-00000-of-00001.parquet")
        mirror.repositories["datasets", f"some/{name}"] = tmp_path / name
    base = "Qwen/Qwen2.5-VL-3B-Instruct"
    mirror.repositories["models", base] = models.TINY
    findings = []
    for hub, extra in (("pairs", "tracker"), ("odd", "wrong"), ("gated", "closed")):
        configure(tmp_path, {}, f"some/{extra}", model={"base": base}, sample={"hub": f"some/{hub}"})
        findings.append(lines(run(tmp_path, "r1track doctor --online", HF_ENDPOINT=mirror.url).stdout))
    (right, wrong, gated), model = findings, "track.extra.rival.model"
    assert right["model.base"] == f"ok: {base} at {COMMIT}, qwen2_5_vl, 0.00 GB; not in the cache"
    assert right["sample.hub"] == f"ok: some/pairs at {COMMIT}, one row of 'train' read, 0.00 GB; not in the cache"
    newest = "at the newest commit:"
    assert wrong["sample.hub"] == f"error: some/odd {newest} no column images; its columns: answer, problem"
    assert wrong[model].startswith(
        "error: some/wrong at the newest commit: there is no such repository; correct the id"
    )
    page = "its owner asks you to accept conditions; accept them at https://huggingface.co/"
    assert gated["sample.hub"].endswith(f"{page}datasets/some/gated, then run `hf auth login`")
    assert gated[model] == f"error: some/closed at the newest commit: {page}some/closed, then run `hf auth login`"


@pytest.mark.parametrize("first", ["r1track fetch", "hf download some/words --repo-type dataset"])
def test_pairs_from_the_hub_name_the_commit_that_was_read(first: str, mirror: Mirror, tmp_path: Path) -> None:
    """Also where the configuration asks for the newest, and in a sample without a network."""
    row = {
        "images": [Image.new("RGB", (84, 84))] * 2,
        "problem": "<image><image>In image 2?",
        "answer": "[9, 9, 40, 40]",
    }
    table = datasets.Dataset.from_list([row] * 6).cast_column("images", datasets.List(datasets.Image()))
    (tmp_path / "words" / "data").mkdir(parents=True)
    table.to_parquet(tmp_path / "words" / "data" / "train-00000-of-00001.parquet")
    mirror.repositories["datasets", "some/words"] = tmp_path / "words"
    configure(tmp_path, {}, sample={"hub": "some/words", "pairs": 4, "val_pairs": 2})
    assert run(tmp_path, first, HF_ENDPOINT=mirror.url).returncode == 0
    done = run(tmp_path, "r1track sample --config config.yaml --out pairs", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "pairs" / "manifest.json").read_text())
    assert (manifest["hub"], manifest["revision"]) == ("some/words", COMMIT)


def test_a_base_of_unknown_shape_is_asked_about_too_and_planned_once_its_configuration_is_here(
    mirror: Mirror, tmp_path: Path
) -> None:
    configure(tmp_path, {}, model={"base": "some/tracker"})
    asked = run(tmp_path, "r1track doctor --online", HF_ENDPOINT=mirror.url)
    assert asked.returncode == 0, asked.stderr
    assert lines(asked.stdout)["model.base"].startswith(f"ok: some/tracker at {COMMIT}, qwen2_5_vl, ")
    assert "GB at the peak" not in asked.stdout
    (command,) = re.findall("`(hf download .*?)`", asked.stdout)
    assert run(tmp_path, command, HF_ENDPOINT=mirror.url).returncode == 0
    known = run(tmp_path, "r1track doctor --online", HF_ENDPOINT=mirror.url)
    assert "its shape is not known" not in known.stdout
    assert "GB at the peak" in known.stdout


def test_what_is_in_the_cache_but_cannot_be_asked_about_is_a_warning(mirror: Mirror, tmp_path: Path) -> None:
    configure(tmp_path, {"right": SETS["right"]})
    assert run(tmp_path, "r1track fetch", HF_ENDPOINT=mirror.url).returncode == 0
    done = run(tmp_path, "r1track doctor --online", HF_ENDPOINT=NOWHERE)
    finding = "warning: 0.00 GB in the cache; some/Right-Set at the newest commit: the hub cannot be reached; run "
    assert lines(done.stdout)["right"].startswith(finding)


def test_an_adapter_that_was_fetched_is_in_the_cache_for_a_doctor_without_a_network(
    mirror: Mirror, tmp_path: Path
) -> None:
    configure(tmp_path, {}, "some/tracker", "some/adapter")
    before = lines(run(tmp_path, "r1track doctor", HF_ENDPOINT=NOWHERE).stdout)["track.extra.rival.adapter"]
    assert before.startswith("warning: some/adapter, newest; it is to be downloaded; ")
    assert run(tmp_path, "r1track fetch", HF_ENDPOINT=mirror.url).returncode == 0
    after = lines(run(tmp_path, "r1track doctor", HF_HUB_OFFLINE="1").stdout)["track.extra.rival.adapter"]
    assert after == "ok: some/adapter, newest, 0.01 GB here"


def test_with_no_network_and_no_cache_one_sentence_has_the_remedy(tmp_path: Path) -> None:
    configure(tmp_path, {"right": SETS["right"]})
    remedy = "the hub cannot be reached; run `r1track fetch` where there is a network, with the same HF_HOME"
    asked = run(tmp_path, "r1track doctor --online", HF_ENDPOINT=NOWHERE)
    assert lines(asked.stdout)["right"] == (f"error: not in the cache; some/Right-Set at the newest commit: {remedy}")
    fetched = run(tmp_path, "r1track fetch", HF_HUB_OFFLINE="1")
    assert fetched.returncode == 2
    assert fetched.stderr.splitlines()[-1] == f"error: some/Right-Set at the newest commit: {remedy}"


READ = """
import sys
from r1track.ability import questions
from r1track.core import config, models
from pathlib import Path
settings = config.load(Path("config.yaml"))
for name, spec in settings.vqa.sets.items():
    print(name, len(questions.load(name, spec, 0, settings.model)))
print(models.resolve_model_dir("some/tracker"))
"""


@pytest.mark.parametrize("way", ["fetch", "list"])
def test_what_was_fetched_or_downloaded_by_the_listed_lines_is_read_without_a_network(
    way: str, mirror: Mirror, tmp_path: Path
) -> None:
    configure(tmp_path, {name: {**SETS[name], "items": 4} for name in ("right", "pinned")}, "some/tracker")
    before = run(tmp_path, "r1track fetch --list", HF_ENDPOINT=NOWHERE).stdout.splitlines()
    assert before == [
        "hf download some/tracker  # track.extra.rival.model, not in the cache",
        "hf download some/Right-Set --repo-type dataset  # vqa.sets.right, not in the cache",
        f"hf download some/Right-Set --repo-type dataset --revision {COMMIT}  # vqa.sets.pinned, not in the cache",
    ]
    commands = ["r1track fetch"] if way == "fetch" else [line.partition("  #")[0] for line in before]
    for command in commands:
        done = run(tmp_path, command, HF_ENDPOINT=mirror.url)
        assert done.returncode == 0, done.stderr
    (tmp_path / "read.py").write_text(READ)
    read = run(tmp_path, "python read.py", HF_HUB_OFFLINE="1")
    assert read.stdout.splitlines()[:2] == ["right 4", "pinned 4"], read.stderr
    assert COMMIT in read.stdout
    found = run(tmp_path, "r1track doctor", HF_HUB_OFFLINE="1").stdout
    assert lines(found)["right"] == "ok: some/Right-Set at the newest commit, 0.00 GB in the cache"
    assert lines(found)["pinned"] == f"ok: some/Right-Set at {COMMIT}, 0.00 GB in the cache"
    assert lines(found)["track.extra.rival.model"].startswith("ok: some/tracker, newest, 0.00 GB here")
