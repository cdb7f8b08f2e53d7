"""Checks of the names, slugs and addresses that people enter."""

import re
import unicodedata

from django.core.exceptions import ValidationError
from django.core.validators import validate_email

from rensei.core.errors import FieldError

SLUG_SHAPE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
NAME_LENGTH = 120
# Invisible, and part of correct spelling in Persian, in Indic scripts and in emoji.
JOINERS = (0x200C, 0x200D)
SLUG_LENGTH = 63


def clean_name(name: str, *, pointer: str = "/name", length: int = NAME_LENGTH) -> str:
    """:raises FieldError: if a name, in any language, is empty, too long, or holds invisible characters"""
    name = unicodedata.normalize("NFC", name.strip())
    visible = name.translate(dict.fromkeys(JOINERS))
    if not visible or len(name) > length or not visible.isprintable():
        raise FieldError(pointer=pointer, reason=f"A name has 1 to {length} printable characters.")
    return name


def proposed_slug(name: str, *, fallback: str, separator: str = "-", length: int = SLUG_LENGTH) -> str:
    """
    Make an id of small ASCII letters and digits from a name in any language. `rensei.js` proposes the same.

    Accents are left off. A name without such letters, for example a Chinese one, gives the `fallback`.
    """
    letters = (one for one in unicodedata.normalize("NFKD", name).lower() if not unicodedata.combining(one))
    words = re.findall(r"[a-z0-9]+", "".join(letters))
    return separator.join(words)[:length].strip(separator) or fallback


def clean_slug(slug: str, *, pointer: str = "/slug") -> str:
    """:raises FieldError: if it is not valid in an address"""
    if not SLUG_SHAPE.fullmatch(slug):
        raise FieldError(
            pointer=pointer,
            reason="Use 1 to 63 small letters, digits and hyphens, with no hyphen at either end, such as my-project.",
        )
    return slug


def clean_email(email: str, *, pointer: str = "/email") -> str:
    """:raises FieldError: if it is not an email address"""
    email = email.strip().lower()
    try:
        validate_email(email)
    except ValidationError as fault:
        raise FieldError(pointer=pointer, reason="This is not an email address.") from fault
    return email
