"""Amounts in REST bodies and answers."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from rensei.core.money import AMOUNT, dollars, picodollars


@extend_schema_field({"type": ["string", "null"], "format": "decimal", "example": "0.000123"})
class DollarsField(serializers.Field[Any, Any, Any, Any]):
    """An exact decimal string of dollars; null where the amount is unknown."""

    def to_representation(self, value: int) -> str | None:
        return dollars(value)


@extend_schema_field({"type": "string", "pattern": f"^{AMOUNT.pattern}$", "example": "25.00"})
class LimitField(DollarsField):
    """A decimal string of dollars, such as 25.00, that a caller sets as a limit."""

    def to_internal_value(self, data: object) -> int:
        """:raises ValidationError: if it is not an amount"""
        try:
            return picodollars(data if isinstance(data, str) else "")
        except ValueError as fault:
            reason = 'Give an amount of dollars as a string, such as "25.00".'
            raise serializers.ValidationError(reason) from fault
