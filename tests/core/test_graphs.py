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

from r1track.core import config, generation, models, prompts
from r1track.core.drafts import Draft
from r1track.core.errors import UserError
from r1track.core.graphs import Graphs, staying
from r1track.core.models import Loaded
from r1track.preflight import memory
from r1track.tracking import predictors
from r1track.training import shared_prefix


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    graph, capture = fakecard.make_graphs()
    for name, value in {"CUDAGraph": graph, "graph": capture, "Stream": fakecard.Idle}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "current_stream", fakecard.Idle)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setitem(generation.PASS, "cpu", 256)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        return Graphs("track.graphs")


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
    graphs: Graphs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, templates, searches = tracked(rows)
    plain = frames(generation.Decoder(loaded, max_tokens=16), asked, templates, searches)
    forward, passes = loaded.model.forward, list[str]()
    monkeypatch.setattr(loaded.model, "forward", lambda **inputs: passes.append("") or forward(**inputs))
    assert frames(generation.Decoder(loaded, max_tokens=16, graphs=graphs), asked, templates, searches) == plain
    assert len(passes) == 1 + 4 + 4, "one over the templates, one per frame; four to record the graph"
    assert rows == 1 or plain[0] != plain[1]


@pytest.mark.parametrize("later", [False, True])
def test_thinking_answers_are_the_same(later: bool, thinker: Loaded, graphs: Graphs) -> None:
    asked, templates, searches = tracked(4, later=later, think=True)
    plain = frames(generation.Decoder(thinker, max_tokens=48, think=True), asked, templates, searches)
    graphed = generation.Decoder(thinker, max_tokens=48, think=True, graphs=graphs)
    assert frames(graphed, asked, templates, searches) == plain


def test_other_numbers_of_rows_and_longer_prompts_are_recorded_anew(loaded: Loaded, graphs: Graphs) -> None:
    plain, graphed = (generation.Decoder(loaded, max_tokens=16, graphs=each) for each in (None, graphs))
    steps = ((2, False, {2}), (1, False, {1}), (2, False, {1, 2}), (3, False, {3}), (2, False, {2, 3}), (1, True, {1}))
    for rows, later, recorded in steps:
        asked, templates, searches = tracked(rows, later=later)
        answers = [frames(decoder, asked, templates, searches) for decoder in (plain, graphed)]
        assert answers[0] == answers[1], (rows, later)
        assert graphs.recorded.keys() == recorded, (rows, later)


@pytest.mark.parametrize("rows", [1, 3])
def test_the_cache_has_the_size_that_is_planned(rows: int, loaded: Loaded, graphs: Graphs) -> None:
    asked, templates, searches = tracked(rows)
    decoder, tokens = generation.Decoder(loaded, max_tokens=16, graphs=graphs), list[int]()
    texts = loaded.processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    for text, *images in zip(texts, [row[0] for row in templates], searches[0], strict=True):
        tokens.append(decoder.prefill([text], images).ids.shape[1])
    decoder.answers(asked[0], decoder.prefixes(asked, templates), searches[0])
    planned = memory.Model(config.resolve({"preset": "demo", "model": {"base": "tiny", "dtype": "float32"}}))
    batch = memory.Batch(rows, max(tokens), 16, 0)
    assert sum(part.nbytes for part in (*graphs.keys, *graphs.values)) == memory._fixed_cache(planned, batch, rows)


@pytest.mark.parametrize("holes", [64, 0])
def test_wrong_drafts_fill_the_cache_with_holes_and_change_no_answer(
    holes: int,
    loaded: Loaded,
    graphs: Graphs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No draft is right, so that every pass leaves refused columns, which are taken out in place."""
    monkeypatch.setattr(generation, "HOLES", holes)
    asked, templates, searches = tracked(4)
    decoders = [generation.Decoder(loaded, max_tokens=16, graphs=each) for each in (None, graphs)]
    plain = decoders[0].answers(asked[0], decoders[0].prefixes(asked, templates), searches[0])
    wrong = [[[(token + 1) % 500 for token in tokens]] for tokens in plain]
    half = [
        [tokens[: len(tokens) // 2] + other[0][len(tokens) // 2 :]] for tokens, other in zip(plain, wrong, strict=True)
    ]
    for examples in (wrong, half):
        assert decoders[1].answers(asked[0], decoders[1].prefixes(asked, templates), searches[0], examples) == plain


def test_rollouts_are_the_same_while_rows_are_dropped_and_after_the_weights_have_moved(graphs: Graphs) -> None:
    """Half of the prompts get longer answers: after the others have ended, half of the rows go on."""
    loaded = models.load("tiny", config.resolve({}).model)
    asked, templates, searches = tracked(2)
    asked += [prompts.ground(name) for name in ("red square", "blue circle")]
    images = [[row[0], search] for row, search in zip(templates, searches[1], strict=True)]
    images += [[search] for search in searches[0]]
    texts = loaded.processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    decoders = [generation.Decoder(loaded, max_tokens=20, graphs=each) for each in (None, graphs)]
    before: list[list[int]] = []
    for _ in range(2):
        (ids, plain), (replayed_ids, replayed) = (
            shared_prefix.complete(decoder, texts, images, generation.greedy, batch=4, copies=4) for decoder in decoders
        )
        assert replayed_ids == ids
        assert [row.tokens for row in replayed] == [row.tokens for row in plain]
        for one, other in zip(replayed, plain, strict=True):
            assert one.values == pytest.approx(other.values, abs=1e-4)
        assert graphs.recorded.keys() == {16, 8}
        assert [row.tokens for row in plain] != before
        before = [row.tokens for row in plain]
        with torch.no_grad():  # in place, as an optimiser does
            loaded.model.model.language_model.embed_tokens.weight[:, ::3] *= 0.5


def test_a_row_that_ends_long_before_the_others_does_not_fill_the_cache(
    loaded: Loaded, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row is drafted to its end, and goes on, unread, for as long as the other one takes without drafts."""
    asked, templates, searches = tracked(2)
    images = [[row[0], search] for row, search in zip(templates, searches[1], strict=True)]
    texts = loaded.processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    plain, graphed = (generation.Decoder(loaded, max_tokens=200, graphs=each) for each in (None, graphs))
    plain.ends = graphed.ends = set()
    wanted = [row.tokens for row in shared_prefix.complete(plain, texts, images, generation.greedy, batch=2)[1]]

    def first(tokens: list[int], _: Any, most: int) -> Draft:
        n = len(tokens)
        drafted = wanted[0][n : n + most] if tokens == wanted[0][:n] != wanted[1][:n] else []
        return Draft(drafted, [*range(len(drafted))])

    monkeypatch.setattr(graphed.drafter, "draft", first)
    replayed = shared_prefix.complete(graphed, texts, images, generation.greedy, batch=2)[1]
    assert [row.tokens for row in replayed] == wanted


def test_rows_are_halved_as_often_as_the_open_ones_fit_but_not_below_eight() -> None:
    assert staying([False, True] * 8) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert staying([False] * 30 + [True] * 9) == [0, *range(30, 39)]  # 39, 20, 10
    assert staying([False] * 38 + [True]) == [0, 1, 2, 3, 4, 5, 6, 38]
    assert staying([False, True, False]) == [0, 1, 2]


def test_a_model_that_cannot_be_recorded_is_named_with_the_remedy(
    loaded: Loaded,
    graphs: Graphs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward = loaded.model.forward

    def waits(**inputs: Any) -> Any:
        out = forward(**inputs)
        out.logits.amax().item()  # as a check of the values would
        return out

    monkeypatch.setattr(loaded.model, "forward", waits)
    asked, templates, searches = tracked(2)
    decoder = generation.Decoder(loaded, max_tokens=16, graphs=graphs)
    with pytest.raises(UserError, match=r"track.graphs: .*not permitted when stream is capturing\); set it to false"):
        decoder.answers(asked[0], decoder.prefixes(asked, templates), searches[0])


def test_a_replay_that_gives_other_logits_is_noticed(
    loaded: Loaded, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a kernel that is started on another stream than the recorded one, as some libraries do."""
    forward = loaded.model.lm_head.forward

    def beside(hidden: torch.Tensor) -> torch.Tensor:
        with _disable_current_modes():  # that of the record too
            return forward(hidden)

    monkeypatch.setattr(loaded.model.lm_head, "forward", beside)
    asked, templates, searches = tracked(2)
    decoder = generation.Decoder(loaded, max_tokens=16, graphs=graphs)
    with pytest.raises(UserError, match=r"track.graphs: .*\(its replay gives other logits\); set it to false"):
        decoder.answers(asked[0], decoder.prefixes(asked, templates), searches[0])


def test_without_a_card_graphs_are_refused_before_a_model_is_loaded() -> None:
    settings = config.resolve({"preset": "demo", "track": {"graphs": True}})
    with pytest.raises(UserError, match=r"track.graphs: true, but torch finds no CUDA card"):
        predictors.load_predictor(predictors.settings_for(settings, "tiny"), "tiny")


def test_another_question_is_encoded_whole_so_that_graphs_ask_for_no_card_and_no_memory() -> None:
    words = {"prompt": "{template}{box}{search} Where is it now?"}
    settings, without = (
        config.resolve({"preset": "demo", "task": words, "track": {"graphs": graphs}}) for graphs in (True, False)
    )
    assert predictors.load_predictor(predictors.settings_for(settings, "tiny"), "tiny").generate
    plans = [{each.stage: each.moments for each in memory.plan(made)}["track"] for made in (settings, without)]
    assert plans[0] == plans[1]
    logits = plans[0]["answers"]["logits"]
    assert logits == 16 * settings.track.batch * memory.Model(settings).text.vocab_size, "no drafts"
