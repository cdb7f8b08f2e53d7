"""
A process that tries to take room in an organization's storage as fast as it can, beside others that do the same.

`python -m tests.orgs.storing <org id> <bytes> <tries>` prints how often it was let in.
"""

import sys

import django


def main(org_id: str, size: int, tries: int) -> int:
    from rensei.core.transactions import durable
    from rensei.orgs import storage

    let_in = 0
    for _ in range(tries):
        try:
            with durable():
                storage.take(org_id, stored=size, held=size)
            let_in += 1
        except storage.StorageLimitReached:
            pass
    return let_in


if __name__ == "__main__":
    django.setup()
    print(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
