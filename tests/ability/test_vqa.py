"""The stage `vqa`: questions are asked alike, in batches and once, and written whole with their scores."""

import json

import pytest
from asked_sets import TINY, load, own_folder

from r1track.ability import records, verdict, vqa
from r1track.core import config, files, models, schema

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def settings():
    spec = schema.VqaSet(items=350, prompt='{"q": "{question}"}', max_tokens=5)
    return config.Settings(model=TINY, vqa=schema.Vqa(batch=100, sets={"easy": spec}))


@pytest.fixture
def calls(monkeypatch):
    """A fake model that answers yes, but red in the first of the smaller batches; the list of its calls."""
    log = []

    def answer(loaded, questions, images, *, max_tokens, batch):
        log.append({"loaded": loaded, "questions": questions, "images": images, "tokens": max_tokens, "batch": batch})
        changed = batch < 100 and not any(call["batch"] < 100 for call in log[:-1])
        return ["red" if changed else "yes"] * len(questions)

    monkeypatch.setattr(models, "load", lambda model, settings: models.Loaded(f"loaded {model}", None, None))
    monkeypatch.setattr(models, "generate", answer)
    return log


def read_rows(path):
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def test_the_stage_writes_scored_rows_and_a_manifest(settings, calls, tmp_path):
    vqa.run(settings, "tiny", tmp_path / "out")
    rows, manifest = read_rows(tmp_path / "out" / "easy.jsonl"), files.read_json(tmp_path / "out" / "manifest.json")
    assert len(rows) == 350
    assert all(row["strict"] == row["lenient"] == (row["target"] == "yes") for row in rows)
    entry = manifest["sets"]["easy"]
    assert entry["items"] == {row["doc_id"]: row["image"] for row in rows}
    assert entry["strict"] == pytest.approx(100 * sum(row["target"] == "yes" for row in rows) / 350)
    assert entry["sha256"] == files.hash_file(tmp_path / "out" / "easy.jsonl")
    assert manifest["settings"] == config.stage_values(settings, "vqa")
    assert manifest["kl"] == {}
    assert files.read_json(tmp_path / "out" / "provenance.json")["stage"] == "vqa"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_rows_have_the_fields_of_lmms_evals_samples(settings, calls, tmp_path):
    vqa.run(settings, "tiny", tmp_path / "out")
    row = read_rows(tmp_path / "out" / "easy.jsonl")[0]
    assert {key: type(row[key]) for key in ("doc_id", "input", "target", "filtered_resps", "doc_hash")} == {
        "doc_id": str, "input": str, "target": str, "filtered_resps": str, "doc_hash": str,
    }  # fmt: skip
    assert {key for key in row if key not in records.NO_SCORE} == {
        "strict", "lenient", "unparsed", "metric", "targets",
    }  # fmt: skip


def test_questions_go_out_in_batches_with_their_own_image_and_the_prompt_filled_in(settings, calls, tmp_path):
    vqa.run(settings, "tiny", tmp_path / "out")
    first = [call for call in calls if call["batch"] == 100]
    assert [len(call["questions"]) for call in first] == [100, 100, 100, 50]
    assert {call["tokens"] for call in calls} == {5}
    assert {call["loaded"].model for call in calls} == {"loaded tiny"}
    rows = read_rows(tmp_path / "out" / "easy.jsonl")
    texts = [question[0]["content"][1]["text"] for call in first for question in call["questions"]]
    assert texts == [row["input"] for row in rows]
    assert all(text.startswith('{"q": "') and text.endswith('?"}') for text in texts)
    shown = [image[0] for call in first for image in call["images"]]
    own = {item.doc_id: item.picture() for item in load(settings.vqa.sets["easy"])}
    assert all(image == own[row["doc_id"]] for image, row in zip(shown, rows, strict=True))


def test_images_of_one_size_are_asked_together_the_largest_first_and_written_in_their_own_order(
    settings, calls, stored, tmp_path
):
    source = stored({"question": [f"q{k}" for k in range(8)], "answer": ["yes", "no"] * 4})
    spec = schema.VqaSet(source=source, items=8)
    changed = settings.model_copy(update={"vqa": schema.Vqa(batch=4, sets={"own": spec})})
    vqa.run(changed, "tiny", tmp_path / "out")
    sizes = [{image[0].size for image in call["images"]} for call in calls if call["batch"] == 4]
    assert sizes == [{(60, 120)}, {(40, 30)}]
    rows = read_rows(tmp_path / "out" / "own.jsonl")
    assert [row["doc_id"] for row in rows] == [str(k) for k in range(8)]
    assert [row["input"] for row in rows] == [
        f"q{k}\nAnswer the question using a single word or phrase." for k in range(8)
    ]


def test_a_part_is_asked_again_in_smaller_batches_and_the_change_is_kept(settings, calls, tmp_path):
    vqa.run(settings, "tiny", tmp_path / "out")
    again = [len(call["questions"]) for call in calls if call["batch"] == 50]
    assert again == [50] * 6
    noise = files.read_json(tmp_path / "out" / "manifest.json")["self"]
    assert noise["items"] == 300
    assert noise["changed"] == 50

    def questions_and_images(call):
        return [
            (q[0]["content"][1]["text"], i[0].tobytes()) for q, i in zip(call["questions"], call["images"], strict=True)
        ]

    rows = read_rows(tmp_path / "out" / "easy.jsonl")
    first = [pair for call in calls if call["batch"] == 100 for pair in questions_and_images(call)]
    target = {pair: row["target"] for pair, row in zip(first, rows, strict=True)}
    moved = [target[pair] for pair in questions_and_images(next(call for call in calls if call["batch"] == 50))]
    assert noise["difference"] == pytest.approx(100 * (moved.count("red") - moved.count("yes")) / 300)
    assert moved.count("yes") > moved.count("red")


def test_a_broken_run_writes_nothing_and_the_next_asks_only_the_sets_that_are_not_finished(
    settings, calls, tmp_path, monkeypatch
):
    two = {name: schema.VqaSet(items=20) for name in ("first", "second")}
    changed = settings.model_copy(update={"vqa": schema.Vqa(batch=100, sets=two)})
    answer = models.generate

    def stop(*words, **more):
        if len(calls) == 2:  # the first set, and a part of it again
            raise RuntimeError("killed")
        return answer(*words, **more)

    monkeypatch.setattr(models, "generate", stop)
    with pytest.raises(RuntimeError, match="killed"):
        vqa.run(changed, "tiny", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    calls.clear()
    monkeypatch.setattr(models, "generate", answer)
    vqa.run(changed, "tiny", tmp_path / "out")
    assert len(calls) == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "first.jsonl", "manifest.json", "provenance.json", "second.jsonl",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_broken_run_finished_is_not_kept_for_other_settings(settings, calls, tmp_path, monkeypatch):
    def stop(repeats):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(vqa, "_pooled", stop)
        with pytest.raises(RuntimeError, match="killed"):
            vqa.run(settings, "tiny", tmp_path / "out")
    assert (tmp_path / ".out.partial" / "manifest.json").is_file()
    calls.clear()
    other = settings.vqa.model_copy(update={"batch": 99})
    vqa.run(settings.model_copy(update={"vqa": other}), "tiny", tmp_path / "out")
    assert [len(call["questions"]) for call in calls][:4] == [99, 99, 99, 53]


def test_what_a_broken_run_finished_is_not_kept_for_other_questions_about_the_same_images(
    settings, calls, stored, tmp_path, monkeypatch
):
    def stop(repeats):
        raise RuntimeError("killed")

    def of(word):
        source = stored({"question": [f"{word} {k}?" for k in range(4)], "answer": ["red"] * 4})
        sets = {"mine": schema.VqaSet(source=source, items=4)}
        return settings.model_copy(update={"vqa": schema.Vqa(sets=sets)})

    with monkeypatch.context() as patch:
        patch.setattr(vqa, "_pooled", stop)
        with pytest.raises(RuntimeError, match="killed"):
            vqa.run(of("old"), "tiny", tmp_path / "out")
    vqa.run(of("new"), "tiny", tmp_path / "out")
    rows = records.read_answers(tmp_path / "out" / "mine.jsonl")
    assert {row.input.split()[0] for row in rows} == {"new"}


def test_another_model_is_asked_with_the_bases_processor(settings, calls, tmp_path, monkeypatch):
    folders = []
    monkeypatch.setattr(models, "load_processor", lambda folder, limits: folders.append((folder, limits.max_pixels)))
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "config.json").write_text("{}")
    change = {"kl_prompts": 0, "max_pixels": 8000}
    other = settings.model_copy(update={"vqa": settings.vqa.model_copy(update=change)})
    vqa.run(other, str(tmp_path / "tuned"), tmp_path / "out")
    assert folders == [(models.TINY, 8000)]
    assert {call["loaded"].model for call in calls} == {f"loaded {tmp_path / 'tuned'}"}


def test_a_model_that_answers_boxes_to_every_question_is_invalid_with_the_leak_named(
    settings, calls, tmp_path, monkeypatch
):
    vqa.run(settings, "tiny", tmp_path / "base")
    boxes = [f"[{k}, {k}, {k + 20}, 60]" for k in range(100)]
    monkeypatch.setattr(models, "generate", lambda loaded, questions, *_, **__: boxes[: len(questions)])
    vqa.run(settings, "tiny", tmp_path / "tuned")
    judged = verdict.judge(tmp_path / "base", tmp_path / "tuned", schema.Verdict(max_self_gap=100))
    assert judged.verdict == "INVALID"
    assert judged.reasons == ["easy: 100.0% of the answers of tuned are boxes, above 1.0%"]


def test_the_runner_finds_the_same_answers_in_batches_and_one_at_a_time():
    items, loaded = load(schema.VqaSet(items=24)), models.load("tiny", TINY)
    together, alone = (vqa.ask(loaded, "easy", items, 8, batch) for batch in (16, 1))
    assert together == alone
    assert len({row.filtered_resps for row in alone}) > 3


def test_questions_with_unusual_line_separators_survive_from_the_answers_to_the_verdict(calls, tmp_path):
    questions = [f"left{mark}right?" for mark in ("\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\r")]
    rows = [{"file_name": "images/a.png", "question": text, "answer": "yes"} for text in questions]
    spec = schema.VqaSet(source=own_folder(tmp_path / "own", rows), items=len(rows))
    settings = config.Settings(model=TINY, vqa=schema.Vqa(batch=100, sets={"own": spec}))
    for model in ("base", "tuned"):
        vqa.run(settings, "tiny", tmp_path / model)
    answers = records.read_answers(tmp_path / "base" / "own.jsonl")
    assert [answer.input.split("\n")[0] for answer in answers] == questions
    path = tmp_path / "tuned" / "own.jsonl"
    path.write_text(path.read_text().replace('"yes", "doc_hash"', '"no", "doc_hash"').replace("1.0", "0.0"))
    judged = verdict.judge(tmp_path / "base", tmp_path / "tuned", schema.Verdict(min_items=1, max_self_gap=100))
    assert (judged.verdict, judged.sets["own"].lost) == ("REGRESSED", len(questions))
    assert [flip.question.split("\n")[0] for flip in judged.sets["own"].flips] == questions
