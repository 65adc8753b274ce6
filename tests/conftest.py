"""The longest files come first, so that no process waits for them at the end."""

import pytest

LONG = ("test_demo", "test_arms", "test_track", "test_tutorial")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)
