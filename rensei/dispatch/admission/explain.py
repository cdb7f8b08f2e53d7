"""
Explain a dispatch: every gate that it meets, in order, with what was looked at and what would mend a refusal.

The gates are those of the dispatch itself. Where a dispatch stops at the first refusal, the explanation continues, so
that it also names what would be refused next. Nothing is written, held or called.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial

from billing.limits import shared_spending
from catalog import services as catalog
from rensei.core.auth_modes import AuthMode
from rensei.core.errors import RenseiError
from rensei.dispatch import context, stored_bytes, token_rate
from rensei.dispatch.admission import admit, decide, evidence
from rensei.dispatch.admission.decide import DispatchDecision, ProfileRequired
from rensei.dispatch.admission.evidence import Seen
from rensei.dispatch.admission.requests import DispatchRequest
from rensei.dispatch.context import DispatchContext
from rensei.dispatch.pools import NoEligiblePool
from rensei.orgs.access import Access
from rensei.orgs.scopes import RUNS

TITLES = {
    "member": "The member may dispatch",
    "rate": "Tokens are left for this minute",
    "profile": "A profile is named, or there is a default",
    "pool": "The pool exists and is active",
    "model": "The model is in the catalog and is served",
    "request": "The request fits the model",
    "policy": "The profile, the model and the access policies leave a mode",
    "paused": "Nothing it needs is suspended or paused",
    "capacity": "The pool is a local one",
    "machine": "A registered machine of the member is found",
    "entitlement": "The organization is entitled to metered",
    "key": "A key can sign",
    "price": "The model has a price",
    "driver": "This server has a driver for the pool",
    "storage": "The organization has storage left",
    "cap": "The run's cost fits into the cap of the API token",
    "spending": "The run's cost fits into today's free runs",
    "quota": "A free run is left for today",
    "budget": "The run's cost fits into the month's budget",
}
# The gates that come before a mode is picked.
BEFORE_A_MODE = ("member", "rate", "profile", "pool", "model", "request", "policy")
# The gate of each refusal with which a dispatch's context cannot be loaded.
WHILE_LOADING: dict[type[RenseiError], str] = {
    ProfileRequired: "profile",
    NoEligiblePool: "pool",
    catalog.ModelNotInCatalog: "model",
    catalog.ModelRetired: "model",
}


class GateVerdict(StrEnum):
    PASSED = "passed"
    REFUSED = "refused"
    NOT_REACHED = "not-reached"


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """One gate: its verdict, what was looked at, and its refusal."""

    gate: str
    verdict: GateVerdict
    seen: Sequence[Seen] = ()
    refusal: RenseiError | None = None

    @property
    def title(self) -> str:
        return TITLES[self.gate]


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """The result of the same dispatch under another mode, as if the profile listed only that one."""

    mode: AuthMode
    in_profile: bool
    refusal: RenseiError | None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """All gates of a dispatch. `judgement` is None where its profile, pool or model was not found."""

    access: Access
    request: DispatchRequest
    gates: Sequence[GateResult]
    judgement: DispatchDecision | None = None
    alternatives: Sequence[Alternative] = field(default_factory=list)

    @property
    def refused(self) -> list[GateResult]:
        return [gate for gate in self.gates if gate.verdict is GateVerdict.REFUSED]

    @property
    def refusal(self) -> RenseiError | None:
        """The refusal that the dispatch would answer with: that of the first gate that refuses."""
        return self.refused[0].refusal if self.refused else None


def explain(access: Access, request: DispatchRequest) -> Explanation:
    """
    Explain what a dispatch of a member would do.

    :raises NotFound: if the member may not see the profile or the project, or it does not exist
    :raises FieldError: if a value of the request does not fit the model
    """
    gates = [
        _check("member", partial(_require_dispatcher, access), evidence.of_member(access)),
        _check("rate", lambda: token_rate.require_left(access.org.id), evidence.of_rate(access.org.id)),
    ]
    try:
        found = decide.load(access, request, with_quota=True)
    except tuple(WHILE_LOADING) as refusal:
        gates += _until(WHILE_LOADING[type(refusal)], refusal, evidence.of_request(request))
        return Explanation(access=access, request=request, gates=gates)
    judgement = _decide(access, found, request)
    is_refused_in_all_modes = any(gate.verdict is GateVerdict.REFUSED for gate in gates)
    mode = judgement.decision.mode
    left = partial(token_rate.require_left, access.org.id, mode)
    gates[-1] = _check("rate", left, evidence.of_rate(access.org.id, mode))
    gates += [_check(name, None, evidence.of(name, judgement)) for name in ("profile", "pool", "model")] + _gates_of(
        judgement
    )
    explained = Explanation(access=access, request=request, gates=gates, judgement=judgement)
    if explained.refusal is None or is_refused_in_all_modes:
        return explained
    return replace(explained, alternatives=_alternatives(access, judgement, request))


def _require_dispatcher(access: Access) -> None:
    """
    Check what a dispatch requires of the member and of the token.

    :raises RenseiError: if the role or the token's scopes do not allow it
    """
    access.require_writer()
    access.require_scope(RUNS, address=access.address)


def _decide(access: Access, found: DispatchContext, request: DispatchRequest) -> DispatchDecision:
    """Decide with the balances loaded that a dispatch compares with only when it writes."""
    if AuthMode.SHARED in found.profile.auth_modes:
        spending = shared_spending.read_both(found.org.id, day=found.now.date())
        found = replace(found, shared_spending=spending)
    judgement = decide.decide(found, request)
    if judgement.built is None or judgement.decision.mode is None:
        return judgement
    plan = admit.plan(access, judgement, request)
    size = stored_bytes.at_admission(plan.run, plan.input) + stored_bytes.held(plan.run)
    return decide.decide(replace(found, bytes_to_store=size), request)


def _gates_of(judgement: DispatchDecision) -> list[GateResult]:
    """Check the request, the policies and, if they leave a mode, each of its gates."""
    mode = judgement.decision.mode
    is_built = judgement.built is not None
    seen = evidence.of("request", judgement)
    gates = [_result("request", None if is_built else judgement.refusal, seen)]
    denied = judgement.decision.refusal() if mode is None else None
    gates.append(_result("policy", denied, evidence.of("policy", judgement)))
    if mode is None:
        return gates
    at_most = decide.max_cost(judgement.facts, mode, judgement.built)
    for gate in decide.gates_of(mode):
        seen = evidence.of(gate.name, judgement, at_most=at_most)
        gates.append(_check(gate.name, partial(gate.check, judgement.facts, at_most), seen))
    return gates


def _until(name: str, refusal: RenseiError, seen: Sequence[Seen]) -> list[GateResult]:
    """The gates around one that refused before the others could be checked."""
    names = BEFORE_A_MODE[BEFORE_A_MODE.index("profile") :]
    place = names.index(name)
    return [
        *(GateResult(gate=before, verdict=GateVerdict.PASSED) for before in names[:place]),
        _result(name, refusal, seen),
        *(GateResult(gate=after, verdict=GateVerdict.NOT_REACHED) for after in names[place + 1 :]),
    ]


def _check(name: str, check: Callable[[], object] | None, seen: Sequence[Seen]) -> GateResult:
    refusal: RenseiError | None = None
    try:
        if check is not None:
            check()
    except RenseiError as caught:
        refusal = caught
    return _result(name, refusal, seen)


def _result(name: str, refusal: RenseiError | None, seen: Sequence[Seen]) -> GateResult:
    verdict = GateVerdict.PASSED if refusal is None else GateVerdict.REFUSED
    return GateResult(gate=name, verdict=verdict, seen=seen, refusal=refusal)


def _alternatives(access: Access, judgement: DispatchDecision, request: DispatchRequest) -> list[Alternative]:
    """Decide the same dispatch under each other mode of the provider, as if the profile listed only that mode."""
    facts = judgement.facts
    modes = [mode for mode in AuthMode if mode in facts.spec.auth_modes and mode is not judgement.decision.mode]
    copies = []
    for mode in modes:
        profile = copy(facts.profile)
        profile.auth_modes = [mode.value]
        copies.append(profile)
    loaded = context.load(
        access, copies, project=facts.project, pool=facts.pool, host_id=request.host_id, with_quota=True
    )
    found = []
    for mode, other in zip(modes, loaded, strict=True):
        try:
            if not isinstance(other, RenseiError):
                token_rate.require_left(access.org.id, mode)
            refusal = other if isinstance(other, RenseiError) else _decide(access, other, request).refusal
        except RenseiError as caught:
            # The request does not fit this mode, though it may fit the profile's own.
            refusal = caught
        found.append(Alternative(mode=mode, in_profile=mode in facts.profile.auth_modes, refusal=refusal))
    return found
