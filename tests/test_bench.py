"""The bench: what it measures on a card is rehearsed on a CPU, case by case, and no failure takes others along."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cases
import gpu
import grpo_step
import measure
import pytest
import scripted
import torch
from PIL import Image
from toys import pairs_of_every_kind
from transformers import DynamicCache

from r1track.core import config, files, generation, models, prompts
from r1track.core.pairs import held_out, load

# What every kind of case must have measured.
FIGURES = {
    "build": ("base_bytes", "shards"),
    "grpo": ("seconds_per_step", "seconds_per_group", "tokens_per_second", "rollout_seconds", "prompt_tokens"),
    "sft": ("seconds_per_step", "samples_per_second", "prompt_tokens"),
    "track": ("frames_per_second", "frames"),
    "merge": ("merged_bytes",),
}


def rehearse(folder: Path, *words: str) -> list[str]:
    return ["--rehearse", "--out", str(folder / "out"), "--scratch", str(folder / "scratch"), *words]


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rehearsal where neither Snakemake nor easy-VQA can be imported: a machine without network may lack them."""
    folder = tmp_path_factory.mktemp("bench")
    for name in ("snakemake", "easy_vqa"):
        (folder / "absent" / f"{name}.py").parent.mkdir(exist_ok=True)
        (folder / "absent" / f"{name}.py").write_text("raise ImportError('the bench must do without this')\n")
    path = os.pathsep.join([str(folder / "absent"), str(config.ROOT)])
    command = [sys.executable, str(config.ROOT / "bench" / "gpu.py"), *rehearse(folder)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def records(folder: Path) -> dict[str, dict[str, Any]]:
    return json.loads((folder / "out" / "rehearsal.json").read_text())["cases"]


def test_every_rehearsed_case_has_measured_what_it_is_for(rehearsed: Path) -> None:
    found = {key: record for key, record in records(rehearsed).items() if "unsloth" not in key}
    assert set(found) == {case.key for case in cases.REHEARSAL if case.backend == "transformers"}
    for key, record in found.items():
        assert record["status"] == "measured", record["reason"]
        for name in (*FIGURES[cases.Case.parse(key).kind], "peak_host_bytes", "wall_seconds"):
            assert record["figures"][name] > 0, (key, name)


@pytest.mark.skipif(find_spec("r1track.preflight.memory") is None, reason="there is no plan of memory to compare with")
def test_beside_what_was_measured_stands_what_was_planned(rehearsed: Path) -> None:
    for key, record in records(rehearsed).items():
        if cases.Case.parse(key).kind in ("grpo", "sft", "merge", "track") and record["status"] == "measured":
            assert record["planned_bytes"] > 0, key


def test_no_group_of_the_random_model_is_flat_so_that_every_step_has_a_gradient(rehearsed: Path) -> None:
    assert records(rehearsed)["tiny-grpo-transformers-nf4"]["figures"]["frac_reward_zero_std"] < 1


def test_the_table_has_a_row_for_what_was_measured_and_a_reason_for_what_was_not(rehearsed: Path) -> None:
    table = (rehearsed / "out" / "rehearsal.md").read_text().splitlines()
    for key, record in records(rehearsed).items():
        start = f"| {key} |" if record["status"] == "measured" else f"- {key}: {record['status']}: {record['reason']}"
        assert sum(line.startswith(start) for line in table) == 1


def test_a_case_whose_package_is_missing_says_so_and_the_others_go_on(rehearsed: Path) -> None:
    absent = cases.Case("tiny", "grpo", "unsloth", "nf4")
    if not absent.missing():
        pytest.skip("unsloth is installed here")
    record = records(rehearsed)[absent.key]
    assert record["status"] == "not run"
    assert "unsloth is missing" in record["reason"]


def test_a_rerun_that_crashes_replaces_its_own_case_and_says_why(
    rehearsed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = records(rehearsed)
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\necho 'RuntimeError: the card is gone' >&2\necho 'bye'\nexit 3\n")
    crash.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crash))
    gpu.main(rehearse(rehearsed, "--only", "tiny-track", "--again"))
    after = records(rehearsed)
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"tiny-track-transformers-bf16"}
    record = after["tiny-track-transformers-bf16"]
    assert record == {"status": "failed", "reason": "exit status 3: RuntimeError: the card is gone"}
    assert list(after) == list(before)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "out of memory"),
        (ValueError("the loss is nan"), "failed"),
    ],
)
def test_a_case_that_fails_is_recorded_with_its_reason_and_the_memory_it_had_taken(
    error: Exception, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*asked: object) -> None:
        raise error

    monkeypatch.setattr(files, "hash_path", files.hash_path)  # both are put back afterwards
    monkeypatch.setattr(files, "hash_file", files.hash_file)
    monkeypatch.setattr(measure, "attempt", fail)
    record = measure.run(cases.Case("tiny", "sft"), tmp_path, 24)
    assert (record["status"], record["reason"]) == (status, f"{type(error).__name__}: {error}")
    assert record["figures"]["peak_host_bytes"] > 0


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("pass", None),
        ("raise MemoryError('too large')", "exit status 1: MemoryError: too large"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9: no output"),
        ("import time; time.sleep(60)", "stopped after 3 s"),
        ("import ctypes; ctypes.string_at(0)", "signal 11: Fatal Python error: Segmentation fault"),
    ],
)
def test_the_end_of_a_process_is_told_in_one_line(code: str, reason: str | None, tmp_path: Path) -> None:
    assert gpu.supervise([sys.executable, "-c", code], tmp_path / "log.txt", 3) == reason


def ended_with(text: str, code: int, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the process of a case print `text`, write its record where it ends well, and end with `code`."""
    script = folder / "python"
    record = json.dumps({"status": "measured", "reason": None, "figures": {}, "planned_bytes": None, "versions": {}})
    written = folder / "scratch" / "records" / "tiny-sft-unsloth-nf4.json"
    save = "" if code else f"mkdir -p {written.parent}; echo '{record}' > {written}\n"
    script.write_text(f"#!/bin/sh\necho '{text}'\n{save}exit {code}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(cases.Case, "missing", lambda self: [])


@pytest.mark.parametrize(
    ("text", "status"),
    [("Unsloth: block compile failed for Qwen2_5_VLDecoderLayer", "ran eagerly"), ("step 3", "measured")],
)
def test_a_case_that_fell_back_to_eager_code_is_not_called_measured(
    text: str, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ended_with(text, 0, monkeypatch, tmp_path)
    case = cases.Case("tiny", "sft", "unsloth", "nf4")
    (record,) = gpu.measure([case], tmp_path / "scratch", 24, 10).values()
    assert record["status"] == status
    assert record["reason"] == (f"1 parts, the first: {text}" if status == "ran eagerly" else None)


def test_a_case_that_is_stopped_keeps_the_steps_that_it_did(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ended_with("RuntimeError: gone", 1, monkeypatch, tmp_path)
    case = cases.Case("tiny", "sft", "unsloth", "nf4")
    log = case.work(tmp_path / "scratch") / "scratch" / "log.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"step": 1, "seconds": 4.5}\n{"step": 2, "seconds": 3.5}\n{"step": 3, "sec')
    (record,) = gpu.measure([case], tmp_path / "scratch", 24, 10).values()
    assert record["status"] == "failed"
    assert record["figures"]["step_seconds"] == [4.5, 3.5]


def test_what_failed_before_is_tried_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    order: list[str] = []
    monkeypatch.setattr(gpu, "work_off", lambda chosen, *others: order.extend(case.key for case in chosen))
    first, *others = [case.key for case in cases.REHEARSAL]
    files.write_json(tmp_path / "out" / "rehearsal.json", {"device": "", "cases": {first: {"status": "failed"}}})
    gpu.main(rehearse(tmp_path))
    assert order == [*others, first]


def test_a_plan_that_fails_costs_no_measurement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "hash_path", files.hash_path)  # both are put back afterwards
    monkeypatch.setattr(files, "hash_file", files.hash_file)
    monkeypatch.setattr(measure, "attempt", lambda *parts: {"frames": 64})
    monkeypatch.setattr(measure, "planned", lambda *parts: 1 / 0)
    record = measure.run(cases.Case("tiny", "track"), tmp_path, 24)
    assert (record["status"], record["planned_bytes"], record["figures"]["frames"]) == ("measured", None, 64)


def stub(done: list[str]) -> Any:
    """A stand-in for a measurement: makes what other cases work on, unless its case is of the 7B model."""

    def pretend(asked: list[cases.Case], scratch: Path, limit: float, seconds: float) -> dict[str, dict[str, Any]]:
        (case,) = asked
        done.append(case.key)
        if case.shape == "7B":
            return {case.key: {"status": "failed", "reason": "the disk is full"}}
        (case.place(scratch) / "base" if case.kind == "build" else case.work(scratch) / "adapter").mkdir(parents=True)
        return {case.key: {"status": "measured", "reason": None, "figures": {}, "planned_bytes": None, "versions": {}}}

    return pretend


def test_a_case_waits_for_what_it_works_on_and_a_failure_there_is_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[str] = []
    monkeypatch.setattr(gpu, "measure", stub(done))
    results = gpu.Results(tmp_path / "out", "Some Card")
    chosen = [cases.Case("3B", "merge", precision="nf4"), cases.Case("7B", "track"), cases.Case("7B", "sft")]
    gpu.work_off(chosen, results, tmp_path, 24, time.monotonic() + 3600)
    base, sft, merge = "3B-build-transformers-bf16", "3B-sft-transformers-nf4", "3B-merge-transformers-nf4"
    assert done == [base, sft, merge, "7B-build-transformers-bf16"]
    kept = json.loads((tmp_path / "out" / "some-card.json").read_text())["cases"]
    for key in ("7B-track-transformers-bf16", "7B-sft-transformers-bf16"):
        assert kept[key]["reason"] == "it works on 7B-build-transformers-bf16, which failed"


def test_no_case_is_started_without_the_time_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done: list[str] = []
    monkeypatch.setattr(gpu, "measure", stub(done))
    gpu.work_off(cases.FULL, gpu.Results(tmp_path / "out", "card"), tmp_path, 24, time.monotonic() + 60)
    assert not done


def test_the_most_valuable_cases_come_first() -> None:
    kinds = [(case.shape, case.kind, case.backend, case.precision, case.variant) for case in cases.FULL]
    first = [(backend, variant) for variant in ("", "stock") for backend in ("transformers", "unsloth")]
    assert kinds[:4] == [("3B", "grpo", backend, "nf4", variant) for backend, variant in first]
    assert [shape for shape, *_ in kinds] == sorted(shape for shape, *_ in kinds)
    assert len(set(kinds)) == len(kinds)
    with_graphs = [kind for shape, kind, *_, variant in kinds if (shape, variant) == ("3B", "graphs")]
    assert with_graphs == ["grpo", "grpo", "track"]


@pytest.mark.parametrize("case", [case for case in cases.FULL if case.variant], ids=lambda case: case.key)
def test_a_variant_changes_the_configuration_of_its_case(case: cases.Case) -> None:
    made, plain = (measure.make_settings(each, Path("tiny")) for each in (case, replace(case, variant="")))
    changed = {"stock": (False, False, False), "graphs": (True, True, True)}[case.variant]
    assert (made.train.shared_prefix, made.train.graphs, made.track.graphs) == changed
    assert (plain.train.shared_prefix, plain.train.graphs, plain.track.graphs) == (True, False, False)


def test_a_name_that_no_case_holds_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"--only 9B: no such case; see --list"):
        gpu.main(["--only", "9B"])


def test_a_scripted_model_says_what_it_is_told_row_by_row_with_and_without_drafts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("batch_repeat_interleave", "batch_select_indices"):  # put back afterwards
        monkeypatch.setattr(DynamicCache, name, getattr(DynamicCache, name))
    loaded = models.load("tiny", config.resolve({}).model)
    monkeypatch.setattr(generation.Decoder, "forward", generation.Decoder.forward)
    script = scripted.Script(loaded.model, loaded.processor.tokenizer)
    texts = ["[1, 20, 300, 40]", "[1, 2, 3, 4]", "[28, 30, 56, 60]", "[]"]
    asked = [prompts.build([28, 28, 56 + k, 56]) for k in range(4)]
    white = Image.new("RGB", (84, 84))
    decoder, passes = generation.Decoder(loaded, max_tokens=16), []
    for examples in (None, [[script.tokenizer("[28, 2, 3, 60]")["input_ids"]]] * 4):
        prefixes = decoder.prefixes(asked, [[white]] * 4)
        script.say(texts)
        script.passes = 0
        answers = decoder.answers(asked[0], prefixes, [white] * 4, examples)
        assert script.tokenizer.batch_decode(answers) == texts
        passes.append(script.passes)
    assert passes == [9, 5]  # one number in a pass, and what follows it
    other = generation.Decoder(models.load("tiny", config.resolve({}).model), max_tokens=16)
    own = other.answers(asked[0], other.prefixes(asked, [[white]] * 4), [white] * 4)
    assert script.tokenizer.batch_decode(own) != texts, "another model says what it would"
    assert script.passes == passes[-1]


@pytest.fixture(scope="module")
def odd_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pairs_of_every_kind(tmp_path_factory.mktemp("odd"))


def test_rollouts_are_measured_on_pairs_of_every_kind(
    odd_pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for owner, names in {
        DynamicCache: ("batch_repeat_interleave", "batch_select_indices"), generation.Decoder: ("decode",),
        generation: ("DRAFT",),
    }.items():  # fmt: skip
        for name in names:
            monkeypatch.setattr(owner, name, getattr(owner, name))  # put back afterwards
    said: list[list[str]] = []
    say = scripted.Script.say
    monkeypatch.setattr(scripted.Script, "say", lambda script, texts: (said.append(texts), say(script, texts)))
    rows = load(odd_pairs / "pairs" / "train")
    grpo_step.rollouts(odd_pairs, 1 + [bool(answer) for answer in rows["answer"]].index(True))
    drawn = {texts[0] == "[]": texts for texts in said[1:]}
    assert drawn[True] == ["[]"] * 8
    assert len(set(drawn[False])) == 8
    assert "passes per answer rollout" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["pairs", "hub/pairs"])
def test_the_tokens_of_a_prompt_are_those_of_the_question_that_its_pair_asks(kind: str, odd_pairs: Path) -> None:
    made = config.resolve({"preset": "demo", "task": {"templates": 2}})
    questions, images = held_out(odd_pairs / kind, 1, made.task)
    place = odd_pairs / kind.removesuffix("pairs")
    shutil.copytree(odd_pairs / kind / "val", place / "one" / "pairs" / "train")
    shutil.copytree(models.TINY, place / "one" / "base")
    expected = models.inputs(models.load("tiny", made.model), questions, images)["input_ids"].shape[1]
    assert measure.prompt_tokens(made, place / "one") == expected


@pytest.mark.skipif(not scripted.has_qwen(), reason="Qwen's vocabulary (dashscope) is not installed")
def test_the_scripted_model_speaks_qwens_tokens() -> None:
    tokenizer = scripted.qwen_tokenizer(models.load_processor(models.TINY, config.resolve({}).model).tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("[241, 66]<|im_end|>")["input_ids"])
    assert pieces == ["[", "2", "4", "1", ",", "Ġ", "6", "6", "]", "<|im_end|>"]
    assert tokenizer("[0]")["input_ids"] == [58, 15, 60]  # as in Qwen2.5
