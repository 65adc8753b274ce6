"""The verdict can say no: each of its four words is said when, and only when, the rule asks for it."""

import importlib.util
import json
import logging

import numpy as np
import pytest
from scipy import stats

from r1track.ability import verdict
from r1track.core import config, files, schema

RULE = schema.Verdict(draws=2000)


def write(folder, wrong=(), *, items=600, name="easy", answers=None, per_image=1, **manifest):
    """A folder of answers to `items` questions, right but for the places in `wrong`; `answers` replaces some."""
    folder.mkdir(exist_ok=True)
    rows = []
    for place in range(items):
        right = float(place not in wrong)
        answer = (answers or {}).get(place, "yes" if right else "no")
        row = {"doc_id": str(place), "input": "is it?", "target": "yes", "filtered_resps": answer, "doc_hash": "f" * 64}
        scores = {"strict": right, "lenient": right, "unparsed": float(not answer.strip())}
        rows.append(row | {"image": f"i{place // per_image}"} | scores)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if manifest:
        files.write_json(folder / "manifest.json", manifest)
    return folder


@pytest.fixture
def base(tmp_path):
    return write(tmp_path / "base", range(0, 600, 5), self={"items": 300, "difference": 0.0, "changed": 0})


def flipped(share, items=600, seed=0):
    """Places of that share of the items that the base of the tests answers rightly."""
    right = [place for place in range(items) if place % 5]
    return np.random.default_rng(seed).choice(right, int(share * items), replace=False).tolist()


def test_identical_answers_are_retained(base):
    judged = verdict.judge(base, base, RULE)
    assert (judged.verdict, judged.difference) == ("RETAINED", 0)
    assert judged.sets["easy"].as_json() | {"leaks": 0, "tango_lower": 0, "interval": 0} == {
        "n": 600, "base": 80, "tuned": 80, "gained": 0, "lost": 0, "difference": 0, "lenient_difference": 0,
        "mcnemar_p": 1, "bootstrap_p": 1, "tango_lower": 0, "interval": 0, "flagged": False, "leaks": 0, "flips": [],
    }  # fmt: skip


def test_no_change_among_n_items_leaves_the_doubt_that_the_score_bound_leaves(base):
    z = stats.norm.ppf(1 - RULE.alpha / 2)
    reach = 100 * z**2 / (600 + z**2)
    assert verdict.judge(base, base, RULE).interval == pytest.approx([-reach, reach])
    few = RULE.model_copy(update={"margin": 0.6})
    assert verdict.judge(base, base, few).verdict == "INCONCLUSIVE"
    assert verdict.judge(base, base, few).needed_items > 600


def test_a_broken_model_is_regressed_and_its_set_flagged(base, tmp_path):
    tuned = write(tmp_path / "tuned", {*range(0, 600, 5), *flipped(0.3)})
    judged = verdict.judge(base, tuned, RULE)
    assert judged.verdict == "REGRESSED"
    assert judged.difference == pytest.approx(-30)
    easy = judged.sets["easy"]
    assert easy.flagged
    assert (easy.gained, easy.lost) == (0, 180)
    assert easy.mcnemar_p < 1e-9
    assert easy.tango_lower < -30
    assert len(easy.flips) == 20
    assert easy.flips[0].base == "yes"
    assert easy.flips[0].tuned == "no"


def test_a_sure_loss_beyond_the_margin_is_regressed_without_any_flag(base, tmp_path):
    judged = verdict.judge(base, write(tmp_path / "tuned", {*range(0, 600, 5), *flipped(0.025)}), RULE)
    assert judged.verdict == "REGRESSED"
    assert not judged.sets["easy"].flagged


def test_a_loss_that_is_not_significant_is_not_retained(base, tmp_path):
    gained, lost = [0, 5, 10, 15, 20, 25, 30, 35, 40, 45], flipped(0.025)
    judged = verdict.judge(base, write(tmp_path / "tuned", {*range(0, 600, 5), *lost} - {*gained}), RULE)
    assert judged.sets["easy"].mcnemar_p > 0.05
    assert judged.verdict == "INCONCLUSIVE"
    variance, gap = (25 / 600 - (5 / 600) ** 2), 0.02 - 5 / 600
    assert judged.needed_items == pytest.approx(7.849 * variance / gap**2, rel=0.25)  # the score bound reaches further
    assert judged.needed_items > 600
    assert str(judged.needed_items) in judged.reasons[0]


def test_questions_on_shared_images_count_for_less(tmp_path):
    lost = [place for start in range(0, 600, 200) for place in range(start, start + 6)]
    gained = [place for start in range(100, 600, 200) for place in range(start, start + 6)]
    width = {}
    for per_image in (1, 6):
        base = write(tmp_path / f"base{per_image}", gained, per_image=per_image)
        tuned = write(tmp_path / f"tuned{per_image}", lost, per_image=per_image)
        low, high = verdict.judge(base, tuned, RULE).interval
        width[per_image] = high - low
    assert width[6] / width[1] == pytest.approx(6**0.5, rel=0.25)


def test_pooled_difference_is_the_unweighted_mean_of_the_sets(tmp_path):
    for folder, wrong in (("base", ()), ("tuned", range(60))):
        write(tmp_path / folder, wrong, items=400, name="small")
        write(tmp_path / folder, (), items=1200, name="large")
    judged = verdict.judge(tmp_path / "base", tmp_path / "tuned", RULE)
    assert judged.difference == pytest.approx(-15 / 2)
    assert [judged.sets[name].flagged for name in ("small", "large")] == [True, False]
    assert judged.interval[0] < judged.difference < judged.interval[1]


def test_one_set_that_is_lost_regresses_a_model_whose_mean_stays_within_the_margin(tmp_path):
    for folder, wrong in (("base", ()), ("tuned", range(14))):
        write(tmp_path / folder, wrong, items=400, name="small")
        write(tmp_path / folder, (), items=1200, name="large")
    judged = verdict.judge(tmp_path / "base", tmp_path / "tuned", RULE)
    assert judged.difference == pytest.approx(-1.75)
    assert (judged.verdict, judged.reasons) == ("REGRESSED", ["small lost 3.50 points"])


def test_a_large_loss_flags_no_set_while_it_may_be_chance(tmp_path):
    base, tuned = write(tmp_path / "base", range(10), items=300), write(tmp_path / "tuned", range(10, 30), items=300)
    easy = verdict.judge(base, tuned, RULE).sets["easy"]
    assert easy.difference == pytest.approx(-10 / 3)
    assert easy.mcnemar_p > 0.05
    assert not easy.flagged


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_boxes_as_answers_are_invalid_with_the_leak_named(base, tmp_path, side):
    tuned = write(tmp_path / "tuned", range(0, 600, 5))
    write(tmp_path / side, range(0, 600, 5), answers=dict.fromkeys(range(7), "[12, 30, 50, 80]"))
    judged = verdict.judge(base, tuned, RULE)
    assert judged.verdict == "INVALID"
    assert f"1.2% of the answers of {side} are boxes" in judged.reasons[0]
    write(tmp_path / side, range(0, 600, 5), answers=dict.fromkeys(range(6), "[12, 30, 50, 80]"))
    assert verdict.judge(base, tuned, RULE).verdict == "RETAINED"


def test_a_model_that_is_broken_and_answers_boxes_is_invalid_not_regressed(base, tmp_path):
    tuned = write(tmp_path / "tuned", range(600), answers=dict.fromkeys(range(600), "[1, 2, 3, 4]"))
    judged = verdict.judge(base, tuned, RULE)
    assert judged.verdict == "INVALID"
    assert judged.difference == pytest.approx(-80)


def test_unparsed_answers_are_invalid(base, tmp_path):
    tuned = write(tmp_path / "tuned", range(0, 600, 5), answers=dict.fromkeys(range(13), " "))
    judged = verdict.judge(base, tuned, RULE)
    assert judged.verdict == "INVALID"
    assert "unparsed answers changed by +2.2 points" in judged.reasons[0]


def test_other_items_are_invalid(base, tmp_path):
    judged = verdict.judge(base, write(tmp_path / "tuned", range(0, 600, 5), items=601), RULE)
    assert judged.verdict == "INVALID"
    assert judged.reasons == ["easy: item ids differ: 600 answered by both, 0 only by base, 1 only by tuned"]


def test_other_images_under_the_same_ids_are_invalid(base, tmp_path):
    tuned = write(tmp_path / "tuned", range(0, 600, 5))
    path = tuned / "easy.jsonl"
    path.write_text(path.read_text().replace("f" * 64, "e" * 64, 1))
    judged = verdict.judge(base, tuned, RULE)
    assert judged.verdict == "INVALID"
    assert "1 items differ in doc_hash, target, first 0" in judged.reasons[0]


def test_a_set_that_one_model_was_not_asked_is_invalid_and_has_no_figures(base, tmp_path):
    judged = verdict.judge(base, write(tmp_path / "tuned", name="other"), RULE)
    assert (judged.verdict, judged.difference, judged.interval) == ("INVALID", None, None)
    assert len(judged.reasons) == 2
    assert "INVALID: easy: item ids differ" in judged.summary


def test_too_few_items_are_invalid(tmp_path):
    base = write(tmp_path / "base", items=299)
    judged = verdict.judge(base, base, RULE)
    assert judged.verdict == "INVALID"
    assert "299 items, fewer than 300" in judged.reasons[0]


def test_a_base_that_differs_from_itself_is_invalid(tmp_path):
    for difference, word in ((-0.6, "INVALID"), (0.5, "RETAINED")):
        noise = {"items": 300, "difference": difference, "changed": 9}
        judged = verdict.judge(*[write(tmp_path / "base", self=noise)] * 2, RULE)
        assert judged.verdict == word
        assert judged.repeat.as_json() == noise


def test_models_asked_under_different_settings_are_invalid(tmp_path):
    folders = [write(tmp_path / name, settings={"vqa": {"batch": batch}}) for name, batch in (("a", 8), ("b", 16))]
    judged = verdict.judge(*folders, RULE)
    assert judged.verdict == "INVALID"
    assert judged.reasons == ["base and tuned were asked with different settings: vqa"]


def run(rule, base, tuned, out):
    verdict.run(config.Settings(verdict=rule), base, tuned, out)
    return files.read_json(out)


def test_the_rules_hash_changes_with_the_rule_but_not_with_what_follows_from_it(base, tmp_path):
    changes = ({}, {"on_regression": "warn"}, {"margin": 2.5}, {"max_self_gap": 0.6}, {"seed": 1})
    hashes = [
        run(RULE.model_copy(update=change), base, [base], tmp_path / "verdict.json")["rule_sha256"]
        for change in changes
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes[1:])) == 4


@pytest.mark.parametrize(("on_regression", "stops"), [("fail", True), ("warn", False)])
def test_a_regression_is_written_and_logged_before_it_stops_the_run(base, tmp_path, caplog, on_regression, stops):
    tuned, out = write(tmp_path / "tuned", range(600)), tmp_path / "out" / "verdict.json"
    judged = run(RULE.model_copy(update={"on_regression": on_regression}), base, [tuned], out)
    if stops:
        with pytest.raises(ValueError, match=r"tuned: REGRESSED: -80\.00 points .* easy lost 80\.00 points"):
            verdict.gate(out, on_regression)
    else:
        verdict.gate(out, on_regression)
    assert judged["models"]["tuned"]["verdict"] == "REGRESSED"
    assert "REGRESSED: -80.00 points" in caplog.text
    assert sorted(path.name for path in out.parent.iterdir()) == ["verdict.json", "verdict.json.provenance.json"]


def test_every_arm_has_its_verdict_and_only_the_last_stops_the_run(base, tmp_path):
    lost, retained = write(tmp_path / "sft", range(600)), write(tmp_path / "grpo", range(0, 600, 5))
    judged = run(RULE, base, [lost, retained], tmp_path / "verdict.json")
    assert [(name, arm["verdict"]) for name, arm in judged["models"].items()] == [
        ("sft", "REGRESSED"), ("grpo", "RETAINED"),
    ]  # fmt: skip
    verdict.gate(tmp_path / "verdict.json", "fail")
    run(RULE, base, [retained, lost], tmp_path / "verdict.json")
    with pytest.raises(ValueError, match="sft: REGRESSED"):
        verdict.gate(tmp_path / "verdict.json", "fail")


def test_two_folders_of_one_name_are_refused(base, tmp_path):
    (tmp_path / "other").mkdir()
    twin = write(tmp_path / "other" / "base")
    with pytest.raises(ValueError, match="two folders of one name"):
        run(RULE, base, [base, twin], tmp_path / "verdict.json")


def test_a_kept_ability_is_logged_in_one_line(base, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run(RULE, base, [base], tmp_path / "verdict.json")
    lines = [record.getMessage() for record in caplog.records if record.name == "r1track.ability.verdict"]
    assert len(lines) == 1
    assert lines[0].startswith(
        "base: RETAINED: +0.00 points [-0.64, +0.64], margin 2: a loss as large as the margin is ruled out"
    )


def test_a_write_that_breaks_leaves_the_old_verdict(base, tmp_path, monkeypatch):
    out = tmp_path / "verdict.json"
    out.write_text("old")
    out.with_name("verdict.json.provenance.json").write_text('{"stage": "verdict"}')
    judged = verdict.judge(base, base, RULE).model_copy(update={"difference": float("nan")})
    monkeypatch.setattr(verdict, "judge", lambda *_: judged)
    with pytest.raises(ValueError, match="not JSON compliant"):
        run(RULE, base, [base], out)
    assert out.read_text() == "old"
    files = ["base", "verdict.json", "verdict.json.provenance.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def soft(folder, scores):
    """A folder of answers to one set with partial scores."""
    write(folder, items=len(scores), name="soft")
    path = folder / "soft.jsonl"
    rows = [json.loads(line) | {"strict": s} for line, s in zip(path.read_text().splitlines(), scores, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_partial_scores_are_judged_by_the_bootstrap_and_not_by_mcnemar(tmp_path):
    random = np.random.default_rng(0)
    before = random.choice([0, 0.3, 0.6, 0.9, 1], size=800)
    loss = np.where(random.random(800) < 0.2, 0.3, 0) * (before >= 0.3)
    judged = verdict.judge(soft(tmp_path / "base", before), soft(tmp_path / "tuned", before - loss), RULE)
    partial = judged.sets["soft"]
    assert judged.verdict == "REGRESSED"
    assert partial.flagged
    assert (partial.mcnemar_p, partial.gained, partial.lost) == (None, 0, int((loss > 0).sum()))
    assert partial.difference == pytest.approx(-100 * loss.mean())
    theirs = stats.bootstrap(
        (-100 * loss,), np.mean, n_resamples=5000, confidence_level=0.9, method="percentile", rng=1
    )
    low, high = partial.interval  # the score bounds are wider: they do not know how small the steps are
    assert low < theirs.confidence_interval.low
    assert theirs.confidence_interval.high < high < 0


def test_boxes_are_no_leak_where_a_box_is_asked_for(base, tmp_path):
    path = base / "easy.jsonl"
    path.write_text(path.read_text().replace('"yes"', '"[1, 2, 3, 4]"'))
    assert verdict.judge(base, base, RULE).sets["easy"].leaks["base"].box == 0


def test_a_base_far_from_its_published_score_is_invalid(tmp_path):
    for published, word in ((71.9, "INVALID"), (72.0, "RETAINED"), (None, "RETAINED")):
        settings = {"vqa": {"sets": {"easy": {"published": published}}}}
        folder = write(tmp_path / "base", range(0, 600, 5), settings=settings)
        judged = verdict.judge(folder, folder, RULE)
        assert judged.verdict == word
    judged = verdict.judge(
        *[write(tmp_path / "base", settings={"vqa": {"sets": {"easy": {"published": 95.0}}}})] * 2, RULE
    )
    assert judged.verdict == "RETAINED"


PUBLISHED = {"mmstar": (55.9, 63.9), "textvqa": (79.3, 84.9), "chartqa": (84.0, 87.3), "ai2d": (81.6, 83.9),
             "refcoco": (89.1, 90.0), "ocrbench": (79.7, 86.4)}  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "base", "column", "shift", "word"),
    [
        ("best", "Qwen/Qwen2.5-VL-3B-Instruct", 0, 7.5, "RETAINED"),
        ("best", "Qwen/Qwen2.5-VL-3B-Instruct", 0, 8.5, "INVALID"),
        ("best-7b", "Qwen/Qwen2.5-VL-7B-Instruct", 1, 7.5, "RETAINED"),
        ("best-7b", "Qwen/Qwen2.5-VL-7B-Instruct", 1, -8.5, "INVALID"),
        ("best", "someone/another-base", 0, -30, "RETAINED"),
    ],
)
def test_a_base_is_measured_by_its_own_published_scores(preset, base, column, shift, word, tmp_path):
    settings = config.stage_values(config.resolve({"preset": preset, "model": {"base": base}}), "vqa")
    for name, scores in PUBLISHED.items():
        wrong = round(6 * (100 - scores[column] - shift))
        write(tmp_path / "base", range(wrong), name=name, settings=settings)
    judged = verdict.judge(tmp_path / "base", tmp_path / "base", RULE)
    assert judged.verdict == word
    assert (len(judged.reasons) == len(PUBLISHED)) == (word == "INVALID")


def test_what_the_stage_measured_beside_the_answers_is_kept(base, tmp_path):
    kl = {"tracking": {"prompts": 64, "tokens": 900, "nats": 0.25}}
    judged = verdict.judge(base, write(tmp_path / "tuned", range(0, 600, 5), kl=kl), RULE)
    assert (judged.as_json()["kl"], judged.repeat.items) == (kl, 300)


def sample(place, score, **metric):
    """A sample as lmms-eval 0.7.3 logs it."""
    return {
        "doc_id": place, "target": "red", "filtered_resps": "red" if score else "teal", "token_counts": [None],
        "doc_hash": f"{place:064d}", **metric, "input": "What colour?",
    }  # fmt: skip


FORMS = {
    "textvqa_val": lambda k, s: sample(k, s, exact_match=0.9 * s, submission={"question_id": k, "answer": "red"}),
    "chartqa": lambda k, s: sample(k, s, relaxed_overall=float(s), relaxed_human_split=float(s)),
    "mmstar": lambda k, s: sample(k, s, math={"question_id": k, "score": s}, average={"question_id": k, "score": s}),
    "pope": lambda k, s: sample(k, s, pope_accuracy={"question_id": k, "score": s, "prediction": "yes"}),
    "listed": lambda k, s: sample(k, s, anls=s) | {"filtered_resps": [["red"]]},
}


@pytest.mark.parametrize("name", FORMS)
def test_samples_that_lmms_eval_logged_are_judged(name, tmp_path):
    for model, wrong in (("base", 5), ("tuned", 4)):
        folder = tmp_path / model / "Qwen__Qwen2.5-VL-3B-Instruct"
        folder.mkdir(parents=True)
        rows = [FORMS[name](place, int(place % wrong != 0)) for place in range(400)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"20260101_120000_samples_{name}.jsonl").write_text(text)
    judged = verdict.judge(tmp_path / "base", tmp_path / "tuned", RULE)
    worth = 90 if name == "textvqa_val" else 100
    assert judged.sets[name].base == pytest.approx(0.8 * worth)
    assert judged.sets[name].difference == pytest.approx(-0.05 * worth)
    assert (judged.sets[name].gained, judged.sets[name].lost) == (60, 80)
    assert judged.sets[name].flips[0].question == "What colour?"


def test_two_files_of_one_task_are_refused(tmp_path):
    text = json.dumps(FORMS["chartqa"](0, 1)) + "\n"
    for day in ("20260101_120000", "20260102_120000"):
        (tmp_path / f"{day}_samples_chartqa.jsonl").write_text(text)
    with pytest.raises(ValueError, match="a second file of the set chartqa"):
        verdict.judge(tmp_path, tmp_path, RULE)


def test_samples_without_a_score_are_refused_with_what_they_have(tmp_path):
    path = tmp_path / "20260101_samples_refcoco.jsonl"
    path.write_text(json.dumps(sample(0, 1, refcoco_IoU={"pred": [0, 0, 1, 1]})) + "\n")
    with pytest.raises(ValueError, match=r"line 1: no score from 0 to 1 among \['refcoco_IoU'\]"):
        verdict.judge(tmp_path, tmp_path, RULE)


def test_folders_that_hold_no_answers_are_refused(base, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no <set>\.jsonl in it"):
        verdict.judge(base, tmp_path / "none", RULE)


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", r"line 601: Expecting"), ('{"doc_id": "1"}', "line 601: no field 'filtered_resps'"), ("3", "line 601")],
)
def test_broken_rows_are_refused_with_file_and_line(base, line, message):
    path = base / "easy.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=message):
        verdict.judge(base, base, RULE)


def test_a_question_that_stands_twice_is_refused(base):
    path = base / "easy.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match="601 rows have only 600 doc_ids"):
        verdict.judge(base, base, RULE)


@pytest.fixture(scope="module")
def bench():
    """bench/verdict.py, which simulates models of known loss."""
    spec = importlib.util.spec_from_file_location("bench_verdict", config.ROOT / "bench" / "verdict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_simulated_models_have_the_loss_that_they_are_said_to_have(bench):
    for soft in (False, True):
        scores = bench.scores(np.random.default_rng(0), 300_000, -0.02, 0.16, 3, soft)
        assert (scores[:, 1] - scores[:, 0]).mean() == pytest.approx(-0.02, abs=0.003)
        assert (scores[:, 1] != scores[:, 0]).mean() == pytest.approx(0.16, abs=0.005)
        assert scores.min() >= 0
        assert scores.max() <= 1


@pytest.mark.parametrize("name", ["one set of 500", "one set of 1500, three questions on an image"])
def test_in_simulated_runs_the_rule_is_wrong_in_at_most_a_twentieth(bench, name):
    case = next(case for case in bench.CASES if case[0] == name)
    assert bench.simulate(case, -2, 200)["RETAINED"] <= 5
    assert bench.simulate(case, 0, 200)["REGRESSED"] <= 5
    assert bench.simulate(case, -5, 50)["REGRESSED"] >= 90


def test_the_table_of_the_docs_has_every_case_and_no_error_above_a_twentieth(bench):
    text = (config.ROOT / "docs" / "verdict.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.endswith(" % |")]
    assert [(row[0], int(row[2])) for row in rows] == [(c[0], d) for c in bench.CASES for d in bench.DIFFERENCES]
    for _, _, difference, retained, regressed, _ in rows:
        assert difference != "-2" or float(retained.split()[0]) <= 5
        assert difference != "+0" or float(regressed.split()[0]) <= 5
