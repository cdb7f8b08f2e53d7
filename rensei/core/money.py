"""
Exact arithmetic with money.

Amounts are integer picodollars. Prices are integer microdollars per million tokens, which is the
same number as picodollars per token: tokens times price is a whole amount, and nothing is rounded.
"""

import re
from decimal import Decimal

PICODOLLARS_PER_DOLLAR = 10**12
MICRODOLLARS_PER_CENT = 10_000
# As written by people and in JSON. A column holds at most 2^63 picodollars, which is above nine million dollars.
AMOUNT = re.compile(r"[0-9]{1,6}(\.[0-9]{1,12})?")


def dollars(picodollars: int | None) -> str | None:
    """Write an amount as a decimal string of dollars without exponent; an unknown amount stays None."""
    if picodollars is None:
        return None
    text = f"{Decimal(picodollars) / PICODOLLARS_PER_DOLLAR:f}"
    whole, _, fraction = text.partition(".")
    return f"{whole}.{fraction.rstrip('0').ljust(6, '0')}"


def picodollars(amount: str) -> int:
    """
    Read an amount of dollars, such as 12.50.

    :raises ValueError: if it is not a decimal number below a million, or is finer than a picodollar
    """
    if not AMOUNT.fullmatch(amount):
        raise ValueError(f"{amount[:40]!r} is not an amount of dollars")
    return int(Decimal(amount) * PICODOLLARS_PER_DOLLAR)


def in_picodollars(amount: Decimal | None) -> int | None:
    """Convert the dollars of a form. None stays None."""
    return None if amount is None else int(amount * PICODOLLARS_PER_DOLLAR)


def cents_per_mtok(microdollars: int) -> int | float:
    """Write a price in US cents per million tokens, as an integer if it is whole, otherwise such as 12.5."""
    cents, rest = divmod(microdollars, MICRODOLLARS_PER_CENT)
    return microdollars / MICRODOLLARS_PER_CENT if rest else cents


def microdollars_per_mtok(cents: int | str | Decimal) -> int:
    """
    Read a price given in US cents per million tokens.

    :raises ValueError: if it has more decimals than a microdollar can hold
    """
    amount = Decimal(str(cents)) * MICRODOLLARS_PER_CENT
    if amount != amount.to_integral_value():
        raise ValueError(f"{cents} cents is finer than a microdollar")
    return int(amount)
