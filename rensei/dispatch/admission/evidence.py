"""What an explanation shows for each gate: the rows and figures that the gate compares, as pairs of texts."""

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from billing.limits.shared_spending import PLATFORM
from catalog.models import CatalogEntry
from integrations.models import PlatformKey
from rensei.core.auth_modes import PLATFORM_MODES, AuthMode
from rensei.core.limits import MIB
from rensei.core.money import dollars
from rensei.core.periods import end_of, month_of
from rensei.core.rates import LimitUsage
from rensei.dispatch import token_rate
from rensei.dispatch.admission import decide
from rensei.dispatch.admission.decide import DispatchDecision
from rensei.dispatch.admission.requests import DispatchRequest
from rensei.dispatch.context import DispatchContext
from rensei.orgs.access import Access
from rensei.policies.resolver import Policy, TraceLine, Verdict

KEYS_SHOWN = 20


class Seen(NamedTuple):
    """One thing that was looked at."""

    name: str
    value: str


def of_member(access: Access) -> list[Seen]:
    seen = [Seen("Member", access.user.email), Seen("Role", access.role.label)]
    if access.token is not None:
        seen.append(Seen("API token", access.token.id))
    return seen


def of_rate(org_id: str, mode: AuthMode | None = None) -> list[Seen]:
    seen = [Seen("Tokens used in the current window", _used(token_rate.usage_of(org_id)))]
    if mode in PLATFORM_MODES:
        seen.append(Seen("Of these, under the platform's keys", _used(token_rate.usage_of(org_id, platform=True))))
    return seen


def _used(usage: LimitUsage) -> str:
    return f"{min(usage.window.total, usage.limit):,} of {usage.limit:,}"


def of_request(request: DispatchRequest) -> list[Seen]:
    """What was asked for, where nothing more could be loaded."""
    return [
        Seen("Profile", request.profile_id or "The default one"),
        Seen("Project", request.project_id or "None"),
        Seen("Pool", request.pool or "The default one"),
    ]


def of(gate: str, judgement: DispatchDecision, *, at_most: int | None = None) -> list[Seen]:
    """Return what a gate looked at."""
    return _SEEN[gate](judgement, at_most)


def _profile(judgement: DispatchDecision, _: int | None) -> list[Seen]:
    facts = judgement.facts
    return [
        Seen("Profile", f"{facts.profile.name} ({facts.profile.public_id})"),
        Seen("Its auth modes", ", ".join(facts.profile.auth_modes)),
        Seen("Project", facts.project.slug if facts.project else "None"),
    ]


def _pool(judgement: DispatchDecision, _: int | None) -> list[Seen]:
    pool = judgement.facts.pool
    return [Seen("Pool", pool.name), Seen("Capacity provider", pool.provider_id)]


def _model(judgement: DispatchDecision, _: int | None) -> list[Seen]:
    facts = judgement.facts
    lifecycle = facts.requested.lifecycle_on(facts.now.date())
    seen = [Seen("Model", facts.requested.model_id), Seen("Lifecycle", CatalogEntry.Lifecycle(lifecycle).label)]
    if facts.requested.retires_on:
        seen.append(Seen("Retires on", facts.requested.retires_on.isoformat()))
    return [*seen, Seen("Served by", judgement.entry.model_id)]


def _request(judgement: DispatchDecision, _: int | None) -> list[Seen]:
    built, asked = judgement.built, judgement.request
    window = f"{asked.context_window_tokens:,} tokens" if asked.context_window_tokens else "Not known"
    seen = [Seen("Effort", (built.effort if built else asked.effort) or "None"), Seen("Context window", window)]
    if built is None:
        return seen
    return [
        *seen,
        Seen("Prompt", f"about {built.input_tokens_about:,} tokens"),
        Seen("Output", f"at most {built.max_tokens:,} tokens"),
    ]


def _policy(judgement: DispatchDecision, _: int | None) -> list[Seen]:
    """Each mode of the profile: the row of the policy that decides, or what else excludes the mode."""
    lines = [line for line in judgement.decision.trace if line.mode in judgement.facts.profile.auth_modes]
    return [Seen(line.mode.label, _rows(judgement, line)) for line in lines]


def _rows(judgement: DispatchDecision, line: TraceLine) -> str:
    facts = judgement.facts
    entries = {entry.pk: entry for entry in (facts.requested, facts.served(line.mode)) if entry is not None}
    names = [
        f"the {policy.scope}'s row '{row[0]}' {'allows' if row[1] else 'denies'} it"
        for policy in facts.policies
        for entry in entries.values()
        if (row := _row(policy, facts, line.mode, entry))
    ]
    decided = f" In the access policies, {', '.join(dict.fromkeys(names))}." if names else " No access policy names it."
    is_excluded = line.verdict in {Verdict.NOT_OFFERED, Verdict.DENIED_BY_POLICY}
    return (line.detail if is_excluded else "Allowed by the profile and the model.") + decided


def _row(policy: Policy, facts: DispatchContext, mode: AuthMode, entry: CatalogEntry) -> tuple[str, bool] | None:
    model = facts.offered_model(entry)
    return policy.row_for(mode, model_id=model.model_id, provider=facts.profile.provider, names=model.names)


def _paused(judgement: DispatchDecision, _: int | None) -> list[Seen]:
    mode = judgement.decision.mode
    found = decide.stopped(judgement.facts, mode) if mode is not None else []
    named = [Seen(f"{kind} {target}", f"Stopped by the operator: {reason}") for kind, target, reason in found]
    return named or [Seen("Kill switches", "None concerns this run")]


def _machine(judgement: DispatchDecision, _: int | None) -> list[Seen]:
    host = judgement.facts.host
    return [Seen("Machine", f"{host.name} ({host.id})" if host else judgement.facts.host_missing)]


def _entitlement(judgement: DispatchDecision, _: int | None) -> list[Seen]:
    entitlement = judgement.facts.entitlement
    is_enabled = entitlement is not None and entitlement.metered_enabled
    return [Seen("Metered", "Enabled by the operator" if is_enabled else "Not enabled by the operator")]


def _key(judgement: DispatchDecision, _: int | None) -> list[Seen]:
    facts, mode = judgement.facts, judgement.decision.mode
    if mode is not AuthMode.BYOK:
        return _platform_keys(judgement)
    integration = facts.integration
    if integration is None:
        return [Seen("Key", "None is connected for this provider")]
    return [
        Seen("Key", f"{integration.name}, {integration.key_hint} ({integration.id})"),
        Seen("Last test", f"{integration.get_status_display()}{_since(integration.tested_at)}"),
    ]


def _platform_keys(judgement: DispatchDecision) -> list[Seen]:
    """The health of the pool's keys, without anything that identifies a key of the platform."""
    facts, mode = judgement.facts, judgement.decision.mode
    pool = PlatformKey.Pool(mode.value) if mode is not None else PlatformKey.Pool.METERED
    keys = PlatformKey.objects.filter(pool=pool, provider=judgement.entry.provider, active=True)
    serving = facts.pool_keys(pool, AuthMode(pool.value))
    seen = [Seen("Keys that can sign for this model", str(sum(key.paused_because is None for key in serving)))]
    states = [_state_of(key, judgement.entry.model_id, facts.now) for key in keys.defer("sealed_key").order_by("id")]
    return [*seen, *(Seen("A key of the pool", state) for state in [*filter(None, states)][:KEYS_SHOWN])]


def _state_of(key: PlatformKey, model_id: str, now: datetime) -> str:
    if key.health == PlatformKey.Health.QUARANTINED:
        return "Quarantined: the provider rejects it"
    until = key.cools_until(model_id, now)
    return f"Cools down until {_moment(until)}" if until else ""


def _price(judgement: DispatchDecision, at_most: int | None) -> list[Seen]:
    prices = judgement.facts.prices_of(judgement.entry)
    if not prices:
        return [Seen("Price", "The catalog has none")]
    return [
        Seen("Input", f"${dollars(prices[0].input * 10**6)} for a million tokens"),
        Seen("Output", f"${dollars(prices[0].output * 10**6)} for a million tokens"),
        Seen("This run", _at_most(at_most)),
    ]


def _storage(judgement: DispatchDecision, _: int | None) -> list[Seen]:
    storage = judgement.facts.storage
    return [
        Seen("Stored", f"{storage.used / MIB:,.1f} MiB, and {storage.held / MIB:,.1f} MiB held by runs under way"),
        Seen("This run", f"at most {judgement.facts.bytes_to_store / MIB:,.1f} MiB"),
        Seen("Limit", f"{storage.limit / MIB:,.0f} MiB"),
    ]


def _caps(judgement: DispatchDecision, at_most: int | None) -> list[Seen]:
    facts = judgement.facts
    if not facts.is_capped:
        return [Seen("Cap", "None holds for this caller")]
    month = month_of(facts.now)
    return [
        *(
            Seen(
                f"This month, token {cap.scope_id}",
                f"${dollars(cap.used_in(month))} used and ${dollars(cap.held)} held, of ${dollars(cap.picodollars)}",
            )
            for cap in facts.caps
        ),
        Seen("This run", _at_most(at_most)),
        Seen("Resets", _moment(end_of(month))),
    ]


def _spending(judgement: DispatchDecision, at_most: int | None) -> list[Seen]:
    own = [account for account in judgement.facts.shared_spending if account.account != PLATFORM]
    return [
        *(
            Seen("Today", f"${dollars(one.used)} used and ${dollars(one.held)} held, of ${dollars(one.limit)}")
            for one in own
        ),
        Seen("This run", _at_most(at_most)),
    ]


def _quota(judgement: DispatchDecision, _: int | None) -> list[Seen]:
    quota = judgement.facts.shared_quota
    if quota is None:
        return []
    return [Seen("Today", f"{quota.used} of {quota.limit} free runs used"), Seen("Resets", _moment(quota.resets_at))]


def _budget(judgement: DispatchDecision, at_most: int | None) -> list[Seen]:
    budget = judgement.facts.budget
    if budget is None:
        return [Seen("Budget", "None is set"), Seen("This run", _at_most(at_most))]
    figures = f"${dollars(budget.used)} used and ${dollars(budget.held)} held, of ${dollars(budget.limit)}"
    return [Seen("This month", figures), Seen("This run", _at_most(at_most)), Seen("Resets", _moment(budget.resets_at))]


def _at_most(picodollars: int | None) -> str:
    return f"at most ${dollars(picodollars)}" if picodollars is not None else "Its cost is not known"


def _since(moment: datetime | None) -> str:
    return f", {_moment(moment)}" if moment else ""


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


_SEEN: dict[str, Callable[[DispatchDecision, int | None], list[Seen]]] = {
    "profile": _profile,
    "pool": _pool,
    "model": _model,
    "request": _request,
    "policy": _policy,
    "paused": _paused,
    "capacity": _pool,
    "machine": _machine,
    "entitlement": _entitlement,
    "key": _key,
    "price": _price,
    "driver": _pool,
    "storage": _storage,
    "cap": _caps,
    "spending": _spending,
    "quota": _quota,
    "budget": _budget,
}
