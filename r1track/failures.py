"""Failures: the workflow's last words on the terminal: its summary, and what stopped a stage, with the remedy."""

import re
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text

# In Snakemake's log, how a stage's process ended; in the stage's own log, what cli.Guarded caught.
ENDED = re.compile(r"(?m)^Command '.*?r1track --log (\S+) ([\w-]+) .*' (?:returned non-zero|died with) <?(.+?)>?\.$")
CAUGHT = re.compile(r"(?s) r1track\.cli: (stopped|failed): (.*?)\n(?:Traceback|\S+RemoteTraceback:) ")
MEMORY = "memory ran out, most likely: `r1track doctor` names changes that make a stage fit; docs/faq.md has more"
REMEDIES = {
    r"OutOfMemory|MemoryError|allocate memory|SIGKILL|status 137": MEMORY,
    r"SIGINT|SIGTERM|status 130|status 143": "it was interrupted: the same command goes on from there",
}


def cause(said: str, how: str) -> str:
    """Why a stage ended, and what to do: by its own log, `said`; where that is silent, by `how` its process ended."""
    kind, message = (CAUGHT.findall(said) or [("", f"its process ended with {how}, without a word in its log")])[-1]
    if kind == "stopped":
        return message
    otherwise = "a fault of the program, whose whole traceback ends the log" if kind else "its last words stand above"
    found = (remedy for sign, remedy in REMEDIES.items() if re.search(sign, message))
    return f"{message}; {next(found, otherwise)}"


def tell(logs: list[str], results: str, began: float) -> None:
    """Show the summary, where it was written since `began` (seconds), and every failed stage of Snakemake's `logs`."""
    summary = Path(results, "report", "summary.md")
    if summary.is_file() and summary.stat().st_mtime >= began:
        Console().print(Markdown(summary.read_text(encoding="utf-8")))
    for name, stage, how in ENDED.findall("".join(Path(log).read_text(encoding="utf-8") for log in logs)):
        own = Path(name)
        said = own.read_text(encoding="utf-8") if own.is_file() and own.stat().st_mtime >= began else ""
        text = f"{stage} stopped: {cause(said, how)}\n    log: {name}"
        Console(stderr=True).print(Text(text, style="bold red"), soft_wrap=True)
