"""
Effort as parameters of each model.

Source: https://platform.claude.com/docs/en/build-with-claude/effort
"""

from collections.abc import Mapping
from typing import Any

from catalog.models import CatalogEntry
from catalog.services import EffortNotSupported
from rensei.core.effort import Effort

# The minimum of max tokens that must remain for the answer itself after the thinking budget is used.
ANSWER_TOKENS_MIN = 1024
_BUDGETS = {Effort.LOW: 1024, Effort.MEDIUM: 2048, Effort.HIGH: 4096}


def effort_params(effort: str | None, *, entry: CatalogEntry) -> dict[str, Any]:
    """Convert a level of effort to the model's parameters."""
    if effort is None:
        return {}
    thinking = entry.capabilities.get("thinking") or {}
    kinds = thinking.get("types") or []
    if entry.capabilities.get("nativeEffort"):
        config = {"output_config": {"effort": effort}}
        # Where thinking is off by default, effort alone would leave it off.
        asks = "adaptive" in kinds and not thinking.get("onByDefault")
        return {"thinking": {"type": "adaptive"}, **config} if asks else config
    if "enabled" in kinds and effort in _BUDGETS:
        return {"thinking": {"type": "enabled", "budget_tokens": _BUDGETS[Effort(effort)]}}
    raise EffortNotSupported(
        model_id=entry.model_id, effort=effort, fix="Its catalog entry names no way to ask for it."
    )


def budget_of(params: Mapping[str, Any]) -> int:
    """Return the thinking budget in the parameters, in tokens, or 0 if there is none."""
    budget: int = (params.get("thinking") or {}).get("budget_tokens", 0)
    return budget
