"""Summary: the figures of a run, for the page, summary.json and summary.md, from this one place."""

import math
import re
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from r1track.ability.records import Manifest, Verdicts, read_rows
from r1track.core import config, files
from r1track.core.errors import MissingFile, UserError
from r1track.core.files import RecordT
from r1track.core.provenance import Input, ProvenanceRecord
from r1track.core.records import MergeRecord
from r1track.reporting import paper, records
from r1track.reporting.records import Change, Json, SetSummary
from r1track.tracking.score import Scores, paired_difference

BASE = "base"
NONE = "–"  # in place of a figure that is not there
PEERS = {"static": "the static box", "template": "the template matcher", "csrt": "CSRT", "oracle": "the oracle"}
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
UNTRAINED = "no model was trained, so general ability was not compared"


class Run(NamedTuple):
    """The results of a run, read and checked, as far as the configuration names them; without the report.

    settings: the preset's name, and resolved sections by name. scores: by set, and by model in the order of `_models`.
    compared: the base and the models that the run is for, the last of them above all: see `_compared`. verdicts: None
    where nothing is trained; then manifest is that of the base's answers.
    logs: of each arm in the order of training, see training/progress.py. records: the results by their paths, with
    their provenance, in the order in which they were finished.
    """

    results: Path
    settings: Json
    scores: dict[str, dict[str, Scores]]
    compared: list[str]
    verdicts: Verdicts | None
    manifest: Manifest | None
    logs: dict[str, list[Json]]
    records: dict[str, ProvenanceRecord]

    def record(self, place: str, stage: str) -> ProvenanceRecord:
        """The provenance of a result; MissingFile where it has none."""
        return self.records.get(place) or read_as(ProvenanceRecord, self.results / place / "provenance.json", stage)

    def split(self, model: str, name: str) -> Input:
        """The split on which a model tracked the set `name`."""
        place = f"tracks/{model}/{name}"
        inputs = self.record(place, "track").inputs
        if "split" not in inputs:
            raise UserError(f"{self.results / place}/provenance.json: no field 'inputs.split'; run `track` again")
        return inputs["split"]


def read_run(results: Path) -> Run:
    """The run at `results`; a test split has no scores, since only the benchmark's server can score it.

    Raises MissingFile naming a file that is not there and its stage, UserError with file and field for another form.
    """
    settings = read_settings(results)
    scored = [name for name, path in sorted(settings["data"]["sets"].items()) if not _is_test(results, name, path)]
    if not scored:
        raise UserError(f"{results / 'config/report.json'}: data.sets: names no set that can be scored; add one")
    arms, general = settings["train"]["arms"], results / "vqa"
    return Run(
        results=results,
        settings=settings,
        scores={
            name: {m: read_as(Scores, results / f"scores/{m}/{name}.json", "score") for m in _models(settings)}
            for name in scored
        },
        compared=_compared(settings),
        verdicts=read_as(Verdicts, general / "verdict.json", "verdict") if arms else None,
        manifest=None if arms else read_as(Manifest, general / BASE / "manifest.json", "vqa"),
        logs={arm: _log(results / "adapters" / arm / "log.jsonl") for arm in arms},
        records=_records(results, unnamed(results, settings)),
    )


def read_as(record: type[RecordT], path: Path, stage: str) -> RecordT:
    """The JSON that a stage wrote, as a record; raises as `read_run`."""
    return files.read_record(_existing(path, stage), record)


def _existing(path: Path, stage: str) -> Path:
    if not path.is_file():
        raise MissingFile(f"{path}: no such file; run the stage `{stage}`, or all of them: `snakemake --cores all`")
    return path


def read_settings(results: Path) -> Json:
    """The resolved configuration of the run, from its stages' files; raises as `read_run`."""
    settings: Json = {}
    for stage in config.NEEDS:
        path = results / "config" / f"{stage}.json"
        if stage != "toy" or path.exists():
            settings |= config.stage_values(config.load(_existing(path, "settings")), stage)
    return settings


def _models(settings: Json) -> list[str]:
    """The models that a configuration names: the base, the arms in their order, third-party models, then the peers."""
    extras, peers = settings["track"]["extra"], settings["track"]["peers"]
    return [BASE, *settings["train"]["arms"], *extras, *(peer for peer in PEERS if peer in peers)]


def _compared(settings: Json) -> list[str]:
    """The base and the arms, beside which third-party models are peers; these themselves where nothing is trained."""
    return [BASE, *(settings["train"]["arms"] or settings["track"]["extra"])]


def _is_test(results: Path, name: str, root: str) -> bool:
    """Whether a set is GOT-10k's test split, by its tracks or its list."""
    listing = Path(root, "list.txt")
    tracked = any((results / "tracks" / BASE / name).glob("GOT-10k_Test_*"))
    return tracked or (listing.is_file() and listing.read_bytes().startswith(b"GOT-10k_Test_"))


def unnamed(results: Path, settings: Json) -> list[str]:
    """Results of models, arms or sets that the configuration does not name: of an earlier one, or made by hand."""
    arms, sets = settings["train"]["arms"], settings["data"]["sets"]
    named = {f"vqa/{BASE}", *(("vqa/verdict.json", "vqa/kept", "pairs") if arms else ())}
    named |= {f"{folder}/{arm}" for folder in ("adapters", "models", "vqa") for arm in arms}
    for model in _models(settings):
        named |= {f"submission/{model}.zip", *(f"tracks/{model}/{name}" for name in sets)}
        named |= {f"scores/{model}/{name}.json" for name in sets}
    patterns = ("pairs", "adapters/*", "models/*", "vqa/*", "submission/*", "tracks/*/*", "scores/*/*")
    places = {result_of(path.relative_to(results)) for pattern in patterns for path in results.glob(pattern)}
    return sorted(place for place in places - named if "/." not in place)


def _log(path: Path) -> list[Json]:
    """The rows of a training log; a figure that is not finite is None."""
    rows = read_rows(_existing(path, "train"), TypeAdapter(dict[str, float | None]).validate_python)
    if any(row.get("step") is None for row in rows):
        raise UserError(f"{path}: a row has no field 'step'; run the stage `train` again")
    return [{key: value if math.isfinite(value or 0) else None for key, value in row.items()} for row in rows]


def _records(results: Path, others: list[str]) -> dict[str, ProvenanceRecord]:
    places = [path.relative_to(results) for path in results.rglob("*provenance.json")]
    places = [p for p in places if p.parts[0] != "report" and "/." not in f"/{p}" and result_of(p) not in others]
    rows = {result_of(place): read_as(ProvenanceRecord, results / place, place.parts[0]) for place in places}
    return dict(sorted(rows.items(), key=lambda row: (row[1].finished, row[0])))


def result_of(place: Path) -> str:
    """The file or folder that a provenance describes, from its path."""
    return re.sub(r"[./]provenance\.json$", "", place.as_posix())


def number(value: float | None, digits: int = 3, sign: str = "") -> str:
    """A figure with so many decimals; sign: `+` to write that of positive ones too."""
    return NONE if value is None else f"{value:{sign}.{digits}f}"


def interval(ends: tuple[float | None, float | None] | None, digits: int = 3, sign: str = "") -> str:
    """The ends of an interval over sequences; one sequence has none."""
    low, high = ends or (None, None)
    return "one sequence" if low is None else f"[{number(low, digits, sign)}, {number(high, digits, sign)}]"


def _change(scores: Scores, reference: Scores, draws: int) -> Change:
    change = paired_difference(scores, reference, draws)
    side = "above" if (change.low or 0) > 0 else "below" if (change.high or 0) < 0 else "undecided"
    return Change.model_validate({**change._asdict(), "told": side})


def peers_in_words(peers: dict[str, Change]) -> str:
    """Which peers a model beats, in words: those where the interval of the difference lies above 0."""
    if not peers:
        return "stands alone, no peer was scored"
    mark = {"below": "", "undecided": " (undecided)"}
    beaten = " and ".join(PEERS.get(peer, peer) for peer, change in peers.items() if change.told == "above")
    others = [PEERS.get(peer, peer) + mark[change.told] for peer, change in peers.items() if change.told != "above"]
    if not beaten:
        return (
            f"beats none of its peers: neither {' nor '.join(others)}" if others[1:] else f"does not beat {others[0]}"
        )
    return f"beats {beaten}, not {' nor '.join(others)}" if others else f"beats {beaten}"


def _model_score(model: str, scores: dict[str, Scores], compared: list[str], draws: int) -> records.ModelScore:
    figures = scores[model].model_dump(exclude={"sequences", "curve"})
    if model not in compared:
        return records.ModelScore.model_validate({**figures, "kind": "peer", "peers": {}, "words": ""})
    peers = {peer: _change(scores[model], scores[peer], draws) for peer in scores if peer not in compared}
    kind, words = "base" if model == BASE else "tuned", f"{model} {peers_in_words(peers)}"
    return records.ModelScore.model_validate({**figures, "kind": kind, "peers": peers, "words": words})


def _set_summary(scores: dict[str, Scores], compared: list[str], root: str, draws: int) -> SetSummary:
    base = scores[BASE]
    text, count = f"{base.set} {root}".lower(), base.sequences_count
    few = [f"only {count} sequences: the intervals say little"] if count < FEW else []
    notes = [note for pattern, note in NOTES.items() if re.search(pattern, text)]
    models = {model: _model_score(model, scores, compared, draws) for model in scores}
    differences = {m: _change(scores[m], base, draws) for m, row in models.items() if row.kind == "tuned"}
    return SetSummary(sequences=count, frames=base.frames, notes=notes + few, models=models, differences=differences)


def _changes(settings: Json) -> list[Json]:
    """Fields in which resolved settings differ from the preset that they name."""
    values = config.resolve({"preset": settings["preset"]}).model_dump(mode="json")
    preset, here = config.flat({name: values[name] for name in settings}), config.flat(settings)
    rows = [{"field": field, "preset": preset.get(field), "here": here.get(field)} for field in {**preset, **here}]
    return [row for row in rows if row["preset"] != row["here"]]


def _training(run: Run, arm: str) -> records.ArmTraining:
    record, merged = run.record(f"adapters/{arm}", "train"), run.results / "models" / arm / "merge.json"
    merge = read_as(MergeRecord, merged, "merge")
    if merge.agreement is None:
        raise UserError(f"{merged}: its answers were not checked; merge again, with --pairs")
    if record.quantize not in LORA:
        where = f"{run.results}/adapters/{arm}/provenance.json: quantize"
        raise UserError(f"{where}: {record.quantize!r} is none of {[*LORA]}; run the stage `train` again")
    return records.ArmTraining(
        quantize=record.quantize,
        adapter=f"LoRA trained {LORA[record.quantize]}",
        steps=int(max(row["step"] for row in run.logs[arm])),
        kept=record.kept,
        minutes=(record.wall_seconds if record.train_seconds is None else record.train_seconds) / 60,
        merge=records.MergeCheck.model_validate(merge, from_attributes=True),
    )


def _cost(rows: list[ProvenanceRecord]) -> records.Cost:
    return records.Cost(
        results=len(rows),
        wall_seconds=sum(row.wall_seconds for row in rows),
        cpu_seconds=sum(row.cpu_seconds for row in rows),
        peak_cpu_bytes=max(row.peak_cpu_bytes for row in rows),
        peak_gpu_bytes=max((row.peak_gpu_bytes for row in rows if row.peak_gpu_bytes), default=None),
    )


def _run_cost(rows: list[ProvenanceRecord]) -> records.RunCost:
    by_stage = {stage: [row for row in rows if row.stage == stage] for stage in config.NEEDS}
    stages = {stage: _cost(part) for stage, part in by_stage.items() if part}
    return records.RunCost(**_cost(rows).model_dump(), stages=stages)


def _claim(model: str, summary: SetSummary) -> str:
    """How a model tracks a set, beside the base and the peers; it claims only what the intervals show."""
    peers = summary.models[model].peers
    moves = "static" not in peers or peers["static"].told == "above"
    against = f"{peers_in_words(peers)}{'' if moves else ', so nothing shows yet that it tracks at all'}"
    if model == BASE:
        return f"{model} {against}"
    change = summary.differences[model]
    ends = interval((change.low, change.high), 3, "+")
    on, inside = ("on ", "") if change.low is None else ("", " holds 0")
    figures = f"AO {change.value:+.3f} {on}{ends}"
    claim = {
        "above": f"{model} tracks better than {BASE} ({figures})",
        "below": f"{model} tracks worse than {BASE} ({figures})",
        "undecided": f"{model} is not shown to track better than {BASE} ({figures}{inside})",
    }[change.told]
    join = "and" if moves == (change.told == "above") else "but"
    return f"{claim}, {join} it {against}"


def judgement(sets: dict[str, SetSummary], models: list[str], general: str) -> str:
    """One sentence on the models that the run is for; general: its words on general ability."""
    parts = [f"on {name} {_claim(model, summary)}" for name, summary in sets.items() for model in models]
    sentence = "; ".join([*parts, general])
    return f"{sentence[0].upper()}{sentence[1:]}."


def summarise(run: Run, name: str = "") -> records.Summary:
    """The summary of a run; name: if not that of its folder. Raises UserError when results do not fit together."""
    verdicts = {
        arm: records.ArmVerdict.model_validate({**verdict.model_dump(), "model": arm, "line": verdict.summary})
        for arm, verdict in (run.verdicts.models if run.verdicts else {}).items()
    }
    verdict = [*verdicts.values()][-1] if verdicts else None
    if verdict and verdict.model not in run.logs:
        raise UserError(
            f"{run.results / 'vqa/verdict.json'}: the last verdict is about {verdict.model!r}, but the configuration "
            f"names {[*run.logs]}; run the stages `score` and `verdict` again"
        )
    draws = run.settings["score"]["draws"]
    sets = {
        key: _set_summary(scores, run.compared, run.split(BASE, key).path, draws) for key, scores in run.scores.items()
    }
    model = verdict.model if verdict else run.compared[-1]
    judged = [model] if verdict else run.compared[1:] or [BASE]
    answered = run.manifest.sets if run.manifest else {}
    return records.Summary(
        run=name or run.results.resolve().name,
        judgement=judgement(sets, judged, GENERAL[verdict.verdict] if verdict else UNTRAINED),
        metric=next(iter(run.scores.values()))[BASE].metric,
        draws=draws,
        sets=sets,
        model=model,
        verdict=verdict,
        verdicts=verdicts,
        answered={name: records.Answered(n=row.n, strict=row.strict) for name, row in answered.items()},
        training={arm: _training(run, arm) for arm in run.logs},
        paper=paper.score_groups(sets),
        departures=paper.departures(run.settings),
        changes=_changes(run.settings),
        settings=run.settings,
        cost=_run_cost([*run.records.values()]),
    )
