"""The stage `verdict`: what it writes and logs for each arm, and when it stops the run."""

import logging

import pytest
from answers import RULE, write

from r1track.ability import verdict
from r1track.core import config, files


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
