"""A new provider is one spec, one adapter and its catalog entries: this toy needs an endpoint and has other modes."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import httpx2
import pytest
from rest_framework.test import APIClient

from catalog import providers as specs
from catalog.models import CatalogEntry
from catalog.providers import ProviderSpec
from integrations.providers import base
from integrations.providers.base import Answer, BuiltRequest, Credential, ModelRequest, TextDelta, UsageReport, Verdict
from rensei.core.auth_modes import AuthMode
from rensei.core.errors import RenseiError
from rensei.core.secret import Secret
from rensei.core.usage import Usage, UsagePart
from rensei.dispatch.models import Run
from rensei.orgs.models import User

pytestmark = pytest.mark.django_db(transaction=True)

SPEC = ProviderSpec(
    id="toy",
    display_name="Toy",
    config_namespace="toy",
    auth_modes=(AuthMode.BYOK, AuthMode.LOCAL),
    requires_endpoint=True,
    category="Self-hosted",
    default_base_url_setting="RENSEI_ANTHROPIC_BASE_URL",
    key_page_url="https://toy.example/keys",
    dearest_search_picodollars=0,
)


class ToyStream:
    def __init__(self, credential: Credential) -> None:
        self.credential = credential

    def __iter__(self) -> Iterator[Any]:
        key = self.credential.secret.reveal()
        headers = {"Authorization": f"Bearer {key}", "anthropic-version": "2026-10-21"}
        models = httpx2.get(f"{self.credential.base_url}/v1/models", headers=headers, trust_env=False).json()["data"]
        usage = Usage(input_tokens=3, output_tokens=2)
        yield UsageReport(usage=usage, request_id="toy-1")
        yield TextDelta(text=f"{len(models)} models")
        yield Answer(text=f"{len(models)} models", content=[], stop_reason="end", usage=usage, request_id="toy-1")

    is_under_way = True

    def close(self) -> None: ...

    def parts_so_far(self) -> tuple[UsagePart, ...]:
        return ()


class ToyAdapter:
    provider: ClassVar[str] = "toy"
    refusals: ClassVar[tuple[type[RenseiError], ...]] = ()

    def warm_up(self) -> None: ...

    def check_key(self, key: Secret, *, base_url: str = "") -> None: ...

    def default_base_url(self) -> str:
        return ""

    def check_input(self, *, messages: list[dict[str, Any]], entry: CatalogEntry) -> None: ...

    def prepare(
        self, messages: list[dict[str, Any]], *, org_id: str, entry: CatalogEntry, seconds_left: Callable[[], float]
    ) -> list[dict[str, Any]]:
        return messages

    def build(self, request: ModelRequest, *, entry: CatalogEntry) -> BuiltRequest:
        return BuiltRequest(
            params={"messages": request.messages},
            effort=None,
            effort_applied={},
            max_tokens=10,
            input_tokens_at_least=1,
            input_tokens_about=3,
            input_tokens_at_most=9,
        )

    def count_input_tokens(
        self, params: Mapping[str, Any], *, credential: Credential, context_window_tokens: int
    ) -> int:
        return 3

    def fit(self, params: Mapping[str, Any], *, input_tokens: int, context_window_tokens: int) -> dict[str, Any]:
        return dict(params)

    def stream(self, params: Mapping[str, Any], *, credential: Credential, **_options: Any) -> ToyStream:
        return ToyStream(credential)

    def test_connection(self, *, credential: Credential) -> Verdict:
        return Verdict(ok=True, code="OK", message="Fine.", fix="")

    def output_tokens_about(self, text: str) -> int:
        return len(text.split())

    def cheapest_model(self, models: list[dict[str, str]]) -> str:
        return "toy-1"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, catalog: None) -> None:
    monkeypatch.setitem(specs.PROVIDERS, "toy", SPEC)
    monkeypatch.setitem(base.ADAPTERS, "toy", ToyAdapter())
    CatalogEntry.objects.create(provider="toy", model_id="toy-1", display_name="Toy 1", auth_modes=["byok", "local"])


class TestANewProvider:
    def test_completes_a_run_through_the_same_doors(
        self,
        simulator: Any,
        settings: Any,
        ada: User,
        ada_access: Any,
        api_as: Any,
        make_key: Any,
        toy: None,
        work: Any,
    ) -> None:
        # The operator's own address is nobody else's, so the toy's is the simulator by another name.
        endpoint = simulator.url.replace("127.0.0.1", "localhost")
        settings.RENSEI_OUTBOUND_ALLOWLIST = [f"{endpoint} acme"]
        api: APIClient = api_as(ada)
        key = {"provider": "toy", "apiKey": make_key(), "baseUrl": endpoint}
        profile = {"name": "toy", "provider": "toy", "modelId": "toy-1", "authModes": ["local", "byok"]}

        connected = api.post("/api/v1/integrations", key)
        made = api.post("/api/v1/profiles", profile)
        dispatched = api.post("/api/v1/runs", {"profileId": "prof_toy", "input": "Hi."})

        assert (connected.status_code, made.status_code, dispatched.status_code) == (201, 201, 202), (
            connected.json(),
            made.json(),
            dispatched.json(),
        )
        (run,) = work()
        assert run.state == Run.State.SUCCEEDED, run.error
        assert "models" in run.output_text
        assert run.amount_picodollars is None

    def test_asks_for_the_endpoint_that_it_requires(
        self, simulator: Any, ada: User, ada_access: Any, api_as: Any, make_key: Any, toy: None
    ) -> None:
        answer = api_as(ada).post("/api/v1/integrations", {"provider": "toy", "apiKey": make_key()})

        assert answer.status_code in {400, 422}
        assert "/baseUrl" in str(answer.json())

    def test_does_not_offer_modes_that_it_lacks(
        self, simulator: Any, ada: User, ada_access: Any, api_as: Any, toy: None
    ) -> None:
        body = {"name": "toy", "provider": "toy", "modelId": "toy-1", "authModes": ["metered"]}

        answer = api_as(ada).post("/api/v1/profiles", body)

        assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_FAILED")
