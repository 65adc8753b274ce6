"""Passes replayed from CUDA graphs, over an emulated one (card/fakecard.py): the same answers, and what a card refuses.

The emulated graph runs the recorded operations on the recorded tensors, without Python. It shows neither speed nor
rounding, and nothing of a card's memory.
"""

import contextlib
from typing import Any

import fakecard
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import _disable_current_modes
from toys import tracked

from r1track.core import config, generation
from r1track.core.errors import UserError
from r1track.core.models import Loaded
from r1track.tracking import predictors

Examples = list[list[list[int]]]


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, capture = fakecard.make_graphs()
    for name, value in {"CUDAGraph": graph, "graph": capture, "Stream": fakecard.Idle}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "current_stream", fakecard.Idle)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setitem(generation.PASS, "cpu", 256)


def frames(decoder: generation.Decoder, asked: Any, templates: Any, searches: list[list[Image.Image]]) -> Any:
    """Answers to two frames of each sequence in turn, twice, each drafted after the last one."""
    prefixes, answers = decoder.prefixes(asked, templates), list[list[list[int]]]()
    for turn in range(4):
        examples = [[tokens] for tokens in answers[-1]] if answers else None
        answers.append(decoder.answers(asked[0], prefixes, searches[turn % 2], examples))
    return answers


@pytest.mark.parametrize("rows", [1, 8, 32])
def test_answers_are_the_same_and_after_the_first_frame_the_model_runs_only_over_images(
    rows: int,
    loaded: Loaded,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, templates, searches = tracked(rows)
    plain = frames(generation.Decoder(loaded, max_tokens=16), asked, templates, searches)
    forward, passes = loaded.model.forward, list[str]()
    monkeypatch.setattr(loaded.model, "forward", lambda **inputs: passes.append("") or forward(**inputs))
    assert frames(generation.Decoder(loaded, max_tokens=16, graphs=True), asked, templates, searches) == plain
    assert len(passes) == 1 + 4 + 3, "one over the templates, one per frame; three to record the graph"
    assert rows == 1 or plain[0] != plain[1]


@pytest.mark.parametrize("later", [False, True])
def test_thinking_answers_are_the_same(later: bool, thinker: Loaded) -> None:
    asked, templates, searches = tracked(4, later=later, think=True)
    plain = frames(generation.Decoder(thinker, max_tokens=48, think=True), asked, templates, searches)
    graphed = generation.Decoder(thinker, max_tokens=48, think=True, graphs=True)
    assert frames(graphed, asked, templates, searches) == plain


def test_other_numbers_of_rows_and_longer_prompts_are_recorded_anew(loaded: Loaded) -> None:
    plain, graphed = (generation.Decoder(loaded, max_tokens=16, graphs=graphs) for graphs in (False, True))
    assert graphed.graphs is not None
    steps = ((2, False, {2}), (1, False, {1}), (2, False, {1, 2}), (3, False, {3}), (2, False, {2, 3}), (1, True, {1}))
    for rows, later, recorded in steps:
        asked, templates, searches = tracked(rows, later=later)
        answers = [frames(decoder, asked, templates, searches) for decoder in (plain, graphed)]
        assert answers[0] == answers[1], (rows, later)
        assert graphed.graphs.recorded.keys() == recorded, (rows, later)


@pytest.mark.parametrize("holes", [64, 0])
def test_wrong_drafts_fill_the_cache_with_holes_and_change_no_answer(
    holes: int,
    loaded: Loaded,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No draft is right, so that every pass leaves refused columns, which are taken out in place."""
    monkeypatch.setattr(generation, "HOLES", holes)
    asked, templates, searches = tracked(4)
    decoders = [generation.Decoder(loaded, max_tokens=16, graphs=graphs) for graphs in (False, True)]
    plain = decoders[0].answers(asked[0], decoders[0].prefixes(asked, templates), searches[0])
    wrong = [[[(token + 1) % 500 for token in tokens]] for tokens in plain]
    half = [
        [tokens[: len(tokens) // 2] + other[0][len(tokens) // 2 :]] for tokens, other in zip(plain, wrong, strict=True)
    ]
    for examples in (wrong, half):
        assert decoders[1].answers(asked[0], decoders[1].prefixes(asked, templates), searches[0], examples) == plain


def test_a_model_that_cannot_be_recorded_is_named_with_the_remedy(
    loaded: Loaded,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward = loaded.model.forward

    def waits(**inputs: Any) -> Any:
        out = forward(**inputs)
        out.logits.amax().item()  # as a check of the values would
        return out

    monkeypatch.setattr(loaded.model, "forward", waits)
    asked, templates, searches = tracked(2)
    decoder = generation.Decoder(loaded, max_tokens=16, graphs=True)
    with pytest.raises(UserError, match=r"track.graphs: .*not permitted when stream is capturing\); set it to false"):
        decoder.answers(asked[0], decoder.prefixes(asked, templates), searches[0])


def test_a_replay_that_gives_other_logits_is_noticed(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a kernel that is started on another stream than the recorded one, as some libraries do."""
    forward = loaded.model.lm_head.forward

    def beside(hidden: torch.Tensor) -> torch.Tensor:
        with _disable_current_modes():  # that of the record too
            return forward(hidden)

    monkeypatch.setattr(loaded.model.lm_head, "forward", beside)
    asked, templates, searches = tracked(2)
    decoder = generation.Decoder(loaded, max_tokens=16, graphs=True)
    with pytest.raises(UserError, match=r"track.graphs: .*\(its replay gives other logits\); set it to false"):
        decoder.answers(asked[0], decoder.prefixes(asked, templates), searches[0])


def test_without_a_card_graphs_are_refused_before_a_model_is_loaded() -> None:
    settings = config.resolve({"preset": "demo", "track": {"graphs": True}})
    with pytest.raises(UserError, match=r"track.graphs: true, but torch finds no CUDA card"):
        predictors.load_predictor(predictors.settings_for(settings, "tiny"), "tiny")
