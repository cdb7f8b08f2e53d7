"""
Models that the provider may run for a request besides the requested one: fallbacks, and tools that consult a model.

Sources: the types `BetaFallbackParam` and `BetaAdvisorTool20260301Param` of the `anthropic` SDK.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from integrations.providers.anthropic.server_tools import Place, PlacedTools
from integrations.providers.anthropic.unknown import Unknown
from rensei.core.errors import FieldError, json_pointer
from rensei.core.limits import limit

OTHERS_MAX = limit(
    16, "models", what="Models that a gateway call names besides its own", told="the caller: 400 `VALIDATION_FAILED`"
)
USES_MAX = limit(
    1000,
    "times",
    what="How often a gateway call whose cost is held may consult another model",
    told="the caller: 400 `VALIDATION_FAILED`",
)


@dataclass(frozen=True, kw_only=True)
class OtherModel:
    """
    A model that a request names besides its own.

    A `consulted` model runs in addition to the answering one, at most `uses` times; any other may answer instead.
    `max_tokens` limits each of its answers, where the request sets it.
    """

    model_id: str
    pointer: str
    consulted: bool
    uses: int | None
    max_tokens: int | None
    may_be_fast: bool


def other_models(body: Mapping[str, Any], tools: PlacedTools) -> list[OtherModel]:
    """
    List the other models that a request names.

    :param tools: the tools that it declares, as listed by `server_tools.placed_tools`

    :raises FieldError: if there are more than the limit, as each is checked individually, or if one has no name
    """
    fallbacks = body.get("fallbacks")
    instead: list[tuple[Place, Any]] = []
    if isinstance(fallbacks, list):
        instead += ((("fallbacks", index), value) for index, value in enumerate(fallbacks))
    beside = ((place, tool) for place, tool in tools if "model" in tool)
    found = [*_models_of(instead, consulted=False), *_models_of(beside, consulted=True)]
    if len(found) > OTHERS_MAX:
        reason = f"A request names at most {OTHERS_MAX} models besides its own."
        raise FieldError(pointer=found[OTHERS_MAX].pointer, reason=reason)
    return found


def provider_chooses(body: Mapping[str, Any], unknown: Unknown) -> bool:
    """Return whether the provider may run models for a request that cannot be listed before the call."""
    return unknown.may_choose_models or not isinstance(body.get("fallbacks"), list | None)


def _models_of(placed: Iterable[tuple[Place, Any]], *, consulted: bool) -> Iterator[OtherModel]:
    for place, value in placed:
        model = value.get("model") if isinstance(value, dict) else None
        if not isinstance(model, str):
            raise FieldError(pointer=json_pointer(*place, "model"), reason="`model` is required, and is a name.")
        yield OtherModel(
            model_id=model,
            pointer=json_pointer(*place),
            consulted=consulted,
            uses=_number(value.get("max_uses"), at_most=USES_MAX),
            max_tokens=_number(value.get("max_tokens"), at_most=2**31 - 1),
            may_be_fast=value.get("speed") not in (None, "standard"),
        )


def _number(value: object, *, at_most: int) -> int | None:
    return value if type(value) is int and 0 < value <= at_most else None
