"""The console: options that several commands have, how errors are shown, and the log."""

import json
import logging
import signal
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import get_console
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text
from typer.core import TyperGroup

from r1track.core.config import Settings, load
from r1track.core.errors import MissingFile, UserError, environment_fault

log = logging.getLogger(__name__)
Export = StrEnum("Export", ["sharegpt", "easyr1"])
Config = Annotated[Path, typer.Option("--config", help="config.yaml, or results/<run>/config/<stage>.json.")]
FLOW_CONFIG = typer.Option("--config", help="Its fields win over those of config.yaml, as in the workflow.")
RUN = "Results folder of a run: results/<run>."


def check_run(folder: Path) -> Path:
    """The folder. Raises MissingFile for one that is not that of a run; it names the runs in it, if there are any."""
    if not (folder / "config").is_dir():
        inside = ", ".join(sorted(place.parent.name for place in folder.glob("*/config"))[:5])
        remedy = f"give one of those in it: {inside}" if inside else "give results/<run>, which `snakemake` writes"
        raise MissingFile(f"{folder}: is not the results folder of a run; {remedy}")
    return folder


RunFolder = Annotated[Path, typer.Argument(callback=check_run, help=RUN)]
OwnConfig = Annotated[
    Path | None,
    typer.Option("--config", help="config.yaml. Without it, that of the run that made the model, or the defaults."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("-o", metavar="FIELD=VALUE", help="Change a field: -o train.steps=9. May be given several times."),
]
Root = Annotated[Path, typer.Option(help="Folder of a split: list.txt and sequences, as in GOT-10k or another layout.")]
OutDir = Annotated[Path, typer.Option(help="Folder to write. It appears when it is complete.")]
OutFile = Annotated[Path, typer.Option(help="JSON file to write.")]
BaseModel = Annotated[str, typer.Option(help="Model to start from: folder, hub id, or `tiny`.")]
Tracker = Annotated[
    str, typer.Option(help="Model that tracks: folder, hub id, `tiny`, extra:NAME, peer:static|template|oracle|csrt.")
]
Server = Annotated[str | None, typer.Option("--endpoint", help="URL of an OpenAI-compatible server with the model.")]
LogFile = Annotated[Path | None, typer.Option("--log", help="Also write a log file.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"r1track {version('r1track')}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")]


class Guarded(TyperGroup):
    """The commands; an error that the user can act on is one message and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            message = str(error) if isinstance(error, UserError) else environment_fault(error)
            if message is None:
                log.debug("failed: %s: %s", type(error).__name__, error, exc_info=True)
                raise
            Console(stderr=True).print(Text(f"error: {message}", style="bold red"), soft_wrap=True)
            log.debug("stopped: %s", message, exc_info=True)  # DEBUG goes to the log file alone; `failures` reads it
            raise typer.Exit(2) from error


def start_log(log_file: Path | None) -> None:
    """Show messages on the terminal, and write them with times to a file, if one is given.

    Raises UserError for a file that is there and is no log.
    """
    handlers: list[logging.Handler] = [RichHandler(logging.INFO, get_console(), show_path=False)]
    if log_file is not None:
        if log_file.exists() and log_file.suffix != ".log":
            raise UserError(f"--log {log_file}: is there, and its name does not end with .log; give another name")
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, mode="w", encoding="utf-8"))
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=handlers, force=True)
    logging.getLogger("r1track").setLevel(logging.DEBUG)
    logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)  # warns of kernels that nothing here needs
    logging.captureWarnings(True)
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, _: Any) -> None:
    """Let the blocks that are open clean up: locks and unfinished folders are removed."""
    raise SystemExit(128 + number)


def load_for(model: str | None, config_file: Path | None, changes: list[str] | None) -> Settings:
    """The settings to try a model with: of the file, else of the run in whose `models` it lies, else the defaults."""
    folder = Path(model or "").absolute()
    own = folder.parent.parent / "config" / "track.json"
    if config_file is None and model and folder.is_dir() and own.is_file():
        log.info("%s: taken, as its run made the model; another file by --config", own)
        return load(own, changes)
    return load(config_file, changes)


def with_change(changes: list[str] | None, field: str, value: str | None) -> list[str]:
    """The changes, and that of a field that has an option of its own, if it is given."""
    return [*(changes or []), *([f"{field}={json.dumps(value)}"] if value else [])]
