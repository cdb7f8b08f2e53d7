"""What dispatch tests need: a worker that runs what is queued."""

from collections.abc import Callable

import pytest

from rensei.dispatch.execution.execute import execute
from rensei.dispatch.execution.lease_renewal import LeaseRenewal
from rensei.dispatch.models import Run
from rensei.dispatch.queue import claims


@pytest.fixture
def work(transactional_db: None) -> Callable[[], list[Run]]:
    """Execute everything that is queued, as a worker does, and give back the runs."""

    def run_queue() -> list[Run]:
        renewal = LeaseRenewal(owner="test-worker")
        done = []
        try:
            while (claim := claims.claim_next(owner=renewal.owner)) is not None:
                execute(claim, renewal)
                done.append(Run.objects.get(id=claim.run.id))
        finally:
            renewal.close()
        return done

    return run_queue
