"""The plan of a run: what the Snakefile needs from a configuration: folders, models, source files of each stage.

Errors that can be known before a job runs are raised here. This module imports no torch.
"""

import ast
import os
from dataclasses import dataclass, field
from pathlib import Path

from r1track.core import files, hub
from r1track.core.config import SFT, STAGE_FILES, ConfigError, Settings, flat, load, stage_values
from r1track.core.errors import UserError
from r1track.core.images import is_image
from r1track.core.sequences import read_list
from r1track.training import own_reward

PACKAGE = Path(__file__).parent
_FILES = {file.relative_to(PACKAGE.parent).with_suffix(""): file for file in PACKAGE.rglob("*.py")}
MODULES = {".".join(path.parts).removesuffix(".__init__"): file for path, file in _FILES.items()}
# Modules on which no result depends, and why. A changed line in one of them reruns no stage.
NO_INFLUENCE = {
    "r1track": "holds the version number",
    "r1track.cli": "passes options to the stages",
    "r1track.console": "shows errors and writes the log",
    "r1track.core.card": "describes a model to people; no stage reads it",
    "r1track.core.config": "a stage reads its configuration from a JSON file, which is its input",
    "r1track.core.config_errors": "words error messages",
    "r1track.core.errors": "words error messages",
    "r1track.core.files": "writes files; their content comes from the stages",
    "r1track.core.provenance": "writes what a result came from",
    "r1track.core.folders": "locks and replaces folders; their content comes from the stages",
    "r1track.core.hub": "finds data sets in the hub's cache; which ones, the settings say",
    "r1track.core.section": "types of fields, which reach a stage by its JSON file",
    "r1track.core.train_schema": "as schema",
    "r1track.core.schema": "fields, defaults and checks reach a stage by its JSON file",
    "r1track.data.export": "copies the pairs for other tools",
    "r1track.tracking.endpoint": "asks a server, which the workflow does not allow",
    "r1track.training.checkpoints": "a training that goes on from one ends with the same adapter",
    "r1track.training.progress": "displays and logs a training run",
    "r1track.training.stopping": "stops a training run, which goes on to the same result",
}


@dataclass(frozen=True)
class Plan:
    """A run: its settings, its folders, and its splits by name; all paths are relative to the working directory."""

    settings: Settings
    results: str
    scratch: str
    train: str | None  # None with sample.hub, which needs no sequences, and where nothing is trained
    sets: dict[str, str]
    test: str | None  # the set that is GOT-10k's test split, whose true boxes only the GOT-10k server has
    arms: list[str]
    peers: list[str]
    homes: dict[str, str] = field(default_factory=dict)  # in a study, of each result that is made in a shared folder

    @property
    def pair_sources(self) -> list[str]:
        """Files and folders that the pairs are made from; none for a data set on the hub."""
        return [listing(self.train)] if self.train else _rows_of(str(self.settings.sample.hub))

    @property
    def question_sources(self) -> list[str]:
        """The files of the question sets that are folders."""
        sets = self.settings.vqa.sets.values()
        return list(dict.fromkeys(file for one in sets if one.source != "easy-vqa" for file in _rows_of(one.source)))

    @property
    def trains(self) -> bool:
        """Whether the run has anything to train. If not, there are no pairs, and general ability is not compared."""
        return bool(self.arms)

    @property
    def general(self) -> str:
        """What the report says of general ability rests on this file or folder."""
        return f"{self.results}/vqa/{'verdict.json' if self.trains else 'base'}"

    @property
    def models(self) -> list[str]:
        return ["base", *self.arms, *self.settings.track.extra, *self.peers]

    @property
    def scored(self) -> list[tuple[str, str]]:
        """Pairs (model, set) whose tracks are scored."""
        return [(model, name) for model in self.models for name in self.sets if name != self.test]

    @property
    def scores(self) -> list[str]:
        return [f"{self.results}/scores/{model}/{name}.json" for model, name in self.scored]

    @property
    def submissions(self) -> list[str]:
        return [f"{self.results}/submission/{m}.zip" for m in self.models if self.test and m not in self.peers]

    @property
    def tracks(self) -> list[str]:
        return [f"{self.results}/tracks/{model}/{name}" for model, name in self.scored]

    @property
    def stage_files(self) -> list[str]:
        """The settings of all stages of the run, which its report lists."""
        data = self.settings.data
        splits = [*data.sets.values(), *([data.train] if self.trains else [])]
        toy = any(path.startswith("toy/") for path in splits)
        unused = {SFT: "sft" not in self.arms, "toy": not toy}
        return [f"{self.results}/config/{name}.json" for name in STAGE_FILES if not unused.get(name)]

    def place(self, result: str) -> str:
        """Where a result, such as `pairs`, is made: in the folder of the run, or, in a study, in a shared one."""
        return f"{self.homes.get(result, self.results)}/{result}"

    def model(self, name: str) -> str:
        """The value of `--model` for a model of the results."""
        places = {"base": self.settings.model.base} | {peer: f"peer:{peer}" for peer in self.peers}
        places |= {extra: f"extra:{extra}" for extra in self.settings.track.extra}
        return places.get(name) or self.place(f"models/{name}")

    def cores(self, available: int) -> int:
        """Cores of a job with a model. The tiny one is no faster on several, which other jobs can use."""
        return 1 if self.settings.model.base == "tiny" else available

    def parts(self, model: str, name: str) -> list[str]:
        """The folders of the parts in which a set is tracked with a model; none where it is tracked as a whole."""
        count = self.settings.track.parts if model not in self.peers else 1
        return [f"{self.scratch}/parts/{model}/{name}/{k}" for k in range(1, count + 1)] if count > 1 else []

    def initial_model(self, arm: str) -> str:
        """Name of the model that an arm is trained from and that its adapter is merged into: `base` or `sft`."""
        return "sft" if arm == "grpo" and self.settings.train.start == "sft" else "base"

    @property
    def reward(self) -> list[str]:
        """The file of a reward of one's own. Raises UserError where it is not there."""
        return [str(file)] if (file := own_reward.source(self.settings.train.reward)) else []

    def weights(self, name: str) -> list[str]:
        """Files or folders that a model is read from; none for a peer and for a model on the hub."""
        if name in self.arms:
            return [self.model(name)]
        extra = self.settings.track.extra.get(name)
        bases = (
            [self.settings.model.base] if extra is None else [extra.model, *([extra.adapter] if extra.adapter else [])]
        )
        places = [files.resolve_path(base) for base in bases if name not in self.peers and not files.on_hub(base)]
        return [os.path.relpath(file) for place in places for file in sorted(place.glob("*")) if file.is_file()]


def make_plan(settings: Settings, toy: str = "") -> Plan:
    """The plan of a run; toy: the folder of its synthetic sequences, if not its own.

    Raises ConfigError when the workflow cannot use a field or data are missing.
    """
    arms, peers = list[str](settings.train.arms), list[str](settings.track.peers)
    if arms and not settings.sample.val_pairs:
        raise ConfigError("sample.val_pairs = 0: `merge` compares answers on held-out pairs; give at least 1")
    if "grpo" in arms:
        own_reward.source(settings.train.reward)
    _check_sources(settings)
    unknown = settings.track.starts.keys() - settings.data.sets.keys()
    if unknown:
        raise ConfigError(f"track.starts: {min(unknown)!r} is no set; take one of {list(settings.data.sets)}")
    if settings.track.endpoint.url:
        raise ConfigError("track.endpoint.url: the workflow loads its models here; set it to null (docs/tracking.md)")
    scratch = f"scratch/{settings.run}"
    toy = toy or f"{scratch}/toy"
    train = None if settings.sample.hub or not arms else _split(settings.data.train, "data.train", toy)[0]
    splits = {name: _split(path, f"data.sets.{name}", toy) for name, path in settings.data.sets.items()}
    tests = [name for name, (_, first) in splits.items() if first.startswith("GOT-10k_Test_")]
    if len(tests) > 1 or len(tests) == len(splits):
        fault = f"{tests} of {[*splits]} are test splits"
        raise ConfigError(f"data.sets: {fault}; keep at most one, and one set that can be scored")
    sets = {name: folder for name, (folder, _) in splits.items()}
    return Plan(settings, f"results/{settings.run}", scratch, train, sets, next(iter(tests), None), arms, peers)


def _check_sources(settings: Settings) -> None:
    """Raise ConfigError for a folder of questions, pairs or weights that is missing, and offline for downloads."""
    for source in hub.named(settings):
        field, packaged, remedy = source.field, "tiny", "give a folder, or an id on the hub (owner/name)"
        if field.startswith("vqa."):
            field, packaged = f"{field}.source", "easy-vqa"
            remedy = "give a folder, a data set on the hub (owner/name), or easy-vqa"
        if source.name != packaged and not files.on_hub(source.name) and not Path(source.name).is_dir():
            raise ConfigError(f"{field} = {source.name!r}: no such folder; {remedy}")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE") and (missing := downloads(settings)):
        raise ConfigError(f"HF_HUB_OFFLINE is set, and the hub's cache lacks {', '.join(missing)}; {hub.REMEDY}")


def downloads(settings: Settings) -> list[str]:
    """What a run would download: field and title of everything from the hub that its cache lacks."""
    lacking = [source for source in hub.sources(settings) if hub.cached_bytes(source) is None]
    return [f"{source.field} ({source.title})" for source in lacking]


def _split(path: str, field: str, toy: str) -> tuple[str, str]:
    """The folder of a split, and the name of its first sequence; none before the stage `toy` has run."""
    if path.startswith("toy/"):
        if path not in ("toy/train", "toy/val"):
            raise ConfigError(f"{field} = {path!r}: no such split; take toy/train or toy/val")
        return f"{toy}/{path.removeprefix('toy/')}", ""
    try:
        return path, next(iter(read_list(Path(path))))
    except UserError as error:
        raise ConfigError(f"{field} = {path!r}: {error} (docs/sampling.md)") from error


def _rows_of(source: str) -> list[str]:
    """The files of a data set that is a folder, without its images, which may be many; none for one on the hub."""
    if files.on_hub(source):
        return []
    places = [file for file in sorted(Path(source).rglob("*")) if "/." not in f"/{file.relative_to(source)}"]
    return [str(file) for file in places if file.is_file() and not is_image(file)] or [source]


def listing(split: str) -> str:
    """What names the sequences of a split: its list.txt or, where there is none, its folder."""
    return split if Path(split).is_dir() and not Path(split, "list.txt").is_file() else f"{split}/list.txt"


def stale(plan: Plan) -> dict[str, list[str]]:
    """The present files of stages that do not say what the settings say, with what is different in each."""
    changes: dict[str, list[str]] = {}
    for name in STAGE_FILES:
        file, new = f"{plan.results}/config/{name}.json", flat(stage_values(plan.settings, name))
        try:
            old = flat(stage_values(load(Path(file)), name)) if Path(file).exists() else new
            paths = [path for path in old | new if old.get(path) != new.get(path)]
            lines = [f"{path}: {old.get(path, 'not set')} -> {new.get(path, 'not set')}" for path in paths]
        except UserError:  # damaged, or by a version with other fields
            lines = [f"{file} cannot be read"]
        if lines:
            changes[file] = lines
    return changes


def _imports(file: Path) -> set[str]:
    """Names that a file imports from this package, modules or not; imports inside functions count too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    return {name for name in names if name.split(".")[0] == "r1track"}


def sources(stage: str) -> list[str]:
    """The files whose change reruns a stage: its module, what that imports at any depth, the templates beside it."""
    (start,) = PACKAGE.glob(f"*/{stage}.py")
    paths = {file for file in start.parent.iterdir() if file.is_file() and file.suffix != ".py"}
    seen, queue = set(NO_INFLUENCE), {f"r1track.{start.parent.name}.{stage}"}
    while queue:
        seen |= queue
        modules = {MODULES[name] for name in queue & MODULES.keys()}
        paths |= modules
        queue = set[str]().union(*map(_imports, modules)) - seen
    return sorted(os.path.relpath(file) for file in paths)
