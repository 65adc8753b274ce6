"""Claims about the paper in the report: its figures are never beside ours, and every departure from it is listed."""

import document
from report_page import Page
from small_run import configure, stand_in

from r1track.core import config, files
from r1track.reporting import paper


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


def test_the_table_of_deviations_is_up_to_date():
    assert document.deviation_table() in (config.ROOT / "docs" / "deviations.md").read_text(), "run `make docs`"
