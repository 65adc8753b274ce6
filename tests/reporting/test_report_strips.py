"""Claims about the pictures of the report: strips of frames, and the answers that a training sampled."""

import re
import shutil

import numpy as np
import pytest
from report_page import Page
from small_run import ANSWERS, SETTINGS, fail

from r1track.core import files
from r1track.core.boxes import iou, xywh_to_xyxy
from r1track.reporting import report
from r1track.tracking.track_files import read_track


def test_missing_frames_are_said_on_the_page(run):
    results, _, make = run
    place = results / "tracks/base/toy-val/provenance.json"
    files.write_json(place, {**files.read_json(place), "inputs": {"split": {"path": "toy/gone", "sha256": None}}})
    page = Page((make() / "index.html").read_text())
    assert "No frames can be shown" in page.text["strips"]
    assert "toy/gone" in page.text["strips"]
    assert len([load for load in page.loads if load.startswith("data:")]) == 6  # those of the training


def test_every_kind_of_failure_has_a_strip_around_its_first_frame_with_the_answer(run):
    results, root, make = run
    failures = {
        ("Toy_Val_000001", 5): "held", ("Toy_Val_000002", 9): "held", ("Toy_Val_000002", 7): "held",
        ("Toy_Val_000003", 12): "clipped", ("Toy_Val_000004", 2): "absent",
    }  # fmt: skip
    fail(results, root, "grpo", failures)
    text = (make() / "index.html").read_text()
    strips = re.findall(r'data-first="(\d+)" data-name="(\w+) \((\w+)\)">(.*?)</article>', text, re.DOTALL)
    shown = {rank: (name, int(first), frames) for first, name, rank, frames in strips}
    firsts = {"held": ("Toy_Val_000002", 7), "clipped": ("Toy_Val_000003", 12), "absent": ("Toy_Val_000004", 2)}
    assert set(shown) == {"best", "median", "worst", *firsts}
    for status, (name, frame) in firsts.items():
        assert shown[status][0] == name
        numbers = [int(number) for number in re.findall(r"Frame (\d+), IoU", shown[status][2])]
        assert numbers[shown[status][1]] == frame
        assert numbers == list(range(numbers[0], numbers[0] + SETTINGS.report.strip_frames))
        assert len(numbers) == SETTINGS.report.strip_frames


def test_a_strip_shows_and_opens_at_the_frame_where_base_and_tuned_model_differ_most(run):
    results, root, make = run
    text = (make() / "index.html").read_text()
    strips = re.findall(r'data-first="(\d+)" data-name="(\w+) \((\w+)\)">(.*?)</article>', text, re.DOTALL)
    assert {rank for _, _, rank, _ in strips} == {"best", "median", "worst"}
    for first, name, _, frames in strips:
        truth = xywh_to_xyxy(np.loadtxt(root / name / "groundtruth.txt", delimiter=","))
        base, tuned = (
            iou(xywh_to_xyxy(read_track(results / "tracks" / model / "toy-val", name).boxes), truth)
            for model in ("base", "grpo")
        )
        numbers = [int(number) for number in re.findall(r"Frame (\d+), IoU", frames)]
        assert numbers[int(first)] == np.abs(tuned - base).argmax() + 1
        assert numbers == sorted(set(numbers))
        assert len(numbers) == SETTINGS.report.strip_frames


def test_sampled_answers_stand_with_their_reward_and_only_readable_ones_have_a_box(run):
    _, _, make = run
    text = (make() / "index.html").read_text()
    cards = re.findall(r"<h4>grpo, step (\d+) .*?</article>", text, re.DOTALL)
    assert cards == ["0", "10", "20"]
    card = text[text.index("<h4>grpo, step 0 ") : text.index("<h4>grpo, step 10 ")]
    assert len(re.findall('<rect class="answer"', card)) == 2
    assert len(re.findall('<rect class="truth"', card)) == 1
    for answer in ANSWERS[:2]:
        assert answer in card
    assert "1.50" in card  # the reward of the exact answer
    assert "not readable" in card


def test_of_three_pictures_of_a_question_the_last_is_the_search_region(run):
    results, _, make = run
    file = results / "adapters/grpo/examples/step-000000.json"
    example = files.read_json(file)
    files.write_json(file, {**example, "images": [example["images"][0], *example["images"]]})
    shown = re.findall("grpo, step 0: (template|search region)", (make() / "index.html").read_text())
    assert shown == ["template", "template", "search region"]


def test_an_arm_without_stored_answers_says_so(run):
    results, _, make = run
    shutil.rmtree(results / "adapters/grpo/examples")
    assert "grpo: no answers were stored" in Page((make() / "index.html").read_text()).text["training"]


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
