"""Claims about the report, made from a small run in which peers stand in for the models."""

import importlib
import json
import re
import shutil

import pytest
from report_page import Page
from small_run import SETTINGS, configure, stand_in

from r1track.core import config, files
from r1track.reporting import plots

SECTIONS = ("summary", "scores", "sequences", "training", "general", "strips", "cost", "making")


def test_every_section_has_content_and_every_picture_its_text(run):
    _, _, make = run
    page = Page((make() / "index.html").read_text())
    assert not page.open
    for section in SECTIONS:
        assert len(page.text[section].split()) > 20, section
    pictures = [load for load in page.loads if load.startswith("data:image/jpeg")]
    assert len(pictures) == 5 * SETTINGS.report.strip_frames + 3 * 2  # the strips, and three questions of two crops
    curves = ("mean reward", "mean IoU of the answers", "share of groups with equal rewards", "gradient norm")
    curves += (plots.CURVES["held_out_iou"],)
    assert len(page.alts) == len(pictures) + 1 + len(curves) + 1  # success plot, curves, cost
    assert all(page.alts)
    assert {alt.split(" over the steps")[0] for alt in page.alts if " over the steps" in alt} == set(curves)


def test_figures_without_a_curve_are_named_with_the_reason(run):
    _, _, make = run
    words = Page((make() / "index.html").read_text()).text["training"]
    for title, reason in (("part of the reward: format", "always 0"), ("share of readable answers", "always 1")):
        assert f"{title}: {reason}" in words
    assert f"{plots.CURVES['kl']}: not logged" in words


def test_the_page_asks_for_nothing_outside_itself(run):
    _, _, make = run
    text = (make() / "index.html").read_text()
    assert {load.partition(",")[0] for load in Page(text).loads if not load.startswith("#")} == {
        "data:image/jpeg;base64"
    }
    assert "@import" not in text
    assert not re.findall(r"url\((?!#)", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', text)) <= set(ids)


def test_precision_and_recall_of_absent_frames_stand_beside_the_overlap_and_nothing_does_without_such_frames(run):
    results, _, make = run
    for model, presence in (
        ("base", {"precision": None, "recall": 0.0}),
        ("grpo", {"precision": 0.875, "recall": 0.625}),
    ):
        path = results / "scores" / model / "toy-val.json"
        files.write_json(path, files.read_json(path) | {"presence": {**presence, "frames": 16}})
    path = results / "scores" / "static" / "toy-val.json"
    files.write_json(path, files.read_json(path) | {"presence": None})
    out = make()
    page, text = (out / "index.html").read_text(), (out / "summary.md").read_text()
    assert "Absent frames: in 16 of the frames the annotation says that there is no target." in page
    for model, cells in (("base", ("–", "0.000")), ("grpo", ("0.875", "0.625")), ("static", ("–", "–"))):
        row = re.search(rf'<tr class="\w+"><th scope="row">{model}</th>(.*?)</tr>', page, re.DOTALL)
        assert tuple(re.findall(r"<td[^>]*>([^<]*)</td>", row[1])[7:9]) == cells
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {model} |")]
        assert tuple(line.strip("| ").split(" | ")[-2:]) == cells
    assert files.read_json(out / "summary.json")["sets"]["toy-val"]["models"]["grpo"]["presence"]["frames"] == 16


def test_page_summary_and_text_hold_the_same_figures(run):
    results, _, make = run
    out = make()
    summary, page = json.loads((out / "summary.json").read_text()), Page((out / "index.html").read_text())
    text = (out / "summary.md").read_text()
    scores = page.text["scores"]
    for model, row in summary["sets"]["toy-val"]["models"].items():
        score_file = json.loads((results / "scores" / model / "toy-val.json").read_text())
        keys = ("ao", "sr50", "sr75", "ao_interval")
        assert [row[key] for key in keys] == [score_file[key] for key in keys]
        for figure in (row["ao"], row["sr50"], row["sr75"], *row["ao_interval"]):
            assert f"{figure:.3f}" in text
            assert f"{figure:.3f}" in scores
        assert row["words"] in text
        assert row["words"] in scores
    change = summary["sets"]["toy-val"]["differences"]["grpo"]
    for written in (f"{change['value']:+.3f}", f"[{change['low']:+.3f}, {change['high']:+.3f}]", summary["judgement"]):
        assert written in text
        assert written in page.text["summary"]
    assert summary["verdict"]["line"] in text
    assert summary["verdict"]["line"] in page.text["general"]
    assert "LoRA trained over unquantised weights, 30 steps in 1.5 min" in text
    assert "LoRA trained over unquantised weights, 30 steps in 1.5 min" in page.text["training"]
    assert "adapter of step 20 (best), held-out IoU 0.200, at the end 0.100" in text
    words = " ".join(page.text["training"].split())
    assert "step 20 (train.keep: best), with a mean IoU of 0.200 on held-out pairs" in words
    assert [alt for alt in page.alts if "held-out" in alt and alt.endswith("grpo: from 0.1 to 0.3.")]
    assert files.read_json(out / "provenance.json")["stage"] == "report"


def test_what_an_earlier_configuration_left_is_not_in_the_report(run):
    results, root, make = run
    before = {name: (make() / name).read_text() for name in ("index.html", "summary.json", "summary.md")}
    stand_in(results, root, "sft", "oracle")
    stand_in(results, root, "csrt", "oracle")
    for model in ("base", "grpo"):
        stand_in(results, root, model, "oracle", "old-val")
    shutil.copytree(results / "adapters/grpo", results / "adapters/sft")
    assert {name: (make() / name).read_text() for name in before} == before


@pytest.mark.parametrize("listed", [True, False])
def test_a_test_split_has_no_scores_and_any_other_set_must_have_them(run, tmp_path, listed):
    results, _, make = run
    configure(results, "report", "data", sets={"toy-val": "toy/val", "test": str(tmp_path / "split")})
    with pytest.raises(FileNotFoundError, match=r"scores/base/test\.json: no such file; run the stage `score`"):
        make()
    if listed:  # before its tracks are there
        files.write_text(tmp_path / "split/list.txt", "GOT-10k_Test_000001\n")
    else:  # on a machine without the data
        (results / "tracks/base/test/GOT-10k_Test_000001").mkdir(parents=True)
    assert list(files.read_json(make() / "summary.json")["sets"]) == ["toy-val"]


def test_ao_by_attribute_stands_in_the_page_as_in_the_scores(run):
    results, _, make = run
    groups = {}
    for model in ("base", "grpo"):
        path = results / "scores" / model / "toy-val.json"
        scores = files.read_json(path)
        group = {"ao": 0.111 if model == "base" else 0.777, "ao_interval": None, "sequences": 1}
        files.write_json(path, {**scores, "attributes": {**scores["attributes"], "rain": group}})
        groups[model] = files.read_json(path)["attributes"]
    words = Page((make() / "index.html").read_text()).text["scores"]
    for name, base in groups["base"].items():
        figures = [f"{group['ao']:.3f}" for group in (base, groups["grpo"][name])]
        assert re.search(rf"{name}{base['sequences']}{figures[0]}.*?{figures[1]}", words), name
    assert "rain10.111one sequence0.777one sequence" in words


def test_a_sequence_without_scored_frames_is_listed_without_a_score(run):
    results, _, make = run
    for path in results.glob("scores/*/toy-val.json"):
        scores = files.read_json(path)
        row = next(iter(scores["sequences"].values()))
        row.update(ao=None, sr50=None, sr75=None, frames=0, overlap_sum=0.0)
        files.write_json(path, scores)
    assert "–" in Page((make() / "index.html").read_text()).text["sequences"]


def test_the_warning_about_the_toy_world_stands_once_in_page_and_text(run):
    _, _, make = run
    out = make()
    note = "toy world: says that the workflow works, not how good a tracker is"
    assert sum(text.count(note) for text in Page((out / "index.html").read_text()).text.values()) == 1
    assert (out / "summary.md").read_text().count(note) == 1


def test_the_seeds_of_a_run_are_named_in_page_and_text(run):
    results, _, make = run
    for stage, section, seed in (
        ("sample", None, 11),
        ("train", None, 11),
        ("vqa", "vqa", 12),
        ("verdict", "verdict", 13),
    ):
        values = files.read_json(results / f"config/{stage}.json")
        (values[section] if section else values)["seed"] = seed
        files.write_json(results / f"config/{stage}.json", values)
    out = make()
    seeds = "pairs and training 11, toy world 0, questions 12, bootstrap of the verdict 13, bootstrap of the scores 0"
    assert f"Seeds: {seeds}." in (out / "index.html").read_text()
    assert f"Seeds: {seeds}." in (out / "summary.md").read_text()


def test_changes_against_the_preset_are_exactly_what_the_run_set(run):
    _, _, make = run
    out = make()
    changes = {row["field"]: (row["preset"], row["here"]) for row in files.read_json(out / "summary.json")["changes"]}
    assert changes == {
        "score.draws": (10000, 200), "verdict.min_items": (300, 20), "verdict.on_regression": ("fail", "warn")
    }  # fmt: skip
    page = Page((out / "index.html").read_text()).text["making"]
    for field in changes:
        assert field in page
        assert field in (out / "summary.md").read_text()


def test_a_run_that_names_no_preset_is_refused(run):
    results, _, make = run
    path = results / "config/report.json"
    files.write_json(path, {"report": files.read_json(path)["report"]})
    with pytest.raises(ValueError, match=re.escape(str(path))):
        make()


def test_snakemakes_report_has_page_and_text_with_captions():
    rules = (config.ROOT / "workflow/rules/reporting.smk").read_text()
    outputs = re.findall(r'report\(\s*"results/\{run\}/report/(.*?)",\s*caption="(.*?)"', rules)
    assert [name for name, _ in outputs] == ["index.html", "summary.md"]
    for _, caption in outputs:
        assert len((config.ROOT / "workflow/rules" / caption).read_text().split()) > 10


def test_the_bench_of_the_page_is_rehearsed():
    cost = importlib.import_module("report").main(["--sequences", "4", "--frames", "12", "--steps", "30"])
    assert 0.5 < cost["megabytes"] < 5
    assert cost["seconds"] > 0


def test_the_cost_of_the_stages_adds_up_to_that_of_the_run(run):
    results, _, make = run
    cost = files.read_json(make() / "summary.json")["cost"]
    records = [files.read_json(path) for path in results.rglob("*provenance.json") if "report" not in path.parts]
    assert {name: stage["results"] for name, stage in cost["stages"].items()} == {
        stage: sum(record["stage"] == stage for record in records) for stage in {r["stage"] for r in records}
    }
    for key in ("wall_seconds", "cpu_seconds"):
        assert sum(stage[key] for stage in cost["stages"].values()) == pytest.approx(cost[key])
    assert max(stage["peak_cpu_bytes"] for stage in cost["stages"].values()) == cost["peak_cpu_bytes"]


@pytest.mark.parametrize(
    "name",
    [
        "scores/grpo/toy-val.json", "vqa/verdict.json", "adapters/grpo/log.jsonl", "adapters/grpo/provenance.json",
        "models/grpo/merge.json", "tracks/base/toy-val/provenance.json", "config/score.json", "config/sample.json",
    ],
)  # fmt: skip
def test_an_unfinished_run_is_refused_by_the_name_of_the_missing_file(run, name):
    results, _, make = run
    (results / name).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(name)):
        make()
    assert not (results / "report").exists()


def test_a_merge_whose_answers_were_not_checked_is_refused(run):
    results, _, make = run
    path = results / "models/grpo/merge.json"
    files.write_json(path, {**files.read_json(path), "agreement": None})
    with pytest.raises(ValueError, match=r"models/grpo/merge\.json: its answers were not checked; merge again"):
        make()
