"""Request threads compute in turns, so that the event loop waits for few of them."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rensei.core import computing
from rensei.core.computing import TURNS, in_turn, outside_of_turn
from tests.waiting import wait_until


class TestTurns:
    def test_few_threads_compute_and_any_number_waits_for_other_machines(self, monkeypatch: Any) -> None:
        """As the tests of keys of many organizations, whose providers answer together."""
        monkeypatch.setattr(computing, "WAIT_SECONDS", 30)
        lock, all_wait = threading.Lock(), threading.Barrier(20)
        computing_now, most = 0, 0

        def compute() -> None:
            nonlocal computing_now, most
            with lock:
                computing_now += 1
                most = max(most, computing_now)
            sum(range(20_000))
            with lock:
                computing_now -= 1

        def request() -> None:
            with in_turn():
                compute()
                with outside_of_turn():
                    all_wait.wait(timeout=30)
                compute()

        with ThreadPoolExecutor(20) as threads:
            for done in [threads.submit(request) for _ in range(20)]:
                done.result(timeout=30)

        assert 1 <= most <= TURNS

    def test_a_thread_that_waits_too_long_goes_on_without(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(computing, "WAIT_SECONDS", 0.01)
        goes_on, all_have = threading.Event(), threading.Barrier(TURNS + 1)

        def stay() -> None:
            with in_turn():
                all_have.wait(timeout=30)
                goes_on.wait(timeout=30)

        with ThreadPoolExecutor(TURNS) as threads:
            for _ in range(TURNS):
                threads.submit(stay)
            all_have.wait(timeout=30)
            # Without a turn, which it does not return either.
            with in_turn(), outside_of_turn():
                goes_on.set()

        wait_until(lambda: computing._turns._value == TURNS, what="the return of all turns")

    def test_a_thread_that_answers_no_request_takes_none(self) -> None:
        with outside_of_turn():
            assert computing._turns._value == TURNS

        assert computing._turns._value == TURNS
