"""A machine shows a code, a person approves it in a browser, and the machine gets its token, once."""

import re
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, connections
from django.test import Client
from rest_framework.test import APIClient

from rensei.audit.models import AuditEvent
from rensei.core.clock import database_now
from rensei.orgs import services as orgs
from rensei.orgs.models import Host, Membership, Org, User
from rensei.tokens import device_codes
from rensei.tokens.models import ApiToken, DeviceCode

ASK, FETCH = "/api/v1/device-codes", "/api/v1/device-codes/token"


@pytest.fixture
def machine() -> APIClient:
    """A machine that has no token yet."""
    client = APIClient()
    client.default_format = "json"
    return client


@pytest.fixture
def asked(db: None, machine: APIClient) -> dict[str, Any]:
    answer = machine.post(ASK, {"hostName": "laptop"})
    assert answer.status_code == 201, answer.content
    body: dict[str, Any] = answer.json()
    return body


def code_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def fetch(machine: APIClient, asked: dict[str, Any]) -> Any:
    return machine.post(FETCH, {"deviceCode": asked["deviceCode"]})


def approve(page: Client, asked: dict[str, Any], org: str = "acme") -> Any:
    return page.post("/device", {"code": asked["userCode"], "organization": org, "approve": ""})


def everything_stored() -> str:
    found: list[str] = []
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names():
            cursor.execute(f'SELECT * FROM "{table}"')
            found.extend(repr(row) for row in cursor.fetchall())
    return "\n".join(found)


@pytest.mark.django_db
class TestAsk:
    def test_answers_with_codes_and_where_to_go(self, asked: dict[str, Any], settings: Any) -> None:
        page = f"{settings.PUBLIC_URL}/device"

        assert re.fullmatch(r"[BCDFGHJKLMNPQRSTVWXZ]{4}-[BCDFGHJKLMNPQRSTVWXZ]{4}", asked["userCode"])
        assert len(asked["deviceCode"]) >= 43
        assert asked["verificationUri"] == page
        assert asked["verificationUriComplete"] == f"{page}?code={asked['userCode']}"
        assert (asked["expiresIn"], asked["interval"]) == (600, 2)

    def test_stores_only_hashes(self, asked: dict[str, Any]) -> None:
        stored = everything_stored()

        assert "laptop" in stored
        for secret in (asked["deviceCode"], asked["userCode"], asked["userCode"].replace("-", "")):
            assert secret not in stored

    def test_gives_every_machine_its_own(self, machine: APIClient, asked: dict[str, Any]) -> None:
        again = machine.post(ASK, {"hostName": "laptop"}).json()

        assert again["deviceCode"] != asked["deviceCode"]
        assert again["userCode"] != asked["userCode"]

    @pytest.mark.parametrize(
        "body", [{}, {"hostName": " "}, {"hostName": "a\nb"}, {"hostName": "x" * 121}, {"name": "x"}]
    )
    def test_refuses_a_machine_without_a_proper_name(self, machine: APIClient, body: dict[str, str]) -> None:
        assert code_of(machine.post(ASK, body)) == (400, "VALIDATION_FAILED")
        assert not DeviceCode.objects.exists()

    def test_is_limited_for_each_address(self, machine: APIClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rensei.tokens.throttling.SensitiveThrottle.rate", "3/min", raising=False)

        answers = [machine.post(ASK, {"hostName": "laptop"}) for _ in range(4)]
        elsewhere = machine.post(ASK, {"hostName": "laptop"}, REMOTE_ADDR="192.0.2.7")

        assert [answer.status_code for answer in answers] == [201, 201, 201, 429]
        assert elsewhere.status_code == 201

    def test_forgets_codes_that_have_long_expired(self, machine: APIClient, asked: dict[str, Any]) -> None:
        DeviceCode.objects.update(expires_at=database_now() - timedelta(hours=2))

        machine.post(ASK, {"hostName": "desktop"})

        assert DeviceCode.objects.get().host_name == "desktop"


@pytest.mark.django_db
class TestFetch:
    def test_is_pending_until_somebody_answers(self, machine: APIClient, asked: dict[str, Any]) -> None:
        answer = fetch(machine, asked)

        assert code_of(answer) == (428, "DEVICE_CODE_PENDING")
        assert answer.json()["retryable"] is True
        assert not ApiToken.objects.exists()

    def test_gives_a_token_that_is_bound_to_the_machine(
        self, machine: APIClient, asked: dict[str, Any], acme: Org, ada: User, page_as: Callable[..., Client]
    ) -> None:
        approve(page_as(ada), asked)
        before = ApiToken.objects.count()

        body = fetch(machine, asked).json()

        host = Host.objects.get()
        machine.credentials(HTTP_AUTHORIZATION=f"Bearer {body['token']}")
        me = machine.get("/api/v1/me").json()
        assert before == 0
        assert (host.name, host.owner, host.org) == ("laptop", ada, acme)
        assert body["host"] == {"id": host.id, "name": "laptop"} == me["host"]
        assert body["org"] == {"id": acme.id, "slug": "acme", "name": "Acme"}
        assert body["user"] == {"email": ada.email}
        assert body["tokenId"] == ApiToken.objects.get().id
        assert body["token"] not in everything_stored()
        actions = list(AuditEvent.objects.order_by("id").values_list("action", flat=True))
        assert actions[-2:] == ["device.approved", "host.registered"]

    def test_gives_it_once(
        self, machine: APIClient, asked: dict[str, Any], acme: Org, ada: User, page_as: Callable[..., Client]
    ) -> None:
        approve(page_as(ada), asked)
        fetch(machine, asked)

        assert code_of(fetch(machine, asked)) == (400, "DEVICE_CODE_INVALID")
        assert ApiToken.objects.count() == 1

    def test_of_a_denied_machine_is_refused(
        self, machine: APIClient, asked: dict[str, Any], acme: Org, ada: User, page_as: Callable[..., Client]
    ) -> None:
        page_as(ada).post("/device", {"code": asked["userCode"], "deny": ""})

        assert code_of(fetch(machine, asked)) == (400, "DEVICE_CODE_INVALID")
        assert not Host.objects.exists()

    @pytest.mark.parametrize("answered", [True, False])
    def test_of_an_expired_code_is_refused(
        self,
        machine: APIClient,
        asked: dict[str, Any],
        acme: Org,
        ada: User,
        page_as: Callable[..., Client],
        answered: bool,
    ) -> None:
        if answered:
            approve(page_as(ada), asked)
        DeviceCode.objects.update(expires_at=database_now())

        assert code_of(fetch(machine, asked)) == (400, "DEVICE_CODE_INVALID")
        assert not Host.objects.exists()

    @pytest.mark.parametrize("device_code", ["unknown", "x" * 43])
    def test_of_an_unknown_code_is_refused(self, machine: APIClient, device_code: str) -> None:
        assert code_of(machine.post(FETCH, {"deviceCode": device_code})) == (400, "DEVICE_CODE_INVALID")

    def test_with_the_code_for_people_is_refused(self, machine: APIClient, asked: dict[str, Any]) -> None:
        assert code_of(machine.post(FETCH, {"deviceCode": asked["userCode"]})) == (400, "DEVICE_CODE_INVALID")

    @pytest.mark.parametrize("change", ["removed", "auditor"])
    def test_is_refused_where_the_approver_may_no_longer(
        self,
        machine: APIClient,
        asked: dict[str, Any],
        acme: Org,
        mia: User,
        page_as: Callable[..., Client],
        change: str,
    ) -> None:
        approve(page_as(mia), asked)
        membership = Membership.objects.filter(user=mia)
        if change == "removed":
            membership.delete()
        else:
            membership.update(role="auditor")

        assert code_of(fetch(machine, asked)) == (400, "DEVICE_CODE_INVALID")
        assert not Host.objects.exists()


@pytest.mark.django_db(transaction=True)
class TestFetchesAtOnce:
    def test_give_one_token(
        self, machine: APIClient, asked: dict[str, Any], acme: Org, ada: User, page_as: Callable[..., Client]
    ) -> None:
        approve(page_as(ada), asked)
        statuses: list[int] = []

        def try_it() -> None:
            statuses.append(APIClient().post(FETCH, {"deviceCode": asked["deviceCode"]}, format="json").status_code)
            connections.close_all()

        fetchers = [threading.Thread(target=try_it) for _ in range(4)]
        for fetcher in fetchers:
            fetcher.start()
        for fetcher in fetchers:
            fetcher.join()

        assert sorted(statuses) == [200, 400, 400, 400]
        assert (Host.objects.count(), ApiToken.objects.count()) == (1, 1)


@pytest.mark.django_db
class TestPage:
    def test_sends_a_stranger_to_sign_in_and_back(self, client: Client, asked: dict[str, Any]) -> None:
        answer = client.get("/device", {"code": asked["userCode"]})

        assert answer.status_code == 302
        assert answer["Location"].startswith("/accounts/login/")
        assert "next=/device%3Fcode%3D" in answer["Location"]

    def test_asks_for_the_code(self, acme: Org, ada: User, page_as: Callable[..., Client]) -> None:
        answer = page_as(ada).get("/device")

        assert answer.status_code == 200
        assert b'name="code"' in answer.content

    def test_shows_who_asks_and_changes_nothing_yet(
        self, asked: dict[str, Any], acme: Org, ada: User, page_as: Callable[..., Client]
    ) -> None:
        answer = page_as(ada).get("/device", {"code": asked["userCode"].lower().replace("-", " ")})

        text = answer.content.decode()
        assert "Let laptop in?" in text
        assert "127.0.0.1" in text
        assert '<option value="acme"' in text
        assert "<script>" not in text
        assert " style=" not in text
        assert DeviceCode.objects.get().state == DeviceCode.State.PENDING

    def test_shows_a_machines_name_as_text(
        self, machine: APIClient, acme: Org, ada: User, page_as: Callable[..., Client]
    ) -> None:
        asked = machine.post(ASK, {"hostName": "<img src=x>"}).json()

        text = page_as(ada).get("/device", {"code": asked["userCode"]}).content.decode()

        assert "<img src=x>" not in text
        assert "&lt;img src=x&gt;" in text

    def test_tells_what_was_done(
        self, asked: dict[str, Any], acme: Org, ada: User, page_as: Callable[..., Client]
    ) -> None:
        page = page_as(ada)

        answer = approve(page, asked)

        assert (answer.status_code, answer["Location"]) == (302, "/device")
        assert "laptop is connected. Return to its terminal." in page.get("/device").content.decode()

    def test_needs_the_token_of_the_page(self, asked: dict[str, Any], acme: Org, ada: User) -> None:
        page = Client(enforce_csrf_checks=True)
        page.force_login(ada)

        assert approve(page, asked).status_code == 403
        assert DeviceCode.objects.get().state == DeviceCode.State.PENDING

    @pytest.mark.parametrize("org", ["evil", "acme", ""])
    def test_offers_no_organization_in_which_the_person_may_not(
        self,
        machine: APIClient,
        asked: dict[str, Any],
        acme: Org,
        otto: User,
        eve: User,
        page_as: Callable[..., Client],
        org: str,
    ) -> None:
        answer = approve(page_as(otto), asked, org)

        assert answer.status_code == 400
        assert code_of(fetch(machine, asked)) == (428, "DEVICE_CODE_PENDING")

    def test_lets_the_person_choose_the_organization(
        self, machine: APIClient, asked: dict[str, Any], acme: Org, ada: User, page_as: Callable[..., Client]
    ) -> None:
        orgs.create_org(name="Beta", slug="beta", owner=ada)

        approve(page_as(ada), asked, "beta")

        assert fetch(machine, asked).json()["org"]["slug"] == "beta"

    def test_answers_a_code_only_once(
        self, machine: APIClient, asked: dict[str, Any], acme: Org, ada: User, mia: User, page_as: Callable[..., Client]
    ) -> None:
        approve(page_as(ada), asked)

        late = page_as(mia).post("/device", {"code": asked["userCode"], "deny": ""})

        assert late.status_code == 400
        assert fetch(machine, asked).json()["user"] == {"email": ada.email}

    def test_does_not_know_an_expired_code(
        self, asked: dict[str, Any], acme: Org, ada: User, page_as: Callable[..., Client]
    ) -> None:
        DeviceCode.objects.update(expires_at=database_now())

        answer = page_as(ada).get("/device", {"code": asked["userCode"]})

        assert answer.status_code == 400
        assert "No machine waits behind this code" in answer.content.decode()

    def test_stops_who_tries_codes(
        self, asked: dict[str, Any], acme: Org, ada: User, mia: User, page_as: Callable[..., Client]
    ) -> None:
        page = page_as(ada)
        for _ in range(device_codes.WRONG_CODES_MAX):
            page.get("/device", {"code": "BBBB-BBBB"})

        shown = page.get("/device", {"code": asked["userCode"]})
        approved = approve(page, asked)

        assert "Too many requests" in shown.content.decode()
        assert (shown.status_code, approved.status_code) == (429, 429)
        assert DeviceCode.objects.get().state == DeviceCode.State.PENDING
        assert page_as(mia).get("/device", {"code": asked["userCode"]}).status_code == 200
