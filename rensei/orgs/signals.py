"""Signals to the packages above, inside the transaction of the change."""

from django.dispatch import Signal

org_created = Signal()
