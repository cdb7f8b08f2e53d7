"""The cap of a token in the pages, by REST and with the command's client."""

from collections.abc import Callable
from decimal import Decimal

import pytest
from django.test import Client
from rest_framework.test import APIClient

from rensei.audit.models import AuditEvent
from rensei.orgs.access import Access
from rensei.orgs.models import Org, SpendCap, User
from rensei.tokens.models import ApiToken
from rensei.tokens.services import create_token, update_token

DOLLAR = 10**12


def cap() -> tuple[str, int]:
    row = SpendCap.objects.get()
    return row.scope_id, row.picodollars


class TestPages:
    def test_set_a_cap_with_a_new_token_and_show_what_is_spent_of_it(
        self, acme: Org, ada: User, page_as: Callable[[User], Client]
    ) -> None:
        page = page_as(ada)

        made = page.post("/o/acme/settings/tokens", {"name": "ci", "scopes": ["runs"], "cap": "25.5"})
        SpendCap.objects.update(used=DOLLAR, held=DOLLAR // 2)
        seen = page.get("/o/acme/settings/tokens").content.decode()

        assert made.status_code == 200
        assert cap() == (ApiToken.objects.get().pk, 255 * DOLLAR // 10)
        assert "$1.00 of $25.50, up to $0.50 held" in seen

    def test_change_and_remove_it(
        self, acme: Org, ada_access: Access, ada: User, page_as: Callable[..., Client]
    ) -> None:
        token, _ = create_token(ada_access, name="ci", cap=DOLLAR)
        page, address = page_as(ada), f"/o/acme/settings/tokens/{token.pk}/cap"

        changed = page.post(address, {"cap": "2"})
        is_now = cap()
        page.post(address, {"cap": ""})

        assert (changed.status_code, is_now) == (302, (token.pk, 2 * DOLLAR))
        assert not SpendCap.objects.exists()
        assert ApiToken.objects.get().caps == []
        first, second = AuditEvent.objects.filter(action="token.cap_changed").order_by("pk")
        assert (first.detail["old"], first.detail["new"]) == ({"cap": "1.000000"}, {"cap": "2.000000"})
        assert second.detail["new"] == {"cap": None}

    def test_offer_an_auditor_no_change_of_another_member_s_token(
        self, acme: Org, ada_access: Access, alan: User, otto: User, page_as: Callable[..., Client]
    ) -> None:
        token, _ = create_token(ada_access, name="ci", cap=DOLLAR)
        page, admin = page_as(otto), page_as(alan)
        changes = [f"/o/acme/settings/tokens/{token.pk}/{verb}" for verb in ("cap", "revoke")]

        seen = page.get("/o/acme/settings/tokens").content.decode()

        assert "$0.00 of $1.00" in seen
        assert [change in seen for change in changes] == [False, False]
        assert [page.get(change).status_code for change in changes] == [403, 403]
        assert all(change in admin.get("/o/acme/settings/tokens").content.decode() for change in changes)

    @pytest.mark.parametrize("typed", ["-1", "1000000", "0.0000000000001", "much"])
    def test_refuse_what_is_no_amount(
        self, acme: Org, ada_access: Access, ada: User, page_as: Callable[..., Client], typed: str
    ) -> None:
        token, _ = create_token(ada_access, name="ci", cap=DOLLAR)

        answer = page_as(ada).post(f"/o/acme/settings/tokens/{token.pk}/cap", {"cap": typed})

        assert answer.status_code == 422
        assert cap() == (token.pk, DOLLAR)


class TestRest:
    def test_sets_shows_and_removes_it(self, acme: Org, ada: User, api_as: Callable[..., APIClient]) -> None:
        api = api_as(ada)

        made = api.post("/api/v1/tokens", {"name": "ci", "cap": {"amountUsd": "25.00"}}).json()
        changed = api.patch(f"/api/v1/tokens/{made['id']}", {"cap": {"amountUsd": "0.5"}}).json()
        listed = api.get("/api/v1/tokens").json()["results"]
        removed = api.patch(f"/api/v1/tokens/{made['id']}", {"cap": None}).json()

        assert made["cap"] == {
            "scope": {"type": "token", "id": made["id"]},
            "window": "month",
            "amountUsd": "25.000000",
            "usedUsd": "0.000000",
            "heldUsd": "0.000000",
            "resetsAt": made["cap"]["resetsAt"],
        }
        assert Decimal(changed["cap"]["amountUsd"]) == Decimal("0.5")
        assert [one["cap"] for one in listed if one["id"] == made["id"]] == [changed["cap"]]
        assert removed["cap"] is None

    @pytest.mark.parametrize("amount", [25, "-1", "1e3", "", None, "1.0000000000001"])
    def test_refuses_what_is_no_amount(
        self, acme: Org, ada: User, api_as: Callable[..., APIClient], amount: object
    ) -> None:
        answer = api_as(ada).post("/api/v1/tokens", {"name": "ci", "cap": {"amountUsd": amount}})

        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (400, "/cap/amountUsd")
        assert not ApiToken.objects.filter(name="ci").exists()

    def test_lets_no_token_change_a_cap_that_holds_for_itself(
        self, acme: Org, ada_access: Access, access_of: Callable[..., Access]
    ) -> None:
        first, secret = create_token(ada_access, name="first", cap=DOLLAR)
        api = APIClient(headers={"Authorization": f"Bearer {secret.reveal()}"})
        second = api.post("/api/v1/tokens", {"name": "second"}, format="json").json()
        its = APIClient(headers={"Authorization": f"Bearer {second['token']}"})

        own = api.patch(f"/api/v1/tokens/{first.pk}", {"cap": None}, format="json")
        of_maker = its.patch(f"/api/v1/tokens/{first.pk}", {"cap": {"amountUsd": "9"}}, format="json")
        of_made = api.patch(f"/api/v1/tokens/{second['id']}", {"cap": {"amountUsd": "9"}}, format="json")

        assert (own.status_code, own.json()["code"]) == (403, "NOT_PERMITTED")
        assert of_maker.status_code == 403
        assert of_made.status_code == 200
        assert ApiToken.objects.get(pk=second["id"]).caps == [
            SpendCap.objects.get(scope_id=first.pk).pk,
            SpendCap.objects.get(scope_id=second["id"]).pk,
        ]

    def test_lets_members_change_their_own_only(
        self,
        acme: Org,
        ada_access: Access,
        mia: User,
        access_of: Callable[..., Access],
        api_as: Callable[..., APIClient],
    ) -> None:
        of_ada, _ = create_token(ada_access, name="ada's")
        of_mia, _ = create_token(access_of(mia), name="mia's")
        api = api_as(mia)

        answers = [api.patch(f"/api/v1/tokens/{one.pk}", {"cap": {"amountUsd": "1"}}) for one in (of_ada, of_mia)]
        update_token(ada_access, of_mia, cap=2 * DOLLAR)

        assert [answer.status_code for answer in answers] == [404, 200]
        assert cap() == (of_mia.pk, 2 * DOLLAR)
