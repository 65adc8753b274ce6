"""What the verdict reads: its own answers, and samples of lmms-eval; what is broken, doubled or missing is refused."""

import json

import pytest
from answers import RULE

from r1track.ability import verdict


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
