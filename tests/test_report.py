"""Claims about the report, made from a small run in which peers stand in for the models."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from toys import toy_split

from r1track import config, files, report, score, track, verdict
from r1track.report import plots

SETTINGS = config.resolve(
    {"preset": "demo", "score": {"draws": 200}, "verdict": {"min_items": 20, "on_regression": "warn"}}
)
SECTIONS = ("summary", "scores", "sequences", "training", "general", "strips", "cost", "making")
NASTY = "<script>alert('x')</script> & \"so on\""
VOID = {"meta", "img", "br", "hr", "link", "input", "path", "use"}


class Page(HTMLParser):
    """Text and pictures per section, every attribute that can load something, and whether tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.text, self.alts, self.section = [], [], {}, [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.loads += [value for key, value in attributes if key in ("src", "href", "srcset", "data", "xlink:href")]
        self.alts += [found.get("alt")] if tag == "img" else [found.get("aria-label")] if tag == "svg" else []
        if tag == "section":
            self.section = found["id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text[self.section] = self.text.get(self.section, "") + data


def write_answers(folder, wrong):
    """Thirty questions, the first `wrong` of them answered with something that HTML would take for markup."""
    rows = []
    for k in range(30):
        right = int(k >= wrong)
        row = {"doc_id": str(k), "input": f"Which {NASTY}?", "target": "red", "doc_hash": str(k), "image": str(k)}
        answer = {"filtered_resps": "red" if right else NASTY, "strict": right, "lenient": right, "unparsed": 0}
        rows.append({**row, **answer})
    folder.mkdir(parents=True)
    (folder / "easy-vqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files.write_json(folder / "provenance.json", record("vqa"))
    kl = {"tracking": {"prompts": 64, "tokens": 900, "nats": 0.25}}
    files.write_json(folder / "manifest.json", {"kl": kl if folder.name != "base" else {}})


def record(stage, **notes):
    """A provenance as `files.Provenance` writes it."""
    return {
        "stage": stage, "finished": "2026-01-01T00:00:00Z", "git_commit": "abc", "versions": {"python": "3.12"},
        "hardware": {"cpu": "a processor", "cores": 2, "gpu": None}, "seed": 0, "base": None, "wall_seconds": 120.0,
        "cpu_seconds": 100.0, "peak_cpu_bytes": 2**30, "peak_gpu_bytes": None, "inputs": {"somewhere": None}, **notes,
    }  # fmt: skip


def stand_in(results, root, model, peer, name="toy-val"):
    """Let a peer's tracks be those of `model`, and score them."""
    tracks = results / "tracks" / model / name
    shutil.rmtree(tracks, ignore_errors=True)
    shutil.copytree(results.parent / "peers" / peer, tracks)
    score.run(tracks, root, results / "scores" / model / f"{name}.json", 200)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run whose base never moves and whose tuned model knows the truth; its folder and its split."""
    folder = tmp_path_factory.mktemp("whole")
    root, results = toy_split(folder / "toy" / "val", sequences=5), folder / "run"
    for stage in config.NEEDS:
        files.write_json(results / "config" / f"{stage}.json", config.stage_values(SETTINGS, stage))
    for peer in ("static", "template", "oracle"):
        track.run(SETTINGS, f"peer:{peer}", root, folder / "peers" / peer)
        stand_in(results, root, peer, peer)
    stand_in(results, root, "base", "static")
    stand_in(results, root, "grpo", "oracle")
    rows = [
        {"step": k, "reward": k / 60, "iou": k / 60, "parsed": 1.0, "kl": None, "flat_groups": 0.1}
        for k in range(1, 31)
    ]
    files.write_text(results / "adapters/grpo/log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    notes = {"quantize": "none", "train_seconds": 90.0}
    files.write_json(results / "adapters/grpo/provenance.json", record("train", **notes))
    files.write_json(
        results / "models/grpo/merge.json",
        {"pairs": 64, "agreement": 0.984375, "agreement_as_trained": None, "base": "tiny"},
    )
    for model, wrong in (("base", 0), ("grpo", 2)):
        write_answers(results / "vqa" / model, wrong)
    verdict.run(SETTINGS, results / "vqa/base", [results / "vqa/grpo"], results / "vqa/verdict.json")
    return results, root


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
    assert len(pictures) == 5 * SETTINGS.report.strip_frames
    assert len(page.alts) == len(pictures) + 1 + len(plots.CURVES)
    assert all(page.alts)


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


def test_page_summary_and_text_hold_the_same_figures(run):
    results, _, make = run
    out = make()
    summary, page = json.loads((out / "summary.json").read_text()), Page((out / "index.html").read_text())
    text = (out / "summary.md").read_text()
    scores = page.text["scores"]
    for model, row in summary["sets"]["toy-val"]["models"].items():
        kept = json.loads((results / "scores" / model / "toy-val.json").read_text())
        assert [row[key] for key in ("ao", "sr50", "sr75", "ao_interval")] == [
            kept[key] for key in ("ao", "sr50", "sr75", "ao_interval")
        ]
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
    assert files.read_json(out / "provenance.json")["stage"] == "report"


def test_the_difference_is_that_of_the_scores_with_the_runs_draws(run):
    results, _, make = run
    base, tuned = (files.read_json(results / "scores" / model / "toy-val.json") for model in ("base", "grpo"))
    change = files.read_json(make() / "summary.json")["sets"]["toy-val"]["differences"]["grpo"]
    assert (change["value"], change["low"], change["high"]) == score.paired_difference(tuned, base, 200)


def test_the_sentence_praises_a_gain_and_names_the_peers_that_are_beaten(run):
    _, _, make = run
    summary = json.loads((make() / "summary.json").read_text())
    assert "grpo tracks better than base" in summary["judgement"]
    assert "and it beats the static box and the template matcher, not the oracle (undecided)" in summary["judgement"]
    assert summary["sets"]["toy-val"]["models"]["base"]["words"].startswith("base beats none of its peers")
    assert "toy world: says that the workflow works, not how good a tracker is" in summary["sets"]["toy-val"]["notes"]


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
    for folder in ("adapters", "models"):
        shutil.copytree(results / folder / "grpo", results / folder / "sft")
    stand_in(results, root, "sft", "static")
    write_answers(results / "vqa/sft", 25)
    arms = [results / "vqa/sft", results / "vqa/grpo"]
    verdict.run(SETTINGS, results / "vqa/base", arms, results / "vqa/verdict.json")
    out = make()
    summary, page = json.loads((out / "summary.json").read_text()), Page((out / "index.html").read_text())
    assert [found["verdict"] for found in summary["verdicts"].values()] == ["REGRESSED", "INCONCLUSIVE"]
    assert summary["verdict"] == summary["verdicts"]["grpo"]
    for arm, found in summary["verdicts"].items():
        assert found["line"] in page.text["general"]
        assert f"{arm}: {found['line']}" in (out / "summary.md").read_text()
        assert f"KL(base || {arm}) on 64 prompts of tracking: 0.2500 nats" in page.text["general"]
    assert "whether its general ability is retained is not decided" in summary["judgement"]


def test_missing_frames_are_said_on_the_page(run):
    results, _, make = run
    place = results / "tracks/base/toy-val/provenance.json"
    files.write_json(place, {**files.read_json(place), "inputs": {"toy/gone": None}})
    page = Page((make() / "index.html").read_text())
    assert "No frames can be shown" in page.text["strips"]
    assert "toy/gone" in page.text["strips"]
    assert not [load for load in page.loads if load.startswith("data:")]


def test_what_a_model_answers_cannot_become_markup(run):
    _, _, make = run
    text = (make() / "index.html").read_text()
    assert "<script" not in text
    assert NASTY in Page(text).text["general"]


def test_a_sequence_without_scored_frames_is_listed_without_a_score(run):
    results, _, make = run
    for path in results.glob("scores/*/toy-val.json"):
        found = files.read_json(path)
        row = next(iter(found["sequences"].values()))
        row.update(ao=None, sr50=None, sr75=None, frames=0, overlap_sum=0.0)
        files.write_json(path, found)
    assert "–" in Page((make() / "index.html").read_text()).text["sequences"]


def test_a_figure_on_got10k_is_never_without_its_note(run):
    results, root, make = run
    for model, peer in (("base", "static"), ("grpo", "oracle"), *((p, p) for p in ("static", "template", "oracle"))):
        stand_in(results, root, model, peer, "got10k-val")
    out = make()
    page, note = (
        Page((out / "index.html").read_text()),
        "validation figures are not comparable with published test figures",
    )
    assert page.text["scores"].count(note) == page.text["sequences"].count(note) == 1
    assert (out / "summary.md").read_text().count(note) == 1


@pytest.mark.parametrize(
    "name",
    [
        "scores/grpo/toy-val.json", "vqa/verdict.json", "adapters/grpo/log.jsonl", "adapters/grpo/provenance.json",
        "models/grpo/merge.json", "tracks/base/toy-val/provenance.json", "config/score.json",
    ],
)  # fmt: skip
def test_an_unfinished_run_is_refused_by_the_name_of_the_missing_file(run, name):
    results, _, make = run
    (results / name).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(name)):
        make()
    assert not (results / "report").exists()


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
