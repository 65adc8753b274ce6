"""Summary: the figures of a run, for the page, summary.json and summary.md, from this one place."""

import math
import re
from pathlib import Path
from typing import Literal

from r1track.ability.records import Verdicts, read_rows
from r1track.core import config, files
from r1track.core.errors import MissingFile, UserError
from r1track.core.files import Input, ProvenanceRecord, RecordT
from r1track.reporting import paper
from r1track.reporting.records import (
    ArmTraining,
    ArmVerdict,
    Change,
    Cost,
    Json,
    LogRow,
    MergeCheck,
    ModelScore,
    Provenance,
    RunCost,
    SetSummary,
    SettingChange,
    Summary,
)  # fmt: skip
from r1track.tracking.score import Scores, paired_difference

BASE = "base"
NONE = "–"  # in place of a figure that is not there
PEERS = {
    "static": "the static box", "template": "the template matcher", "csrt": "CSRT", "extra": "the extra model",
    "oracle": "the oracle",
}  # fmt: skip
LORA = {"nf4": "over NF4 weights", "none": "over unquantised weights"}
FEW = 30  # with fewer sequences, a bootstrap over them says little
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


def read_as(record: type[RecordT], path: Path, stage: str) -> RecordT:
    """A stage's JSON as a record.

    Raises MissingFile naming the file and the stage that writes it, and UserError with file and field for another form.
    """
    return files.read_record(_existing(path, stage), record)


def number(value: float | None, digits: int = 3, sign: str = "") -> str:
    """A figure with so many decimals; sign: `+` to write that of positive ones too."""
    return NONE if value is None else f"{value:{sign}.{digits}f}"


def interval(ends: tuple[float | None, float | None] | None, digits: int = 3, sign: str = "") -> str:
    """The ends of an interval over sequences; one sequence has none."""
    low, high = ends or (None, None)
    return "one sequence" if low is None else f"[{number(low, digits, sign)}, {number(high, digits, sign)}]"


def _existing(path: Path, stage: str) -> Path:
    if not path.is_file():
        raise MissingFile(f"{path}: no such file; run the stage `{stage}`, or all of them: `snakemake --cores all`")
    return path


def read_settings(results: Path) -> Json:
    """The resolved configuration of the run, from its stages' files: the preset's name, and sections by name."""
    settings: Json = {}
    for stage in config.NEEDS:
        path = results / "config" / f"{stage}.json"
        if stage != "toy" or path.exists():
            settings |= config.stage_values(config.load(_existing(path, "settings")), stage)
    return settings


def models_of(settings: Json) -> list[str]:
    """The models that a run's configuration names: the base, the arms in the order of training, then the peers."""
    peers = {*settings["track"]["peers"], *(["extra"] if settings["track"]["extra"]["model"] else [])}
    return [BASE, *settings["train"]["arms"], *(peer for peer in PEERS if peer in peers)]


def unnamed(results: Path) -> list[Path]:
    """What lies among the results, relative to them, although the configuration names no such model, arm or set.

    It is of an earlier configuration, or made by hand, and no part of the run.
    """
    settings = read_settings(results)
    models, arms, sets = models_of(settings), settings["train"]["arms"], [*settings["data"]["sets"]]
    levels = {"adapters/*": [arms], "models/*": [arms], "vqa/*": [[BASE, *arms, "verdict", "kept"]]}
    levels |= {"submission/*": [models], "tracks/*/*": [models, sets], "scores/*/*": [models, sets]}
    paths = [(p.relative_to(results), names) for pattern, names in levels.items() for p in results.glob(pattern)]
    return sorted(path for path, names in paths if not any(map(_hidden, path.parts)) and not _fits(path, names))


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _fits(path: Path, names: list[list[str]]) -> bool:
    """Whether each part of a result's path, after the first, is one of its names."""
    parts = [re.sub(r"(\.json|\.zip)?(\.provenance\.json)?$", "", part) for part in path.parts[1:]]
    return all(part in known for part, known in zip(parts, names, strict=True))


def read_scores(results: Path, settings: Json) -> dict[str, dict[str, Scores]]:
    """The scores of what the configuration names, by set and by model as `models_of` orders them.

    A test split has none: only the benchmark's server can score it.
    """
    scored = [name for name, path in sorted(settings["data"]["sets"].items()) if not _is_test(results, name, path)]
    if not scored:
        raise UserError(f"{results / 'config/report.json'}: data.sets: names no set that can be scored; add one")
    return {name: {model: read_score(results, model, name) for model in models_of(settings)} for name in scored}


def _is_test(results: Path, name: str, root: str) -> bool:
    """Whether a set is GOT-10k's test split, by its tracks or its list."""
    listing = Path(root, "list.txt")
    tracked = any((results / "tracks" / BASE / name).glob("GOT-10k_Test_*"))
    return tracked or (listing.is_file() and listing.read_text(encoding="utf-8").startswith("GOT-10k_Test_"))


def read_score(results: Path, model: str, name: str) -> Scores:
    """The scores of a model on the set `name`."""
    return read_as(Scores, results / "scores" / model / f"{name}.json", "score")


def split_of(results: Path, model: str, name: str) -> Input:
    """The split on which a model tracked the set `name`."""
    path = results / "tracks" / model / name / "provenance.json"
    return input_of(read_as(Provenance, path, "track"), "split", path)


def input_of(record: ProvenanceRecord, name: str, path: Path) -> Input:
    """An input of the result whose provenance lies at `path`, by its name; UserError where it has none."""
    if name not in record.inputs:
        raise UserError(f"{path}: no field 'inputs.{name}'; run the stage `{record.stage}` again")
    return record.inputs[name]


def read_log(results: Path, arm: str) -> list[Json]:
    """The rows of an arm's training log, one per optimiser step; what is not finite is None."""
    path = _existing(results / "adapters" / arm / "log.jsonl", "train")
    rows = [row.model_dump() for row in read_rows(path, LogRow.model_validate)]
    return [{key: value if math.isfinite(value or 0) else None for key, value in row.items()} for row in rows]


def read_records(results: Path) -> list[tuple[str, Provenance]]:
    """The results of the run, by their paths in it, with their provenance, in the order in which they were finished."""
    paths = [path.relative_to(results) for path in results.rglob("*provenance.json")]
    others = unnamed(results)
    places = [p for p in paths if p.parts[0] != "report" and not any(map(_hidden, p.parts))]
    places = [place for place in places if not any(place.is_relative_to(other) for other in others)]
    records = [(result_of(place), read_as(Provenance, results / place, place.parts[0])) for place in places]
    return sorted(records, key=lambda row: (row[1].finished, row[0]))


def result_of(place: Path) -> str:
    """The file or folder that a provenance describes, from its path."""
    return re.sub(r"[./]provenance\.json$", "", place.as_posix())


def _change(scores: Scores, reference: Scores, draws: int) -> Change:
    change = paired_difference(scores, reference, draws)
    side: Literal["above", "below", "undecided"] = "undecided"
    if change.low is not None and change.high is not None and (change.low > 0 or change.high < 0):
        side = "above" if change.low > 0 else "below"
    return Change(**change._asdict(), told=side)


def peers_in_words(peers: dict[str, Change]) -> str:
    """Which peers a model beats, in words: those where the interval of the difference lies above 0."""
    if not peers:
        return "stands alone, no peer was scored"
    beaten = [PEERS[peer] for peer, change in peers.items() if change.told == "above"]
    mark = {"below": "", "undecided": " (undecided)"}
    others = [PEERS[peer] + mark[change.told] for peer, change in peers.items() if change.told != "above"]
    if not beaten:
        return (
            f"beats none of its peers: neither {' nor '.join(others)}" if others[1:] else f"does not beat {others[0]}"
        )
    return f"beats {' and '.join(beaten)}" + (f", not {' nor '.join(others)}" if others else "")


def _model_score(model: str, scores: dict[str, Scores], draws: int) -> ModelScore:
    score, peers = scores[model], dict[str, Change]()
    kind: Literal["base", "tuned", "peer"] = "peer" if model in PEERS else "base" if model == BASE else "tuned"
    if kind != "peer":
        peers = {peer: _change(score, scores[peer], draws) for peer in scores if peer in PEERS}
    words = f"{model} {peers_in_words(peers)}" if kind != "peer" else ""
    figures = score.model_dump(exclude={"sequences", "curve"})
    return ModelScore.model_validate({**figures, "kind": kind, "peers": peers, "words": words})


def _set_summary(scores: dict[str, Scores], root: Path, draws: int) -> SetSummary:
    base = scores[BASE]
    text, count = f"{base.set} {root.as_posix()}".lower(), base.sequences_count
    few = [f"only {count} sequences: the intervals say little"] if count < FEW else []
    notes = [note for pattern, note in NOTES.items() if re.search(pattern, text)]
    models = {model: _model_score(model, scores, draws) for model in scores}
    tuned = [model for model, row in models.items() if row.kind == "tuned"]
    differences = {model: _change(scores[model], base, draws) for model in tuned}
    return SetSummary(sequences=count, frames=base.frames, notes=notes + few, models=models, differences=differences)


def _changes(settings: Json) -> list[SettingChange]:
    """Fields in which resolved settings differ from the preset that they name."""
    values = config.resolve({"preset": settings["preset"]}).model_dump(mode="json")
    preset, here = config.flat({name: values[name] for name in settings}), config.flat(settings)
    rows = [SettingChange(field=field, preset=preset.get(field), here=here.get(field)) for field in {**preset, **here}]
    return [row for row in rows if row.preset != row.here]


def _training(results: Path, arm: str) -> ArmTraining:
    path = results / "adapters" / arm / "provenance.json"
    record = read_as(Provenance, path, "train")
    quantize = str(record.quantize)
    if quantize not in LORA:
        raise UserError(f"{path}: quantize: {record.quantize!r} is none of {[*LORA]}; run the stage `train` again")
    return ArmTraining(
        quantize=quantize,
        adapter=f"LoRA trained {LORA[quantize]}",
        steps=len(read_log(results, arm)),
        minutes=(record.wall_seconds if record.train_seconds is None else record.train_seconds) / 60,
        merge=read_as(MergeCheck, results / "models" / arm / "merge.json", "merge"),
    )


def read_verdicts(results: Path) -> Verdicts:
    """The verdicts on every arm, in the order of training."""
    return read_as(Verdicts, results / "vqa" / "verdict.json", "verdict")


def _cost(records: list[Provenance]) -> Cost:
    return Cost(
        results=len(records),
        wall_seconds=sum(record.wall_seconds for record in records),
        cpu_seconds=sum(record.cpu_seconds for record in records),
        peak_cpu_bytes=max(record.peak_cpu_bytes for record in records),
        peak_gpu_bytes=max((record.peak_gpu_bytes for record in records if record.peak_gpu_bytes), default=None),
    )


def _run_cost(records: list[Provenance]) -> RunCost:
    by_stage = {stage: [record for record in records if record.stage == stage] for stage in config.NEEDS}
    stages = {stage: _cost(rows) for stage, rows in by_stage.items() if rows}
    return RunCost(**_cost(records).model_dump(), stages=stages)


def judgement(sets: dict[str, SetSummary], verdict: ArmVerdict) -> str:
    """One sentence on the model that the verdict is about; it claims only what the intervals show."""
    model, parts = verdict.model, []
    for name, summary in sets.items():
        change, peers = summary.differences[model], summary.models[model].peers
        ends = interval((change.low, change.high), 3, "+")
        on, inside = ("on ", "") if change.low is None else ("", " holds 0")
        figures = f"AO {change.value:+.3f} {on}{ends}"
        claim = {
            "above": f"{model} tracks better than {BASE} ({figures})",
            "below": f"{model} tracks worse than {BASE} ({figures})",
            "undecided": f"{model} is not shown to track better than {BASE} ({figures}{inside})",
        }[change.told]
        moves = "static" not in peers or peers["static"].told == "above"
        join = "and" if moves == (change.told == "above") else "but"
        doubt = "" if moves else ", so nothing shows yet that it tracks at all"
        parts.append(f"on {name} {claim}, {join} it {peers_in_words(peers)}{doubt}")
    sentence = "; ".join([*parts, GENERAL[verdict.verdict]])
    return f"{sentence[0].upper()}{sentence[1:]}."


def summarise(results: Path, name: str = "") -> Summary:
    """The summary of the run at `results`; name: of the run, if not that of its folder.

    Raises UserError naming the file when results are missing or do not fit together.
    """
    settings = read_settings(results)
    scores = read_scores(results, settings)
    verdicts = {
        arm: ArmVerdict.model_validate({**verdict.model_dump(), "model": arm, "line": verdict.summary})
        for arm, verdict in read_verdicts(results).models.items()
    }
    verdict = list(verdicts.values())[-1]
    tuned = [name for name in next(iter(scores.values())) if name not in (BASE, *PEERS)]
    if verdict.model not in tuned:
        raise UserError(
            f"{results / 'vqa/verdict.json'}: the last verdict is about {verdict.model!r}, but the scores are of "
            f"{tuned}; run the stages `score` and `verdict` again"
        )
    draws = settings["score"]["draws"]
    roots = {name: Path(split_of(results, BASE, name).path) for name in scores}
    sets = {name: _set_summary(models, roots[name], draws) for name, models in scores.items()}
    return Summary(
        run=name or results.resolve().name,
        judgement=judgement(sets, verdict),
        metric=next(iter(scores.values()))[BASE].metric,
        draws=draws,
        sets=sets,
        verdict=verdict,
        verdicts=verdicts,
        training={arm: _training(results, arm) for arm in tuned},
        paper=paper.score_groups(sets),
        departures=paper.departures(settings),
        changes=_changes(settings),
        settings=settings,
        cost=_run_cost([record for _, record in read_records(results)]),
    )
