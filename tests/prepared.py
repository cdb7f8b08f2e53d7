"""What a process imports before others are forked from it: Django, and all that a worker needs. It opens nothing."""

import anthropic  # noqa: F401
import django

django.setup()

from rensei.dispatch.execution import execute  # noqa: E402, F401
from rensei.workflows import execution as workflow_execution  # noqa: E402, F401
