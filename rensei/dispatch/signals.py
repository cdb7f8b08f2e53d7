"""Signals for the packages above this one, sent inside the transaction of the change."""

from django.dispatch import Signal

# Sent with `run`, once for each run, after its end is written.
run_ended = Signal()
