"""Paper: what R1-Track published, beside a run: its scores and its settings, from paper.yaml.

We could not read the tables of the paper itself (arXiv 2506.21980), so none is cited. A setting that the repository
does not state is not listed.
"""

from pathlib import Path
from typing import Any

import yaml

from r1track.core.config import flat
from r1track.reporting.records import Departure, PaperGroup, PaperRow, SetSummary

PAPER = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
PUBLISHED = [PaperRow.model_validate(row) for row in PAPER["scores"]]


def departures(settings: dict[str, Any]) -> list[Departure]:
    """Where resolved settings (sections by name) differ from the paper's, in the order of the settings.

    Settings with 50 000 pairs or more are compared with the paper's 100k setting, others with its 5k setting. Fields of
    the supervised arm count only where it is trained, those of pairs and training only where anything is. Fields that
    the settings lack are left out.
    """
    here = flat(settings)
    size = "large" if here.get("sample.pairs", 0) >= 50000 else "small"
    parts = [PAPER["always"], PAPER[size], PAPER["thinking" if here.get("task.think") else "plain"]]
    arms, order = here.get("train.arms", []), list(here)
    idle = () if "sft" in arms else ("train.sft.",) if arms else ("data.train", "sample.", "train.")
    rows = [
        Departure(field=field, paper=value, here=here[field], source=source)
        for part in parts
        for source, fields in part.items()
        for field, value in fields.items()
        if field in here and here[field] != value and not field.startswith(idle)
        if field != "data.train" or "got10k" not in here[field].lower().replace("-", "")
    ]
    return sorted(rows, key=lambda row: order.index(row.field))


def score_groups(sets: dict[str, SetSummary]) -> list[PaperGroup]:
    """The paper's scores, then those of this run's models by set; each group is on one split.

    The boxes of the test split are withheld, so no score of this run is on it.
    """
    split, source = PAPER["split"], f"README of {PAPER['repository']}"
    unscored = "nothing comparable was run: only the benchmark's server can score this split (r1track submit)"
    groups = [
        PaperGroup(split=split, whose="published by the paper", rows=PUBLISHED, note=source),
        PaperGroup(split=split, whose="this run", rows=[], note=unscored),
    ]
    note = f"other sequences than {split}: not to be compared with the figures above"
    for name, summary in sets.items():
        models = {model: row for model, row in summary.models.items() if row.kind != "peer"}
        rows = [PaperRow(model=model, ao=row.ao, sr50=row.sr50, sr75=row.sr75) for model, row in models.items()]
        groups.append(PaperGroup(split=name, whose="this run", rows=rows, note=note))
    return groups
