"""The states that the pages are compared in: each set of modes, and the states of an organization and the key pools."""

import itertools
from typing import Any

from rensei.core.auth_modes import AuthMode

MODES = [AuthMode.BYOK, AuthMode.METERED, AuthMode.SHARED, AuthMode.HOST_SESSION]
MODEL = "claude-sonnet-5-5"
SUBSETS = [modes for size in range(1, 5) for modes in itertools.combinations(MODES, size)]
HEALTH = ["none", "healthy", "cooling", "quarantined"]
KEYS = ["none", "working", "failing"]
# All 192 take minutes, so each seed tries some of them.
STATES: list[dict[str, Any]] = [
    dict(zip(("entitled", "metered", "shared", "key", "byok_denied"), each, strict=True))
    for each in itertools.product([True, False], HEALTH, HEALTH, KEYS, [True, False])
]
STATES_TRIED = 16


def name_of(modes: tuple[AuthMode, ...]) -> str:
    return "-".join(mode.value for mode in modes)
