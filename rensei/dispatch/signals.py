"""What the rooms above are told of, inside the transaction of the change."""

from django.dispatch import Signal

# Sent with `run`, once for each run, when its end has been written.
run_ended = Signal()
