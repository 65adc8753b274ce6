"""Decoding over prefixes: the answers of `generate`, whatever stands beside them in a batch."""

import pytest
import torch
from PIL import Image
from toys import toy_split

from r1track.core import config, generation, models, prompts
from r1track.core.boxes import xywh_to_xyxy
from r1track.core.crops import Crop
from r1track.core.models import Loaded
from r1track.core.sequences import read_split


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return models.load("tiny", config.resolve({}).model)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[prompts.Messages, list[Image.Image]]]:
    """Questions about several sequences and frames; their boxes have more or fewer digits."""
    questions = []
    for k, sequence in enumerate(read_split(toy_split(tmp_path_factory.mktemp("split"), sequences=6))):
        template = Crop.around(sequence.boxes[0], 4.0 - 0.4 * k, 84)
        search = Crop.around(sequence.boxes[0], 4.0, 84)
        box = template.to_crop(xywh_to_xyxy(sequence.boxes[0])) * (1 + 30 * (k % 3 == 0))  # "840" is longer than "28"
        images = [template.cut(Image.open(sequence.frames[0])), search.cut(Image.open(sequence.frames[k + 1]))]
        questions.append((prompts.build(box), images))
    return questions


def whole(loaded: Loaded, question: prompts.Messages, images: list[Image.Image], tokens: int) -> str:
    """The answer of `generate` to the whole question, cut where an answer ends."""
    text = models.generate(loaded, [question], [images], max_tokens=tokens, batch=1)[0]
    return next((text[:n] for n in range(1, len(text) + 1) if prompts.ended(text[:n])), text)


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_prefixes_give_the_answers_of_generate_for_any_number_of_rows(
    rows: int, loaded: Loaded, questions: list[tuple[prompts.Messages, list[Image.Image]]]
) -> None:
    decoder = generation.Decoder(loaded, max_tokens=16, think=False)
    prefixes = decoder.prefixes([question for question, _ in questions], [images[:-1] for _, images in questions])
    assert len({prefix.layers[0][0].shape[2] for prefix in prefixes}) > 1  # so that padding is tried
    for turn in range(2):  # the second time the stacked prefixes are used again
        answers = []
        for k in range(0, len(questions), rows):
            images = [images[-1] for _, images in questions[k : k + rows]]
            answers += decoder.answers(questions[k][0], prefixes[k : k + rows], images)
        assert answers == [whole(loaded, *each, 16) for each in questions], turn
    assert len(set(answers)) > 3


def test_a_later_template_belongs_to_the_prefix(
    loaded: Loaded, questions: list[tuple[prompts.Messages, list[Image.Image]]]
) -> None:
    (_, (template, search)), (_, (later, _)) = questions[:2]
    question = prompts.build([28, 28, 56, 56], second_box=[20, 20, 40, 40])
    decoder = generation.Decoder(loaded, max_tokens=16, think=False)
    prefixes = decoder.prefixes([question], [[template, later]])
    assert decoder.answers(question, prefixes, [search]) == [whole(loaded, question, [template, later, search], 16)]


def test_logits_over_prefixes_are_those_of_the_whole_question(
    loaded: Loaded, questions: list[tuple[prompts.Messages, list[Image.Image]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    question, images = questions[0]
    seen = []
    monkeypatch.setattr(generation.Decoder, "decode", lambda self, prefill, *rest: seen.append(prefill.logits) or [])
    decoder = generation.Decoder(loaded, max_tokens=16, think=False)
    prefixes = decoder.prefixes([q for q, _ in questions[:3]], [i[:-1] for _, i in questions[:3]])
    decoder.answers(question, prefixes, [i[-1] for _, i in questions[:3]])
    with torch.inference_mode():
        exact = loaded.model(**models.inputs(loaded, [question], [images])).logits[0, -1]
    assert (seen[0][0] - exact).abs().max() < 1e-3
    broken = [prefix._replace(after=prefix.after + 1) for prefix in prefixes]  # a wrong position is seen
    decoder.answers(question, broken, [i[-1] for _, i in questions[:3]])
    assert (seen[1][0] - exact).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("text", "think", "ended"),
    [
        ("[1, 2, 3, 4]", False, True),
        ("[1, 2, 3", False, False),
        ("", False, False),
        ('[{"bbox_2d": [1, 2, 3, 4]', False, False),
        ('[{"bbox_2d": [1, 2, 3, 4]}]', False, True),
        ('```json\n[{"bbox_2d": [1, 2, 3, 4]}]', False, False),
        ("<think>[1, 2]</think><answer>[1, 2, 3, 4]", True, False),
        ("<think>[1, 2]</think><answer>[1, 2, 3, 4]</answer>", True, True),
    ],
)
def test_an_answer_ends_where_nothing_that_follows_could_belong_to_it(text: str, think: bool, ended: bool) -> None:
    assert prompts.ended(text, think) is ended
