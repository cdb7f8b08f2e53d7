"""A run whose worker dies while its call is under way."""

from rensei.core.clock import database_now
from rensei.dispatch.execution import reaper
from rensei.dispatch.models import Run
from rensei.dispatch.queue import claims


def lose(run: Run) -> Run:
    """Open an attempt of the run, and let its worker die."""
    claim = claims.claim_next(owner="gone")
    assert claim is not None
    claims.open_attempt(claim.run, credential_id="", credential_version=1, input_tokens=1000)
    Run.objects.filter(id=run.id).update(lease_until=database_now() - claims.LEASE)
    reaper.reap()
    run.refresh_from_db()
    return run
