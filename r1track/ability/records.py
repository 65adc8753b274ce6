"""Records: the rows, manifests and verdicts that the stages `vqa` and `verdict` write, and how they are read back.

A record's fields stand in its file in the order of its class. A score of an item is a share from 0 to 1; a score of a
set is in percent, a difference of two such scores in points.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from r1track.ability import metrics
from r1track.core import files
from r1track.core.errors import UserError
from r1track.core.text import read_text

RowT = TypeVar("RowT")
# The fields of lmms-eval's samples that we need, and further ones that hold no score.
NEEDED = ("filtered_resps", "doc_id", "target", "doc_hash")
NO_SCORE = {*NEEDED, "doc", "input", "image", "resps", "token_counts", "input_media"}
LARGEST, REMEDY = 2**30, "write the file anew"  # bytes of a file of answers; lmms-eval's hold whole questions
Share = Annotated[float, Field(ge=0, le=1)]


class Record(
    BaseModel, frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True, allow_inf_nan=False
):
    """A record that is not changed once it is made."""

    def as_json(self) -> dict[str, Any]:
        """The record as it stands in its file, without the fields that were never set."""
        return self.model_dump(exclude_unset=True)


class Answer(Record):
    """A question and a model's answer to it. A field that lmms-eval logs has lmms-eval's name."""

    doc_id: str
    target: str  # the right answer, or the one that most people gave
    input: str  # the question as the model was asked it
    targets: list[str] = []  # what the metric compares the answer with; empty in samples of lmms-eval
    image: str  # SHA-256 of the image file; items with the same value share an image
    metric: str = ""  # empty in samples of lmms-eval
    filtered_resps: str  # the answer


class ScoredAnswer(Answer):
    """A line of <set>.jsonl; the scores are those of `metrics.Scores`."""

    doc_hash: str
    strict: Share
    lenient: Share
    unparsed: Share


class Repeat(Record):
    """How the answers changed when some items were asked again in batches of another size."""

    items: int
    difference: float  # points, second minus first
    changed: int  # answers whose text is another


class SetFigures(Record):
    """Figures of one set of answers, and what else the manifest says of it."""

    n: int
    strict: float
    lenient: float
    unparsed: float
    accuracy: float | None = None  # this and the next two only where the metric is yes_no, as shares
    f1: float | None = None
    yes_rate: float | None = None
    sha256: str = ""  # of <set>.jsonl
    repeat: Repeat | None = Field(None, alias="self")
    items: dict[str, str] = {}  # SHA-256 of the image by doc_id


class Divergence(Record):
    """Forward KL(base || tuned) on one kind of prompts."""

    prompts: int
    tokens: int
    nats: float  # mean over the tokens


class Manifest(Record):
    """manifest.json beside the answers. Every field has a default, since lmms-eval writes no manifest."""

    model: str = ""
    weights: str | None = None  # SHA-256, see files.hash_path
    commit: str = ""
    settings: dict[str, Any] = {}  # the configuration of the stage, resolved
    sets: dict[str, SetFigures] = {}
    repeat: Repeat | None = Field(None, alias="self")  # of all sets: counts summed, differences averaged
    kl: dict[str, Divergence] = {}  # by kind of prompt


class SetStatistics(Record):
    """The paired comparison of one set; scores in percent, differences, bound and interval in points."""

    n: int
    base: float
    tuned: float
    gained: int
    lost: int
    difference: float
    mcnemar_p: float | None  # None where scores are partial
    bootstrap_p: float
    tango_lower: float
    interval: tuple[float, float]


class Leaks(Record):
    """Shares of the answers that show traces of the tracking task, and the answers' median length in characters."""

    box: float  # answers that are boxes, where no box is asked for
    tags: float
    unparsed: float
    median_length: float


class Flip(Record):
    """An item whose strict score changed, with both answers."""

    doc_id: str
    question: str
    target: str
    base: str
    tuned: str


class SetVerdict(SetStatistics):
    """A set in a verdict."""

    lenient_difference: float
    leaks: dict[str, Leaks]  # of `base` and of `tuned`
    flips: list[Flip]
    flagged: bool


Word = Literal["INVALID", "REGRESSED", "RETAINED", "INCONCLUSIVE"]


class Decision(Record):
    """The verdict's word and what it rests on; difference and interval in points, None where no set was compared."""

    verdict: Word
    reasons: list[str]
    difference: float | None
    interval: tuple[float, float] | None
    needed_items: int | None


class Verdict(Decision):
    """The verdict on one tuned model."""

    margin: float
    repeat: Repeat | None = Field(alias="self")  # of the base
    kl: dict[str, Divergence]
    summary: str  # one line
    sets: dict[str, SetVerdict]


class Verdicts(Record):
    """verdict.json: the rule, and the verdict on every tuned model in the order in which they were given."""

    rule: dict[str, int | float]
    rule_sha256: str
    models: dict[str, Verdict] = Field(min_length=1)


def read_rows(path: Path, parse: Callable[[Any], RowT]) -> list[RowT]:
    """What `parse` makes of the JSON in each line of a file, at least one.

    A line ends at a line feed and nowhere else: a question may hold U+2028 or U+0085. Raises UserError with file and
    line for a line that is no JSON or that `parse` refuses.
    """
    rows: list[RowT] = []
    lines = read_text(path, REMEDY, LARGEST).removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(parse(json.loads(line)))
        except (ValueError, RecursionError) as error:  # the second: nested without end
            fault = files.field_faults(error) if isinstance(error, ValidationError) else error
            raise UserError(f"{path}, line {number}: {fault}; {REMEDY}") from error
    return rows


def read_answers(path: Path) -> list[ScoredAnswer]:
    """The lines of a <set>.jsonl that `vqa` wrote, or of a file of samples that lmms-eval logged.

    Raises UserError with file and line for a line that is no answer, and for a doc_id that occurs twice.
    """
    rows = read_rows(path, _answer)
    ids = {row.doc_id for row in rows}
    if len(ids) < len(rows):
        raise UserError(f"{path}: {len(rows)} rows have only {len(ids)} doc_ids; each question must occur once")
    return rows


def _answer(values: Any) -> ScoredAnswer:
    """An answer from the values of a line. Of a sample of lmms-eval, the first score is taken."""
    if not isinstance(values, dict):
        raise UserError(f"no JSON object, but {type(values).__name__}")
    if "strict" in values:
        return ScoredAnswer.model_validate(values)
    if lacking := [name for name in NEEDED if name not in values]:
        raise UserError(f"no field {lacking[0]!r}")
    answer = values["filtered_resps"]
    while isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    entries = [value for key, value in values.items() if key not in NO_SCORE]
    numbers = [entry.get("score") if isinstance(entry, dict) else entry for entry in entries]
    scores = [float(number) for number in numbers if isinstance(number, int | float) and 0 <= number <= 1]
    if not scores:
        raise UserError(f"no score from 0 to 1 among {sorted(values.keys() - NO_SCORE)}")
    return ScoredAnswer(
        doc_id=str(values["doc_id"]), target=str(values["target"]), input=str(values.get("input", "")),
        image=str(values.get("image", values["doc_id"])), filtered_resps=str(answer), doc_hash=values["doc_hash"],
        strict=scores[0], lenient=scores[0], unparsed=float(metrics.is_empty(str(answer))),
    )  # fmt: skip
