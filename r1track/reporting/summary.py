"""What a run came to: the figures of the page, of summary.json and of summary.md, from this one place.

AO, SR.50 and SR.75 are shares from 0 to 1, as in scores/; the figures of general ability are points, as in the verdict.
"""

import json
import re
from pathlib import Path
from typing import Any

from r1track.core import config, files
from r1track.reporting import paper
from r1track.tracking.score import Scores, paired_difference

BASE = "base"
PEERS = {
    "static": "the static box", "template": "the template matcher", "csrt": "CSRT", "extra": "the extra model",
    "oracle": "the oracle",
}  # fmt: skip
LORA = {"nf4": "over NF4 weights", "none": "over unquantised weights"}
FEW = 30  # sequences below which a bootstrap over them is not to be leaned on
NOTES = {
    r"(^|[\s/])toy([-_/]|$)": "toy world: says that the workflow works, not how good a tracker is",
    r"got-?_?10k": "GOT-10k: validation figures are not comparable with published test figures",
}
GENERAL = {
    "RETAINED": "its general ability is retained",
    "REGRESSED": "its general ability has regressed",
    "INCONCLUSIVE": "whether its general ability is retained is not decided",
    "INVALID": "the check of its general ability is invalid",
}

Found = dict[str, Any]


def read(path: Path, stage: str) -> Any:
    """A stage's JSON. Raises FileNotFoundError naming the file and the stage that writes it."""
    return files.read_json(present(path, stage))


def present(path: Path, stage: str) -> Path:
    """The path itself, when it is there."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; run the stage `{stage}`, or all of them: `snakemake --cores all`"
        )
    return path


def read_scores(results: Path) -> dict[str, dict[str, Found]]:
    """The scores by set and model: the base first, then the tuned models, then the peers."""
    present_models = {path.name for path in results.glob("scores/*") if path.is_dir()}
    tuned = sorted(present_models - {BASE, *PEERS})
    if not tuned:
        raise FileNotFoundError(f"{results / 'scores'}: no scores of a tuned model; run the stage `score`")
    models = [BASE, *tuned, *(peer for peer in PEERS if peer in present_models)]
    paths = results.glob("scores/*/*.json")
    sets = sorted({path.stem for path in paths if not path.name.endswith("provenance.json")})
    return {name: {m: read(results / "scores" / m / f"{name}.json", "score") for m in models} for name in sets}


def root_of(results: Path, name: str) -> Path:
    """The folder of the split that the set `name` was tracked on."""
    inputs = read(results / "tracks" / BASE / name / "provenance.json", "track")["inputs"]
    return Path(next(iter(inputs)))  # `track` names the split first


def read_log(results: Path, arm: str) -> list[Found]:
    """The rows of an arm's training log, one per optimiser step."""
    path = present(results / "adapters" / arm / "log.jsonl", "train")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_records(results: Path) -> list[Found]:
    """Every provenance of the run, in the order in which the results were finished; `result` says of what."""
    found = []
    for path in results.rglob("*provenance.json"):
        place = path.relative_to(results)
        if place.parts[0] != "report" and not any(part.startswith(".") for part in place.parts):
            alone = path.name == "provenance.json"
            result = place.parent.as_posix() if alone else place.as_posix().removesuffix(".provenance.json")
            found.append({"result": result, **read(path, place.parts[0])})
    return sorted(found, key=lambda record: (record["finished"], record["result"]))


def _compare(ours: Found, theirs: Found, draws: int) -> Found:
    found = paired_difference(Scores.model_validate(ours), Scores.model_validate(theirs), draws)
    return {**found._asdict(), "told": "above" if found.low > 0 else "below" if found.high < 0 else "undecided"}


def beside(peers: dict[str, Found]) -> str:
    """In words, which peers a model beats: those against which the interval of the difference lies above 0."""
    if not peers:
        return "stands alone, no peer was scored"
    beaten = [PEERS[peer] for peer, found in peers.items() if found["told"] == "above"]
    mark = {"below": "", "undecided": " (undecided)"}
    others = [PEERS[peer] + mark[found["told"]] for peer, found in peers.items() if found["told"] != "above"]
    if not beaten:
        return (
            f"beats none of its peers: neither {' nor '.join(others)}" if others[1:] else f"does not beat {others[0]}"
        )
    return f"beats {' and '.join(beaten)}" + (f", not {' nor '.join(others)}" if others else "")


def _of_set(scores: dict[str, Found], root: Path, draws: int) -> Found:
    base = scores[BASE]
    text, count = f"{base['set']} {root.as_posix()}".lower(), base["sequences_count"]
    few = [f"only {count} sequences: the intervals say little"] if count < FEW else []
    models = {}
    for name, score in scores.items():
        peers = {} if name in PEERS else {p: _compare(score, scores[p], draws) for p in scores if p in PEERS}
        keys = ("ao", "ao_interval", "sr50", "sr75", "ao_sequence_mean", "ao_class_mean", "fps", "status")
        kind = "peer" if name in PEERS else "base" if name == BASE else "tuned"
        models[name] = {"kind": kind, **{key: score[key] for key in keys}, "peers": peers}
        models[name]["words"] = "" if name in PEERS else f"{name} {beside(peers)}"
    return {
        "sequences": count,
        "frames": base["frames"],
        "notes": [note for pattern, note in NOTES.items() if re.search(pattern, text)] + few,
        "models": models,
        "differences": {m: _compare(scores[m], base, draws) for m in scores if models[m]["kind"] == "tuned"},
    }


def read_settings(results: Path) -> Found:
    """The resolved configuration of the run, as its stages kept it: the preset's name, and sections by name."""
    found: Found = {}
    for stage in config.NEEDS:
        path = results / "config" / f"{stage}.json"
        found |= {} if stage == "toy" and not path.exists() else read(path, "settings")
    if "preset" not in found:
        raise ValueError(f"{results / 'config/report.json'}: names no preset; delete it and run `snakemake` again")
    return found


def _changes(settings: Found) -> list[Found]:
    """Fields in which resolved settings differ from the preset that they name: field, preset, here."""
    values = config.resolve({"preset": settings["preset"]}).model_dump(mode="json")
    there, here = config.flat({name: values[name] for name in settings}), config.flat(settings)
    differ = [field for field in {**there, **here} if there.get(field) != here.get(field)]
    return [{"field": field, "preset": there.get(field), "here": here.get(field)} for field in differ]


def _training(results: Path, arm: str) -> Found:
    record = read(results / "adapters" / arm / "provenance.json", "train")
    merge = read(results / "models" / arm / "merge.json", "merge")
    seconds = record.get("train_seconds", record["wall_seconds"])
    return {
        "quantize": record["quantize"],
        "adapter": f"LoRA trained {LORA[record['quantize']]}",
        "steps": len(read_log(results, arm)),
        "minutes": seconds / 60,
        "merge": {key: merge[key] for key in ("pairs", "agreement", "agreement_as_trained")},
    }


def _verdicts(results: Path) -> dict[str, Found]:
    """The verdict on every arm, in the order of training."""
    keys = ("verdict", "difference", "interval", "margin", "reasons", "needed_items", "kl")
    found = {}
    for model, verdict in read(results / "vqa" / "verdict.json", "verdict")["models"].items():
        sets = {name: {key: each[key] for key in ("n", "base", "tuned")} for name, each in verdict["sets"].items()}
        kept = {key: verdict[key] for key in keys}
        found[model] = {"model": model, "line": verdict["summary"], **kept, "sets": sets}
    return found


def _cost(records: list[Found]) -> Found:
    """Times summed, memory at its largest, of all results; `stages` has the same of each stage."""
    stages = {stage: [record for record in records if record["stage"] == stage] for stage in config.NEEDS}
    return {**_sums(records), "stages": {stage: _sums(found) for stage, found in stages.items() if found}}


def _sums(records: list[Found]) -> Found:
    gpu = [record["peak_gpu_bytes"] for record in records if record["peak_gpu_bytes"]]
    return {
        "results": len(records),
        "wall_seconds": sum(record["wall_seconds"] for record in records),
        "cpu_seconds": sum(record["cpu_seconds"] for record in records),
        "peak_cpu_bytes": max(record["peak_cpu_bytes"] for record in records),
        "peak_gpu_bytes": max(gpu, default=None),
    }


def judgement(sets: dict[str, Found], verdict: Found) -> str:
    """One sentence on the model that the verdict is about, which says no more than the intervals carry."""
    model, parts = verdict["model"], []
    for name, found in sets.items():
        change = found["differences"][model]
        figures = f"AO {change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
        claim = {
            "above": f"{model} tracks better than {BASE} ({figures})",
            "below": f"{model} tracks worse than {BASE} ({figures})",
            "undecided": f"{model} is not shown to track better than {BASE} ({figures} holds 0)",
        }[change["told"]]
        peers = found["models"][model]["peers"]
        moves = "static" not in peers or peers["static"]["told"] == "above"
        join = "and" if moves == (change["told"] == "above") else "but"
        doubt = "" if moves else ", so nothing shows yet that it tracks at all"
        parts.append(f"on {name} {claim}, {join} it {beside(peers)}{doubt}")
    sentence = "; ".join([*parts, GENERAL[verdict["verdict"]]])
    return f"{sentence[0].upper()}{sentence[1:]}."


def summarise(results: Path) -> Found:
    """The figures of a run: scores of models and peers by set, differences with intervals, verdict, training, cost.

    Raises FileNotFoundError or ValueError naming the file when the results are not whole.
    """
    scores, verdicts = read_scores(results), _verdicts(results)
    verdict = list(verdicts.values())[-1]
    tuned = [name for name in next(iter(scores.values())) if name not in (BASE, *PEERS)]
    if verdict["model"] not in tuned:
        raise ValueError(
            f"{results / 'vqa/verdict.json'}: the last verdict is about {verdict['model']!r}, but scores are "
            f"there for {tuned}; run the stages `score` and `verdict` again"
        )
    settings = read_settings(results)
    draws = settings["score"]["draws"]
    sets = {name: _of_set(each, root_of(results, name), draws) for name, each in scores.items()}
    return {
        "run": results.resolve().name,
        "judgement": judgement(sets, verdict),
        "metric": scores[next(iter(scores))][BASE]["metric"],
        "draws": draws,
        "sets": sets,
        "verdict": verdict,
        "verdicts": verdicts,
        "training": {arm: _training(results, arm) for arm in tuned},
        "paper": paper.beside(sets),
        "departures": paper.departures(settings),
        "changes": _changes(settings),
        "settings": settings,
        "cost": _cost(read_records(results)),
    }
