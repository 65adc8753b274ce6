"""Printing: what the doctor found, as lines and tables for a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from r1track.preflight import memory
from r1track.preflight.doctor import Diagnosis
from r1track.preflight.findings import Line


def joined(diagnoses: dict[str, Diagnosis]) -> list[Line]:
    """The lines that all variants have; then every other one, with the names of the variants that have it."""
    common, others = list[Line](), list[Line]()
    for line in dict.fromkeys(line for diagnosis in diagnoses.values() for line in diagnosis.lines):
        names = [name for name, diagnosis in diagnoses.items() if line in diagnosis.lines]
        if len(names) == len(diagnoses):
            common.append(line)
        else:
            others.append(line._replace(subject=f"{', '.join(names)}: {line.subject}"))
    return common + others


def peaks(diagnosis: Diagnosis, names: str = "") -> Table:
    """For every stage the terms of its peak memory, in GB; names: of the variants."""
    table, plans, budget = Table("GB at the peak (~ estimated)", title=names), diagnosis.plans, diagnosis.budget
    for plan in plans:
        table.add_column(plan.stage, justify="right")
    moments = [plan.moments[plan.peak[1]] for plan in plans]
    for term in dict.fromkeys(term for terms in moments for term in terms):
        cells = (f"{terms[term] / 1e9:.2f}" if term in terms else "" for terms in moments)
        table.add_row(f"~ {term}" if term in memory.ESTIMATES else term, *cells)
    table.add_section()
    table.add_row("together", *(f"{plan.peak[0] / 1e9:.2f}" for plan in plans), style="bold")
    table.add_row("moment", *(plan.peak[1] for plan in plans))
    table.add_row(f"into {budget / 1e9:.1f} GB", *("fits" if plan.peak[0] <= budget else "too large" for plan in plans))
    return table


def show(diagnoses: dict[str, Diagnosis], study: list[Line], console: Console) -> None:
    """Print the findings, the planned memory, hours on another card, and what would make a stage fit.

    study: further findings. Variants with the same plans are shown together.
    """
    for state, subject, finding in [*joined(diagnoses), *study]:
        colour = {"ok": "green", "warning": "yellow", "error": "bold red"}[state]
        console.print(Text.assemble((f"{state:9}", colour), (subject, "bold"), "  ", finding), soft_wrap=True)
    groups: dict[str, Diagnosis] = {}
    for one in diagnoses.values():
        alike = [
            name for name, other in diagnoses.items() if (other.plans, other.remedies) == (one.plans, one.remedies)
        ]
        groups[", ".join(alike)] = one
    for names, one in groups.items():
        title = names if len(groups) > 1 else ""
        if one.plans:
            console.print(peaks(one, title))
        for plan in one.plans:
            stage = f"{title}: {plan.stage}" if title else plan.stage
            if plan.flops:
                console.print(f"{stage}: {plan.flops:.1e} operations, about {plan.hours:.1f} hours on an RTX 3090")
            if plan.stage in one.remedies:
                fitting = [f"{change} ({peak / 1e9:.2f} GB)" for change, peak in one.remedies[plan.stage].items()]
                one_of = f"fits after one of: {'; '.join(fitting)}"
                console.print(f"{stage} {one_of if fitting else 'fits after no single change; take a smaller base'}")
