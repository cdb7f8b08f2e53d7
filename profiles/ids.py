"""The ids of profiles: made of the name, or chosen; both in ASCII letters."""

import re

from rensei.core.errors import FieldError
from rensei.orgs.shapes import proposed_slug

ID_SHAPE = re.compile(r"prof_[a-z0-9]+(?:_[a-z0-9]+)*")
ID_LENGTH = 68


def public_id_for(name: str) -> str:
    """Build the id of a new profile: `prof_` and the ASCII letters of the name in snake case."""
    return "prof_" + proposed_slug(name, fallback="profile", separator="_")


def clean_public_id(public_id: str) -> str:
    """:raises FieldError: if a profile may not have this id"""
    if len(public_id) > ID_LENGTH or not ID_SHAPE.fullmatch(public_id):
        raise FieldError(
            pointer="/id",
            reason="An id is prof_ and up to 63 small letters and digits, with single underscores between them.",
        )
    return public_id
