from collections.abc import Iterator

import pytest

from integrations.vault import data_keys


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    """Each test starts as a new process does: without unwrapped keys in memory."""
    data_keys.unwrapped.clear()
    yield
    data_keys.unwrapped.clear()
