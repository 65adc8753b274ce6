"""Merge: the adapter is added to 16-bit weights, and it is measured whether the answers stay the same.

It is added to the base's own weights (`original`), or to those that it was trained over (`dequantised`: to 4 bits and
back). The sum is computed in float32 and rounded once, to the base's own 16-bit type. PEFT's merge into 4-bit weights
is not offered: it quantises again, and loses a small update.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peft.tuners.lora import LoraLayer

from r1track.core import card, config, files, models
from r1track.core.errors import UserError
from r1track.core.folders import atomic_folder, check_replaceable
from r1track.core.pairs import held_out, held_out_rows
from r1track.core.provenance import Provenance, ProvenanceRecord
from r1track.core.records import MergeRecord

log = logging.getLogger(__name__)
FAITHFUL = 0.9  # share of the update below which a merge says that it lost some of it
NOT_WEIGHTS = (".json", ".txt", ".jinja")


def dequantised(weight: torch.Tensor) -> torch.Tensor:
    """A 16-bit weight as 4-bit training sees it: to NF4 and back, with the settings of `models.load_weights`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    packed, state = quantize_4bit(weight.to(device), quant_type="nf4", compress_statistics=True)
    return dequantize_4bit(packed, state).to(weight.device)


def _write_merged(folder: Path, adapter: Path, onto: str, out: Path) -> float:
    """Write the merged model and the base's own processor files to `out`; the share of the update that arrived.

    The share is the update's projection onto what changed: 1 but for rounding, which loses what is below half a unit in
    the last of 16 bits. Raises UserError when the adapter changes nothing.
    """
    stored = files.read_json(folder / "config.json", models.COPY)
    dtype = {"float16": torch.float16}.get(stored.get("dtype", stored.get("torch_dtype")), torch.bfloat16)
    base: Any = models.load_weights(folder, dtype, device="cpu")  # the sum needs no card, and a 7B base fills one
    if onto == "dequantised":
        for name, module in base.named_modules():
            if isinstance(module, torch.nn.Linear) and ".language_model." in name:
                module.weight.data = dequantised(module.weight.data)
    adapted: Any = models.attach(base, adapter)
    wanted = arrived = 0.0
    layers: list[Any] = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        weight = layer.get_base_layer().weight
        update = layer.get_delta_weight("default").float()
        moved = (weight.data.float() + update).to(dtype)
        wanted += update.square().sum().item()
        arrived += (update * (moved.float() - weight.data.float())).sum().item()
        weight.data = moved
    if not arrived:
        raise UserError(f"{adapter}: the adapter changes no weight; train longer or raise train.learning_rate")
    adapted.unload().save_pretrained(out)
    for file in folder.iterdir():
        copied = (file.suffix in NOT_WEIGHTS and "safetensors" not in file.name) or file.name == "LICENSE"
        if copied and not (out / file.name).exists():
            shutil.copyfile(file, out / file.name)
    share = arrived / wanted
    log.info("%d layers got an update, written as %s; %.1f %% of it arrived", len(layers), dtype, 100 * share)
    if share < FAITHFUL:
        log.warning("%.0f %% of the update is lost in rounding to %s: train for longer", 100 * (1 - share), dtype)
    return share


def _agreements(
    settings: config.Settings, trained: Any, model: str, adapter: Path, merged: Path, pairs: Path
) -> dict[str, Any]:
    """The fields of a `MergeRecord` that are measured on held-out pairs.

    Raises UserError when the agreement is below merge.min_agreement.
    """
    questions, images = held_out(pairs, settings.merge.check_pairs, settings.task)
    rows, tokens = settings.answer_size

    def answers(base: str, adapter: Path | None = None, quantize: Any = "none") -> list[str]:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # of the model before: two large ones do not fit
        loaded = models.load(base, settings.model, adapter, quantize)
        return models.generate(loaded, questions, images, max_tokens=tokens, batch=rows, show="answers")

    def share(quantize: Any) -> float:
        return sum(a == b for a, b in zip(of_merged, answers(model, adapter, quantize), strict=True)) / len(of_merged)

    of_merged = answers(str(merged))
    original, as_trained = share("none"), None if trained == "none" else share(trained)
    agreement = original if settings.merge.base == "original" or as_trained is None else as_trained
    log.info("merged and adapter-on agree on %.1f %% of %d held-out pairs", 100 * agreement, len(of_merged))
    if agreement < settings.merge.min_agreement:
        raise UserError(
            f"{adapter}: adapter-on and merged answers agree on {agreement:.3f} of {len(of_merged)} held-out pairs, "
            f"less than merge.min_agreement = {settings.merge.min_agreement}; nothing was written"
        )
    shares = {"agreement": agreement, "agreement_original": original, "agreement_as_trained": as_trained}
    return {"pairs": len(of_merged), **shares}


def run(settings: config.Settings, model: str, adapter: Path, pairs: Path | None, out: Path) -> None:
    """Merge `adapter` into `model`, compare greedy answers on held-out pairs, write weights, merge.json, provenance.

    Without pairs nothing is compared, and merge.json says so by nulls. Raises UserError, and writes nothing, when the
    merge is empty or changes too many answers, or is to be into dequantised weights where nothing was quantised.
    """
    check_replaceable(out, "merge")  # before a base is fetched
    inputs: dict[str, Path | str] = {"model": model, "adapter": adapter}
    inputs |= {"pairs": pairs / "manifest.json"} if pairs else {}
    provenance = Provenance("merge", inputs, settings.model.revision)
    training = files.read_record(adapter / "provenance.json", ProvenanceRecord)
    trained = training.quantize
    if settings.merge.base == "dequantised" and trained == "none":
        raise UserError(f"{adapter}: trained over 16 bits, not over dequantised weights; take merge.base original")
    folder = models.resolve_model_dir(model, settings.model.revision)
    if pairs:
        held_out_rows(pairs, 1)  # which is refused before the work, where there are none
    with atomic_folder(out, "merge") as temp_path:
        if training.settings and training.arm and "pairs" in training.inputs:
            manifest = Path(training.inputs["pairs"].path)
            card.write(temp_path, "model", training.settings, training.arm, model, provenance.base, folder, manifest)
        share = _write_merged(folder, adapter, settings.merge.base, temp_path)
        measured: dict[str, Any] = {"pairs": 0}
        if pairs:
            measured = _agreements(settings, trained, model, adapter, temp_path, pairs)
        else:
            log.warning("no --pairs: whether the merge keeps the answers was not measured")
        record = MergeRecord(**measured, update_kept=share, base=model, onto=settings.merge.base)
        files.write_json(temp_path / "merge.json", record.model_dump())
        provenance.write(temp_path / "provenance.json", notes={"settings": config.stage_values(settings, "merge")})
