"""Every name of a model means its entry at the gateway: its policy, price and window; and `/v1/models` shows it."""

import json
from typing import Any

import anthropic
import pytest
from anthropic.types import ModelInfo

from billing.models import CostEvent
from catalog.models import CatalogEntry
from catalog.services import ModelNotInCatalog
from rensei.core.auth_modes import AuthMode
from rensei.core.unknown import take_counts
from rensei.dispatch.models import Run
from rensei.gateway import routing
from rensei.orgs.models import User
from rensei.policies import services as policies
from tests.gateway.line import MODEL, message, settled
from tests.gateway.wire import Wire

pytestmark = pytest.mark.django_db(transaction=True)

HAIKU = "claude-haiku-4-5-20251001"
NAMES = ["claude-haiku-4-5", "anthropic/claude-haiku-4-5", f"anthropic/{HAIKU}"]


class TestACall:
    @pytest.mark.parametrize("name", NAMES)
    def test_by_another_name_goes_out_under_the_id_and_has_its_price(
        self, ask: Any, byok: Any, wire: Wire, name: str
    ) -> None:
        answer = ask(message(model=name))

        settled()
        run, line = Run.objects.get(), CostEvent.objects.get()
        assert answer.status == 200
        assert (run.asked_model_id, run.model_id, run.served_model_id) == (name, HAIKU, HAIKU)
        assert json.loads(wire.messages()[0].body)["model"] == HAIKU
        assert (line.model_id, line.served_model_id) == (HAIKU, HAIKU)
        assert line.amount_picodollars
        assert run.context_window_tokens == 200_000

    def test_by_the_alias_of_a_retired_model_is_served_by_its_replacement(self, ask: Any, byok: Any) -> None:
        answer = ask(message(model="claude-opus-4-1"))

        settled()
        run = Run.objects.get()
        assert answer.status == 200
        assert (run.asked_model_id, run.model_id, run.served_model_id) == (
            "claude-opus-4-1",
            "claude-opus-4-1-20250805",
            MODEL,
        )

    def test_that_the_catalog_does_not_have_is_counted(self, byok: Any, token_access: Any) -> None:
        take_counts()

        found = [
            routing.load(token_access, "made-up-9"),
            routing.load(token_access, MODEL, turned_to="made-up-8", mode=AuthMode.BYOK),
        ]

        assert all(isinstance(each, ModelNotInCatalog) for each in found)
        assert take_counts() == {("model", "made-up-9"): 1, ("model", "made-up-8"): 1}

    def test_of_a_profile_with_a_higher_limit_than_its_model_is_made(
        self, ask: Any, byok: Any, make_profile: Any
    ) -> None:
        make_profile(name="talker", model_id=MODEL, max_tokens=100_000)
        CatalogEntry.objects.filter(model_id=MODEL).update(max_output_tokens=50_000)

        answer = ask({**message(), "model": "prof_talker"})

        assert answer.status == 200, answer.body
        settled()
        assert Run.objects.get().max_tokens == 1000

    def test_for_the_large_window_is_made_where_the_model_has_it(self, ask: Any, byok: Any) -> None:
        assert ask(message(model=f"{MODEL}[1m]")).status == 200
        settled()

        refused = ask(message(model="claude-haiku-4-5[1m]"))

        assert refused.code == "MODEL_NOT_IN_CATALOG"
        assert "Leave '[1m]' out" in refused.json()["error"]["message"]
        assert Run.objects.count() == 1

    @pytest.mark.parametrize("name", [*NAMES, HAIKU])
    def test_is_denied_by_the_row_of_the_model_under_every_name(
        self, ask: Any, byok: Any, ada_access: Any, wire: Wire, name: str
    ) -> None:
        policies.set_policy(ada_access, matrix={HAIKU: {"byok": {"allowed": False}}})

        refused = ask(message(model=name))

        assert (refused.code, wire.messages()) == ("AUTHMODES_UNSATISFIABLE", [])
        assert not Run.objects.exists()

    @pytest.mark.parametrize("name", NAMES)
    def test_is_not_opened_by_an_own_entry_of_that_name(
        self, ask: Any, byok: Any, ada_access: Any, wire: Wire, name: str
    ) -> None:
        """An entry that was made while the catalog did not know the name."""
        CatalogEntry.objects.create(
            org=ada_access.org, provider="claude", model_id=name, display_name="H", auth_modes=["byok"]
        )
        policies.set_policy(ada_access, matrix={HAIKU: {"byok": {"allowed": False}}})

        assert ask(message(model=name)).code == "AUTHMODES_UNSATISFIABLE"
        assert wire.messages() == []

    def test_is_counted_under_another_name(self, ask: Any, byok: Any, wire: Wire) -> None:
        body = {"model": NAMES[0], "messages": message()["messages"]}

        answer = ask(body, path="/v1/messages/count_tokens")

        assert answer.json()["input_tokens"] > 0
        assert json.loads(wire.passed[-1].body)["model"] == HAIKU

    def test_of_an_unknown_model_is_refused_with_the_command_only_to_those_who_may_run_it(
        self, ask: Any, byok: Any, mia: User, access_of: Any, make_token: Any
    ) -> None:
        for_owner = ask(message(model="claude-nothing-9"))
        for_member = ask(message(model="claude-nothing-9"), x_api_key=make_token(access_of(mia)))

        assert for_owner.code == for_member.code == "MODEL_NOT_IN_CATALOG"
        assert "rensei catalog create" in for_owner.json()["error"]["message"]
        assert "rensei catalog create" not in for_member.json()["error"]["message"]


class TestModels:
    @pytest.mark.parametrize("name", NAMES)
    def test_are_shown_under_any_name(self, client: anthropic.Anthropic, byok: Any, name: str) -> None:
        assert client.models.retrieve(name).id == HAIKU

    def test_have_all_that_the_sdk_knows(self, client: anthropic.Anthropic, byok: Any) -> None:
        listed = {model.id: model for model in client.models.list(limit=1000)}

        for model in listed.values():
            assert set(model.to_dict()) == set(ModelInfo.model_fields)
            # The SDK takes any answer; this refuses one that is not of its type.
            ModelInfo.model_validate(model.to_dict(), strict=False)
            assert model.max_input_tokens
            assert model.max_tokens
            assert model.capabilities
        haiku, profile = listed[HAIKU], listed["prof_deep"]
        assert (haiku.line, haiku.lifecycle, haiku.max_input_tokens, haiku.max_tokens) == (
            "haiku",
            "active",
            200_000,
            64_000,
        )
        assert haiku.capabilities
        assert haiku.capabilities.thinking.types.enabled.supported
        assert not haiku.capabilities.effort.supported
        assert (profile.max_input_tokens, profile.line) == (1_000_000, "opus")

    def test_agree_with_the_provider_s_own(
        self, client: anthropic.Anthropic, byok: Any, simulator: Any, make_key: Any, sdk: Any
    ) -> None:
        provider = sdk(base_url=simulator.url, api_key=make_key(), max_retries=0)
        theirs = {model.id: model for model in provider.models.list(limit=1000)}
        ours = {model.id: model for model in client.models.list(limit=1000)}

        for model_id in theirs.keys() & ours.keys():
            one, other = theirs[model_id].to_dict(), ours[model_id].to_dict()
            # What the provider can do in batches, the gateway does not serve.
            for info in (one, other):
                capabilities: Any = info["capabilities"]
                capabilities.pop("batch")
            assert one == other
        assert len(theirs.keys() & ours.keys()) >= 10

    def test_are_listed_by_lifecycle(self, client: anthropic.Anthropic, byok: Any) -> None:
        usual = {model.lifecycle for model in client.models.list(limit=1000)}
        retired = [model for model in client.models.list(limit=1000, lifecycle=["retired"]) if model.line]

        assert "retired" not in usual
        assert "claude-opus-4-1-20250805" in {model.id for model in retired}
        assert client.models.retrieve("claude-opus-4-1").lifecycle == "retired"

    def test_say_null_where_nothing_is_known(self, client: anthropic.Anthropic, byok: Any, ada_access: Any) -> None:
        CatalogEntry.objects.create(org=ada_access.org, provider="claude", model_id="nova", display_name="Nova")

        nova = client.models.retrieve("anthropic/nova")

        assert (nova.id, nova.capabilities, nova.max_tokens, nova.line) == ("nova", None, None, None)
        assert nova.created_at.year == 1970
