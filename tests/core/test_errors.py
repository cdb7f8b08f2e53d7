"""Refusals: their two halves, and the field of a body that names something unknown."""

import pytest

from rensei.core.errors import AlreadyExists, FieldError, NotFound, RateLimited, RenseiError, named_in
from rensei.dispatch.modes.host_session import WrongMachine


class TestHalves:
    def test_are_what_is_wrong_and_what_to_do(self):
        refusal = AlreadyExists(what="A profile named v1.5")

        assert refusal.cause == "A profile named v1.5 already exists."
        assert refusal.fix == "Choose another name, or change the existing one."
        assert refusal.detail == f"{refusal.cause} {refusal.fix}"

    def test_part_after_a_reason_that_is_handed_in(self):
        refusal = WrongMachine(reason="This host. is odd.")

        assert refusal.cause == "This host. is odd."
        assert refusal.fix.startswith("A host-session run goes to")

    def test_are_one_where_the_message_says_only_what_is_wrong(self):
        refusal = FieldError(pointer="/name", reason="Too long. Far too long.")

        assert (refusal.cause, refusal.fix) == ("Too long. Far too long.", "")

    def test_hold_the_values(self):
        assert RateLimited(seconds=3).fix == "Try again in 3 s."


class TestMessages:
    FOR_PROGRAMS = frozenset({"METHOD_NOT_ALLOWED", "NOT_AUTHENTICATED", "VALIDATION_FAILED"})

    @pytest.mark.parametrize("refusal", sorted(RenseiError.__subclasses__(), key=str), ids=lambda one: one.__name__)
    def test_have_no_marks_that_pages_would_show_as_they_are(self, refusal):
        assert refusal.code in self.FOR_PROGRAMS or "`" not in refusal.message


class TestNamedIn:
    def test_says_in_which_field_the_unknown_id_stands(self):
        with pytest.raises(NotFound) as refused, named_in("/projectId"):
            raise NotFound

        assert "the id in projectId" in refused.value.detail
        assert refused.value.errors[0]["pointer"] == "/projectId"
