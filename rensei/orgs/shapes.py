"""Checks of the names, slugs and addresses that people enter."""

import re
import unicodedata
from itertools import pairwise

from django.core.exceptions import ValidationError
from django.core.validators import validate_email

from rensei.core.errors import FieldError

SLUG_SHAPE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
NAME_LENGTH = 120
# Invisible, and part of correct spelling in Persian, in Indic scripts and in emoji.
JOINERS = (0x200C, 0x200D)
# Printable for Python, and shown as nothing: what Unicode calls default-ignorable, and the empty Braille pattern.
UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0e\uffa0\U000e0100-\U000e01ef]"
)
EMOJI_STYLE = "\ufe0f"
SLUG_LENGTH = 63


def clean_name(name: str, *, pointer: str = "/name", length: int = NAME_LENGTH) -> str:
    """:raises FieldError: if a name, in any language, is empty, too long, or holds invisible characters"""
    name = unicodedata.normalize("NFC", name.strip())
    visible = name.translate(dict.fromkeys(JOINERS))
    is_seen = visible.isprintable() and not UNSEEN.search(visible) and any(_kind(one) not in "MZ" for one in visible)
    # The selector of emoji style follows a sign: a letter would look the same with it.
    follows = all(_kind(before) in "SPN" for before, one in pairwise(f" {visible}") if one == EMOJI_STYLE)
    if not is_seen or not follows or len(name) > length:
        raise FieldError(pointer=pointer, reason=f"A name has 1 to {length} printable characters.")
    return name


def _kind(character: str) -> str:
    """The first letter of the Unicode category: L for letters, M for marks, Z for spaces."""
    return unicodedata.category(character)[0]


def proposed_slug(name: str, *, fallback: str, separator: str = "-", length: int = SLUG_LENGTH) -> str:
    """
    Make an id of small ASCII letters and digits from a name in any language. `rensei.js` proposes the same.

    Accents and other marks are left off. A name without such letters, for example a Chinese one, gives the `fallback`.
    """
    letters = (one for one in unicodedata.normalize("NFKD", name).lower() if _kind(one) != "M")
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
