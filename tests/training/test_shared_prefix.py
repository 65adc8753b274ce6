"""The shared prefix: the stock trainer's losses, gradients and rollouts, for a fraction of the work."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from toys import accustomed, toy_pairs, varied_pairs, with_pixels
from trl import GRPOTrainer

from r1track.core import config, generation, models
from r1track.training import shared_prefix, train, trl_patches

STOCK = GRPOTrainer._get_per_token_logps_and_entropies


def settings(**changes: Any) -> config.Settings:
    short = {"steps": 2, "save_every": 2, "prompts_per_step": 4, "group": 4, "micro_batch": 8, "beta": 0.05}
    return config.resolve({"preset": "demo", "sample": {"pairs": 24, "val_pairs": 4}, "train": {**short, **changes}})


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs whose prompts are of unequal length."""
    folder = tmp_path_factory.mktemp("data")
    return varied_pairs(toy_pairs(folder, settings()), folder / "mixed", rows=4, later="some")


@pytest.fixture(scope="module")
def base(pairs: Path) -> Path:
    """A base that answers both forms of prompt."""
    return accustomed(pairs, pairs.parent / "base", steps=16)


def moved_trainer(made: config.Settings, base: Path, pairs: Path, scratch: Path, by: float = 0.02) -> Any:
    """A trainer whose adapter has moved away from the reference, a little or far."""
    trainer = train.make_trainer(made, "grpo", base, pairs, scratch)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, value in trainer.model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=by)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps  # as train() would set it
    return trainer


def step_of(trainer: Any, rows: list[Any]) -> Any:
    """Inputs of one step. Its advantages are given: no group is flat by chance, and gradients do not cancel."""
    inputs = trainer._prepare_inputs(rows)
    inputs["advantages"] = torch.linspace(1, 2, len(inputs["advantages"]))
    return inputs


def rows_of(trainer: Any) -> list[Any]:
    """A generation batch: each prompt as often as the group is large."""
    return [trainer.train_dataset[k] for k in range(len(trainer.train_dataset)) for _ in range(trainer.num_generations)]


def loss_and_gradients(trainer: Any, inputs: Any) -> tuple[float, dict[str, torch.Tensor], dict[str, list[float]]]:
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return loss.item(), found, {key: list(trainer._metrics["train"][key]) for key in ("kl", "entropy")}


def apart_and_size(ours: dict[str, torch.Tensor], stock: dict[str, torch.Tensor]) -> tuple[float, float]:
    """The norm of the difference of two gradients, and of the second."""
    apart, size = (
        torch.cat([each.flatten() for each in parts]).norm().item()
        for parts in ([ours[name] - grad for name, grad in stock.items()], stock.values())
    )
    return apart, size


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("quantize", ["nf4", "none"])
@pytest.mark.parametrize("micro_batch", [16, 8, 2])
def test_losses_kl_and_gradients_are_those_of_the_stock_path(
    micro_batch: int,
    quantize: str,
    checkpointing: bool,
    base: Path,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Far: next to the reference, KL is a difference of numbers near 1, and float32 keeps too few digits of it.
    trainer = moved_trainer(settings(micro_batch=micro_batch, quantize=quantize), base, pairs, tmp_path, by=0.1)
    if checkpointing:
        trainer.model.enable_input_require_grads()
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    inputs = step_of(trainer, rows_of(trainer))
    ours = loss_and_gradients(trainer, inputs)
    reference = inputs["ref_per_token_logps"]
    monkeypatch.setattr(trl_patches.SharedPrefixTrainer, "_get_per_token_logps_and_entropies", STOCK)
    stock = loss_and_gradients(trainer, with_pixels(trainer, inputs))
    assert ours[0] == pytest.approx(stock[0], rel=1e-5, abs=1e-7)
    assert ours[2]["kl"] == pytest.approx(stock[2]["kl"], rel=1e-5)
    assert ours[2]["entropy"] == pytest.approx(stock[2]["entropy"], rel=1e-5)
    assert ours[2]["kl"][0] > 1e-5
    assert ours[1].keys() == stock[1].keys()
    apart, size = apart_and_size(ours[1], stock[1])
    assert apart <= 1e-5 * size
    assert size > 0
    assert torch.isfinite(reference).all()


@pytest.mark.parametrize("fault", ["mask", "positions"])
def test_a_wrong_mask_and_a_wrong_position_would_be_seen(
    fault: str, base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = moved_trainer(settings(), base, pairs, tmp_path)
    inputs = step_of(trainer, rows_of(trainer))
    right = loss_and_gradients(trainer, inputs)[1]
    if fault == "mask":  # answers see those before them
        causal = lambda prompt, each, answer: torch.ones(  # noqa: E731
            len(prompt), 1, prompt.shape[1] + each * answer, prompt.shape[1] + each * answer, dtype=torch.bool
        ).tril()
        monkeypatch.setattr(shared_prefix, "_mask", causal)
    else:  # the answers of a group are counted on, one after another
        real = torch.Tensor.repeat
        monkeypatch.setattr(torch.Tensor, "repeat", lambda self, *n: real(self, *n) + (1 if n == (1, 4) else 0))
    wrong = loss_and_gradients(trainer, inputs)[1]
    apart, size = apart_and_size(wrong, right)
    assert apart > 1e-3 * size


def test_greedy_rollouts_are_those_of_generate(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = moved_trainer(settings(quantize="none"), base, pairs, tmp_path)
    monkeypatch.setattr(generation, "sampled", lambda temperature: generation.greedy)
    ours = trainer._generate_and_score_completions(rows_of(trainer))
    trainer.rollout_func = None
    trainer.generation_config.do_sample = False
    stock = GRPOTrainer._generate_and_score_completions(trainer, rows_of(trainer))
    ours = with_pixels(trainer, ours)
    for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "pixel_values"):
        assert torch.equal(ours[name], stock[name]), name
    assert len({str(row) for row in ours["completion_ids"].tolist()}) == 4
    assert (ours["ref_per_token_logps"] - stock["ref_per_token_logps"]).abs().max() < 1e-5


def test_the_kept_log_probabilities_are_those_of_the_policy(base: Path, pairs: Path, tmp_path: Path) -> None:
    trainer = moved_trainer(settings(quantize="none", temperature=0.8), base, pairs, tmp_path)
    rollout = with_pixels(trainer, trainer._generate_and_score_completions(rows_of(trainer)))
    answers = rollout["completion_ids"]
    ids = torch.cat([rollout["prompt_ids"], answers], 1)
    with torch.no_grad():
        logits = trainer.model(
            input_ids=ids,
            attention_mask=torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], 1),
            pixel_values=rollout["pixel_values"],
            image_grid_thw=rollout["image_grid_thw"],
            mm_token_type_ids=(ids == trainer.model.config.image_token_id).long(),
        ).logits[:, -answers.shape[1] - 1 : -1]
    logits[..., models.suppressed(trainer.processing_class)] = -torch.inf  # a rollout must not say them
    policy = (logits / 0.8).log_softmax(-1).gather(2, answers.unsqueeze(2)).squeeze(2)
    apart = (policy - rollout["sampling_per_token_logps"])[rollout["completion_mask"].bool()].abs()
    assert apart.max() < 1e-5


def test_a_step_over_drafted_completions_is_that_over_the_same_ones_without_drafts(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def most_likely(temperature: float) -> generation.Sampler:
        def choose(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            values, tokens = logits.log_softmax(-1).max(-1)
            return tokens, values

        return choose

    monkeypatch.setattr(generation, "sampled", most_likely)
    trainer = moved_trainer(settings(quantize="none", rollout_batch=8), base, pairs, tmp_path)
    drafted, forward, widths = generation.DRAFT, trainer.model.base_model.model.forward, []
    note = lambda **inputs: widths.append(inputs["input_ids"].shape[1]) or forward(**inputs)  # noqa: E731
    monkeypatch.setattr(trainer.model.base_model.model, "forward", note)
    steps, passes = [], []
    for most in (0, drafted):
        monkeypatch.setattr(generation, "DRAFT", most)
        widths.clear()
        steps.append(step_of(trainer, rows_of(trainer)))
        passes.append(sum(width <= 1 + drafted for width in widths))
    plain, ours = steps
    assert passes[1] < passes[0] - 6  # of two batches
    assert torch.equal(plain["completion_ids"], ours["completion_ids"])
    apart = (plain["sampling_per_token_logps"] - ours["sampling_per_token_logps"])[plain["completion_mask"].bool()]
    assert apart.abs().max() < 1e-5
    (loss, gradients, _), (other_loss, others, _) = (loss_and_gradients(trainer, step) for step in steps)
    assert loss == pytest.approx(other_loss, rel=1e-5)
    apart, size = apart_and_size(gradients, others)
    assert apart <= 1e-5 * size
    assert size > 0


def stock_probabilities(model: Any, inputs: dict[str, torch.Tensor], tokens: list[int]) -> torch.Tensor:
    """What the plain model, without a cache, says of the token after the question and `tokens`, shape (vocabulary,)."""
    more = torch.tensor([tokens], dtype=torch.long)
    grown = {"input_ids": more, "attention_mask": torch.ones_like(more), "mm_token_type_ids": torch.zeros_like(more)}
    whole = {**inputs, **{name: torch.cat([inputs[name], each], 1) for name, each in grown.items()}}
    with torch.no_grad():
        return model(**whole).logits[0, -1].double().softmax(-1)


@pytest.mark.parametrize("drafted", [False, True])
def test_answers_are_drawn_from_the_stock_paths_distribution(
    drafted: bool, base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First three tokens, over 20 000 draws: the stock path's probabilities are computed, not drawn."""
    monkeypatch.setitem(generation.PASS, "cpu", 8000)
    trainer = moved_trainer(settings(quantize="none"), base, pairs, tmp_path)
    row, processor = trainer.train_dataset[0], trainer.processing_class
    loaded = models.Loaded(trainer.model, processor, torch.device("cpu"))
    inputs = models.inputs(loaded, [row["prompt"]], [row["images"]])
    decoder = generation.Decoder(loaded, max_tokens=3)
    text = processor.apply_chat_template([row["prompt"]], tokenize=False, add_generation_prompt=True)
    likely = decoder.decode(decoder.prefill(text, row["images"]), generation.greedy)[0].tokens

    def drawn(temperature: float) -> Counter[tuple[int, ...]]:
        counts = Counter[tuple[int, ...]]()
        for _ in range(10):
            asked = shared_prefix._repeated(decoder, decoder.prefill(text, row["images"]), 2000)
            like = [[likely]] * 2000 if drafted else None
            answers = decoder.decode(asked, generation.sampled(temperature), examples=like)
            counts.update(tuple(each.tokens) for each in answers)
        return counts

    counts, expected = drawn(1.0), {}
    first = max(counts, key=counts.__getitem__)[0]
    start = stock_probabilities(trainer.model, inputs, [])[first]
    seconds = stock_probabilities(trainer.model, inputs, [first])
    for second in (seconds > 0.005).nonzero().flatten().tolist():
        thirds = stock_probabilities(trainer.model, inputs, [first, second])
        for third in (20_000 * start * seconds[second] * thirds > 10).nonzero().flatten().tolist():
            expected[first, second, third] = float(20_000 * start * seconds[second] * thirds[third])
    assert sum(counts.values()) == 20_000
    assert len(expected) >= 5

    def pvalue(found: Counter[tuple[int, ...]]) -> float:
        cells = [*expected]
        observed = [found[cell] for cell in cells] + [20_000 - sum(found[cell] for cell in cells)]
        return float(chisquare(observed, [*expected.values(), 20_000 - sum(expected.values())]).pvalue)

    assert pvalue(counts) > 0.001
    assert pvalue(drawn(1.1)) < 1e-6  # another temperature would be seen


def test_training_by_either_path_learns_and_the_shared_one_says_so(pairs: Path, tmp_path: Path) -> None:
    from r1track.core import files

    for each in (True, False):
        made = settings(shared_prefix=each, rollout_steps=2, prompts_per_step=2)
        train.run(made, "grpo", "tiny", pairs, tmp_path / f"s{each}", tmp_path / f"a{each}")
        assert files.read_json(tmp_path / f"a{each}" / "provenance.json")["shared_prefix"] is each
