"""Checks of the names, slugs and addresses that people enter."""

import re

from django.core.exceptions import ValidationError
from django.core.validators import validate_email

from rensei.core.errors import FieldError

SLUG_SHAPE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
NAME_LENGTH = 120


def clean_name(name: str, *, pointer: str = "/name") -> str:
    """:raises FieldError: if a name is empty, too long, or holds invisible characters"""
    name = name.strip()
    if not name or len(name) > NAME_LENGTH or not name.isprintable():
        raise FieldError(pointer=pointer, reason=f"A name has 1 to {NAME_LENGTH} printable characters.")
    return name


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
