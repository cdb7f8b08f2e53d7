"""Signals for packages that depend on this one, sent within the transaction of the change."""

from django.dispatch import Signal

# An organization's own entry is about to be deleted. A receiver refuses it by raising a RenseiError.
entry_leaves = Signal()
