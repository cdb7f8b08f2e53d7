"""Reasoning effort: the levels, with the documentation's labels and descriptions."""

from typing import TypedDict

from django.db import models


class Effort(models.TextChoices):
    """How hard a model should think. The order of the members is from least to most."""

    LOW = "low", "low (fast)"
    MEDIUM = "medium", "medium (balanced)"
    HIGH = "high", "high (deep)"
    XHIGH = "xhigh", "xhigh (deeper)"
    MAX = "max", "max (deepest)"


DESCRIPTIONS = {
    Effort.LOW: "Quick answers, minimal reasoning overhead.",
    Effort.MEDIUM: "Default; good balance of reasoning and speed.",
    Effort.HIGH: "Extended thinking; best for complex problems.",
    Effort.XHIGH: "Longer thinking for long-horizon and agentic work.",
    Effort.MAX: "No limit on thinking; slowest and most costly.",
}


class EffortChoice(TypedDict):
    """One level as it is shown to people: value, label and description."""

    value: str
    label: str
    description: str


def choices_for(levels: list[str]) -> list[EffortChoice]:
    """List the levels that a model offers, with their labels and descriptions."""
    return [
        EffortChoice(value=level.value, label=str(level.label), description=DESCRIPTIONS[level])
        for level in Effort
        if level.value in levels
    ]
