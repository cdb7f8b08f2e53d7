"""Whether callers that were authenticated earlier still have access, for many at once in a fixed number of queries."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from django.contrib.sessions.models import Session
from django.http import HttpRequest
from django.utils import timezone

from rensei.orgs.access import Access
from rensei.orgs.models import Membership
from rensei.tokens.look_up import alive_tokens


@dataclass(frozen=True, kw_only=True)
class Caller:
    """How a caller authenticated: a token, or a session whose password has not changed since."""

    org_id: str
    user_id: int
    token_id: str = ""
    token_reads: tuple[object, ...] = ()
    session_key: str = ""
    password: str = ""

    @classmethod
    def of(cls, access: Access, request: HttpRequest) -> Self:
        token = access.token
        if token is not None:
            reads = _reads(token.project_id, token.host_id, token.scopes, token.allowed_networks)
            return cls(org_id=access.org.pk, user_id=access.user.pk, token_id=token.pk, token_reads=reads)
        return cls(
            org_id=access.org.pk,
            user_id=access.user.pk,
            session_key=request.session.session_key or "",
            password=access.user.password,
        )

    def __repr__(self) -> str:
        # The key of a session gives access, so it must not be logged.
        return f"<Caller {self.token_id or self.user_id}>"


def still_open(callers: Collection[Caller]) -> set[Caller]:
    """Select the callers who still have the same read access."""
    tokens = {caller.token_id for caller in callers if caller.token_id}
    sessions = {caller.session_key for caller in callers if not caller.token_id}
    people = {caller.user_id for caller in callers if not caller.token_id}
    alive: set[object] = set()
    if tokens:
        names = ("pk", "project_id", "host_id", "scopes", "allowed_networks")
        rows = alive_tokens(timezone.now()).filter(pk__in=tokens).values_list(*names)
        alive |= {(pk, _reads(*read)) for pk, *read in rows}
    if sessions:
        kept = Session.objects.filter(session_key__in=sessions, expire_date__gt=timezone.now())
        alive |= set(kept.values_list("session_key", flat=True))
        members = Membership.objects.live().filter(user_id__in=people, user__is_active=True)
        alive |= set(members.values_list("user_id", "org_id", "user__password"))
    return {
        caller
        for caller in callers
        if (
            (caller.token_id, caller.token_reads) in alive
            if caller.token_id
            else caller.session_key in alive and (caller.user_id, caller.org_id, caller.password) in alive
        )
    }


def _reads(project_id: int | None, host_id: str | None, scopes: list[str], networks: list[str]) -> tuple[object, ...]:
    return (project_id, host_id, tuple(scopes), tuple(networks))
