"""The base of records, and those that one folder of the package writes and another reads."""

from typing import Literal

from pydantic import BaseModel


class Record(BaseModel, frozen=True, allow_inf_nan=False):
    """A record that is not changed once it is made; a number in it is finite."""


class MergeRecord(Record, extra="forbid"):
    """The content of a merge.json. The agreements are shares of held-out pairs, None where nothing was compared."""

    pairs: int
    agreement: float | None = None  # the one of the next two that the merge is to keep, by merge.base
    agreement_original: float | None = None  # of the merged model with the adapter on the 16-bit base
    agreement_as_trained: float | None = None  # with it on the base as it was in training, if that was another
    update_kept: float  # share of the update that arrived: 1 but for rounding
    base: str  # as given
    onto: Literal["original", "dequantised"]
