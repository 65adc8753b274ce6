"""KL: how far a tuned model has moved from its base, as forward KL(base || tuned) on the base's own answers.

It is said to predict forgetting (arXiv 2509.04259). Both models read the same prompts followed by the same answers; the
KL is that of the whole next-token distributions, at every token of an answer and at its end.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image

from r1track.ability.records import Divergence
from r1track.core import models, schema
from r1track.core.prompts import Messages

MAX_TOKENS = 64  # of an answer; a longer one, such as a chain of thought, is cut here


class Probe(NamedTuple):
    """A prompt, the base's answer to it, and the base's log-probabilities there: (tokens, vocabulary), on the CPU."""

    kind: str
    question: Messages
    images: list[Image.Image]
    answer: str = ""
    expected: torch.Tensor = torch.empty(0)


def log_probabilities(loaded: models.Loaded, probe: Probe) -> torch.Tensor:
    """Log-probabilities at each token of the probe's answer and its end: (tokens, vocabulary), float32, on the CPU."""
    messages = [*probe.question, {"role": "assistant", "content": [{"type": "text", "text": probe.answer}]}]
    start = models.inputs(loaded, [probe.question], [probe.images])["input_ids"].shape[1]
    batch = models.inputs(loaded, [messages], [probe.images])
    end = int((batch["input_ids"][0] == loaded.processor.tokenizer.eos_token_id).nonzero()[-1])
    with torch.inference_mode():
        logits = models.check_logits(loaded.model, loaded.model(**batch).logits[0, start - 1 : end])
        return logits.float().log_softmax(-1).cpu()


def ask_base(base: str, settings: schema.Model, probes: Sequence[Probe], batch: int) -> list[Probe]:
    """The probes with the base's greedy answers and log-probabilities; the base is unloaded afterwards."""
    loaded = models.load(base, settings)
    questions, images = [probe.question for probe in probes], [probe.images for probe in probes]
    answers = models.generate(loaded, questions, images, max_tokens=MAX_TOKENS, batch=batch, show="KL to the base")
    probes = [probe._replace(answer=answer) for probe, answer in zip(probes, answers, strict=True)]
    probes = [probe._replace(expected=log_probabilities(loaded, probe)) for probe in probes]
    del loaded
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return probes


def measure(tuned: models.Loaded, probes: Sequence[Probe]) -> dict[str, Divergence]:
    """The divergence of a tuned model by kind of prompt; the probes carry the base's answers (`ask_base`)."""
    kinds: dict[str, list[torch.Tensor]] = {}
    for probe in probes:
        p, q = probe.expected, log_probabilities(tuned, probe)
        kinds.setdefault(probe.kind, []).append((p.exp() * (p - q)).sum(-1))
    return {
        kind: Divergence(prompts=len(terms), tokens=len(torch.cat(terms)), nats=float(torch.cat(terms).mean()))
        for kind, terms in kinds.items()
    }
