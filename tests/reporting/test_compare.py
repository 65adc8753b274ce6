"""Claims about `r1track report --compare`, on made runs of known scores, against closed forms of numpy and scipy."""

import json
import re
import shutil
import subprocess
import sys
import tracemalloc
from html.parser import HTMLParser

import numpy as np
import pytest
from runs import SETTINGS, make_run
from scipy import stats
from small_run import configure
from toys import toy_split
from typer.testing import CliRunner

from r1track import cli
from r1track.core import files
from r1track.core.errors import UserError
from r1track.reporting import compare
from r1track.tracking import score

SHIFTS = {0: 2.0, 1: 5.0, 2: 9.0}  # pixels by which the runs of three seeds are off the truth


def shifted(by):
    """Boxes that are off the truth by about so many pixels, in every sequence by others; the first box is true."""

    def boxes(sequence):
        moved = sequence.boxes.copy()
        moved[1:, 0] += by * (1 + int(sequence.name[-1]) / 5)
        return moved

    return boxes


def seeded(seed, **sections):
    """The settings of a run of a seed, with some fields of sections changed."""
    changed = {name: getattr(SETTINGS, name).model_copy(update=update) for name, update in sections.items()}
    return SETTINGS.model_copy(update={"seed": seed, **changed})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three seeds of one preset, and two of a preset with another learning rate that tracks better."""
    folder = tmp_path_factory.mktemp("runs")
    root = toy_split(folder / "val", sequences=7, length=6)
    for seed, by in SHIFTS.items():
        make_run(folder / f"seed{seed}", root, seeded(seed), shifted(by))
    for seed, by in ((0, 1.0), (1, 2.5)):
        make_run(folder / f"rate{seed}", root, seeded(seed, train={"learning_rate": 3e-5}), shifted(by))
    return folder


@pytest.fixture(scope="module")
def comparison(runs):
    names = ("seed0", "seed1", "rate0", "seed2", "rate1")
    return compare.compare([runs / name for name in names])


def scores(runs, name, model="grpo"):
    return files.read_json(runs / name / "scores" / model / "toy-val.json")


def averaged(runs, names, model="grpo"):
    """Mean over runs of each sequence's sum of overlaps, and the frames of each."""
    rows = [list(scores(runs, name, model)["sequences"].values()) for name in names]
    sums = np.array([[row["overlap_sum"] for row in run] for run in rows])
    return sums.mean(0), np.array([row["frames"] for row in rows[0]])


def test_runs_that_differ_in_the_seed_alone_are_one_group(comparison):
    assert [(run.group, run.seed) for run in comparison.runs] == [
        ("A", 0), ("A", 1), ("B", 0), ("A", 2), ("B", 1),
    ]  # fmt: skip
    assert comparison.fields == {"train.learning_rate": {"A": SETTINGS.train.learning_rate, "B": 3e-5}}


@pytest.mark.parametrize(("figure", "key"), [("AO", "ao"), ("SR.50", "sr50"), ("SR.75", "sr75")])
def test_the_spread_is_that_of_numpy(runs, comparison, figure, key):
    values = [scores(runs, f"seed{seed}")[key] for seed in SHIFTS]
    spread = comparison.groups["A"][f"toy-val: {figure}"]
    assert len(set(values)) > 1
    assert spread._asdict() == pytest.approx(
        {"runs": 3, "mean": np.mean(values), "sd": np.std(values, ddof=1), "min": min(values), "max": max(values)}
    )


def test_the_spread_of_precision_and_recall_of_absent_frames_stands_beside(runs, tmp_path):
    recalls = {"seed0": 0.25, "seed1": 0.5, "seed2": 0.75}
    for name, recall in recalls.items():
        shutil.copytree(runs / name, tmp_path / name)
        path = tmp_path / name / "scores/grpo/toy-val.json"
        presence = {"precision": None if name == "seed0" else 0.9, "recall": recall, "frames": 4}
        files.write_json(path, files.read_json(path) | {"presence": presence})
    group = compare.compare([tmp_path / name for name in recalls]).groups["A"]
    assert group["toy-val: absent frames, recall"] == compare.Spread(3, 0.5, 0.25, 0.25, 0.75)
    assert group["toy-val: absent frames, precision"] == compare.Spread(2, 0.9, 0.0, 0.9, 0.9)


def test_difference_ability_minutes_and_memory_stand_beside(runs, comparison):
    group = comparison.groups["B"]
    gains = [scores(runs, name)["ao"] - scores(runs, name, "base")["ao"] for name in ("rate0", "rate1")]
    assert group["toy-val: AO − base"].mean == pytest.approx(np.mean(gains))
    assert group["training, min"] == compare.Spread(runs=2, mean=1.5, sd=0.0, min=1.5, max=1.5)
    verdicts = [
        files.read_json(runs / n / "vqa/verdict.json")["models"]["grpo"]["difference"] for n in ("rate0", "rate1")
    ]
    assert group["general ability − base, points"].mean == pytest.approx(np.mean(verdicts))
    assert group["memory, GiB"].min > 0
    assert group["GPU memory, GiB"] == compare.Spread(runs=0, mean=None, sd=None, min=None, max=None)


def test_groups_are_paired_by_sequence_over_the_mean_of_their_seeds(runs, comparison):
    test = next(test for test in comparison.tests if test.difference == "B − A")
    better, frames = averaged(runs, ("rate0", "rate1"))
    worse, _ = averaged(runs, ("seed0", "seed1", "seed2"))
    gaps = better - worse
    assert test.value == pytest.approx(gaps.sum() / frames.sum())
    assert test.sequences == len(gaps) == 7
    picks = np.random.default_rng(score.SEED).integers(0, 7, (SETTINGS.score.draws, 7))
    draws = gaps[picks].sum(1) / frames[picks].sum(1)
    assert (test.low, test.high) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])))
    signs = np.array(np.meshgrid(*[[-1, 1]] * 7)).reshape(7, -1).T
    sums = signs @ gaps  # every one of the 2^7 ways to turn the signs
    extreme = min((sums >= gaps.sum() - 1e-9).sum(), (sums <= gaps.sum() + 1e-9).sum())
    assert test.p == pytest.approx(min(1, 2 * extreme / 2**7))


def test_all_gains_of_one_sign_have_the_p_of_the_signed_rank_test(runs, comparison):
    test = next(test for test in comparison.tests if test.difference == "A − base of A")
    tuned, _ = averaged(runs, ("seed0", "seed1", "seed2"))
    base, _ = averaged(runs, ("seed0", "seed1", "seed2"), "base")
    assert (tuned > base).all()
    assert test.p == pytest.approx(stats.wilcoxon(tuned, base, method="exact").pvalue)


def test_what_seeds_do_to_a_difference_is_in_its_interval_and_its_share(runs, comparison):
    test = next(test for test in comparison.crossed if test.difference == "A − base of A")
    assert [other.difference for other in comparison.crossed] == [other.difference for other in comparison.tests]
    gains = []
    for seed in SHIFTS:
        (tuned, frames), (base, _) = (averaged(runs, [f"seed{seed}"], model) for model in ("grpo", "base"))
        gains.append(tuned - base)
    by_seed = np.sum(gains, axis=1) / frames.sum()
    of_seeds = by_seed.var(ddof=1) / 3
    residuals = np.mean(gains, axis=0) - by_seed.mean() * frames
    of_sequences = (residuals**2).sum() / frames.sum() ** 2  # to first order
    assert test.value == pytest.approx(by_seed.mean())
    assert test.share == pytest.approx(of_seeds / (of_seeds + of_sequences), abs=0.05)
    narrow = next(other for other in comparison.tests if other.difference == test.difference)
    assert test.low < narrow.low < narrow.high < test.high


def test_two_runs_of_one_seed_and_the_same_settings_are_refused_and_named(runs, tmp_path):
    twin = shutil.copytree(runs / "seed0", tmp_path / "twin")
    with pytest.raises(UserError, match=r"seed0 and \S+twin have the same settings and seed 0, so they say nothing"):
        compare.compare([runs / "seed0", runs / "seed1", twin])


def test_groups_of_a_study_have_the_names_of_its_variants(runs, tmp_path):
    places = {"seed0": "paper-seed0", "seed1": "paper-seed1", "rate0": "fast-seed0", "rate1": "fast-seed1"}
    folders = [shutil.copytree(runs / name, tmp_path / place) for name, place in places.items()]
    found = compare.compare(folders)
    assert [run.group for run in found.runs] == ["paper", "paper", "fast", "fast"]
    assert [test.difference for test in found.crossed][-1] == "fast − paper"
    assert found.fields["train.learning_rate"] == {"paper": SETTINGS.train.learning_rate, "fast": 3e-5}
    folders[0] = folders[0].rename(tmp_path / "fast-seed0-again")
    assert {run.group for run in compare.compare(folders).runs} == {"A", "B"}, "one folder has another name"


def test_p_is_adjusted_for_the_number_of_tests(comparison):
    raw, adjusted = ([getattr(test, key) for test in comparison.tests] for key in ("p", "p_holm"))
    assert len(raw) == 3
    assert min(adjusted) == pytest.approx(3 * min(raw))
    assert all(a >= p for a, p in zip(adjusted, raw, strict=True))


def test_groups_on_other_true_boxes_are_not_paired_and_the_table_says_so(runs, tmp_path):
    other = make_run(tmp_path / "other", toy_split(tmp_path / "val", sequences=7, length=6, seed=8), seeded(0))
    compare.run([runs / "seed0", other], tmp_path / "out")
    comparison = files.read_json(tmp_path / "out" / "compare.json")
    (test,) = (test for test in comparison["tests"] if test["difference"] == "B − A")
    assert test["refused"].startswith("not paired, other true boxes: ")
    assert "value" not in test
    assert set(comparison["fields"]) == {"true boxes of toy-val"}
    for name in ("index.html", "compare.md"):
        assert test["refused"] in (tmp_path / "out" / name).read_text()


def test_a_set_that_only_one_group_has_is_not_paired(runs, tmp_path):
    other = shutil.copytree(runs / "seed0", tmp_path / "other")
    for place in [*other.glob("tracks/*/toy-val"), *other.glob("scores/*/toy-val.*")]:
        place.rename(place.with_name(place.name.replace("toy-val", "more-val")))
    configure(other, "report", "data", sets={"more-val": "toy/val"})
    tests = compare.compare([runs / "seed1", other]).tests
    refused = {test.set: test.refused for test in tests if test.difference == "B − A"}
    assert refused == {"toy-val": "not paired, not in both", "more-val": "not paired, not in both"}


def test_one_run_has_no_spread_and_equal_runs_no_difference(runs, tmp_path):
    twin = shutil.copytree(runs / "seed0", tmp_path / "twin")
    path = twin / "config/train.json"
    settings = files.read_json(path)
    files.write_json(path, {**settings, "train": {**settings["train"], "learning_rate": 1.0}})
    comparison = compare.compare([runs / "seed0", twin])
    assert comparison.groups["A"]["toy-val: AO"].sd is None
    test = next(test for test in comparison.tests if test.difference == "B − A")
    assert (test.value, test.low, test.high, test.p) == (0, 0, 0, 1)


def test_one_sequence_has_neither_interval_nor_p(tmp_path):
    root = toy_split(tmp_path / "val", sequences=1, length=6)
    for seed in (0, 1):
        make_run(tmp_path / f"seed{seed}", root, seeded(seed), shifted(2.0 + seed))
    compare.run([tmp_path / "seed0", tmp_path / "seed1"], tmp_path / "out")
    (test,) = files.read_json(tmp_path / "out/compare.json")["tests"]
    assert set(test) == {"difference", "set", "sequences", "value"}
    assert test["sequences"] == 1
    assert f"| {test['value']:+.3f} | – | – | – | – |" in (tmp_path / "out/compare.md").read_text()


def test_the_test_of_signs_has_the_same_p_in_any_batch_and_bounded_memory(monkeypatch):
    gaps = np.random.default_rng(0).normal(0.05, 1, 400)
    monkeypatch.setattr(compare, "PERMUTATIONS", 500)
    monkeypatch.setattr(compare, "BLOCK", 2**12)
    whole = stats.permutation_test((gaps,), np.sum, permutation_type="samples", n_resamples=500, rng=score.SEED)
    tracemalloc.start()
    try:
        p = compare._sign_test(gaps)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert p == whole.pvalue
    assert peak < 16 * 8 * compare.BLOCK + 10**6  # all at once: 13 MB


class Cells(HTMLParser):
    """The texts of all table cells, and whether each table has a caption and its heads a scope."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.captions, self.loads, self.inside = [], 0, [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.loads += [value for key, value in attributes if key in ("src", "href")]
        self.captions += tag == "caption"
        self.rows += [[]] if tag == "tr" else []
        self.inside = tag in ("td", "th")
        assert tag != "th" or dict(attributes)["scope"] in ("row", "col")
        if self.inside:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def test_page_text_and_data_have_the_same_figures_from_a_shell(runs, tmp_path):
    folders = [str(runs / f"seed{seed}") for seed in SHIFTS]
    command = [sys.executable, "-m", "r1track", "report", "--compare", *folders, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = Cells((tmp_path / "out/index.html").read_text())
    text = (tmp_path / "out/compare.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")
    ]
    assert page.rows == rows
    assert page.captions == 4
    assert page.loads == []
    comparison = json.loads((tmp_path / "out/compare.json").read_text())
    spread = comparison["groups"]["A"]["toy-val: AO"]
    assert ["A: toy-val: AO", "3", *(f"{spread[key]:.3f}" for key in ("mean", "sd", "min", "max"))] in rows
    (test,) = comparison["tests"]
    assert [f"{test[key]:+.3f}" for key in ("value", "low", "high")] == rows[-1][3:6]
    assert files.read_json(tmp_path / "out/provenance.json")["stage"] == "compare"


@pytest.mark.parametrize("words", [["--compare"], ["A"], ["--results", "A", "--compare", "B"], []])
@pytest.mark.usefixtures("logging_as_it_was")
def test_half_a_command_is_refused(words, tmp_path):
    done = CliRunner().invoke(cli.app, ["report", *words, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "give either --results DIR, or --compare and the results folders" in " ".join(done.output.split())


@pytest.mark.parametrize("names", [["seed0"], ["seed0", "seed0"], ["seed0", "./seed0"]])
def test_one_run_or_one_twice_is_refused(runs, tmp_path, names):
    with pytest.raises(ValueError, match="give two or more results folders, none of them twice"):
        compare.run([runs / name for name in names], tmp_path / "out")


def test_a_run_without_results_is_named(runs, tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        compare.run([runs / "seed0", tmp_path], tmp_path / "out")
