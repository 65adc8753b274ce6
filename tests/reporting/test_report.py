"""Claims about the report, made from a small run in which peers stand in for the models."""

import importlib
import json
import re
import shutil
from html.parser import HTMLParser

import document
import numpy as np
import pytest
from rich.markdown import Markdown
from small_run import ANSWERS, NASTY, SETTINGS, configure, fail, small_run, stand_in, write_answers

from r1track.ability import verdict
from r1track.core import config, files
from r1track.core.boxes import iou, xywh_to_xyxy
from r1track.reporting import paper, plots, report
from r1track.tracking import score
from r1track.tracking.track_files import read_track

SECTIONS = ("summary", "scores", "sequences", "training", "general", "strips", "cost", "making")
VOID = {"meta", "img", "br", "hr", "link", "input", "path", "use"}


class Page(HTMLParser):
    """Text and pictures per section, every attribute that can load something, and whether tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.text, self.alts, self.section = [], [], {}, [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.loads += [value for key, value in attributes if key in ("src", "href", "srcset", "data", "xlink:href")]
        self.alts += [values.get("alt")] if tag == "img" else [values.get("aria-label")] if tag == "svg" else []
        if tag == "section":
            self.section = values["id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text[self.section] = self.text.get(self.section, "") + data


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def run(whole, tmp_path):
    """A copy of the run that a test may spoil, its split, and a function that makes the report anew."""
    results, root = whole
    shutil.copytree(results.parent, tmp_path / "copy")
    results = tmp_path / "copy" / "run"

    def make():
        report.run(config.load(results / "config/report.json"), results, results / "report")
        return results / "report"

    return results, root, make


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


def test_the_difference_is_that_of_the_scores_with_the_runs_draws(run):
    results, _, make = run
    base, tuned = (files.read_json(results / "scores" / model / "toy-val.json") for model in ("base", "grpo"))
    change = files.read_json(make() / "summary.json")["sets"]["toy-val"]["differences"]["grpo"]
    assert (change["value"], change["low"], change["high"]) == score.paired_difference(
        *map(score.Scores.model_validate, (tuned, base)), 200
    )


def test_the_sentence_praises_a_gain_and_names_the_peers_that_are_beaten(run):
    _, _, make = run
    summary = json.loads((make() / "summary.json").read_text())
    assert "grpo tracks better than base" in summary["judgement"]
    assert "and it beats the static box and the template matcher, not the oracle (undecided)" in summary["judgement"]
    assert summary["sets"]["toy-val"]["models"]["base"]["words"].startswith("base beats none of its peers")
    assert "toy world: says that the workflow works, not how good a tracker is" in summary["sets"]["toy-val"]["notes"]


def test_one_sequence_has_no_interval_and_shows_no_gain(tmp_path):
    results, _ = small_run(tmp_path, sequences=1)
    report.run(config.load(results / "config/report.json"), results, results / "report")
    summary = json.loads((results / "report/summary.json").read_text())
    change = summary["sets"]["toy-val"]["differences"]["grpo"]
    assert change["value"] > 0.1
    assert (change["low"], change["high"], change["told"]) == (None, None, "undecided")
    words = f"grpo is not shown to track better than base (AO {change['value']:+.3f} on one sequence)"
    assert words in summary["judgement"]
    page = Page((results / "report/index.html").read_text())
    assert page.text["scores"].count("one sequence") == 6  # five models and a difference
    assert (results / "report/summary.md").read_text().count("| one sequence |") == 6


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


def test_the_sentence_turns_when_the_figures_turn(run):
    results, root, make = run
    stand_in(results, root, "base", "template")
    stand_in(results, root, "grpo", "static")
    sentence = json.loads((make() / "summary.json").read_text())["judgement"]
    assert "grpo tracks worse than base" in sentence
    assert "does not beat" in sentence or "beats none of its peers" in sentence
    assert "nothing shows yet that it tracks at all" in sentence
    assert "better" not in sentence


def test_equal_tracks_are_not_called_better(run):
    results, root, make = run
    stand_in(results, root, "grpo", "static")
    sentence = json.loads((make() / "summary.json").read_text())["judgement"]
    assert "is not shown to track better than base (AO +0.000 [+0.000, +0.000] holds 0)" in sentence


@pytest.mark.parametrize(("wrong", "word"), [(0, "is retained"), (25, "has regressed")])
def test_the_sentence_follows_the_verdict(run, wrong, word):
    results, _, make = run
    shutil.rmtree(results / "vqa/grpo")
    write_answers(results / "vqa/grpo", wrong)
    verdict.run(SETTINGS, results / "vqa/base", [results / "vqa/grpo"], results / "vqa/verdict.json")
    assert word in json.loads((make() / "summary.json").read_text())["judgement"]


def test_an_invalid_verdict_without_figures_is_shown(run):
    results, _, make = run
    (results / "vqa/grpo/easy-vqa.jsonl").rename(results / "vqa/grpo/other.jsonl")
    verdict.run(SETTINGS, results / "vqa/base", [results / "vqa/grpo"], results / "vqa/verdict.json")
    page = Page((make() / "index.html").read_text())
    assert "the check of its general ability is invalid" in page.text["summary"]
    assert "no set could be compared" in page.text["general"]


def test_every_arm_has_its_verdict_on_the_page_and_the_sentence_is_about_the_last(run):
    results, root, make = run
    configure(results, "train", "train", arms=["sft", "grpo"])
    for folder in ("adapters", "models"):
        shutil.copytree(results / folder / "grpo", results / folder / "sft")
    stand_in(results, root, "sft", "static")
    write_answers(results / "vqa/sft", 25)
    arms = [results / "vqa/sft", results / "vqa/grpo"]
    verdict.run(SETTINGS, results / "vqa/base", arms, results / "vqa/verdict.json")
    out = make()
    summary, page = json.loads((out / "summary.json").read_text()), Page((out / "index.html").read_text())
    assert [row["verdict"] for row in summary["verdicts"].values()] == ["REGRESSED", "INCONCLUSIVE"]
    assert summary["verdict"] == summary["verdicts"]["grpo"]
    for arm, row in summary["verdicts"].items():
        assert row["line"] in page.text["general"]
        assert f"{arm}: {row['line']}" in (out / "summary.md").read_text()
        assert f"KL(base || {arm}) on 64 prompts of tracking: 0.2500 nats" in page.text["general"]
    assert "whether its general ability is retained is not decided" in summary["judgement"]


def test_missing_frames_are_said_on_the_page(run):
    results, _, make = run
    place = results / "tracks/base/toy-val/provenance.json"
    files.write_json(place, {**files.read_json(place), "inputs": {"split": {"path": "toy/gone", "sha256": None}}})
    page = Page((make() / "index.html").read_text())
    assert "No frames can be shown" in page.text["strips"]
    assert "toy/gone" in page.text["strips"]
    assert len([load for load in page.loads if load.startswith("data:")]) == 6  # those of the training


def test_what_a_model_answers_cannot_become_markup(run):
    results, root, make = run
    fail(results, root, "grpo", {("Toy_Val_000001", 3): "held"})
    text = (make() / "index.html").read_text()
    page = Page(text)
    assert NASTY not in text
    assert "alert('x')" not in text
    for section in ("general", "training", "strips"):
        assert NASTY in page.text[section], section
    assert set(re.findall("<script.*?>", text)) == {"<script>", '<script type="application/json">'}
    assert text.count("<script>") == 1


def test_a_sequence_without_scored_frames_is_listed_without_a_score(run):
    results, _, make = run
    for path in results.glob("scores/*/toy-val.json"):
        scores = files.read_json(path)
        row = next(iter(scores["sequences"].values()))
        row.update(ao=None, sr50=None, sr75=None, frames=0, overlap_sum=0.0)
        files.write_json(path, scores)
    assert "–" in Page((make() / "index.html").read_text()).text["sequences"]


def test_a_figure_on_got10k_is_never_without_its_note(run):
    results, root, make = run
    for model, peer in (("base", "static"), ("grpo", "oracle"), *((p, p) for p in ("static", "template", "oracle"))):
        stand_in(results, root, model, peer, "got10k-val")
    configure(results, "report", "data", sets={"toy-val": "toy/val", "got10k-val": "GOT-10k/val"})
    out = make()
    page, note = (
        Page((out / "index.html").read_text()),
        "validation figures are not comparable with published test figures",
    )
    assert page.text["scores"].count(note) == page.text["sequences"].count(note) == 1
    assert (out / "summary.md").read_text().count(note) == 1


def test_every_kind_of_failure_has_a_strip_around_its_first_frame_with_the_answer(run):
    results, root, make = run
    failures = {
        ("Toy_Val_000001", 5): "held", ("Toy_Val_000002", 9): "held", ("Toy_Val_000002", 7): "held",
        ("Toy_Val_000003", 12): "clipped", ("Toy_Val_000004", 2): "absent",
    }  # fmt: skip
    fail(results, root, "grpo", failures)
    text = (make() / "index.html").read_text()
    strips = re.findall(r'data-first="(\d+)" data-name="(\w+) \((\w+)\)">(.*?)</article>', text, re.DOTALL)
    shown = {rank: (name, int(first), frames) for first, name, rank, frames in strips}
    firsts = {"held": ("Toy_Val_000002", 7), "clipped": ("Toy_Val_000003", 12), "absent": ("Toy_Val_000004", 2)}
    assert set(shown) == {"best", "median", "worst", *firsts}
    for status, (name, frame) in firsts.items():
        assert shown[status][0] == name
        numbers = [int(number) for number in re.findall(r"Frame (\d+), IoU", shown[status][2])]
        assert numbers[shown[status][1]] == frame
        assert numbers == list(range(numbers[0], numbers[0] + SETTINGS.report.strip_frames))
        assert len(numbers) == SETTINGS.report.strip_frames


def test_a_strip_shows_and_opens_at_the_frame_where_base_and_tuned_model_differ_most(run):
    results, root, make = run
    text = (make() / "index.html").read_text()
    strips = re.findall(r'data-first="(\d+)" data-name="(\w+) \((\w+)\)">(.*?)</article>', text, re.DOTALL)
    assert {rank for _, _, rank, _ in strips} == {"best", "median", "worst"}
    for first, name, _, frames in strips:
        truth = xywh_to_xyxy(np.loadtxt(root / name / "groundtruth.txt", delimiter=","))
        base, tuned = (
            iou(xywh_to_xyxy(read_track(results / "tracks" / model / "toy-val", name).boxes), truth)
            for model in ("base", "grpo")
        )
        numbers = [int(number) for number in re.findall(r"Frame (\d+), IoU", frames)]
        assert numbers[int(first)] == np.abs(tuned - base).argmax() + 1
        assert numbers == sorted(set(numbers))
        assert len(numbers) == SETTINGS.report.strip_frames


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


def test_sampled_answers_stand_with_their_reward_and_only_readable_ones_have_a_box(run):
    _, _, make = run
    text = (make() / "index.html").read_text()
    cards = re.findall(r"<h4>grpo, step (\d+) .*?</article>", text, re.DOTALL)
    assert cards == ["0", "10", "20"]
    card = text[text.index("<h4>grpo, step 0 ") : text.index("<h4>grpo, step 10 ")]
    assert len(re.findall('<rect class="answer"', card)) == 2
    assert len(re.findall('<rect class="truth"', card)) == 1
    for answer in ANSWERS[:2]:
        assert answer in card
    assert "1.50" in card  # the reward of the exact answer
    assert "not readable" in card


def test_of_three_pictures_of_a_question_the_last_is_the_search_region(run):
    results, _, make = run
    file = results / "adapters/grpo/examples/step-000000.json"
    example = files.read_json(file)
    files.write_json(file, {**example, "images": [example["images"][0], *example["images"]]})
    shown = re.findall("grpo, step 0: (template|search region)", (make() / "index.html").read_text())
    assert shown == ["template", "template", "search region"]


def test_an_arm_without_stored_answers_says_so(run):
    results, _, make = run
    shutil.rmtree(results / "adapters/grpo/examples")
    assert "grpo: no answers were stored" in Page((make() / "index.html").read_text()).text["training"]


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


def test_the_papers_figures_are_never_in_one_group_with_ours(run):
    results, _, make = run
    groups = files.read_json(make() / "summary.json")["paper"]
    assert [(group["split"], group["whose"]) for group in groups] == [
        ("GOT-10k test", "published by the paper"), ("GOT-10k test", "this run"), ("toy-val", "this run")
    ]  # fmt: skip
    theirs, none, ours = (group["rows"] for group in groups)
    assert {row["ao"] for row in theirs} == {row.ao for row in paper.PUBLISHED}
    assert none == []
    scores = {model: files.read_json(results / f"scores/{model}/toy-val.json")["ao"] for model in ("base", "grpo")}
    assert {row["model"]: row["ao"] for row in ours} == scores
    words = Page((results / "report/index.html").read_text()).text["scores"]
    assert "no comparable figure" in words
    assert "not to be compared with the figures above" in words


def test_the_presets_depart_from_the_paper_where_their_comments_say_so():
    def departs(preset):
        settings = config.resolve({"preset": preset}).model_dump(mode="json")
        return {row.field: row.paper for row in paper.departures(settings)}

    standing = {
        "train.backend", "train.quantize", "train.lora.rank", "train.lora.vision", "train.learning_rate",
        "train.rollout_steps", "track.widen", "track.min_side",
    }  # fmt: skip
    assert set(departs("r1track-5k")) == standing
    assert set(departs("r1track-5k-think")) == standing
    assert set(departs("r1track-100k")) == standing | {"task.templates", "train.optimizer"}
    assert departs("r1track-100k")["train.rollout_steps"] == 6
    best = departs("best")
    assert best.keys() >= {"sample.policy", "train.reward", "train.beta", "train.sft.learning_rate"}
    assert not [field for field in departs("r1track-5k") if field.startswith("train.sft.")]
    demo = departs("demo")
    assert demo["data.train"] == "GOT-10k train"
    assert demo["model.base"] == "Qwen/Qwen2.5-VL-3B-Instruct"


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


def test_the_table_of_deviations_is_up_to_date():
    assert document.deviation_table() in (config.ROOT / "docs" / "deviations.md").read_text(), "run `make docs`"


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


@pytest.mark.parametrize(
    ("count", "ranks"),
    [(0, ""), (1, "b"), (2, "bw"), (3, "bmw"), (4, "bbmw"), (6, "bbmmww"), (9, "bbbmmmwww"), (99, "bbbbmmmwww")],
)
def test_strips_show_best_median_and_worst_and_no_sequence_twice(count, ranks):
    changes = {f"s{k}": k / 10 for k in range(10)}
    picks = report.strips.choose(changes, count)
    assert "".join(rank[0] for rank, _ in picks) == ranks
    assert len({name for _, name in picks}) == len(picks)
    values = [changes[name] for _, name in picks]
    assert values == sorted(values, reverse=True)
    if count >= 2:
        assert (values[0], values[-1]) == (0.9, 0.0)


NASTY_NAME = 'my "set" & <b onload=alert(1)>*so* [on](http:x)|`'


def test_a_set_with_a_strange_name_cannot_become_markup_on_the_page(run, any_set_name):
    results, root, make = run
    plain = make() / "index.html"
    ids = len(re.findall(r'\bid="', plain.read_text()))
    for model, peer in (("base", "static"), ("grpo", "oracle"), *((p, p) for p in ("static", "template", "oracle"))):
        stand_in(results, root, model, peer, NASTY_NAME)
    configure(results, "report", "data", sets={"toy-val": "toy/val", NASTY_NAME: "toy/val"})
    text = (make() / "index.html").read_text()
    page = Page(text)
    assert not page.open
    assert "<b onload" not in text
    assert NASTY_NAME in page.text["scores"]
    assert [alt for alt in page.alts if NASTY_NAME in alt]
    names = re.findall(r'\bid="([^"]*)"', text)
    assert len(names) == len(set(names)) > ids  # those of the second success plot
    assert not [name for name in names if re.search(r"[^\w.-]", name)]
    assert set(re.findall(r'(?:url\(|href=")#([^)"]*)', text)) <= set(names)


def test_two_sets_never_share_an_id():
    scores = score.Scores.model_construct(curve=[1.0, 0.5, 0.0], ao=0.5, sr50=0.5, sr75=0.25)
    first, second = (set(re.findall(r'\bid="([^"]*)"', plots.success(n, {"base": scores}))) for n in ("a b", "a_20_b"))
    assert len(first) == len(second) > 5
    assert not first & second


def test_names_cannot_become_markup_in_the_text(run, any_set_name):
    """Names of sets, runs and questions; the text is read by the parser of `rich`, which shows it on the terminal."""
    results, root, make = run
    for model, peer in (("base", "static"), ("grpo", "oracle"), *((p, p) for p in ("static", "template", "oracle"))):
        stand_in(results, root, model, peer, NASTY_NAME)
    configure(results, "report", "data", sets={"toy-val": "toy/val", NASTY_NAME: "toy/val"})
    answers = results / "vqa/grpo/easy-vqa.jsonl"
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    for folder in ("base", "grpo"):
        changed = [{**row, "doc_id": f"{NASTY_NAME} {k}", "doc_hash": f"{k}{folder}"} for k, row in enumerate(rows)]
        (results / f"vqa/{folder}/easy-vqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    verdict.run(SETTINGS, results / "vqa/base", [results / "vqa/grpo"], results / "vqa/verdict.json")
    assert f"first {NASTY_NAME} 0" in files.read_json(results / "vqa/verdict.json")["models"]["grpo"]["summary"]
    blocks = Markdown((make() / "summary.md").read_text()).parsed
    parts = [part for block in blocks for part in block.children or []]
    assert {part.type for part in parts} <= {"text", "text_special", "softbreak", "strong_open", "strong_close"}
    assert not [block.type for block in blocks if block.type.startswith(("html", "code"))]
    text = ["".join(part.content for part in block.children) for block in blocks if block.children]
    assert f"{NASTY_NAME}: 5 sequences, 55 frames" in text
    assert [line for line in text if f"first {NASTY_NAME} 0" in line]
    assert files.read_json(results / "report/summary.json")["judgement"] in text
