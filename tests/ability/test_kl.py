"""The KL to the base is that of whole distributions at every token of the base's answers, and 0 for the base itself."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import toy_split

from r1track.ability import kl, questions, vqa
from r1track.core import config, files, models, prompts, schema
from r1track.data import sample

SETTINGS = config.resolve({"preset": "demo"})


@pytest.fixture(scope="module")
def tiny():
    return models.load("tiny", SETTINGS.model)


@pytest.fixture(scope="module")
def probes():
    items = questions.load("easy", schema.VqaSet(items=6), 0, SETTINGS.model)
    return [kl.Probe("questions", prompts.ask(item.question), [item.picture()]) for item in items]


@pytest.fixture(scope="module")
def answered(probes):
    return kl.ask_base("tiny", SETTINGS.model, probes, batch=4)


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """The tiny base with noise on its weights."""
    folder = shutil.copytree(models.TINY, tmp_path_factory.mktemp("moved") / "moved")
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, value in weights.items():
        if name.endswith("proj.weight") and "visual" not in name:
            noise = torch.randn(value.shape, generator=generator) * value.float().std()
            weights[name] = (value + 0.2 * noise).to(value.dtype)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_places_are_those_of_the_answers_tokens_and_of_its_end(tiny, answered):
    tokenizer = tiny.processor.tokenizer
    for probe in answered:
        assert probe.answer
        expected = [*tokenizer(probe.answer)["input_ids"], tokenizer.eos_token_id]
        allowed = probe.expected.clone()
        allowed[:, models.suppressed(tiny.processor)] = -torch.inf
        assert allowed.argmax(-1).tolist() == expected  # greedy answers are what the base holds likeliest
        assert probe.expected.exp().sum(-1) == pytest.approx(torch.ones(len(expected)), abs=1e-4)


def test_the_base_does_not_diverge_from_itself(tiny, answered):
    divergence = kl.measure(tiny, answered)["questions"]
    assert divergence.prompts == 6
    assert divergence.tokens == sum(len(probe.expected) for probe in answered)
    assert divergence.nats == pytest.approx(0, abs=1e-6)


def test_a_moved_model_diverges_by_what_torch_finds_on_its_own_way_through_both_models(tiny, moved, answered):
    other = models.load(str(moved), SETTINGS.model)
    total = torch.empty(0)
    for probe in answered:
        inputs = models.inputs(tiny, [probe.question], [probe.images])
        answer = torch.tensor([[*tiny.processor.tokenizer(probe.answer)["input_ids"]]])
        start = inputs["input_ids"].shape[1]
        logits = []
        for model in (tiny.model, other.model):  # token by token, as a sampler would
            steps = []
            for k in range(answer.shape[1] + 1):
                ids = torch.cat([inputs["input_ids"], answer[:, :k]], 1)
                rest = {
                    key: torch.nn.functional.pad(inputs[key], (0, k))
                    for key in inputs
                    if inputs[key].shape == (1, start)
                }
                rest |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                with torch.inference_mode():
                    steps.append(model(**{**inputs, **rest}).logits[0, -1])
            logits.append(torch.stack(steps).log_softmax(-1))
        terms = torch.nn.functional.kl_div(logits[1], logits[0], log_target=True, reduction="none").sum(-1)
        total = torch.cat([total, terms])
    measured = kl.measure(other, answered)["questions"]
    assert measured.nats == pytest.approx(float(total.mean()), rel=1e-3)
    assert measured.nats > 0.001


def test_the_stage_measures_a_tuned_model_on_held_out_pairs_and_on_questions_but_not_the_base(moved, tmp_path):
    values = {
        "preset": "demo",
        "sample": {"pairs": 4, "val_pairs": 5},
        "vqa": {"kl_prompts": 4, "sets": {"easy": {"items": 9, "max_tokens": 4}}},
    }
    settings = config.resolve(values)
    sample.run(settings, toy_split(tmp_path / "val", sequences=12), tmp_path / "pairs")
    for name, model in (("base", "tiny"), ("tuned", str(moved))):
        vqa.run(settings, model, tmp_path / name, tmp_path / "pairs")
    base, tuned = (files.read_json(tmp_path / name / "manifest.json") for name in ("base", "tuned"))
    assert base["kl"] == {}
    assert {kind: entry["prompts"] for kind, entry in tuned["kl"].items()} == {"questions": 4, "tracking": 4}
    assert all(entry["nats"] > 0 for entry in tuned["kl"].values())
    assert tuned["kl"]["tracking"]["tokens"] > 3 * tuned["kl"]["questions"]["tokens"]
