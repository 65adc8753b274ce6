"""Measure training, merging and tracking at the real model's size on a CUDA card, without its weights.

    PYTHONPATH=. python bench/gpu.py --minutes 9          # the most valuable cases first; again, and it goes on
    PYTHONPATH=. python bench/gpu.py --only 3B-grpo       # cases whose name holds this
    PYTHONPATH=. python bench/gpu.py --rehearse           # a tiny shape on a CPU

Every case runs in a process of its own, on a card held to 24 GB. What fails is recorded with its reason, and the next
case goes on. Results are merged into `bench/results/<device>.json` and shown in `<device>.md`. See bench/README.md.
"""

import argparse
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from cases import FULL, REHEARSAL, SECONDS, Case
from rich.console import Console

from r1track.core import files

HERE = Path(__file__).resolve().parent
# Set for every case. A killed one has written all of its log, and nothing waits for a network.
QUIET = {
    "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "COLUMNS": "120", "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
}  # fmt: skip
DONE = ("measured", "ran eagerly", "out of memory")  # what is not measured again, unless asked for
# Unsloth goes on without compiling where compiling fails: the figures are then those of another program.
EAGER = re.compile(r".*(running it eagerly|block compile failed).*")
TELLING = re.compile(r"Fatal Python error|[\w.]+(Error|Exception|Interrupt)\b")  # the last of these lines says why
console = Console(soft_wrap=True, highlight=False, markup=False)
# Columns of the table: heading, figure, factor, decimals.
COLUMNS = (
    ("allocated, GB", "peak_allocated_bytes", 1e-9, 2), ("reserved, GB", "peak_reserved_bytes", 1e-9, 2),
    ("host, GB", "peak_host_bytes", 1e-9, 2), ("weights, GB", "weight_bytes", 1e-9, 2),
    ("s per group", "seconds_per_group", 1, 2), ("tokens/s", "tokens_per_second", 1, 0),
    ("samples/s", "samples_per_second", 1, 2), ("frames/s", "frames_per_second", 1, 2),
    ("held to, GB", "limit_gb", 1, 1), ("prompt tokens", "prompt_tokens", 1, 0), ("case, s", "wall_seconds", 1, 0),
)  # fmt: skip


def supervise(command: list[str], log: Path, seconds: float) -> str | None:
    """Run a command with its output in `log`, at most for `seconds`; None, or why it did not end well."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, **QUIET}, process_group=0
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it, and what it may have left running
            process.wait()
    if code == 0:
        return None
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if TELLING.match(line)] or lines or ["no output"]
    how = f"signal {-code}" if code < 0 else f"exit status {code}"
    return f"{how}: {telling[-1][:300]}"


def measure(cases: list[Case], scratch: Path, limit: float, seconds: float) -> dict[str, dict[str, Any]]:
    """The records of cases, measured one after another in one process of their own."""
    records: dict[str, dict[str, Any]] = {}
    for case in cases:
        absent = [f"{name} is missing" for name in case.missing()]
        if absent:
            records[case.key] = {"status": "not run", "reason": ", ".join(absent)}
    keys = [case.key for case in cases if case.key not in records]
    if not keys:
        return records
    written = {key: scratch / "records" / f"{key}.json" for key in keys}
    for file in written.values():
        file.unlink(missing_ok=True)
    log = scratch / "logs" / f"{keys[-1]}.txt"
    command = [sys.executable, str(Path(__file__).resolve()), "--scratch", str(scratch), "--limit", str(limit)]
    reason = supervise([*command, "--case", *keys], log, seconds)
    lines = log.read_text(errors="replace").splitlines()
    eager = [line.strip()[:200] for line in lines if EAGER.match(line)]
    for key, file in written.items():
        records[key] = files.read_json(file) if file.is_file() else lost(Case.parse(key), scratch, reason)
        if eager and records[key]["status"] == "measured":
            records[key] |= {"status": "ran eagerly", "reason": f"{len(eager)} parts, the first: {eager[0]}"}
    if any(records[key]["status"] != "measured" for key in keys):
        console.print(*lines[-25:], sep="\n")
    return records


def lost(case: Case, scratch: Path, reason: str | None) -> dict[str, Any]:
    """The record of a case whose process ended without one; the seconds of the steps that it did are in it."""
    status = "timed out" if (reason or "").startswith("stopped") else "failed"
    record: dict[str, Any] = {"status": status, "reason": reason or "it ended without a record"}
    steps = case.work(scratch) / "scratch" / "log.jsonl"  # a line is written as a step ends
    if steps.is_file():
        rows = [json.loads(line) for line in steps.read_text().splitlines() if line.endswith("}")]
        record["figures"] = {"step_seconds": [row["seconds"] for row in rows if "seconds" in row]}
    return record


def child(keys: list[str], scratch: Path, limit: float) -> None:
    """Measure the cases in this process and write their records."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cases = [Case.parse(key) for key in keys]
    from share import hold_to

    if cases[0].kind != "build":
        hold_to(limit)
    from r1track.training import backend

    backend.enter(cases[0].backend, scratch)  # before anything imports TRL
    from measure import run

    for case in cases:
        files.write_json(scratch / "records" / f"{case.key}.json", run(case, scratch, limit))


class Results:
    """`<folder>/<device>.json`, one record per case, and its table beside it; a new record replaces its own case's."""

    def __init__(self, folder: Path, device: str):
        name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        self.file, self.table = folder / f"{name}.json", folder / f"{name}.md"
        self.device = device
        self.cases: dict[str, Any] = files.read_json(self.file)["cases"] if self.file.is_file() else {}

    def status(self, case: Case) -> str:
        return str(self.cases.get(case.key, {}).get("status", ""))

    def keep(self, records: dict[str, dict[str, Any]]) -> None:
        """Merge records in and write both files."""
        known = {**self.cases, **records}
        order = [case.key for case in (Case("3B", "build"), Case("7B", "build"), *FULL, *REHEARSAL)]
        self.cases = dict(sorted(known.items(), key=lambda item: order.index(item[0]) if item[0] in order else -1))
        files.write_json(self.file, {"device": self.device, "cases": self.cases})
        files.write_text(self.table, self.markdown())
        for key, record in records.items():
            figures = {name: v for name, v in record.get("figures", {}).items() if isinstance(v, int | float)}
            shown = ", ".join(f"{name} {v:.4g}" for name, v in figures.items())
            console.print(f"{key}: {record['status']}", record["reason"] or shown)

    def markdown(self) -> str:
        """The table of what was measured, and a list of what was not, with reasons."""
        measured = {key: record for key, record in self.cases.items() if record["status"] == "measured"}
        shown = [c for c in COLUMNS if any(record["figures"].get(c[1]) is not None for record in measured.values())]
        heads = ["case", *(heading for heading, *_ in shown), "planned, GB"]
        rows = [f"# {self.device}", "", "Made by bench/gpu.py; bench/README.md says what the columns mean.", ""]
        rows += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        for key, record in measured.items():
            values = [record["figures"].get(name) for _, name, *_ in shown]
            cells = ["" if v is None else f"{v * f:.{d}f}" for v, (_, _, f, d) in zip(values, shown, strict=True)]
            plan = record["planned_bytes"]
            rows.append("| " + " | ".join([key, *cells, "" if plan is None else f"{plan / 1e9:.2f}"]) + " |")
        rows += ["", *(f"- {k}: {r['status']}: {r['reason']}" for k, r in self.cases.items() if k not in measured)]
        for versions in {str(r["versions"]): r["versions"] for r in measured.values()}.values():
            rows += ["", ", ".join(f"{name} {version}" for name, version in versions.items())]
        return "\n".join(rows).rstrip() + "\n"


def device_name() -> str:
    """The card's name, asked in another process, so that this one holds no memory of it."""
    ask = "import torch; print(torch.cuda.get_device_name(0))"
    found = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    if found.returncode:
        raise SystemExit("no CUDA card that torch can use; `--rehearse` runs a tiny shape on a CPU")
    return found.stdout.strip()


def work_off(cases: list[Case], results: Results, scratch: Path, limit: float, until: float) -> None:
    """Measure the cases one by one, each after what it works on, as long as half of a case's time is left."""
    tried, later = set(), []
    for case in cases:
        for each in (*case.after, case):
            if each is not case and (each.made(scratch) or each.key in tried):
                continue
            left = until - time.monotonic()
            lost = [needed.key for needed in each.after if not needed.made(scratch)]
            if lost:
                results.keep({each.key: {"status": "not run", "reason": f"it works on {lost[0]}, which failed"}})
            elif left < SECONDS[each.kind] / 2:
                later.append(case.key)
                break
            else:
                results.keep(measure([each], scratch, limit, min(left, SECONDS[each.kind])))
                tried.add(each.key)
    if later:
        console.print("no time left for:", *later)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--minutes", type=float, default=9, help="no case is started that would end later")
    parser.add_argument("--again", action="store_true", help="also cases that have their result already")
    parser.add_argument("--list", action="store_true", help="show the cases")
    parser.add_argument("--rehearse", action="store_true", help="a tiny shape on a CPU")
    parser.add_argument("--limit", type=float, default=24, help="GB that the card is held to")
    parser.add_argument("--out", type=Path, help="folder of the results, bench/results by default")
    parser.add_argument("--scratch", type=Path, default=HERE.parent / "scratch" / "bench", help="folder of the weights")
    parser.add_argument("--case", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    scratch = chosen.scratch.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that no case is left running
    if chosen.case:
        return child(chosen.case, scratch, chosen.limit)
    cases = [case for case in (REHEARSAL if chosen.rehearse else FULL) if chosen.only in case.key]
    if not cases:
        raise SystemExit(f"--only {chosen.only}: no such case; see --list")
    if chosen.list:
        return console.print(*(case.key for case in cases), sep="\n")
    out = chosen.out or (scratch if chosen.rehearse else HERE) / "results"
    results = Results(out, "rehearsal" if chosen.rehearse else device_name())
    cases = [case for case in cases if chosen.again or results.status(case) not in DONE]
    cases.sort(key=lambda case: bool(results.status(case)))  # what failed before comes last
    work_off(cases, results, scratch, chosen.limit, time.monotonic() + 60 * chosen.minutes)


if __name__ == "__main__":
    main()
