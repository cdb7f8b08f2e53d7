"""Amounts in REST answers."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from rensei.core.money import dollars


@extend_schema_field({"type": ["string", "null"], "format": "decimal", "example": "0.000123"})
class DollarsField(serializers.Field[Any, Any, Any, Any]):
    """An exact decimal string of dollars; null where the amount is unknown."""

    def to_representation(self, value: int) -> str | None:
        return dollars(value)
