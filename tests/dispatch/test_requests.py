from typing import Any

import pytest

from rensei.core.errors import FieldError
from rensei.dispatch.admission.requests import check_system, messages_from


class TestMessagesFrom:
    def test_makes_one_user_message_of_a_text(self) -> None:
        assert messages_from(text="Hi.", messages=None) == [
            {"role": "user", "content": [{"type": "text", "text": "Hi."}]}
        ]

    @pytest.mark.parametrize(
        ("messages", "pointer"),
        [
            ([], "/messages"),
            ({}, "/messages"),
            (["hello"], "/messages/0"),
            ([{"role": "user"}], "/messages/0/content"),
            ([{"role": "user", "content": "x", "name": "y"}], "/messages/0/name"),
            ([{"role": "system", "content": "x"}], "/messages/0/role"),
            ([{"role": "assistant", "content": "x"}, {"role": "user", "content": "x"}], "/messages/0/role"),
            ([{"role": "user", "content": " "}], "/messages/0/content"),
            ([{"role": "user", "content": []}], "/messages/0/content"),
            ([{"role": "user", "content": 5}], "/messages/0/content"),
            ([{"role": "user", "content": ["x"]}], "/messages/0/content/0"),
            ([{"role": "user", "content": [{"text": "x"}]}], "/messages/0/content/0"),
            ([{"role": "user", "content": [{"type": ["text"]}]}], "/messages/0/content/0"),
            ([{"role": "user", "content": [{"type": "text", "text": ""}]}], "/messages/0/content/0/text"),
            ([{"role": "user", "content": [{"type": "image", "source": "x"}]}], "/messages/0/content/0/source"),
            (
                [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [{}]}]}],
                "/messages/0/content/0/content/0",
            ),
        ],
    )
    def test_points_at_what_is_wrong(self, messages: Any, pointer: str) -> None:
        with pytest.raises(FieldError) as refused:
            messages_from(text=None, messages=messages)

        assert refused.value.errors[0]["pointer"] == pointer


class TestCheckSystem:
    @pytest.mark.parametrize("system", [None, "You think.", [{"type": "text", "text": "You think."}]])
    def test_takes_a_text_or_text_blocks(self, system: Any) -> None:
        assert check_system(system) == system

    @pytest.mark.parametrize("system", [5, {}, [], ["x"], [{"type": "image"}], [{"type": "text", "text": ""}]])
    def test_refuses_anything_else(self, system: Any) -> None:
        with pytest.raises(FieldError):
            check_system(system)
