"""Ready-made calls that people copy from a page."""

import json
from typing import Any, NamedTuple

from django.conf import settings

from catalog.models import CatalogEntry
from profiles.models import ModelProfile


class Snippet(NamedTuple):
    """A text to copy, and what it is."""

    heading: str
    text: str


def of_profile(profile: ModelProfile) -> list[Snippet]:
    """Show every way to use a profile, for this server."""
    return of_call(profile_id=profile.public_id, text="Why is the sky blue?")


def of_call(*, profile_id: str, text: str, options: dict[str, Any] | None = None) -> list[Snippet]:
    """Write one dispatch as a REST call, a command and a workflow node. The token stays a variable."""
    body = {"profileId": profile_id, "input": text, **(options or {})}
    flags = {"projectId": "project", "effort": "effort", "maxTokens": "max-tokens", "system": "system", "pool": "pool"}
    given = "".join(f" \\\n  --{flag} {_quoted(str(body[name]))}" for name, flag in flags.items() if body.get(name))
    return [
        Snippet("REST", _curl(body)),
        Snippet("CLI", f"rensei dispatch --profile {profile_id} \\\n  --input {_quoted(text)}{given}"),
        Snippet(
            "Workflow node",
            f"nodeId: answer\nnodeType: action/llm.inference\nconfig:\n  profileId: {profile_id}\n"
            f"  prompt: {json.dumps(text, ensure_ascii=False)}",
        ),
    ]


def profile_command(entry: CatalogEntry) -> str:
    """Write the command that makes a profile of a model."""
    return (
        f'rensei profile create \\\n  --name "my-profile" \\\n  --provider {entry.provider} \\\n'
        f'  --model-id "{entry.model_id}" \\\n  --auth-modes byok'
    )


def _curl(body: dict[str, Any]) -> str:
    return (
        f"curl {settings.PUBLIC_URL}/api/v1/runs \\\n"
        '  -H "Authorization: Bearer $RENSEI_AUTH_TOKEN" \\\n'
        '  -H "Content-Type: application/json" \\\n'
        '  -H "Prefer: wait=60" \\\n'
        f"  -d {_quoted(json.dumps(body, ensure_ascii=False))}"
    )


def _quoted(text: str) -> str:
    """Quote a text for a POSIX shell."""
    return "'" + text.replace("'", "'\\''") + "'"
