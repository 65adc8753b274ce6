"""The verdict can say no: each of its four words is said when, and only when, the rule asks for it."""

import numpy as np
import pytest
from answers import RULE, soft, write
from scipy import stats

from r1track.ability import records, verdict
from r1track.core import config


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


@pytest.mark.parametrize(("wrong", "word"), [(51, "INVALID"), (52, "RETAINED"), (53, "RETAINED")])
def test_a_gap_of_the_allowed_points_is_allowed_though_floats_make_it_more(wrong, word, tmp_path):
    """89.6 - 81.6 is 8.000000000000014 to the machine."""
    settings = {"vqa": {"sets": {"ai2d": {"published": 81.6}}}}
    folder = write(tmp_path / "base", range(wrong), items=500, name="ai2d", settings=settings)
    assert verdict.judge(folder, folder, RULE).verdict == word


@pytest.mark.parametrize(("unread", "invalid"), [(16, False), (17, False), (18, True)])
def test_unparsed_shares_may_be_the_allowed_points_apart_though_floats_make_it_more(unread, invalid, tmp_path):
    """100 * (17 / 500 - 7 / 500) is 2.0000000000000004 to the machine."""
    folders = [
        write(tmp_path / name, items=500, answers=dict.fromkeys(range(count), " "))
        for name, count in (("base", 7), ("tuned", unread))
    ]
    assert (verdict.judge(*folders, RULE).verdict == "INVALID") == invalid


@pytest.mark.parametrize(("reach", "word", "needed"), [(3, "REGRESSED", None), (6, "INCONCLUSIVE", 10_000)])
def test_a_mean_loss_of_the_margin_is_one_though_floats_make_it_less(reach, word, needed):
    """The mean of these is -1.9999999999999998 to the machine; above -2 by so little, 1e35 items would be asked for."""
    differences = (-2.3, -1.9, -1.8)
    assert -2 < np.mean(differences) < -2 + 1e-12
    figures = records.SetStatistics(
        n=500, base=80.0, tuned=78.0, gained=10, lost=20, difference=0.0, mcnemar_p=0.1, bootstrap_p=0.1,
        tango_lower=-4.0, interval=(0.0, 0.0),
    )  # fmt: skip
    ends = {d: {"difference": d, "interval": (d - reach, d + reach)} for d in differences}
    sets = {str(d): figures.model_copy(update=update) for d, update in ends.items()}
    decision = verdict.decide(sets, [np.full(100, d) for d in differences], [], RULE)
    assert decision.verdict == word
    assert decision.needed_items == needed if needed is None else decision.needed_items < needed


def test_what_the_stage_measured_beside_the_answers_is_kept(base, tmp_path):
    kl = {"tracking": {"prompts": 64, "tokens": 900, "nats": 0.25}}
    judged = verdict.judge(base, write(tmp_path / "tuned", range(0, 600, 5), kl=kl), RULE)
    assert (judged.as_json()["kl"], judged.repeat.items) == (kl, 300)
