"""Claims about results of another form than their stages write: refused by file and field, never by a traceback."""

import copy
import json
import shutil

import pytest
from small_run import SETTINGS, small_run

from r1track.ability import records, verdict
from r1track.core import config, files
from r1track.core.errors import UserError
from r1track.reporting import report, strips, summary, verify

FORMS = ({}, [], "x", None, [[1]], -1, float("nan"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("whole"), sequences=2, length=4)[0]


@pytest.fixture
def results(whole, tmp_path):
    """A copy of the run that a test may spoil."""
    return shutil.copytree(whole, tmp_path / "run")


def read_all(results):
    """Reads what the page and summary.json are made from; the plots, which take seconds, are not drawn."""
    run = summary.read_run(results)
    for arm in run.logs:
        strips.examples(results / "adapters" / arm / "examples", 9, think=False)
    figures = summary.summarise(run)
    assert report.environment().get_template("summary.md.j2").render(summary=figures)
    assert json.dumps(figures.model_dump(mode="json"), allow_nan=False)


def places(value, path=()):
    """The places of a JSON value: of itself, and of what lies in it; of a list the first three."""
    yield path
    children = [*value.items()] if isinstance(value, dict) else [*enumerate(value)] if isinstance(value, list) else []
    for key, child in children[: 3 if isinstance(value, list) else 40]:
        yield from places(child, (*path, key))


def put(value, path, new):
    """The value with `new` at a place."""
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = put(value[path[0]], path[1:], new)
    return changed


FILES = (
    "adapters/grpo/examples/step-000000.json", "adapters/grpo/provenance.json", "config/report.json",
    "config/track.json", "config/train.json", "models/grpo/merge.json", "scores/grpo/toy-val.json",
    "scores/base/toy-val.json.provenance.json", "tracks/base/toy-val/provenance.json", "vqa/verdict.json",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_value_of_another_form_is_refused_by_its_file_or_is_no_harm(results, name):
    """Every place of the file is given every form in turn. A form that a place may have ends in a whole summary."""
    whole, refusals = files.read_json(results / name), []
    for k, place in enumerate(places(whole)):
        form = FORMS[k % len(FORMS)]
        (results / name).write_text(json.dumps(put(whole, place, form)))
        try:
            read_all(results)
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) >= 3
    assert [words for words in refusals if name not in words and "so they cannot be paired" not in words] == []


@pytest.mark.parametrize("form", [{}, [], "x", None, 3])
@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_of_another_form_is_refused_by_its_name(results, name, form):
    files.write_json(results / name, form)
    with pytest.raises(UserError, match=name):
        read_all(results)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", "a row has no field 'step'"),
        ("[]", "line 31: .*valid dictionary"),
        ('{"step": 31, "iou": []}', "line 31: iou: Input should be a valid number"),
        ('{"step": "x"}', "line 31: step: Input should be a valid number"),
        ("", "line 31: Expecting value"),
    ],
)
def test_a_line_of_a_log_that_is_no_step_is_named(results, line, message):
    path = results / "adapters/grpo/log.jsonl"
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(UserError, match=rf"log\.jsonl[,:] {message}"):
        read_all(results)


def test_a_figure_of_a_log_that_is_not_finite_is_not_logged(results):
    path = results / "adapters/grpo/log.jsonl"
    path.write_text(f'{path.read_text()}{{"step": 31, "iou": NaN, "reward": Infinity}}\n')
    assert summary.read_run(results).logs["grpo"][-1] == {"step": 31, "iou": None, "reward": None}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", "no field 'filtered_resps'"),
        ("[]", "no JSON object, but list"),
        ('["strict"]', "no JSON object, but list"),
        ("3", "no JSON object, but int"),
        ("null", "no JSON object, but NoneType"),
        ('{"strict": []}', "no field 'doc_id'.*strict: Input should be a valid number"),
    ],
)
def test_a_line_of_answers_that_is_no_answer_is_named(results, line, message):
    path = results / "vqa/grpo/easy-vqa.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(UserError, match=rf"easy-vqa\.jsonl, line 1: .*{message}"):
        records.read_answers(path)


@pytest.mark.parametrize("score", [5.0, -0.1, float("nan"), "many"])
def test_a_score_that_is_no_share_is_refused(results, score):
    path = results / "vqa/grpo/easy-vqa.jsonl"
    row = json.loads(path.read_text().split("\n")[0])
    path.write_text(json.dumps({**row, "strict": score}) + "\n")
    with pytest.raises(UserError, match=r"line 1: strict: "):
        records.read_answers(path)


@pytest.mark.parametrize("form", [{"vqa": []}, {"vqa": {"sets": [3]}}, {"vqa": {"sets": {"easy-vqa": "x"}}}, {}])
def test_settings_of_another_form_in_a_manifest_do_not_stop_a_verdict(results, form):
    for model in ("base", "grpo"):
        files.write_json(results / "vqa" / model / "manifest.json", {"settings": form})
    judged = verdict.judge(results / "vqa/base", results / "vqa/grpo", SETTINGS.verdict)
    assert judged.sets["easy-vqa"].n == 30


@pytest.mark.parametrize("published", ["92.1", [92.1]])
def test_a_published_score_that_is_no_number_is_named(results, published):
    form = {"vqa": {"sets": {"easy-vqa": {"published": published}}}}
    files.write_json(results / "vqa/base/manifest.json", {"settings": form})
    with pytest.raises(UserError, match=r"manifest\.json: settings\.vqa\.sets\.easy-vqa\.published: .*is no number"):
        verdict.judge(results / "vqa/base", results / "vqa/grpo", SETTINGS.verdict)


def test_a_broken_picture_is_named_on_the_page_and_all_else_is_there(results, whole):
    folder = results / "adapters/grpo/examples"
    broken, gone = sorted(path for path in folder.iterdir() if path.suffix != ".json")[:2]
    broken.write_bytes(broken.read_bytes()[:60])
    gone.unlink()
    frame = whole.parent / "toy/val/Toy_Val_000001/00000002.jpg"
    kept = frame.read_bytes()
    frame.write_bytes(kept[:200])
    try:
        report.run(config.load(results / "config/report.json"), results, results / "report")
    finally:
        frame.write_bytes(kept)
    page = (results / "report/index.html").read_text()
    for path in (broken, gone, frame):
        assert page.count(f"cannot be shown, since {path.name} is missing, cut short or no picture") == 1, path
    frames = 2 * 3  # two sequences of four frames, the first of which is given
    assert page.count("<image href=") == frames - 1 + 3 * 2 - 2


def test_a_file_of_another_form_stops_no_other_check_of_verify(results):
    report.run(config.load(results / "config/report.json"), results, results / "report")
    for name in ("scores/base/toy-val.json.provenance.json", "vqa/verdict.json", "tracks/grpo/toy-val/provenance.json"):
        files.write_json(results / name, [])
    files.write_json(results / "report/summary.json", {"run": "run", "sets": []})
    findings = [finding for rows in verify.examine(results).values() for finding in rows]
    for name in ("scores/base/toy-val.json.provenance.json", "tracks/grpo/toy-val/provenance.json"):
        assert [f.words for f in findings if (f.state, f.file) == ("altered", name) and "valid dictionary" in f.words]
    assert ("altered", "vqa/verdict.json") in {(finding.state, finding.file) for finding in findings}
    assert [finding for finding in findings if finding.state == "agrees" and finding.file.startswith("scores/grpo")]
