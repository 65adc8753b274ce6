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
from peft.tuners.lora import LoraLayer
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
    adapted: Any = PeftModel.from_pretrained(base, str(adapter))
    changed = 0
    layers: list[Any] = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        weight = layer.get_base_layer().weight.data
        moved = weight + layer.get_delta_weight("default")
        changed += not torch.equal(moved.to(kept), weight.to(kept))
    if not changed:
        raise ValueError(
            f"{adapter}: the adapter changes no weight; train for longer or at a higher train.learning_rate"
        )
    adapted.merge_and_unload(safe_merge=True).to(kept).save_pretrained(out)
    for pattern in NOT_WEIGHTS:
        for file in folder.glob(pattern):
            if not (out / file.name).exists() and "safetensors" not in file.name:
                shutil.copyfile(file, out / file.name)
    log.info("%d layers changed, written as %s", changed, kept)


def _agreements(settings: config.Settings, model: str, adapter: Path, merged: Path, pairs: Path) -> dict[str, Any]:
    """Shares of held-out pairs on which the merged model answers as the adapter does, in two places.

    agreement: with the adapter on the same 16-bit base, which says whether the sum is right. agreement_as_trained: on
    the base as it was in training, which says what leaving its quantisation behind changed; None where it had none.
    Raises ValueError when `agreement` is below merge.min_agreement.
    """
    trained = files.read_json(adapter / "provenance.json")["quantize"]
    answers = _answers(settings, pairs, str(merged))

    def share(quantize: Any) -> float:
        others = _answers(settings, pairs, model, adapter, quantize)
        return sum(a == b for a, b in zip(answers, others, strict=True)) / len(answers)

    found = {"pairs": len(answers), "agreement": share("none")}
    log.info("merged and adapter-on agree on %.1f %% of %d held-out pairs", 100 * found["agreement"], len(answers))
    if found["agreement"] < settings.merge.min_agreement:
        raise ValueError(
            f"{adapter}: adapter-on and merged answers agree on {found['agreement']:.3f} of {len(answers)} held-out "
            f"pairs, less than merge.min_agreement = {settings.merge.min_agreement}; nothing was written"
        )
    return {**found, "agreement_as_trained": None if trained == "none" else share(trained)}


def run(settings: config.Settings, model: str, adapter: Path, pairs: Path | None, out: Path) -> None:
    """Merge `adapter` into `model`, compare greedy answers on held-out pairs, write weights, merge.json, provenance.

    Without pairs nothing is compared, and merge.json says so by nulls.
    Raises ValueError, and writes nothing, when the merge is empty or changes too many answers.
    """
    provenance = files.Provenance("merge", [adapter, *([pairs / "manifest.json"] if pairs else [])])
    folder = models.folder_of(model, settings.model.revision)
    with files.atomic_folder(out) as aside:
        _write_merged(folder, adapter, aside)
        found: dict[str, Any] = {"pairs": 0, "agreement": None, "agreement_as_trained": None}
        if pairs:
            found = _agreements(settings, model, adapter, aside, pairs)
        else:
            log.warning("no --pairs: whether the merge keeps the answers was not measured")
        files.write_json(aside / "merge.json", {**found, "base": model})
        provenance.write(aside / "provenance.json", base=settings.model.revision)
