"""What tests of the report share."""

import pytest
from pydantic import Field

from r1track.core import config, schema


class AnyNames(schema.Data):
    """Splits of any name."""

    sets: dict[str, str] = Field({})


class AnySettings(schema.Settings):
    """Settings that take such splits."""

    data: AnyNames = AnyNames()


@pytest.fixture
def any_set_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration refuses hostile names of sets; without that check the page must be safe all the same."""
    monkeypatch.setattr(config, "Settings", AnySettings)
