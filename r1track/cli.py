"""The command line: one command per stage, with the flags that the workflow's rules use.

A command imports its stage when it runs, so that `--help` is fast. Wrong input ends with one red message and exit code
2; any other error keeps its traceback. The file given to `--log` gets messages and tracebacks, with times.
"""

import logging
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import get_console
from rich.markdown import Markdown

from r1track.console import (
    FLOW_CONFIG,
    RUN,
    BaseModel,
    Changes,
    Config,
    Export,
    Guarded,
    LogFile,
    OutDir,
    OutFile,
    OwnConfig,
    Root,
    RunFolder,
    Server,
    Tracker,
    Version,
    check_run,
    load_for,
    start_log,
    with_change,
)
from r1track.core import cards, config, schema
from r1track.core.errors import UserError

app = typer.Typer(
    cls=Guarded,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Fine-tune Qwen2.5-VL into a visual tracker by GRPO on one card, and measure what training changed.",
    epilog="`snakemake --cores all` runs all stages in order. Each command runs one stage alone.",
)


@app.callback()
def main(log_file: LogFile = None, version: Version = False) -> None:
    start_log(log_file)


@app.command()
def toy(config_file: Config, out: OutDir, changes: Changes = None) -> None:
    """Write synthetic sequences to OUT/train and OUT/val."""
    from r1track.data.toy import run

    run(config.load(config_file, changes), out)


@app.command()
def sample(
    config_file: Config,
    out: OutDir,
    root: Annotated[Path | None, typer.Option(help="Folder of the training split. Not needed with sample.hub.")] = None,
    processes: Annotated[int, typer.Option(min=0, help="Number of processes; 0 is one per core.")] = 0,
    export: Annotated[list[Export] | None, typer.Option(help="Also write OUT-<format>. May be given twice.")] = None,
    changes: Changes = None,
) -> None:
    """Cut pairs of template and search crop from a training split."""
    from r1track.data.sample import run

    run(config.load(config_file, changes), root, out, processes=processes, forms=export or ())


@app.command()
def train(
    config_file: Config,
    arm: Annotated[Literal["sft", "grpo"], typer.Option(help="sft: supervised fine-tuning; grpo: GRPO.")],
    model: BaseModel,
    pairs: Annotated[Path, typer.Option(help="Folder of pairs, as written by `sample`.")],
    scratch: Annotated[Path, typer.Option(help="Folder of checkpoints. The same command continues from them.")],
    out: OutDir,
    changes: Changes = None,
) -> None:
    """Train an adapter on the pairs."""
    from r1track.training import backend

    cards.take_card()
    settings = config.load(config_file, changes)
    backend.enter(settings.train.backend, scratch)  # before anything imports TRL
    from r1track.training.train import run

    run(settings, arm, model, pairs, scratch, out)


@app.command()
def merge(
    config_file: Config,
    model: BaseModel,
    adapter: Annotated[Path, typer.Option(help="Adapter, as written by `train`.")],
    out: OutDir,
    pairs: Annotated[Path | None, typer.Option(help="Folder of pairs, to compare answers before and after.")] = None,
    changes: Changes = None,
) -> None:
    """Merge an adapter into 16-bit weights, and compare both on held-out pairs."""
    from r1track.training.merge import run

    cards.take_card()
    run(config.load(config_file, changes), model, adapter, pairs, out)


@app.command()
def track(
    config_file: Config,
    model: Tracker,
    root: Root,
    out: OutDir,
    start: Annotated[Literal["box", "text"] | None, typer.Option(help="Overrides track.start.")] = None,
    endpoint: Server = None,
    part: Annotated[int, typer.Option(min=0, help="Track part K of track.parts alone; 0: all.")] = 0,
    joined: Annotated[list[Path] | None, typer.Option("--join", help="Join this part, given for each.")] = None,
    changes: Changes = None,
) -> None:
    """Track every sequence of a split from its first box or from its description."""
    from r1track.tracking.track import join, run

    if joined:
        return join(joined, out)
    settings = config.load(config_file, with_change(changes, "track.endpoint.url", endpoint))
    if not (model.startswith("peer:") or settings.track.endpoint.url):
        cards.take_card()
    run(settings, model, root, out, start, part)


@app.command()
def video(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Video file, or folder of images.")],
    model: Tracker,
    out: Annotated[Path, typer.Option(help="Video to write, FILE.mp4. The boxes are written to FILE.csv.")],
    box: Annotated[str | None, typer.Option(help="The target in the first frame: x,y,w,h in pixels.")] = None,
    text: Annotated[str | None, typer.Option(help="Description of the target, instead of its box.")] = None,
    config_file: OwnConfig = None,
    preview: Annotated[Path | None, typer.Option(help="Also write an image of some frames, FILE.jpg.")] = None,
    endpoint: Server = None,
    changes: Changes = None,
) -> None:
    """Track one target through a video and draw its boxes."""
    from r1track.tracking.video import parse_box, run

    if bool(box) == bool(text):
        raise UserError(f"--box {box} --text {text}: give one of the two, a box as x,y,w,h")
    start = parse_box(box) if box else str(text)
    settings = load_for(model, config_file, with_change(changes, "track.endpoint.url", endpoint))
    run(settings, source, model, out, start, preview)


@app.command()
def play(
    source: Annotated[Path | None, typer.Argument(metavar="[INPUT]", help="Video file, or folder of images.")] = None,
    model: Annotated[str | None, typer.Option(help="As for `video`. Without it, model.base.")] = None,
    config_file: OwnConfig = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 is any free one.")] = 8765,
    changes: Changes = None,
) -> None:
    """Open a page on this machine, to track targets in videos and correct the tracker."""
    from r1track.tracking.play import run

    settings = load_for(model, config_file, changes)
    run(settings, model or settings.model.base, source, port)


@app.command()
def submit(
    tracks: Annotated[Path, typer.Option(help="Folder of tracks on GOT-10k's test split.")],
    out: Annotated[Path, typer.Option(help="Zip file to write.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the split, to check first boxes and lengths.")] = None,
) -> None:
    """Write the zip file for the GOT-10k server, and check it."""
    from r1track.tracking.submit import run

    run(tracks, out, root)


@app.command()
def score(
    tracks: Annotated[Path, typer.Option(help="Folder of tracks, as written by `track`.")],
    root: Root,
    out: OutFile,
    draws: Annotated[int, typer.Option(min=100, help="Bootstrap resamples for the intervals.")] = schema.Score().draws,
) -> None:
    """Score tracks against the true boxes: AO, SR.50, SR.75, with intervals."""
    from r1track.tracking.score import run

    run(tracks, root, out, draws)


@app.command()
def vqa(
    config_file: Config,
    model: Annotated[str, typer.Option(help="Model that answers: folder, hub id, or `tiny`.")],
    out: OutDir,
    pairs: Annotated[Path | None, typer.Option(exists=True, help="Pairs for the KL divergence on tracking.")] = None,
    changes: Changes = None,
) -> None:
    """Ask a model general visual questions."""
    from r1track.ability.vqa import run

    cards.take_card()
    run(config.load(config_file, changes), model, out, pairs)


@app.command()
def verdict(
    config_file: Config,
    base: Annotated[Path, typer.Option(help="Answers of the base, as written by `vqa` or by lmms-eval.")],
    tuned: Annotated[list[Path], typer.Option(help="Answers of a tuned model. May be given several times.")],
    out: OutFile,
    changes: Changes = None,
) -> None:
    """Decide, by the rule fixed before the run, whether general ability is retained."""
    from r1track.ability.verdict import run

    run(config.load(config_file, changes), base, tuned, out)


@app.command()
def gate(
    verdict_file: Annotated[Path, typer.Option("--verdict", help="Verdict, as written by `verdict`.")],
    on_regression: Annotated[Literal["fail", "warn"], typer.Option(help="Whether REGRESSED and INVALID are errors.")],
) -> None:
    """End with an error if general ability was lost, or its check is invalid."""
    from r1track.ability.verdict import gate

    gate(verdict_file, on_regression)


@app.command()
def report(
    out: OutDir,
    results: Annotated[Path | None, typer.Option(help=RUN)] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Compare the runs RUNS instead.")] = False,
    runs: Annotated[list[Path] | None, typer.Argument(help="Results folders to compare.")] = None,
) -> None:
    """Write the report of a run (--results DIR) or of several (--compare RUNS), and print its summary."""
    if compare != bool(runs) or compare != (results is None):
        raise UserError("give either --results DIR, or --compare and the results folders: --compare DIR DIR --out DIR")
    for folder in [results] if results else runs or []:
        check_run(folder)
    from r1track.reporting import compare as several
    from r1track.reporting.report import run

    if results:
        run(config.load(results / "config" / "report.json"), results, out)
    else:
        several.run(runs or [], out)
    text = out / ("summary.md" if results else "compare.md")
    get_console().print(Markdown(text.read_text(encoding="utf-8")))


@app.command()
def verify(results: RunFolder) -> None:
    """Check a report: compute hashes, scores, verdicts and the report again, and compare."""
    from r1track.reporting.verify import examine, show

    logging.getLogger("r1track").setLevel(logging.ERROR)  # the stages that run again would log their results
    raise typer.Exit(1 if show(examine(results), get_console()) else 0)


@app.command()
def push(
    results: RunFolder,
    arm: Annotated[Literal["sft", "grpo"], typer.Option(help="The arm whose result it is.")],
    what: Annotated[Literal["adapter", "model"], typer.Option(help="The adapter, or the merged model.")],
    repo: Annotated[str, typer.Option(help="Name on the hub: USER/NAME. A new one is private.")],
    really: Annotated[bool, typer.Option("--really", help="Upload. Without it, nothing is sent.")] = False,
) -> None:
    """Upload an adapter or a merged model to the hub, or only show its files and its model card."""
    from r1track.reporting.push import prepare, upload

    parts = prepare(results, arm, what, repo)
    for name, path in parts.files.items():
        typer.echo(f"{path.stat().st_size / 1e6:10.2f} MB  {name}", err=True)
    if really:
        typer.echo(upload(parts))
        return
    typer.echo(str(parts.card))
    typer.echo(f"Nothing was sent. With --really, these {len(parts.files)} files go to {repo}.", err=True)


@app.command("config")
def show_config(
    config_file: Annotated[Path | None, FLOW_CONFIG] = None,
    preset: Annotated[str | None, typer.Option(help="The preset, whatever the configuration names.")] = None,
    changes: Changes = None,
) -> None:
    """Print the value of every field, and the file or option from which it comes."""
    file = config_file or (None if preset else Path("config.yaml"))
    layers = config.workflow_layers(file, with_change(changes, "preset", preset))
    for variant in config.variants(layers).values():
        config.combine(variant)  # which refuses one that cannot be used
    for line in config.described(layers):
        typer.echo(line)


@app.command()
def fetch(
    config_file: Annotated[Path, FLOW_CONFIG] = Path("config.yaml"),
    show: Annotated[bool, typer.Option("--list", help="Only print what is needed; asks nothing of a network.")] = False,
    changes: Changes = None,
) -> None:
    """Download the models and data sets of a configuration into the hub's cache. It can be interrupted and goes on."""
    from r1track.core import hub

    sources = hub.sources(config.combine(config.workflow_layers(config_file, changes)))
    if not sources:
        typer.echo("Everything is in this package or in folders: nothing comes from the hub.", err=True)
    if show:
        for command in hub.commands(sources):
            typer.echo(command)
        return
    from r1track.preflight import online

    for source in sources:
        typer.echo(f"{source.field}: {source.name} at {online.probe(source)}")
        online.fetch(source)
        typer.echo(f"{source.field}: {hub.here(source)}")


@app.command()
def doctor(
    config_file: Annotated[Path, FLOW_CONFIG] = Path("config.yaml"),
    budget: Annotated[float | None, typer.Option(min=0.1, help="Memory of another card than this one, in GB.")] = None,
    online: Annotated[bool, typer.Option("--online", help="Open each model and data set on the hub, too.")] = False,
    changes: Changes = None,
) -> None:
    """Check machine, data and configuration, and plan the memory of every stage, before a run."""
    from r1track import study
    from r1track.preflight.doctor import examine
    from r1track.preflight.printing import show

    layers = config.workflow_layers(config_file, changes)
    diagnoses = examine(layers, budget and budget * 1e9, online)
    lines = [] if any(diagnosis.errors for diagnosis in diagnoses.values()) else study.check(layers)
    show(diagnoses, lines, get_console())
    well = all(diagnosis.well for diagnosis in diagnoses.values()) and all(line.state != "error" for line in lines)
    raise typer.Exit(0 if well else 1)
