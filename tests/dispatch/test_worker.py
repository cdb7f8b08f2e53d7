"""The worker process: what it does about its own bugs, and how it leaves."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command

from rensei import worker
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution import reaper
from rensei.dispatch.models import Attempt, Run
from rensei.dispatch.queue import claims
from rensei.orgs.access import Access
from tests.database import database_url
from tests.dispatch.reconcile import assert_explained
from tests.dispatch.test_crashes import let_leases_run_out
from tests.waiting import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
WAIT_SECONDS_MAX = 120.0


@pytest.fixture
def dispatch(
    simulator: Any, ada_access: Access, connect: Callable[..., Any], make_profile: Callable[..., Any]
) -> Callable[[str], Run]:
    connect()
    make_profile()

    def send(text: str) -> Run:
        asked = messages_from(text=text, messages=None)
        return admit.dispatch(ada_access, DispatchRequest(profile_id="prof_deep", messages=asked))

    return send


class TestABugInItsLook:
    @pytest.mark.parametrize("name", ["claim_next", "thread"])
    def test_is_survived_and_does_not_make_it_run_hot(
        self, dispatch: Callable[[str], Run], monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        run = dispatch("Hi.")
        claim_next, looks, told = claims.claim_next, [], []

        def buggy(*, owner: str, **options: Any) -> claims.Claim | None:
            looks.append(time.monotonic())
            if len(looks) <= 3:
                raise ValueError("a bug")
            return claim_next(owner=owner, **options)

        monkeypatch.setattr(worker, "FAILED_LOOK_SECONDS", 0.2)
        monkeypatch.setattr(worker.logger, "exception", lambda event, **fields: told.append(event))
        monkeypatch.setattr(settings, "RENSEI_WORKER_THREADS", 1)
        if name == "claim_next":
            monkeypatch.setattr(claims, "claim_next", buggy)
        else:
            start = worker.Worker._start

            def no_thread(self: worker.Worker, claim: claims.Claim, renewal: Any) -> None:
                looks.append(time.monotonic())
                if len(looks) == 1:
                    Run.objects.filter(id=claim.run.id).update(state=Run.State.QUEUED)
                    raise RuntimeError("can't start new thread")
                start(self, claim, renewal)

            monkeypatch.setattr(worker.Worker, "_start", no_thread)
        ours = worker.Worker()
        thread = threading.Thread(target=ours.run)

        thread.start()
        wait_until(lambda: Run.objects.get(id=run.id).state == Run.State.SUCCEEDED, seconds=WAIT_SECONDS_MAX)
        ours.stop()
        thread.join(timeout=60)

        assert not thread.is_alive()
        assert set(told) == {"look_failed"}
        assert all(later - earlier >= 0.2 for earlier, later in itertools.pairwise(looks[:4]))


class TestStart:
    def test_sends_no_heartbeat_before_runs_can_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ours = worker.Worker()
        events: list[str] = []

        def warm_up() -> None:
            # The thread of the jobs sends the heartbeats.
            events.extend(thread.name for thread in threading.enumerate() if thread.name == "jobs")
            events.append("warm")

        def look(self: worker.Worker, renewal: Any) -> None:
            events.append("look")
            ours.stop()

        for adapter in worker.ADAPTERS.values():
            monkeypatch.setattr(adapter, "warm_up", warm_up)
        monkeypatch.setattr(worker.Worker, "_look", look)

        ours.run()

        assert events == ["warm"] * len(worker.ADAPTERS) + ["look"]


class TestAWorkerThatIsAskedToStop:
    @pytest.mark.timeout(30)
    def test_stops_if_the_signal_arrives_while_it_holds_the_lock_of_its_own_event(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def run(ours: worker.Worker) -> None:
            with ours._stopped._cond:  # type: ignore[attr-defined]
                signal.raise_signal(signal.SIGTERM)
            assert ours._stopped.wait(WAIT_SECONDS_MAX)
            ours._watch.close()

        monkeypatch.setattr(worker.Worker, "run", run)
        earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            call_command("worker")
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def test_takes_no_more_and_leaves_what_outlasts_its_time_to_the_reaper(
        self, simulator: Any, dispatch: Callable[[str], Run], work: Callable[[], list[Run]]
    ) -> None:
        long = dispatch("[[reply 4000 words]] Go. [[slow 0.05]]")
        environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "DATABASE_URL": database_url(),
            "RENSEI_VAULT_KEYRING": str(settings.RENSEI_VAULT_KEYRING),
            "RENSEI_ANTHROPIC_BASE_URL": settings.RENSEI_ANTHROPIC_BASE_URL,
            "RENSEI_WORKER_THREADS": "1",
        }
        process = subprocess.Popen([sys.executable, "-m", "tests.dispatch.leaving_worker"], cwd=ROOT, env=environment)
        wait_until(lambda: long.chunks.filter(kind="delta").exists(), seconds=WAIT_SECONDS_MAX)
        waiting = dispatch("Hi.")

        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=WAIT_SECONDS_MAX)

        assert code == 0
        long.refresh_from_db()
        waiting.refresh_from_db()
        assert (long.state, waiting.state) == (Run.State.RUNNING, Run.State.QUEUED)
        let_leases_run_out()
        reaper.reap()
        long.refresh_from_db()
        assert (long.state, long.error["code"]) == (Run.State.FAILED, "RUN_INTERRUPTED")
        assert long.attempts.get().state == Attempt.State.INDETERMINATE
        (other,) = work()
        assert (other.id, other.state) == (waiting.id, Run.State.SUCCEEDED)
        assert_explained(simulator)
