"""The broker is killed, slow or back again: no caller waits for it, no run is lost, and the log says so once."""

import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rensei import worker
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Run
from rensei.dispatch.queue import broker, wake_up
from rensei.orgs.access import Access
from tests import servers
from tests.broker import ringing_through
from tests.dispatch.reconcile import assert_explained
from tests.proxy import Proxy, standing_before
from tests.waiting import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.redis, pytest.mark.timeout(300)]

LONG = 5.0


@pytest.fixture(autouse=True)
def _leaves_no_sockets() -> Iterator[None]:
    """A client whose server was killed while it connected leaves its socket to the garbage collector."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def redis() -> Iterator[servers.Redis]:
    with servers.run_redis() as server:
        yield server


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "LOOK_SECONDS", 0.2)


@pytest.fixture
def proxy(redis: servers.Redis, settings: Any) -> Iterator[Proxy]:
    """Reach the broker through a proxy that can make it slow."""
    with standing_before(redis.port) as before, ringing_through(f"redis://127.0.0.1:{before.port}/0", settings):
        yield before


@pytest.fixture
def send(
    simulator: Any, ada_access: Access, connect: Callable[..., Any], make_profile: Callable[..., Any]
) -> Callable[[], Run]:
    connect()
    make_profile()
    request = DispatchRequest(profile_id="prof_deep", messages=messages_from(text="Hi.", messages=None))
    return lambda: admit.dispatch(ada_access, request)


@pytest.fixture
def working() -> Iterator[None]:
    """Run the worker process's loop in a thread."""
    ours = worker.Worker()
    thread = threading.Thread(target=ours.run)
    thread.start()
    yield
    ours.stop()
    thread.join()


def messages(redis: servers.Redis) -> int:
    from redis import Redis

    with Redis.from_url(redis.url) as client:
        count: int = client.llen("celery")
        return count


class TestABrokerThatIsKilled:
    def test_is_found_again_and_rung_again(
        self, redis: servers.Redis, proxy: Proxy, send: Callable[[], Run], quick_looks: None, caplog: Any
    ) -> None:
        send()
        wait_until(lambda: messages(redis) == 1)

        redis.kill()
        runs = [send() for _ in range(20)]
        wait_until(wake_up.is_broker_away)
        runs += [send() for _ in range(20)]
        redis.start()
        wait_until(lambda: not wake_up.is_broker_away())
        send()

        wait_until(lambda: messages(redis) > 0)
        assert Run.objects.filter(state=Run.State.QUEUED).count() == len(runs) + 2
        assert caplog.text.count("broker_is_away") == 1
        assert caplog.text.count("broker_is_back") == 1

    def test_leaves_the_runs_to_the_worker_process(
        self,
        redis: servers.Redis,
        proxy: Proxy,
        send: Callable[[], Run],
        quick_looks: None,
        working: None,
        simulator: Any,
    ) -> None:
        """No Celery worker is there, so what is carried out is carried out by the process that looks by itself."""
        first = send()
        wait_until(lambda: messages(redis) == 1)
        assert Run.objects.get(id=first.id).state == Run.State.QUEUED

        redis.kill()
        runs = [first, *(send() for _ in range(5))]

        ids = [run.id for run in runs]
        wait_until(lambda: not Run.objects.filter(id__in=ids).exclude(state=Run.State.SUCCEEDED).exists(), seconds=120)
        assert_explained(simulator)


class TestABrokerThatIsSlow:
    def test_is_away_and_holds_up_no_dispatch(self, proxy: Proxy, send: Callable[[], Run]) -> None:
        """While its first answer is held back, every dispatch is answered: none of them asks it anything."""
        proxy.delay = LONG
        send()
        assert proxy.held.wait(timeout=30)

        runs = [send() for _ in range(20)]

        assert Run.objects.filter(id__in=[run.id for run in runs], state=Run.State.QUEUED).count() == len(runs)
        wait_until(wake_up.is_broker_away)

    def test_gets_no_more_messages_than_may_wait(self, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(broker, "WAITING_MAX", 10)
        monkeypatch.setattr(broker, "ANSWER_SECONDS", 60.0)
        proxy.delay = LONG
        wake_up.notify_workers("run_first")
        assert proxy.held.wait(timeout=30)

        for number in range(100):
            wake_up.notify_workers(f"run_{number}")

        assert len(broker.broker()._waiting) == 10
        proxy.delay = 0.0
