"""Signals to the packages above, inside the transaction of the change."""

from django.dispatch import Signal

# Sent with `token_ids`, which were revoked at `now`.
tokens_revoked = Signal()

# Sent with a new `cap`, before it is saved, and the `token_ids` that it will hold for. A receiver adds what they used.
cap_made = Signal()
