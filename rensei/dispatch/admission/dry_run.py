"""The dry run: predict what a dispatch would do and what each mode would cost."""

from collections.abc import Sequence
from typing import Any

from catalog import pricing
from catalog import services as catalog
from profiles.models import ModelProfile
from rensei.core.auth_modes import PAYER_OF, AuthMode
from rensei.core.errors import RenseiError
from rensei.core.money import dollars
from rensei.core.usage import Usage
from rensei.dispatch import context, pools
from rensei.dispatch.admission import decide
from rensei.dispatch.admission.decide import DispatchDecision
from rensei.dispatch.admission.requests import DispatchRequest
from rensei.dispatch.context import DispatchContext, Known
from rensei.orgs.access import Access

EXPECTED_OUTPUT_TOKENS = 500


def preview(access: Access, request: DispatchRequest, *, known: Known | None = None) -> dict[str, Any]:
    """
    Return the dry-run body of the API contract for a dispatch.

    :raises RenseiError: only if the profile, project or pool is unknown, so that there is nothing to predict
    """
    try:
        found = decide.load(access, request, with_quota=True, known=known)
    except (catalog.ModelNotInCatalog, catalog.ModelRetired) as refusal:
        return _unanswerable(refusal)
    return _preview_body(decide.decide(found, request))


def previews(
    access: Access, stored: Sequence[ModelProfile], *, known: Known | None = None
) -> dict[str, dict[str, Any]]:
    """Return the dry-run body of each profile, in a fixed number of queries."""
    pool = pools.find_pool(access.org, "local")
    request = DispatchRequest()
    loaded = context.load(access, stored, project=None, pool=pool, with_quota=True, known=known)
    answers = {}
    for profile, found in zip(stored, loaded, strict=True):
        answers[profile.public_id] = (
            _unanswerable(found) if isinstance(found, RenseiError) else _preview_body(decide.decide(found, request))
        )
    return answers


def _preview_body(judgement: DispatchDecision) -> dict[str, Any]:
    decision, refusal, found = judgement.decision, judgement.refusal, judgement.facts
    quotes = []
    for mode in _candidates(judgement):
        at_most = decide.max_cost(found, mode, judgement.built)
        refused = _refusal_of(found, mode, at_most=at_most)
        quotes.append(_quote(judgement, mode, refused, at_most=at_most))
        if refused is not None and mode is not decision.mode:
            decision = decision.gate_failed(refused, mode)
    return {
        "authMode": decision.mode.value if decision.mode else None,
        "payer": PAYER_OF[decision.mode].value if decision.mode else None,
        "wouldRun": refusal is None,
        "code": refusal.code if refusal else None,
        "detail": refusal.detail if refusal else None,
        "askedModel": found.profile.model_id,
        "model": found.requested.model_id,
        "servedModel": judgement.entry.model_id,
        "trace": decision.wire(),
        "quotes": quotes,
    }


def _candidates(judgement: DispatchDecision) -> list[AuthMode]:
    gated = [judgement.decision.mode] if judgement.decision.mode else []
    return sorted({*judgement.decision.candidates, *gated}, key=list(AuthMode).index)


def _refusal_of(found: DispatchContext, mode: AuthMode, *, at_most: int | None) -> RenseiError | None:
    try:
        decide.gate(found, mode, at_most=at_most)
    except RenseiError as refusal:
        return refusal
    return None


def _quote(
    judgement: DispatchDecision, mode: AuthMode, refusal: RenseiError | None, *, at_most: int | None
) -> dict[str, Any]:
    """Quote a candidate mode: `expectedUsd` for a typical response, `maxUsd` for the longest possible one."""
    found, built = judgement.facts, judgement.built
    entry = found.served(mode)
    prices = found.prices_of(entry) if entry else []
    expected = None
    if built is not None and prices:
        output = min(EXPECTED_OUTPUT_TOKENS, built.max_tokens)
        usual = Usage(input_tokens=built.input_tokens_about, output_tokens=output)
        expected = pricing.cost(usual, pricing.band_for(prices, prompt_tokens=usual.prompt_tokens))
    return {
        "mode": mode.value,
        "wouldRun": refusal is None,
        "code": refusal.code if refusal else None,
        "payer": PAYER_OF[mode].value,
        "expectedUsd": dollars(expected),
        "maxUsd": dollars(at_most),
    }


def _unanswerable(refusal: RenseiError) -> dict[str, Any]:
    """Return the dry-run body for a model that is not available, so that no mode can be evaluated."""
    return {
        "authMode": None,
        "payer": None,
        "wouldRun": False,
        "code": refusal.code,
        "detail": refusal.detail,
        "askedModel": None,
        "model": None,
        "servedModel": None,
        "trace": [],
        "quotes": [],
    }
