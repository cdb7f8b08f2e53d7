"""
The models endpoints, with their pages.

Source: https://platform.claude.com/docs/en/api/models-list and the types of the `anthropic` SDK.
"""

from typing import Any

from rensei.simulator.errors import ApiError, invalid
from rensei.simulator.keys import Account
from rensei.simulator.model_facts import find_model

_STAGES = {"active", "deprecated", "retired"}


def list_models(account: Account, query: dict[str, list[str]]) -> dict[str, Any]:
    """
    Build one page of the models that the organization may list.

    :raises ApiError: 400
    """
    for name in query:
        if name not in ("limit", "after_id", "before_id", "lifecycle[]", "beta"):
            raise invalid(name, "Extra inputs are not permitted")
    stages = set(query.get("lifecycle[]", ["active", "deprecated"]))
    if unknown := sorted(stages - _STAGES):
        raise invalid("lifecycle", f"unknown value '{unknown[0]}'")
    limit = _limit(query)
    rows = [
        model.info(lifecycle=account.lifecycle_of(model))
        for model in account.visible_models()
        if account.lifecycle_of(model) in stages
    ]
    ids = [row["id"] for row in rows]

    if after := query.get("after_id"):
        rest = rows[_position(ids, after[0], name="after_id") + 1 :]
        page, has_more = rest[:limit], len(rest) > limit
    elif before := query.get("before_id"):
        rest = rows[: _position(ids, before[0], name="before_id")]
        page, has_more = rest[-limit:], len(rest) > limit
    else:
        page, has_more = rows[:limit], len(rows) > limit
    return {
        "data": page,
        "has_more": has_more,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }


def show_model(account: Account, name: str) -> dict[str, Any]:
    """
    Build the description of one model, retired ones included.

    :raises ApiError: 404
    """
    model = find_model(name)
    if model is None or not account.sees(model):
        raise ApiError(404, f"model: {name}")
    return model.info(lifecycle=account.lifecycle_of(model))


def _limit(query: dict[str, list[str]]) -> int:
    text = query.get("limit", ["20"])[0]
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise invalid("limit", "Input should be between 1 and 1000")
    return int(text)


def _position(ids: list[str], wanted: str, *, name: str) -> int:
    if wanted not in ids:
        raise invalid(name, f"no model has the id '{wanted}'")
    return ids.index(wanted)
