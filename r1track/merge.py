"""Merge: the adapter becomes part of the original base's 16-bit weights, and whether that kept the answers is measured.

The sum is made in float32 and rounded once, to the base's own 16-bit type; what has no adapter keeps its values.
PEFT's merge into 4-bit weights is not offered: it requantises, and loses a small update.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image

from r1track import config, files, models, prompts
from r1track.pairs import load as open_pairs

log = logging.getLogger(__name__)
NOT_WEIGHTS = ("*.json", "*.txt", "*.jinja")


def held_out(settings: config.Settings, pairs: Path) -> tuple[list[prompts.Messages], list[list[Image.Image]]]:
    """Questions and images of the first held-out pairs, merge.check_pairs of them at most."""
    rows = open_pairs(pairs / "val")
    rows = rows.select(range(min(settings.merge.check_pairs, len(rows))))
    return [prompts.build(box, think=settings.task.think) for box in rows["template_box"]], list(rows["images"])


def _answers(
    settings: config.Settings, pairs: Path, model: str, adapter: Path | None = None, quantize: Any = "none"
) -> list[str]:
    loaded = models.load(model, settings.model, adapter=adapter, quantize=quantize)
    questions, images = held_out(settings, pairs)
    tokens = 512 if settings.task.think else 32
    found = models.answer(loaded, questions, images, max_tokens=tokens, batch=32, show="answers")
    del loaded  # two large models at once do not fit
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def _write_merged(folder: Path, adapter: Path, out: Path) -> None:
    """The merged model and the base's own processor files, in `out`.

    Raises ValueError when the adapter changes nothing.
    """
    base = models.load_weights(folder, torch.float32)
    stored = files.read_json(folder / "config.json")
    kept = {"float16": torch.float16}.get(stored.get("dtype", stored.get("torch_dtype")), torch.bfloat16)
    before = {name: value.clone() for name, value in base.state_dict().items() if name.endswith("_proj.weight")}
    merged: Any = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload(safe_merge=True)
    after = merged.state_dict()
    changed = sum(not torch.equal(value.to(kept), after[name].to(kept)) for name, value in before.items())
    if not changed:
        raise ValueError(
            f"{adapter}: the adapter changes no weight; train for longer or at a higher train.learning_rate"
        )
    merged.to(kept).save_pretrained(out)
    for pattern in NOT_WEIGHTS:
        for file in folder.glob(pattern):
            if not (out / file.name).exists() and "safetensors" not in file.name:
                shutil.copyfile(file, out / file.name)
    log.info("%d layers changed, written as %s", changed, kept)


def _agreement(first: list[str], second: list[str]) -> float:
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def run(settings: config.Settings, model: str, adapter: Path, pairs: Path, out: Path) -> None:
    """Merge `adapter` into `model`, compare greedy answers on held-out pairs, write weights, merge.json, provenance.

    merge.json: `agreement` is the share of equal answers of the merged model and of the adapter on the same 16-bit
    base: whether the sum is right. `agreement_as_trained` compares with the adapter on the base as it was in training:
    what leaving its quantisation behind changed; null when it was trained unquantised.
    Raises ValueError, and writes nothing, when the merge is empty or `agreement` is below merge.min_agreement.
    """
    provenance = files.Provenance("merge", [adapter, pairs / "manifest.json"])
    folder = models.folder_of(model, settings.model.revision)
    trained = files.read_json(adapter / "provenance.json")["quantize"]
    with files.atomic_folder(out) as aside:
        _write_merged(folder, adapter, aside)
        merged = _answers(settings, pairs, str(aside))
        agreement = _agreement(merged, _answers(settings, pairs, model, adapter))
        quantised = None
        if trained != "none":
            quantised = _agreement(merged, _answers(settings, pairs, model, adapter, trained))
        log.info("merged and adapter-on agree on %.1f %% of %d held-out pairs", 100 * agreement, len(merged))
        if agreement < settings.merge.min_agreement:
            raise ValueError(
                f"{adapter}: adapter-on and merged answers agree on {agreement:.3f} of {len(merged)} held-out pairs, "
                f"less than merge.min_agreement = {settings.merge.min_agreement}; nothing was written"
            )
        found = {"pairs": len(merged), "agreement": agreement, "agreement_as_trained": quantised, "base": model}
        files.write_json(aside / "merge.json", found)
        provenance.write(aside / "provenance.json", base=settings.model.revision)
