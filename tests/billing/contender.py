"""
A process that tries to take shared runs as fast as it can, beside others that do the same.

`python -m tests.billing.contender <org id> <first run number> <tries>` prints how many it was granted.
"""

import sys
from datetime import UTC, datetime

import django

NOON = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)


def main(org_id: str, first: int, tries: int) -> int:
    from billing.limits.quota import SharedQuotaExceeded, take_shared_run
    from rensei.core.transactions import durable

    granted = 0
    for number in range(first, first + tries):
        try:
            with durable():
                take_shared_run(org_id=org_id, run_id=f"run_{number}", now=NOON)
            granted += 1
        except SharedQuotaExceeded:
            pass
    return granted


if __name__ == "__main__":
    django.setup()
    print(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
