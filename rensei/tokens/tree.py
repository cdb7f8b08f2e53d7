"""What was made with a token ends with it: tokens, machines, and the invitations that are still open."""

from collections.abc import Iterable, Iterator
from datetime import datetime

from rensei.core.errors import NotPermitted, RenseiError, Said
from rensei.core.limits import limit
from rensei.core.transactions import assert_open
from rensei.orgs.access import Access
from rensei.orgs.models import Host
from rensei.tokens.models import ApiToken
from rensei.tokens.signals import tokens_revoked

GENERATIONS_MAX = limit(
    5, "tokens", what="Tokens between one and the first of its line", told="the caller: 403 `NOT_PERMITTED`"
)


class TokenChainTooLong(RenseiError):
    """The chain of tokens that made one another is longer than the limit."""

    code = "NOT_PERMITTED"
    status = 403
    title = "Not permitted"
    message = Said(
        f"A token that was made through {GENERATIONS_MAX} others makes no further ones.", "Use an earlier one."
    )


def lock_maker(access: Access) -> ApiToken | None:
    """
    Lock the token that makes something until commit, so that it cannot be revoked meanwhile without what it makes.

    :raises NotPermitted: if it was revoked already
    """
    assert_open()
    if access.token is None:
        return None
    alive = ApiToken.objects.select_for_update(no_key=True).filter(pk=access.token.pk, revoked_at=None)
    maker: ApiToken | None = alive.first()
    if maker is None:
        raise NotPermitted
    return maker


def next_generation(maker: ApiToken | None) -> int:
    """:raises TokenChainTooLong: if the chain of tokens that made this one is at the limit"""
    generation = 0 if maker is None else maker.generation + 1
    if generation > GENERATIONS_MAX:
        raise TokenChainTooLong
    return generation


def generations(token_ids: Iterable[str]) -> Iterator[list[ApiToken]]:
    """
    Yield tokens, those that they made, and so on, each generation locked until commit.

    A generation is locked before the next one is read: making a token locks its maker, so none is missed.
    """
    assert_open()
    named = list(token_ids)
    while named:
        tokens = ApiToken.objects.select_for_update(no_key=True).filter(pk__in=named).order_by("pk")
        yield list(tokens)
        named = list(ApiToken.objects.filter(made_by__in=named).values_list("pk", flat=True))


def revoke(token_ids: Iterable[str], *, now: datetime) -> list[str]:
    """
    Revoke tokens and all that was made with them, and return the ids of those that were still valid.

    A generation is revoked before the next one is read: making a token locks its maker, so none is missed.
    """
    assert_open()
    ended: list[str] = []
    generation = list(token_ids)
    while generation:
        alive = ApiToken.objects.filter(pk__in=generation, revoked_at=None)
        ended += alive.select_for_update(no_key=True).order_by("pk").values_list("pk", flat=True)
        alive.update(revoked_at=now)
        tokens_revoked.send(sender=ApiToken, token_ids=generation, now=now)
        made = ApiToken.objects.filter(made_by__in=generation)
        Host.objects.filter(tokens__in=made, revoked_at=None).update(revoked_at=now)
        generation = list(made.values_list("pk", flat=True))
    return ended
