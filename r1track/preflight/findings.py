"""Findings: what the doctor says, a line each."""

from typing import Literal, NamedTuple

State = Literal["ok", "warning", "error"]


class Line(NamedTuple):
    """One finding about a subject, a field or a part of the machine; what is not `ok` says the remedy, too."""

    state: State
    subject: str
    finding: str


def line_if(good: bool, subject: str, finding: str, remedy: str, otherwise: State = "error") -> Line:
    """The line of a subject that is `good`, or else in another state, with the remedy."""
    return Line("ok", subject, finding) if good else Line(otherwise, subject, f"{finding}; {remedy}")
