"""The verdict's rule in simulated runs of models of known loss: how often it is wrong."""

import importlib.util

import numpy as np
import pytest

from r1track.core import config


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
