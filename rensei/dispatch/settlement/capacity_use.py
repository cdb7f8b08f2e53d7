"""The ends of sandboxes, and the ledger line of each one in a cloud, which is written in the same transaction."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from billing.ledger import capacity, roll_ups
from integrations.capacity import prices
from integrations.capacity.prices import Size
from rensei.core.clock import database_now
from rensei.core.transactions import durable
from rensei.dispatch.models import Sandbox
from rensei.dispatch.pools.driver import Made
from rensei.dispatch.pools.slots import ENDS_AFTER_DEADLINE


@dataclass(frozen=True, kw_only=True)
class _End:
    """`made`: None if it is known that the capacity provider has created no sandbox."""

    sandbox: Sandbox
    ended_at: datetime
    made: Made | None
    is_seen: bool


def note_size(sandbox: Sandbox, size: Size) -> None:
    """Keep the size of a sandbox that exists, so that its price is known also after the death of its worker."""
    # What has ended has a line, which this must not contradict.
    Sandbox.objects.filter(id=sandbox.id, ended_at=None).update(**_sized(sandbox, size))


def end(sandbox: Sandbox, made: Made | None, *, gone_for: timedelta = timedelta()) -> None:
    """
    Mark a sandbox as ended that its worker has seen to be gone.

    :param made: what the provider has created; None if nothing is charged for
    :param gone_for: how long ago that was
    """
    _write([_End(sandbox=sandbox, ended_at=database_now() - gone_for, made=made, is_seen=True)])


def end_left(sandboxes: Iterable[Sandbox], existing: Mapping[str, Size | None]) -> None:
    """
    Mark sandboxes in clouds as ended that dead workers have left, and that are gone now.

    :param existing: those that existed until now, with their sizes if the provider names them. Of the others it is not
        known when they ended, nor whether they were created: their lines are estimates.
    """
    now = database_now()
    _write(
        _End(
            sandbox=sandbox,
            ended_at=now if sandbox.id in existing else min(now, sandbox.run.deadline_at + ENDS_AFTER_DEADLINE),
            made=Made(size=existing.get(sandbox.id) or size_of(sandbox)),
            is_seen=sandbox.id in existing,
        )
        for sandbox in sandboxes
    )


def size_of(sandbox: Sandbox) -> Size | None:
    if sandbox.vcpus is None or sandbox.memory_mib is None:
        return None
    return Size(vcpus=sandbox.vcpus, memory_mib=sandbox.memory_mib)


def seconds_of(sandbox: Sandbox, *, ended_at: datetime) -> int:
    """Count the seconds from before the creation to the end, begun ones as whole."""
    return max(0, math.ceil((ended_at - sandbox.created_at).total_seconds()))


def _price_of(sandbox: Sandbox, size: Size | None) -> int | None:
    """Return the picodollars of a second: those noted with this size, or those of its creation. None: not known."""
    if size is None:
        return None
    if size == size_of(sandbox) and sandbox.second_picodollars is not None:
        return sandbox.second_picodollars
    return prices.second_picodollars(sandbox.provider_id, size, moment=sandbox.created_at)


def _sized(sandbox: Sandbox, size: Size) -> dict[str, int | None]:
    price = _price_of(sandbox, size)
    return {"vcpus": size.vcpus, "memory_mib": size.memory_mib, "second_picodollars": price}


def _write(ends: Iterable[_End]) -> None:
    """End each sandbox once. Who ends it writes its line, which is therefore in the ledger once."""
    ends = list(ends)
    if not ends:
        return
    with durable():
        now = database_now()
        lines = capacity.write_lines(_use(each, now=now) for each in ends if _end_row(each) and each.made is not None)
        roll_ups.add(lines)


def _end_row(ending: _End) -> int:
    becomes: dict[str, object] = {"ended_at": ending.ended_at}
    size = ending.made.size if ending.made else None
    if size is not None:
        becomes |= _sized(ending.sandbox, size)
    return Sandbox.objects.filter(id=ending.sandbox.id, ended_at=None).update(**becomes)


def _use(ending: _End, *, now: datetime) -> capacity.SandboxUse:
    assert ending.made is not None
    sandbox = ending.sandbox
    run = sandbox.run
    return capacity.SandboxUse(
        org_id=sandbox.org_id,
        run_id=run.id,
        sandbox_id=sandbox.id,
        profile_id=run.profile_id,
        project_id=run.project.slug if run.project else "",
        pool=sandbox.pool,
        provider=sandbox.provider_id,
        credential_id=sandbox.credential_id,
        seconds=seconds_of(sandbox, ended_at=ending.ended_at),
        second_picodollars=_price_of(sandbox, ending.made.size),
        estimated=not ending.is_seen,
        occurred_at=now,
    )
