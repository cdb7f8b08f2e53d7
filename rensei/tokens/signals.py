"""Signals to the packages above, inside the transaction of the change."""

from django.dispatch import Signal

# Sent with `token_ids`, which were revoked at `now`.
tokens_revoked = Signal()
