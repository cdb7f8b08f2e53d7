"""
The caps of tokens: the most that a token's runs may cost in a UTC month.

What a token makes counts for its cap, so that making another token evades none: each token names the caps of its
makers beside its own. The caps are held and settled by `billing.limits.caps`.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from django.utils import timezone

from rensei.core.errors import RenseiError, Said
from rensei.core.periods import end_of, month_of
from rensei.core.transactions import assert_open
from rensei.orgs.models import SpendCap
from rensei.tokens import tree
from rensei.tokens.models import ApiToken
from rensei.tokens.signals import cap_made


class CapOfCaller(RenseiError):
    """A token may not change a cap that holds for itself."""

    code = "NOT_PERMITTED"
    status = 403
    title = "Not permitted"
    message = Said(
        "A token cannot change the cap that holds for itself.",
        "Use the pages, or a token that was made without this one.",
    )


def begin(token: ApiToken, *, picodollars: int) -> None:
    """Give a token a cap, in the caller's transaction. It counts what the token has used in this month so far."""
    assert_open()
    _begin(token, _line_of(token), picodollars=picodollars)


def _begin(token: ApiToken, line: Sequence[ApiToken], *, picodollars: int) -> None:
    now = timezone.now()
    cap = SpendCap(
        org_id=token.org_id,
        scope=SpendCap.Scope.TOKEN,
        scope_id=token.pk,
        picodollars=picodollars,
        period=month_of(now),
        created_at=now,
    )
    cap_made.send(sender=SpendCap, cap=cap, token_ids=[one.pk for one in line])
    cap.save(force_insert=True)
    for one in line:
        _set(one, [*one.caps, cap.pk])


def change(token: ApiToken, *, picodollars: int | None, caller_id: str) -> int | None:
    """
    Set, change or remove the cap of a token, in the caller's transaction. Returns the former amount.

    :raises CapOfCaller: if the caller is a token that the cap would hold for
    """
    assert_open()
    tokens = _line_of(token)
    if caller_id in {one.pk for one in tokens}:
        raise CapOfCaller
    cap = of_tokens([token.pk]).get(token.pk)
    before = cap.picodollars if cap else None
    if cap is None and picodollars is not None:
        _begin(token, tokens, picodollars=picodollars)
    elif cap is not None and picodollars is None:
        SpendCap.objects.filter(pk=cap.pk).delete()
        for one in tokens:
            _set(one, [cap_id for cap_id in one.caps if cap_id != cap.pk])
    elif cap is not None:
        SpendCap.objects.filter(pk=cap.pk).update(picodollars=picodollars)
    return before


def of_tokens(token_ids: Sequence[str]) -> dict[str, SpendCap]:
    """Read the caps of tokens, by the token's id, in one query."""
    found = SpendCap.objects.filter(scope=SpendCap.Scope.TOKEN, scope_id__in=token_ids)
    return {cap.scope_id: cap for cap in found}


def described(cap: SpendCap) -> dict[str, Any]:
    """Describe a cap in this month, with amounts in picodollars."""
    month = month_of(timezone.now())
    return {
        "scope": {"type": cap.scope, "id": cap.scope_id},
        "window": cap.window,
        "amount": cap.picodollars,
        "used": cap.used_in(month),
        "held": cap.held,
        "resets_at": end_of(month),
    }


def _line_of(token: ApiToken) -> list[ApiToken]:
    """List a token with all that was made with it, each locked until commit."""
    return list(chain.from_iterable(tree.generations([token.pk])))


def _set(token: ApiToken, cap_ids: list[str]) -> None:
    token.caps = cap_ids
    token.save(update_fields=["caps"])
