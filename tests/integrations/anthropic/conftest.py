"""Models as the catalog's data file has them, and keys that the simulator understands."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from catalog.models import CatalogEntry
from integrations.providers.anthropic import ADAPTER
from integrations.providers.base import Credential, ModelRequest
from rensei.core.secret import Secret

_ROWS = json.loads((Path(__file__).parents[3] / "catalog/data/claude.json").read_text())["entries"]
ROWS = {row["modelId"]: row for row in _ROWS}


def make_entry(model_id: str, **changes: Any) -> CatalogEntry:
    row = ROWS[model_id]
    fields = {
        "provider": "claude",
        "model_id": model_id,
        "display_name": row["displayName"],
        "context_window_tokens": row["contextWindow"],
        "max_output_tokens": row["maxOutputTokens"],
        "capabilities": row["capabilities"],
        "effort_levels": row["effortLevels"],
    }
    return CatalogEntry(**{**fields, **changes})


def make_request(**changes: Any) -> ModelRequest:
    fields: dict[str, Any] = {
        "system": None,
        "messages": [{"role": "user", "content": "Hello"}],
        "effort": None,
        "max_tokens": None,
        "prompt_caching": "off",
        "context_window_tokens": None,
    }
    return ModelRequest(**{**fields, **changes})


@pytest.fixture
def credential(make_key: Callable[..., str], simulator: Any) -> Callable[..., Credential]:
    """Make a credential; a word in it asks the simulator for a fault."""

    def make(word: str = "", **fields: Any) -> Credential:
        secret = Secret(make_key(f"{word}-" if word else ""))
        return Credential(**{"id": "int_1", "version": 1, "secret": secret, "base_url": simulator.url, **fields})

    return make


@pytest.fixture
def open_stream(credential: Callable[..., Credential]) -> Callable[..., Any]:
    """Begin a call with a prompt."""

    def begin(
        prompt: str, *, word: str = "", model_id: str = "claude-haiku-5-5", seconds: float = 20, **params: Any
    ) -> Any:
        built = ADAPTER.build(
            make_request(messages=[{"role": "user", "content": prompt}]), entry=make_entry(model_id)
        ).params
        return ADAPTER.stream(
            {**built, **params}, credential=credential(word), attempt_id="attempt-1", timeout_seconds=seconds
        )

    return begin
