"""
Registers every kind of sealed record. A process that seals records again imports it before.

Otherwise it would delete a data key that a record of an unknown kind needs.
"""

from integrations.keys import credentials, platform  # noqa: F401
from integrations.vault import issuer, sealed  # noqa: F401
from rensei import mfa_adapter  # noqa: F401
from rensei.dispatch import withheld  # noqa: F401

finish_rotations = sealed.finish_rotations
reseal = sealed.reseal
rotate_data_key = sealed.rotate_data_key
