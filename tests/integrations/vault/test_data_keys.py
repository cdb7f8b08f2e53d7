"""Unwrapped data keys leave the memory of a process by themselves."""

import os
from typing import Any

import pytest

from integrations.vault import data_keys
from integrations.vault.data_keys import UnwrappedKeys
from tests.waiting import wait_until


class TestUnwrappedKeys:
    def test_are_dropped_when_their_time_is_over_though_nothing_asks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(data_keys, "CACHE_SECONDS", 0.05)
        keys = UnwrappedKeys()

        for number in range(50):
            keys.put(("key", number), os.urandom(32))

        wait_until(lambda: len(keys) == 0, what="the end of every key")

    def test_are_dropped_again_after_all_were_gone_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(data_keys, "CACHE_SECONDS", 0.05)
        keys = UnwrappedKeys()

        for number in range(3):
            keys.put(("key", number), os.urandom(32))
            wait_until(lambda: len(keys) == 0, what="the end of a key")

    def test_are_given_until_then(self) -> None:
        keys, key = UnwrappedKeys(), os.urandom(32)

        keys.put(("key",), key)

        assert keys.get(("key",)) == key
        assert keys.get(("another",)) is None

    def test_stay_where_the_timer_meets_younger_ones(self, monkeypatch: Any) -> None:
        keys = UnwrappedKeys()
        monkeypatch.setattr(data_keys, "CACHE_SECONDS", 0.05)
        keys.put(("older",), os.urandom(32))
        monkeypatch.setattr(data_keys, "CACHE_SECONDS", 600)
        keys.put(("younger",), os.urandom(32))

        wait_until(lambda: len(keys) == 1, what="the end of the older key")

        assert keys.get(("younger",)) is not None
