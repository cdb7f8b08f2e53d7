"""
What a token may be used for, within its member's role. Every REST route declares what it requires.

`TokenAuthentication` compares the two for every request; the gateway does so for its calls.
"""

from collections.abc import Collection
from dataclasses import dataclass

from django.db import models

from rensei.core.errors import FieldError, RenseiError, Said


class Scope(models.TextChoices):
    """One kind of use, with the sentence that describes it in forms."""

    READ = "read", "See everything that you may see, but for what was spent."
    RUNS = (
        "runs",
        "Dispatch runs and workflows, see and cancel your own, and see the profiles and models.",
    )
    GATEWAY = "gateway", "Call models through the Anthropic-compatible gateway."
    MANAGE = "manage", "Change what your role may change: keys, profiles, projects, members, tokens, policies."
    BILLING = "billing", "See what was spent: usage, the ledger, statements and entitlements."
    LEASES = "leases", "Carry out the host-session runs of one machine. Only for the token of that machine."


# The scopes of a token that was made without naming any. A machine's has fewer: it is stored on a disk, unattended.
DEFAULT = (Scope.READ, Scope.RUNS, Scope.GATEWAY, Scope.MANAGE, Scope.BILLING)
DEFAULT_OF_MACHINES = (Scope.LEASES, Scope.RUNS)


@dataclass(frozen=True)
class Needs:
    """What a route requires: one of some scopes. Routes that give access to others are closed to machines' tokens."""

    scopes: frozenset[Scope]
    machines: bool = True

    @classmethod
    def one_of(cls, *scopes: Scope) -> "Needs":
        return cls(frozenset(scopes))


ANY = Needs(frozenset(Scope))
READ = Needs.one_of(Scope.READ)
READ_OR_RUNS = Needs.one_of(Scope.READ, Scope.RUNS)
RUNS = Needs.one_of(Scope.RUNS)
GATEWAY = Needs.one_of(Scope.GATEWAY)
BILLING = Needs.one_of(Scope.BILLING)
MANAGE = Needs.one_of(Scope.MANAGE)
GRANT = Needs(frozenset({Scope.MANAGE}), machines=False)
LEASES = Needs.one_of(Scope.LEASES)
READ_OR_LEASES = Needs.one_of(Scope.READ, Scope.LEASES)
MANAGE_OR_LEASES = Needs.one_of(Scope.MANAGE, Scope.LEASES)


class ScopeMissing(RenseiError):
    """The token was not made for this use."""

    code = "SCOPE_MISSING"
    status = 403
    title = "The token lacks the scope"
    message = Said(
        "This token was not made for that: it needs the scope {scopes}.", "Make a token with it, or use another one."
    )


class ClosedToMachines(RenseiError):
    """The token of a machine cannot give access to others."""

    code = "SCOPE_MISSING"
    status = 403
    title = "Not with the token of a machine"
    message = Said(
        ("The token of a machine makes and changes no tokens, machines, members, invitations or access policies."),
        "Use a token of your own, such as in RENSEI_AUTH_TOKEN, or the pages.",
    )


def require(needs: Needs | None, *, scopes: Collection[str], of_machine: bool) -> None:
    """
    Compare what a route requires with what a token has. A route that declares nothing is closed to tokens.

    :raises ScopeMissing: if the token has none of the scopes
    :raises ClosedToMachines: if it is a machine's, and the route gives access to others
    """
    if needs is None:
        raise ScopeMissing(scopes="of a route that declares none")
    if of_machine and not needs.machines:
        raise ClosedToMachines
    if needs.scopes.isdisjoint(scopes):
        raise ScopeMissing(scopes=" or ".join(f"`{scope}`" for scope in Scope if scope in needs.scopes))


def clean(asked: Collection[str] | None, *, maker: Collection[str] | None, of_machine: bool) -> list[str]:
    """
    Choose the scopes of a new token, in their usual order. `maker` are those of the token that makes it, if any.

    :raises FieldError: if there is no such scope, or the maker may not give it
    """
    if asked is None:
        usual = DEFAULT_OF_MACHINES if of_machine else DEFAULT
        asked = [scope for scope in usual if maker is None or scope is Scope.LEASES or scope in maker]
    unknown = sorted(set(asked) - set(Scope.values))
    if unknown or not asked:
        raise FieldError(pointer="/scopes", reason=f"Name one or more of {', '.join(Scope.values)}.")
    if not of_machine and Scope.LEASES in asked:
        raise FieldError(pointer="/scopes", reason="`leases` is for the token of a machine: register the machine.")
    wider = [scope for scope in asked if maker is not None and scope not in maker and scope != Scope.LEASES]
    if wider:
        raise FieldError(
            pointer="/scopes", reason=f"The token that asks lacks {', '.join(wider)}, so it cannot give it."
        )
    return [scope for scope in Scope.values if scope in asked]
