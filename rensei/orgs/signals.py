"""What the rooms above are told of, inside the transaction of the change."""

from django.dispatch import Signal

org_created = Signal()
