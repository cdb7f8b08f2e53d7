"""What the packages above are told of, inside the transaction of the change."""

from django.dispatch import Signal

# Of `token_ids`, which were revoked `now`.
tokens_revoked = Signal()
