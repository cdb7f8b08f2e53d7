"""What capacity providers charge for a second of a sandbox, by date and size. `prices.json` names the sources."""

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any

_MIB_OF_GIB = 1024


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a provider allots to a sandbox, and charges for whether it is used or not."""

    vcpus: int
    memory_mib: int


def second_picodollars(provider: str, size: Size, *, moment: datetime) -> int | None:
    """Return the price of a second at a moment, a fraction of a picodollar rounded up. None if it is not known."""
    day = moment.astimezone(UTC).date()
    known = [price for price in _prices().get(provider, ()) if date.fromisoformat(price["effectiveFrom"]) <= day]
    if not known:
        return None
    price = max(known, key=lambda each: str(each["effectiveFrom"]))
    of_memory = -(-size.memory_mib * price["gibPicodollars"] // _MIB_OF_GIB)
    return int(size.vcpus * price["vcpuPicodollars"] + of_memory)


@cache
def _prices() -> dict[str, list[dict[str, Any]]]:
    content: dict[str, dict[str, list[dict[str, Any]]]] = json.loads(
        Path(__file__).with_name("prices.json").read_text()
    )
    return content["providers"]
