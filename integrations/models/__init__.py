"""The keys of organizations and of the platform, and the vault that seals them."""

from integrations.models.keys import BreakGlass, DefaultAddress, Integration, PlatformKey
from integrations.models.vault import (
    DataKey,
    IssuerKey,
    KeyCheck,
    KeyOpening,
    KeyOpeningDay,
    KeyOpeningQuerySet,
    Rotation,
)

__all__ = [
    "BreakGlass",
    "DataKey",
    "DefaultAddress",
    "Integration",
    "IssuerKey",
    "KeyCheck",
    "KeyOpening",
    "KeyOpeningDay",
    "KeyOpeningQuerySet",
    "PlatformKey",
    "Rotation",
]
