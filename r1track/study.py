"""A study: the runs that a configuration asks for, one or several, and what several of them share.

Each seed of each variant is a run of its own, in results/<variant>-seed<k>. A result that runs can share is made in a
folder results/shared/<result>-<digest>; the digest is that of what the result follows from. It is linked into the
folders of the runs that need it. So equal results are made once, and a changed variant changes no other run.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from r1track.core.config import ConfigError, Layer, Settings, combine, stage_file, stage_values, variants
from r1track.core.errors import MissingFile, UserError
from r1track.plan import Plan, make_plan

if TYPE_CHECKING:  # it imports torch, which a plan does without
    from r1track.preflight.findings import Line

SHARED = "results/shared"


@dataclass(frozen=True)
class Study:
    """runs: by the name of their folder. makers: the runs and shared folders in which results are made, by theirs.

    page: of the comparison of the runs, in the folder `results`; None for one run.
    """

    results: str
    runs: dict[str, Plan]
    makers: dict[str, Plan]

    @property
    def plans(self) -> dict[str, Plan]:
        return self.runs | self.makers

    @property
    def page(self) -> str | None:
        return f"{self.results}/compare/index.html" if len(self.runs) > 1 else None

    @property
    def summary(self) -> Path:
        """The text that the workflow prints at its end."""
        return Path(self.results, "compare/compare.md" if self.page else "report/summary.md")

    @property
    def folders(self) -> list[str]:
        """Every folder below results/ that the workflow writes to."""
        return sorted({self.results, *(plan.results for plan in self.plans.values())})

    @property
    def linked(self) -> list[str]:
        """The results that are made in shared folders, by their paths in the folder of a run."""
        return sorted({result for plan in self.runs.values() for result in plan.homes if result != "toy"})


def any_of(names: Iterable[str]) -> str:
    """A pattern that any of the names fits, and nothing else: of a wildcard."""
    return "|".join(map(re.escape, dict.fromkeys(names)))


def make_study(layers: Sequence[Layer]) -> Study:
    """The runs of a configuration: one, or those of its section `study`. Raises ConfigError as `combine`, make_plan."""
    settings = combine(layers)
    results = f"results/{settings.run}"
    if results == SHARED:
        raise ConfigError("run = 'shared': is the folder of what the runs of studies share; give another name")
    if not (settings.study.seeds or settings.study.variants):
        runs = {settings.run: make_plan(settings)}
        return Study(results, runs, runs)
    runs, makers = {}, dict[str, Plan]()
    for name, over in variants(layers).items():
        for seed in settings.study.seeds or [settings.seed]:
            run = f"{name}-seed{seed}"
            planned = combine([*over, Layer(run, {"run": run, "seed": seed})])
            if twins := [other for other in runs if runs[other].settings.model_copy(update={"run": run}) == planned]:
                fault = f"{twins[0]} and {run} have the same settings, so nothing could be compared"
                raise ConfigError(f"study.variants.{name}: {fault}; change a field, or leave one of the variants out")
            runs[run] = _with_homes(planned)
            for home in runs[run].homes.values():
                folder = home.removeprefix("results/")
                makers.setdefault(folder, replace(runs[run], results=home, scratch=f"scratch/{folder}"))
    if len(settings.study.seeds) > 1 and not any(run.trains for run in runs.values()):
        raise ConfigError("study.seeds: no run trains, so all seeds give the same results; leave `seeds` out")
    if settings.run in runs:
        raise ConfigError(f"run = {settings.run!r}: is one of the study's own runs, {[*runs]}; give another name")
    if len(runs) == 1:
        raise ConfigError(f"study: one run, {[*runs]}; give two seeds or variants, or take `study` out")
    return Study(results, runs, makers)


def check(layers: Sequence[Layer]) -> list["Line"]:
    """The doctor's lines about a whole study, in which a shared result counts once; or why it cannot be planned."""
    from r1track.preflight.doctor import totals, unused
    from r1track.preflight.findings import Line

    try:
        study = make_study(layers)
    except UserError as error:
        return [Line("error", "workflow", str(error))]
    made = {home: (result, run.settings) for run in study.runs.values() for result, home in run.homes.items()}
    if not study.page:
        return []
    superfluous = unused(Path(SHARED), {Path(home).name for home in made})
    try:
        return totals(len(study.runs), made.values()) + superfluous
    except MissingFile as error:  # the shape of a base
        return [Line("warning", "study", f"hours and disk are not known: {error}"), *superfluous]


def _with_homes(settings: Settings) -> Plan:
    """The plan of a run in a study, with the shared folder of each of its results."""

    def home(result: str, name: str, *sources: str | None) -> str:
        """sources: the split and the folders that a result is made from, besides the settings of its stage."""
        origin = json.dumps([stage_values(settings, name), sources])
        return f"{SHARED}/{result.replace('/', '-')}-{hashlib.sha256(origin.encode()).hexdigest()[:8]}"

    homes = {"toy": home("toy", "toy")}
    plan = make_plan(settings, f"scratch/{homes['toy'].removeprefix('results/')}/toy")
    if plan.trains:
        homes["pairs"] = home("pairs", "sample", plan.train)
    for arm in plan.arms:
        adapter, first = f"adapters/{arm}", homes.get(f"models/{plan.initial_model(arm)}")
        homes[adapter] = home(adapter, stage_file("train", arm), homes["pairs"], first)
        homes[f"models/{arm}"] = home(f"models/{arm}", "merge", homes[adapter])
    for model in plan.models:
        weights = homes.get(f"models/{model}")
        for name, split in plan.sets.items():
            tracks = f"tracks/{model}/{name}"
            homes[tracks] = home(tracks, "track", split, weights)
    for model in ("base", *plan.arms):
        homes[f"vqa/{model}"] = home(f"vqa/{model}", "vqa", homes.get(f"models/{model}"))
    return replace(plan, homes=homes)
