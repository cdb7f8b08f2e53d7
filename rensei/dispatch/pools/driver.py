"""What a driver of a capacity provider raises. The worker's event loop calls drivers, so nothing in one may block."""

from enum import StrEnum


class Fault(StrEnum):
    """What went wrong with a sandbox, as far as the run's error differs."""

    NOT_CREATED = "not-created"
    DEAD = "dead"


class SandboxFault(Exception):
    """
    A sandbox failed. `reason` is a sentence for the organization; `detail` is for the operators' log, and names places
    on the worker's machine.
    """

    def __init__(self, fault: Fault, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.fault = fault
        self.reason = reason
        self.detail = detail
