"""Records: what summary.json holds, field by field, in the order of the file.

AO, SR.50 and SR.75 are shares from 0 to 1, as in scores/; figures of general ability are points, as in the verdict.
"""

from typing import Any, Literal

from r1track.ability.records import Decision, Divergence
from r1track.core.provenance import KeptAdapter
from r1track.core.records import Record
from r1track.tracking.score import Interval, Presence

Json = dict[str, Any]  # a JSON object


class Change(Record):
    """Pooled AO of one model minus that of another on one set, the ends of its 95 % interval, and where this lies.

    told: above 0, below 0; undecided where 0 is inside, and where one sequence has no interval.
    """

    value: float
    low: float | None
    high: float | None
    told: Literal["above", "below", "undecided"]


class ModelScore(Record):
    """A model's score on a set. ao_interval: of 95 %. peers: the model minus each peer. words: which peers it beats."""

    kind: Literal["base", "tuned", "peer"]  # tuned: compared with the base, see summary.compared
    ao: float
    ao_interval: Interval
    sr50: float
    sr75: float
    ao_sequence_mean: float
    ao_class_mean: float
    fps_run: float | None
    presence: Presence | None
    status: dict[str, int]
    peers: dict[str, Change]
    words: str


class SetSummary(Record):
    """A set: how many sequences and scored frames, notes on what its figures say, and the models by name."""

    sequences: int
    frames: int
    notes: list[str]
    models: dict[str, ModelScore]
    differences: dict[str, Change]  # every tuned model minus the base


class QuestionSet(Record):
    """Questions of a set, and the share of them that base and tuned model answer correctly, in percent."""

    n: int
    base: float
    tuned: float


class ArmVerdict(Decision, extra="ignore"):
    """The verdict on an arm; line: the same in one line. docs/verdict.md defines the figures."""

    model: str
    line: str
    margin: float
    kl: dict[str, Divergence]
    sets: dict[str, QuestionSet]


class Answered(Record):
    """Questions of a set, and the share of them that the base answers correctly, in percent."""

    n: int
    strict: float


class MergeCheck(Record):
    """Held-out pairs, and on which share of them the merged model agrees with base and adapter."""

    pairs: int
    agreement: float
    agreement_as_trained: float | None  # with the adapter on the 4-bit base


class ArmTraining(Record):
    """How an arm was trained, which step's adapter it has, where that was measured, and how well its merge agrees."""

    quantize: str
    adapter: str
    steps: int
    minutes: float
    kept: KeptAdapter | None
    merge: MergeCheck


class PaperRow(Record):
    """A model's score on one split."""

    model: str
    ao: float
    sr50: float
    sr75: float | None


class PaperGroup(Record):
    """Scores that were measured on one split by one side."""

    split: str
    whose: str
    rows: list[PaperRow]
    note: str


class Departure(Record):
    """A setting that differs from the paper's; source: the file that states the paper's."""

    field: str
    paper: Any
    here: Any
    source: str


class Cost(Record):
    """Time of some results, summed, and the largest memory of one of them."""

    results: int
    wall_seconds: float
    cpu_seconds: float
    peak_cpu_bytes: int
    peak_gpu_bytes: int | None


class RunCost(Cost):
    """The cost of a run, and of each of its stages."""

    stages: dict[str, Cost]


class Summary(Record):
    """A run: the judgement in one sentence, and every figure that it rests on."""

    run: str
    judgement: str
    metric: str
    draws: int  # of the bootstrap
    sets: dict[str, SetSummary]
    model: str  # which the run is for: the last arm; where nothing is trained the last third-party model, or the base
    verdict: ArmVerdict | None  # on it; None where nothing is trained
    verdicts: dict[str, ArmVerdict]
    answered: dict[str, Answered]  # by set, where there is no verdict
    training: dict[str, ArmTraining]
    paper: list[PaperGroup]
    departures: list[Departure]
    changes: list[Json]  # of every setting that differs from the preset's: field, preset, here
    settings: Json
    cost: RunCost
