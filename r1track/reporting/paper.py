"""Paper: the scores that R1-Track published and its settings, as data, each with its source.

All are from the public repository Wangbiao2/R1-Track at f585b82. We could not read the tables of the paper itself
(arXiv 2506.21980), so none is cited. A setting that the repository does not state is not listed.
"""

from typing import Any

from r1track.core.config import flat
from r1track.reporting.records import Departure, PaperGroup, PaperRow, SetSummary

REPOSITORY = "github.com/Wangbiao2/R1-Track at f585b82"
SPLIT = "GOT-10k test"
PUBLISHED = [  # from the repository's README
    PaperRow(model="Qwen2.5-VL-7B, not trained", ao=0.126, sr50=0.011, sr75=None),
    PaperRow(model="3B, SFT, 5k pairs", ao=0.543, sr50=0.633, sr75=0.338),
    PaperRow(model="3B, SFT, 100k pairs", ao=0.667, sr50=0.746, sr75=0.620),
    PaperRow(model="3B, GRPO, thinking, 5k pairs", ao=0.586, sr50=0.676, sr75=0.470),
    PaperRow(model="3B, GRPO, thinking, 100k pairs", ao=0.672, sr50=0.759, sr75=0.624),
    PaperRow(model="3B, GRPO, 5k pairs", ao=0.585, sr50=0.673, sr75=0.500),
    PaperRow(model="3B, GRPO, 100k pairs", ao=0.680, sr50=0.766, sr75=0.637),
]
# By source, a file of the repository: our field and the paper's value; words where our field has no such value.
Sources = dict[str, dict[str, Any]]
README, EASYR1 = "README.md", "EasyR1/examples/config.yaml"
SCRIPTS = "EasyR1/examples/qwen2_5_vl_3b_track*.sh"
ALWAYS: Sources = {
    README: {"data.train": "GOT-10k train", "train.backend": "EasyR1 and vLLM"},
    "generation_data/sampling_data.py": {"sample.policy": "paper"},
    EASYR1: {
        "train.quantize": "none", "train.lora.rank": "no adapter: all weights are trained",
        "train.lora.vision": "the vision tower is trained too", "train.learning_rate": 1e-6, "train.warmup": 0.1,
        "train.weight_decay": 0.01, "train.clip_norm": 1.0, "train.beta": 0.01, "train.temperature": 1.0,
        "train.prompts_per_step": 128, "model.max_pixels": 313600,
    },
    SCRIPTS: {"model.base": "Qwen/Qwen2.5-VL-3B-Instruct", "train.reward": "paper"},
    "infer_script/r1track.py": {
        "task.size": 336, "task.template_factor": 4.0, "task.search_factor": 4.0, "track.widen": 1.0,
        "track.min_side": 1.0,
    },
    "llamafactory/examples/train_lora/r1_track_lora_sft.yaml": {
        "train.sft.learning_rate": 1e-5, "train.sft.schedule": "cosine", "train.sft.batch": 64
    },
}  # fmt: skip
SMALL: Sources = {
    README: {"sample.pairs": 5000, "sample.sizes": [], "task.templates": 1},
    EASYR1: {"train.optimizer": "adamw_torch", "model.min_pixels": 50176},
    SCRIPTS: {"train.group": 5, "train.rollout_steps": 4, "train.steps": 977},  # 25 passes; below 8
}
LARGE: Sources = {
    README: {"sample.pairs": 100000, "sample.sizes": [112, 224, 336, 448], "task.templates": "1 and 2, mixed"},
    SCRIPTS: {
        "train.group": 6, "train.rollout_steps": 6, "train.steps": 6250, "train.optimizer": "AdamW in bfloat16",
        "model.min_pixels": 10000,
    },
}  # fmt: skip


def departures(settings: dict[str, Any]) -> list[Departure]:
    """Where resolved settings (sections by name) differ from the paper's, in the order of the settings.

    Settings with 50 000 pairs or more are compared with the paper's 100k setting, others with its 5k setting. Fields of
    the supervised arm count only where it is trained. Fields that the settings lack are left out.
    """
    here = flat(settings)
    order = list(here)
    tokens = {SCRIPTS: {"train.max_tokens": 512 if here.get("task.think") else 64}}
    parts = [ALWAYS, LARGE if here.get("sample.pairs", 0) >= 50000 else SMALL, tokens]
    supervised = "sft" in here.get("train.arms", [])
    rows = [
        Departure(field=field, paper=value, here=here[field], source=source)
        for part in parts
        for source, fields in part.items()
        for field, value in fields.items()
        if field in here and here[field] != value and (supervised or not field.startswith("train.sft."))
        if field != "data.train" or "got10k" not in here[field].lower().replace("-", "")
    ]
    return sorted(rows, key=lambda row: order.index(row.field))


def score_groups(sets: dict[str, SetSummary]) -> list[PaperGroup]:
    """The paper's scores, then those of this run's models by set; each group is on one split.

    The boxes of the test split are withheld, so no score of this run is on it.
    """
    unscored = "nothing comparable was run: only the benchmark's server can score this split (`r1track submit`)"
    whose, source = "published by the paper", f"README of {REPOSITORY}"
    groups = [
        PaperGroup(split=SPLIT, whose=whose, rows=PUBLISHED, note=source),
        PaperGroup(split=SPLIT, whose="this run", rows=[], note=unscored),
    ]
    note = f"other sequences than {SPLIT}: not to be compared with the figures above"
    for name, summary in sets.items():
        models = {model: row for model, row in summary.models.items() if row.kind != "peer"}
        rows = [PaperRow(model=model, ao=row.ao, sr50=row.sr50, sr75=row.sr75) for model, row in models.items()]
        groups.append(PaperGroup(split=name, whose="this run", rows=rows, note=note))
    return groups
