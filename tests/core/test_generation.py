"""Decoding over prefixes: the answers of `generate`, whatever stands beside them in a batch and whatever is drafted."""

import random
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from PIL import Image
from toys import toy_split, tracked

from r1track.core import generation, models, prompts
from r1track.core.boxes import xywh_to_xyxy
from r1track.core.crops import Crop
from r1track.core.drafts import Draft
from r1track.core.models import Loaded
from r1track.core.sequences import read_split


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
    return prompts.complete(text) or text


def texts(loaded: Loaded, answers: list[list[int]]) -> list[str]:
    return loaded.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)


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
            answers += texts(loaded, decoder.answers(questions[k][0], prefixes[k : k + rows], images))
        assert answers == [whole(loaded, *each, 16) for each in questions], turn
    assert len(set(answers)) > 3


def test_a_pass_that_is_broken_off_leaves_the_prefixes_whole(
    loaded: Loaded,
    questions: list[tuple[prompts.Messages, list[Image.Image]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As by a card without memory left: some layers have the new keys then, and some have not."""
    decoder = generation.Decoder(loaded, max_tokens=16)
    prefixes = decoder.prefixes([question for question, _ in questions], [images[:-1] for _, images in questions])
    asked = questions[0][0], prefixes, [images[-1] for _, images in questions]
    wanted = decoder.answers(*asked)
    for layer in loaded.model.model.language_model.layers:
        for passes in (0, 3):  # that are as ever before
            work = mock.Mock(side_effect=[*[mock.DEFAULT] * passes, torch.OutOfMemoryError], wraps=layer.mlp.forward)
            with monkeypatch.context() as patch:
                patch.setattr(layer.mlp, "forward", work)
                with pytest.raises(torch.OutOfMemoryError):
                    decoder.answers(*asked)
            assert decoder.answers(*asked) == wanted


def test_a_later_template_belongs_to_the_prefix(
    loaded: Loaded, questions: list[tuple[prompts.Messages, list[Image.Image]]]
) -> None:
    (_, (template, search)), (_, (later, _)) = questions[:2]
    question = prompts.build([28, 28, 56, 56], second_box=[20, 20, 40, 40])
    decoder = generation.Decoder(loaded, max_tokens=16, think=False)
    prefixes = decoder.prefixes([question], [[template, later]])
    answers = decoder.answers(question, prefixes, [search])
    assert texts(loaded, answers) == [whole(loaded, question, [template, later, search], 16)]


def test_logits_over_prefixes_are_those_of_the_whole_question(
    loaded: Loaded, questions: list[tuple[prompts.Messages, list[Image.Image]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    question, images = questions[0]
    seen = []
    monkeypatch.setattr(
        generation.Decoder, "decode", lambda self, prefill, *rest, **named: seen.append(prefill.logits) or []
    )
    decoder = generation.Decoder(loaded, max_tokens=16, think=False)
    prefixes = decoder.prefixes([q for q, _ in questions[:3]], [i[:-1] for _, i in questions[:3]])
    decoder.answers(question, prefixes, [i[-1] for _, i in questions[:3]])
    with torch.inference_mode():
        exact = loaded.model(**models.inputs(loaded, [question], [images])).logits[0, -1]
    assert (seen[0][0] - exact).abs().max() < 1e-3
    broken = [prefix._replace(after=prefix.after + 1) for prefix in prefixes]  # a wrong position is seen
    decoder.answers(question, broken, [i[-1] for _, i in questions[:3]])
    assert (seen[1][0] - exact).abs().max() > 1e-2


class Passes:
    """Counts the passes through a model, and notes how long the cache was in each and how long its longest row."""

    def __init__(self, loaded: Loaded, monkeypatch: pytest.MonkeyPatch):
        self.lengths: list[tuple[int, int]] = []
        forward = loaded.model.forward

        def counted(**inputs: Any) -> Any:
            mask = inputs["attention_mask"]
            mask = mask[:, 0].any(1) if mask.dim() == 4 else mask  # columns that some token of a draft sees
            self.lengths.append((mask.shape[1], int(mask.sum(1).max())))
            return forward(**inputs)

        monkeypatch.setattr(loaded.model, "forward", counted)

    def __call__(self) -> int:
        """How many there were since the last call."""
        n = len(self.lengths)
        self.lengths.clear()
        return n


@pytest.mark.parametrize("rows", [1, 8, 32])
def test_answers_drafted_after_the_last_ones_are_the_same_in_fewer_passes(
    rows: int, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(generation.PASS, "cpu", 256)
    asked, templates, searches = tracked(rows)
    passes, decoder = Passes(loaded, monkeypatch), generation.Decoder(loaded, max_tokens=16)
    prefixes = decoder.prefixes(asked, templates)
    last = decoder.answers(asked[0], prefixes, searches[0])
    passes()
    plain = decoder.answers(asked[0], prefixes, searches[1])
    without = passes()
    drafted = decoder.answers(asked[0], prefixes, searches[1], [[each] for each in last])
    assert drafted == plain
    assert passes() <= without - 3
    assert decoder.answers(asked[0], prefixes, searches[0], [[each] for each in plain]) == last
    assert rows == 1 or last != plain


@pytest.fixture(scope="module")
def mixed(loaded: Loaded) -> tuple[list[str], list[Image.Image]]:
    """Prompts of unequal length, answered in two forms: a bare list, and fenced JSON with a label."""
    asked, templates, searches = tracked(4)
    asked += [prompts.ground(name) for name in ("red square", "blue circle", "green star", "yellow ring")]
    images = [image for row in zip([row[0] for row in templates], searches[1], strict=True) for image in row]
    texts = loaded.processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    return texts, [*images, *[row[0] for row in templates]]


def of_truth(kind: str) -> Callable[[list[int], list[list[int]], int], Draft]:
    """Drafts that know the answer, which is the only example of its row; some of its tokens have a wrong sibling."""
    rng = random.Random(5)

    def draft(tokens: list[int], examples: list[list[int]], most: int) -> Draft:
        place, drafted, parents = 0, list[int](), list[int]()
        for token in chain(examples[0][len(tokens) :]):
            siblings = [(token + 7) % 500, token] if rng.random() < 0.5 else [token]
            drafted += siblings
            parents += [place] * len(siblings)
            place = len(drafted)
        return Draft(drafted[:most], parents[:most])

    def chain(rest: list[int]) -> list[int]:
        match kind:
            case "right":
                return rest
            case "wrong":
                return [(token + 1) % 500 for token in rest]
            case "too long":
                return [*rest, *range(40)]
            case _:  # right for a while, now and then
                return [*rest[: rng.randrange(4)], *range(rng.randrange(9))]

    return draft


@pytest.mark.parametrize("holes", [64, 0])
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("kind", ["right", "wrong", "too long", "mixed"])
def test_no_draft_changes_a_token_and_the_cache_stays_small(
    kind: str,
    drop: bool,
    holes: int,
    loaded: Loaded,
    mixed: tuple[list[str], list[Image.Image]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(generation.PASS, "cpu", 256)
    monkeypatch.setattr(generation, "HOLES", holes)
    passes, decoder = Passes(loaded, monkeypatch), generation.Decoder(loaded, max_tokens=20)
    plain = decoder.decode(decoder.prefill(*mixed), generation.greedy, drop=drop)
    without = passes()
    assert len({len(each.tokens) for each in plain}) > 1
    monkeypatch.setattr(decoder.drafter, "draft", of_truth(kind))
    told = [[each.tokens] for each in plain]
    drafted = decoder.decode(decoder.prefill(*mixed), generation.greedy, examples=told, drop=drop)
    assert [each.tokens for each in drafted] == [each.tokens for each in plain]
    for one, other in zip(drafted, plain, strict=True):
        assert one.values == pytest.approx(other.values, abs=1e-4)
    assert all(width - longest <= holes for width, longest in passes.lengths)
    spent = {"right": 4, "too long": 4, "wrong": without, "mixed": without - 1}
    assert passes() <= spent[kind]


def test_forms_are_mixed_in_a_batch_and_each_row_follows_the_example_of_its_own(
    loaded: Loaded, mixed: tuple[list[str], list[Image.Image]], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, decoder = Passes(loaded, monkeypatch), generation.Decoder(loaded, max_tokens=20)
    plain = decoder.decode(decoder.prefill(*mixed), generation.greedy)
    without = passes()
    known = [plain[3].tokens, plain[4].tokens]
    drafted = decoder.decode(decoder.prefill(*mixed), generation.greedy, examples=[known] * 8)
    assert [each.tokens for each in drafted] == [each.tokens for each in plain]
    assert passes() <= without - 4


@pytest.mark.parametrize("later", [False, True])
def test_thinking_answers_are_the_same_with_drafts(
    later: bool, thinker: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, templates, searches = tracked(4, later=later, think=True)
    passes, decoder = Passes(thinker, monkeypatch), generation.Decoder(thinker, max_tokens=48, think=True)
    prefixes = decoder.prefixes(asked, templates)
    last = decoder.answers(asked[0], prefixes, searches[0])
    assert any("<answer>" in text for text in texts(thinker, last))
    passes()
    plain = decoder.answers(asked[0], prefixes, searches[1])
    without = passes()
    assert decoder.answers(asked[0], prefixes, searches[1], [[each] for each in last]) == plain
    assert passes() < without


@pytest.mark.parametrize(
    ("text", "think", "complete"),
    [
        ("[1, 2, 3, 4]", False, True),
        (" [1, 2, 3, 4]", False, True),
        ("[]", False, True),
        ("[1, 2, 3", False, False),
        ("", False, False),
        ('[{"bbox_2d": [1, 2, 3, 4]', False, False),
        ('[{"bbox_2d": [1, 2, 3, 4]}]', False, True),
        ('```json\n[{"bbox_2d": [1, 2, 3, 4]}]', False, False),
        ("<think>[1, 2]</think><answer>[1, 2, 3, 4]", True, False),
        ("<think>[1, 2]</think><answer>[1, 2, 3, 4]</answer>", True, True),
        ("\n<think>[1, 2]</think> So: <answer>[]</answer>", True, True),
        ("<think>I answer as <answer>[x1, y1, x2, y2]</answer>", True, False),
        ("<think>I answer as <answer>[x1, y1]</answer></think>", True, False),
        ("<think>I answer as <answer>[x1, y1]</answer></think><answer>[1, 2, 3, 4]</answer>", True, True),
        ("<answer>[1, 2, 3, 4]</answer>", True, True),
        ("<think>[1, 2]</think>[1, 2, 3, 4]</answer>", True, True),
    ],
)
def test_an_answer_is_complete_where_nothing_that_follows_could_belong_to_it(
    text: str, think: bool, complete: bool
) -> None:
    assert prompts.complete(text, think) == (text if complete else None)
    for behind in (".", "\n\nThe box is [5, 6, 7, 8].", "]", "</answer>") if complete else ():
        assert prompts.complete(text + behind, think) == text
