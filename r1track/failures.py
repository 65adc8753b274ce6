"""Failures: what the workflow prints at its end: the summary of its results, or why a stage failed and what to do."""

import re
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text

from r1track.core.errors import MEMORY

# The start of every rule's shell command. Where `r1track --log LOG STAGE ...` fails, it writes "STAGE STATUS" and the
# log to LOG.failed: a process that was killed can write no log. A retry does not repeat what the user must mend, and
# puts back the log, which Snakemake removes before it.
SHELL_PREFIX = (
    "set -euo pipefail; r1track() ( "
    'if head -n1 "$2.failed" 2>&1 | grep -q " 2$"; then tail -n+2 "$2.failed" >"$2"; exit 2; fi; rm -f "$2.failed"; '
    'command r1track "$@" || ( s=$?; ( echo "$3 $s"; cat "$2" ) >"$2.failed" || :; exit $s ) );'
)
# The error that cli.Guarded wrote to the log of a stage: `stopped` by wrong input, or `failed` by any other error.
ERROR = re.compile(r"(?s) r1track\.console: (stopped|failed): (.*?)\n(?:Traceback|\S+RemoteTraceback:) ")
REMEDIES = {
    r"OutOfMemory|MemoryError|allocate memory|status 137": MEMORY,
    r"status (130|143)": "it was interrupted: the same command continues from there",
}


def cause(log: str, status: str) -> str:
    """Why a stage failed, and what to do, from the text of its log and the exit status of its process."""
    errors = ERROR.findall(log)
    no_error = f"its process ended with exit status {status}, its log names no error"
    kind, message = errors[-1] if errors else ("", no_error)
    if kind == "stopped":
        return message
    default = "an error in the program; its traceback is at the end of the log" if kind else "see its output above"
    remedies = [remedy for pattern, remedy in REMEDIES.items() if re.search(pattern, message)]
    return f"{message}; {[*remedies, default][0]}"


def pass_on_sigterm() -> None:
    """From now on SIGTERM also reaches the running stages, whose end Snakemake waits for: a training saves its step."""
    before: Any = signal.getsignal(signal.SIGTERM)  # Snakemake's: start no further stage

    def pass_on(number: int, frame: Any) -> None:
        before(number, frame)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it has just ended
                shell = process.parent()
                if shell and shell.name() == "bash" != process.name():  # `r1track` in a rule's command, not its workers
                    process.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)


def show_end(summary: Path, folders: Sequence[str], began: float) -> None:
    """Print the summary of a run or study, and the stages that failed, by the logs below the folders of results.

    began: when it began, in seconds, as of `time.time`; files of an earlier one are left out.
    """
    if _is_new(summary, began):
        Console().print(Markdown(summary.read_text(encoding="utf-8")))
    for file in sorted(file for folder in folders for file in Path(folder, "logs").rglob("*.failed")):
        if _is_new(file, began):
            log, (stage, status, *_) = file.with_suffix(""), [*file.read_text(encoding="utf-8").split(), "?", "?"]
            text = log.read_text(encoding="utf-8", errors="replace") if _is_new(log, began) else ""
            message = f"{stage} failed: {cause(text, status)}\n    log: {log}"
            Console(stderr=True).print(Text(message, style="bold red"), soft_wrap=True)


def _is_new(file: Path, began: float) -> bool:
    return file.is_file() and file.stat().st_mtime >= began
