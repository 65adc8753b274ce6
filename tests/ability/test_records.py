"""Records are written as they are read, and a file that holds something else is refused with its field."""

import json

import pytest
from runs import SETTINGS, make_answers

from r1track.ability import records, verdict
from r1track.core import files


@pytest.fixture
def results(tmp_path):
    """Answers of two models, and the verdict on them."""
    for model, wrong in (("base", 0), ("grpo", 2)):
        make_answers(tmp_path / model, wrong, SETTINGS)
    verdict.run(SETTINGS, tmp_path / "base", [tmp_path / "grpo"], tmp_path / "verdict.json")
    return tmp_path


def test_what_is_read_through_a_record_is_what_stands_in_the_file(results):
    for name, record in (("verdict.json", records.Verdicts), ("grpo/manifest.json", records.Manifest)):
        again = json.loads(json.dumps(files.read_record(results / name, record).as_json()))
        assert again == files.read_json(results / name)
        assert list(again) == list(files.read_json(results / name))
    lines = (results / "grpo/easy-vqa.jsonl").read_text().split("\n")[:-1]
    assert [json.dumps(row.as_json()) for row in records.read_answers(results / "grpo/easy-vqa.jsonl")] == lines


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("needed_items", None, "no field 'models.grpo.needed_items'"),
        ("verdict", "FINE", "models.grpo.verdict: Input should be 'INVALID'"),
        ("more", 1, "models.grpo.more: Extra inputs are not permitted"),
    ],
)
def test_a_verdict_with_a_faulty_field_is_refused_with_file_and_field(results, field, value, message):
    path = results / "verdict.json"
    values = files.read_json(path)
    if value is None:
        del values["models"]["grpo"][field]
    else:
        values["models"]["grpo"][field] = value
    files.write_json(path, values)
    with pytest.raises(ValueError, match=rf"verdict\.json: {message}.*; delete it and rerun the stage"):
        verdict.gate(path, "warn")


def test_an_answer_that_lacks_a_score_is_refused_with_file_and_line(results):
    path = results / "grpo/easy-vqa.jsonl"
    path.write_text(path.read_text().replace(', "lenient": 1.0', "", 1))
    with pytest.raises(ValueError, match=r"easy-vqa\.jsonl, line 3: no field 'lenient'; write the file anew"):
        records.read_answers(path)
