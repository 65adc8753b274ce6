"""Drafts: an answer is drafted after another one, number by number, in the vocabulary of any tokenizer."""

from typing import Any

import pytest

from r1track.core import config, models, prompts
from r1track.core.drafts import Draft, Drafter


class Letters:
    """A vocabulary of single characters, as Qwen's is in numbers."""

    unk_token_id = None

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int | None]:
        return [ord(token) if len(token) == 1 else None for token in tokens]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


LETTERS = Drafter(Letters(), think=False)


def likeliest(drafter: Drafter, tokens: list[int], examples: list[list[int]]) -> list[int]:
    """What most probably follows, drafted token by token."""
    ahead = [*tokens]
    while following := drafter.draft(ahead, examples, 1).tokens:
        ahead += following
    return ahead[len(tokens) :]


def after(begun: str, example: str) -> str:
    """What most probably follows, in a vocabulary of single characters."""
    return "".join(map(chr, likeliest(LETTERS, [*map(ord, begun)], [[*map(ord, example)]])))


@pytest.mark.parametrize(
    ("begun", "draft"),
    [
        ("", "[241, 66, 329, 154]"),
        ("[24", "1, 66, 329, 154]"),
        ("[243", ", 66, 329, 154]"),  # the last digit differs
        ("[25", "0, 66, 329, 154]"),  # an earlier one, by which it is larger
        ("[23", "9, 66, 329, 154]"),  # or smaller
        ("[1", "99, 66, 329, 154]"),
        ("[98,", " 66, 329, 154]"),  # shorter
        ("[2410", ", 66, 329, 154]"),  # longer
        ("[9, 8, 3", "29, 154]"),  # all before differ
        ("[241, 66, 329, 154", "]"),
        ("[241, 66, 329, 154]", ""),
        ("[241, 66, 329, 154], and", ""),
        ('[{"bbox_2d": [2', ""),  # another form
        ("241", ""),
        ("[241 ", ""),
    ],
)
def test_numbers_may_differ_from_the_examples_and_what_follows_them_is_drafted_again(begun: str, draft: str) -> None:
    assert after(begun, "[241, 66, 329, 154]") == draft


def test_an_empty_list_drafts_another_and_nothing_of_a_box_which_the_next_example_does() -> None:
    assert after("", "[]") == "[]"
    assert after("[", "[]") == "]"
    assert after("[2", "[]") == ""
    assert after("[]", "[241, 66, 329, 154]") == ""
    examples = [[*map(ord, text)] for text in ("[]", "[241, 66, 329, 154]")]
    assert "".join(map(chr, likeliest(LETTERS, [*map(ord, "[24")], examples))) == "1, 66, 329, 154]"


def test_the_likeliest_numbers_stand_side_by_side_in_a_draft() -> None:
    draft = LETTERS.tree([*map(ord, "[24")], [*map(ord, "[241, 66, 329, 154]")], 31)
    texts = [""]  # of every place
    for token, parent in zip(*draft, strict=True):
        texts.append(texts[parent] + chr(token))
    assert len(texts) == len(set(texts)) == 32
    assert {"1", "0", "2", "3", "1, 6", "0, 6"} <= set(texts)
    assert "10" not in texts
    assert texts.index("1") < texts.index("2") < texts.index("3")


@pytest.mark.parametrize(
    ("says", "places"),
    [
        ("12", [0, 1, 3]),
        ("145", [0, 1, 4, 5]),
        ("2", [0, 2]),
        ("3", [0]),
        ("13", [0, 1]),
    ],
)
def test_a_row_goes_down_the_draft_as_far_as_it_has_what_the_model_says(says: str, places: list[int]) -> None:
    """The draft: 1 or 2; behind 1, 2 or 4; behind the 4, 5. The model says `says`, whatever it is asked behind."""
    draft = Draft([1, 2, 2, 4, 5], [0, 0, 1, 1, 4])
    depth = [0, 1, 1, 2, 2, 3]
    drawn = [int(says[n]) if n < len(says) else 0 for n in depth]
    assert draft.follow(drawn) == places


@pytest.mark.parametrize(
    "form", ["{}", '[{{"bbox_2d": {}}}]', '```json\n[\n\t{{"bbox_2d": {}, "label": "dog"}}\n]\n```']
)
def test_any_form_of_answer_is_drafted_after_one_of_its_own(form: str) -> None:
    example, answer = form.format("[241, 66, 329, 154]"), form.format("[9, 66, 330, 155]")
    begun, passes = "", 0
    while len(begun) < len(answer):
        tokens = begun + after(begun, example)
        right = next((k for k in range(len(tokens)) if tokens[: k + 1] != answer[: k + 1]), len(tokens))
        begun, passes = answer[: right + 1], passes + 1
    assert passes == 5  # one for each of the three numbers that differ, one for missing digits, one for the end


def test_the_first_example_that_begins_like_the_answer_is_followed() -> None:
    drafter = Drafter(models.load_processor(models.TINY, config.resolve({}).model).tokenizer, think=False)
    ids = drafter.tokenizer("[28, 30, 56, 60]")["input_ids"]
    empty = drafter.tokenizer("[]")["input_ids"]
    fenced = drafter.tokenizer(prompts.ground_answer([1, 2, 3, 4], "dog"))["input_ids"]
    assert likeliest(drafter, [], [empty, ids]) == empty
    assert likeliest(drafter, ids[:2], [empty, fenced, ids]) == ids[2:]
    assert drafter.draft(ids[:2], [empty, fenced], 99) == ([], [])
    assert drafter.draft(ids, [ids], 99) == ([], [])
    assert drafter.draft([], [], 99) == ([], [])


def merged() -> Any:
    """A tokenizer whose tokens are characters, but for `>[`, as in Qwen's vocabulary."""
    table = [*map(chr, range(128)), ">["]

    class Characters:
        unk_token_id = None

        def convert_tokens_to_ids(self, tokens: list[str]) -> list[int | None]:
            return [table.index(token) if token in table else None for token in tokens]

        def decode(self, ids: list[int]) -> str:
            return "".join(table[i] for i in ids)

        def encode(self, text: str) -> list[int]:
            return [128 if c == "\0" else ord(c) for c in text.replace(">[", "\0")]

    return Characters()


def test_thoughts_are_not_drafted_and_what_stands_in_the_answers_tags_is() -> None:
    tokenizer = merged()
    drafter = Drafter(tokenizer, think=True)
    example = tokenizer.encode(prompts.thoughtful("It is at [1, 2].", "[241, 66, 329, 154]"))
    whole = prompts.thoughtful("It moved to [5, 6], not far.", "[241, 67, 3, 154]")
    for n in range(len(tokenizer.encode(whole))):
        begun = tokenizer.encode(whole)[:n]
        draft = drafter.draft(begun, [example], 7)
        assert bool(draft.tokens) is ("<answer>" in tokenizer.decode(begun)), tokenizer.decode(begun)
    ends = tokenizer.encode(whole[: whole.index(", 3")])
    assert tokenizer.decode(likeliest(drafter, ends, [example])) == ", 329, 154]</answer>"


@pytest.mark.parametrize("think", [False, True])
def test_a_question_with_a_box_gives_an_example_of_its_answer(think: bool) -> None:
    drafter = Drafter(models.load_processor(models.TINY, config.resolve({}).model).tokenizer, think)
    text = drafter.tokenizer.decode(drafter.example(prompts.flat(prompts.build([28, 30, 56, 60], think=think))))
    box = "[28, 30, 56, 60]"
    assert text == (f"<think></think><answer>{box}</answer>" if think else box) + "<|im_end|>"
    assert drafter.example("Where is [x1, y1, x2, y2]?") == []


def test_an_example_that_thought_to_no_answer_is_not_followed() -> None:
    drafter = Drafter(models.load_processor(models.TINY, config.resolve({}).model).tokenizer, think=True)
    begun, example = (
        drafter.tokenizer(text)["input_ids"] for text in ("<think></think><answer>[28, ", "<think>[28, 30, 56, 60]")
    )
    assert drafter.draft(begun, [example], 99) == ([], [])
