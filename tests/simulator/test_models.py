"""The simulator lists the models that a key may use, in pages."""

from collections.abc import Callable

import anthropic
import pytest

MakeClient = Callable[..., anthropic.Anthropic]


class TestModelList:
    def test_has_the_active_and_deprecated_models_newest_first(self, client: anthropic.Anthropic) -> None:
        models = client.models.list(limit=1000).data

        assert {model.lifecycle for model in models} == {"active", "deprecated"}
        created = [model.created_at for model in models]
        assert created == sorted(created, reverse=True)
        assert "claude-opus-5-5" in [model.id for model in models]

    def test_can_be_paged_through_by_the_sdk(self, client: anthropic.Anthropic) -> None:
        whole = [model.id for model in client.models.list(limit=1000).data]

        paged = [model.id for model in client.models.list(limit=4)]

        assert paged == whole
        assert len(whole) > 8

    def test_can_be_paged_backwards(self, client: anthropic.Anthropic) -> None:
        whole = [model.id for model in client.models.list(limit=1000).data]

        page = client.models.list(limit=3, before_id=whole[5])

        assert [model.id for model in page.data] == whole[2:5]
        assert page.has_more

    def test_has_retired_models_where_they_are_asked_for(self, client: anthropic.Anthropic) -> None:
        models = client.models.list(limit=1000, lifecycle=["retired"]).data

        ids = [model.id for model in models]
        assert "claude-3-5-haiku-20241022" in ids
        assert "claude-opus-4-1-20250514" not in ids

    def test_tells_what_a_model_takes(self, client: anthropic.Anthropic) -> None:
        model = client.models.retrieve("claude-opus-4-5")

        assert model.id == "claude-opus-4-5-20251101"
        assert (model.max_input_tokens, model.max_tokens) == (200_000, 64_000)
        capabilities = model.capabilities
        assert capabilities is not None
        assert capabilities.thinking.types.enabled.supported
        assert not capabilities.thinking.types.adaptive.supported
        assert capabilities.effort.high.supported
        assert not capabilities.effort.max.supported

    def test_keeps_mythos_for_verified_organizations(self, make_client: MakeClient) -> None:
        everyone = {model.line for model in make_client().models.list(limit=1000).data}
        verified = {model.line for model in make_client("verified").models.list(limit=1000).data}

        assert verified - everyone == {"mythos"}

    def test_of_a_limited_key_is_limited(self, make_client: MakeClient) -> None:
        models = make_client("only", "haiku").models.list(limit=1000).data

        assert {model.line for model in models} == {"haiku"}

    def test_may_be_empty(self, make_client: MakeClient) -> None:
        assert make_client("nomodels").models.list().data == []

    def test_of_a_legacy_key_has_what_everyone_else_lost(self, make_client: MakeClient) -> None:
        client = make_client("legacy")

        ids = [model.id for model in client.models.list(limit=1000).data]

        assert {"claude-opus-4-1-20250514", "claude-sonnet-4-20250514", "claude-3-5-haiku-20241022"} <= set(ids)

    def test_of_a_legacy_key_is_served(self, make_client: MakeClient) -> None:
        message = make_client("legacy").messages.create(
            model="claude-opus-4-1-20250514", max_tokens=99, messages=[{"role": "user", "content": "Hi."}]
        )

        assert message.model == "claude-opus-4-1-20250514"

    def test_hides_the_others_of_a_limited_key(self, make_client: MakeClient) -> None:
        with pytest.raises(anthropic.NotFoundError, match="model: claude-opus-5-5"):
            make_client("only", "haiku").models.retrieve("claude-opus-5-5")
