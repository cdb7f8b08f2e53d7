"""What takes two operators: exporting a key, and another default address."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.core import mail
from django.core.management import CommandError, call_command
from django.test import Client

from integrations.keys import break_glass, default_address, platform, services
from integrations.keys.break_glass import RequestOver, SecondOperatorNeeded
from integrations.models import BreakGlass, DefaultAddress, Integration, PlatformKey
from integrations.vault.errors import CredentialUnreadable
from rensei.audit.models import AuditEvent
from rensei.core.clock import database_now
from rensei.core.errors import FieldError
from rensei.core.later import later
from rensei.core.secret import Secret
from rensei.orgs.models import Org, User

pytestmark = pytest.mark.django_db
PAGE = "/admin/integrations/breakglass/"
WHY = "The provider asks for the key <for an investigation>"
OTHER = "https://other.example"


@pytest.fixture(autouse=True)
def _two_operators(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings.RENSEI_SINGLE_OPERATOR = False
    monkeypatch.setattr(later, "do", lambda work, what: work())
    default_address.forget()
    yield
    default_address.forget()


@pytest.fixture
def hugo(make_user: Callable[..., User]) -> User:
    return make_user("hugo@platform.test", is_staff=True, is_superuser=True)


@pytest.fixture
def admin(grace: User, page_as: Callable[[User], Client]) -> Client:
    return page_as(grace)


@pytest.fixture
def second(hugo: User, page_as: Callable[[User], Client]) -> Client:
    return page_as(hugo)


@pytest.fixture
def asked(grace: User, connected: Integration) -> BreakGlass:
    return break_glass.ask("export", target=connected.pk, reason=WHY, operator=grace)


def export(request: BreakGlass) -> str:
    said = StringIO()
    call_command("vault", "export-key", request.pk, stdout=said)
    return said.getvalue().strip()


class TestExport:
    def test_needs_two_operators_and_works_once(
        self, admin: Client, second: Client, connect: Callable[..., Integration], key: str, ada: User, hugo: User
    ) -> None:
        integration = connect(api_key=Secret(key))
        answer = admin.post(f"{PAGE}ask/export/", {"target": integration.pk, "reason": WHY})
        assert answer.status_code == 302
        row = BreakGlass.objects.get()
        assert [message.to for message in mail.outbox] == [[hugo.email]]
        with pytest.raises(CommandError, match="waiting for its approval"):
            export(row)

        assert "&lt;for an investigation&gt;" in second.get(f"{PAGE}{row.pk}/approve/").content.decode()
        assert second.post(f"{PAGE}{row.pk}/approve/").status_code == 302
        assert export(row) == key
        with pytest.raises(CommandError, match="it is used"):
            export(row)

        told = [message for message in mail.outbox if message.to == [ada.email]]
        assert len(told) == 2
        assert WHY in str(told[0].body)
        actions = AuditEvent.objects.filter(action__startswith="break_glass").order_by("id")
        assert list(actions.values_list("action", "org_id")) == [
            (f"break_glass.{step}", integration.org_id) for step in ("asked", "approved", "used")
        ]
        pages = second.get(PAGE).content.decode() + admin.get("/admin/").content.decode()
        mails = "".join(f"{message.subject}{message.body}" for message in mail.outbox)
        stored = f"{list(AuditEvent.objects.values_list('detail'))}{vars(row)}"
        assert key not in pages + mails + stored

    def test_is_offered_to_others_only(self, admin: Client, second: Client, asked: BreakGlass) -> None:
        address = f"{PAGE}{asked.pk}/approve/"

        own = admin.get(address)

        assert own.status_code == 403
        assert "You asked for this yourself." in own.content.decode()
        assert 'value="Approve"' not in own.content.decode()
        assert 'value="Approve"' in second.get(address).content.decode()
        for page in (PAGE, "/admin/"):
            assert address not in admin.get(page).content.decode()
            assert address in second.get(page).content.decode()
        assert "Waits for another operator" in admin.get("/admin/").content.decode()

    def test_names_the_key(self, second: Client, asked: BreakGlass, connected: Integration, acme: Org) -> None:
        named = f"{connected.name} of {acme.name}, {connected.key_hint}"

        assert named in second.get(PAGE).content.decode()
        assert named in second.get(f"{PAGE}{asked.pk}/approve/").content.decode()
        connected.delete()
        assert "a key that was removed" in second.get(PAGE).content.decode()

    def test_is_refused_to_the_one_who_asked(self, admin: Client, asked: BreakGlass, grace: User) -> None:
        answer = admin.post(f"{PAGE}{asked.pk}/approve/")

        assert answer.status_code == 403
        assert "RENSEI_SINGLE_OPERATOR=true" in answer.content.decode()
        with pytest.raises(SecondOperatorNeeded):
            break_glass.approve(asked, operator=grace)
        asked.refresh_from_db()
        assert asked.approved_at is None

    def test_is_approved_alone_where_the_setting_says_so(
        self, admin: Client, asked: BreakGlass, settings: Any, key: str
    ) -> None:
        assert "One operator approves alone" not in admin.get("/admin/").content.decode()
        settings.RENSEI_SINGLE_OPERATOR = True

        assert admin.post(f"{PAGE}{asked.pk}/approve/").status_code == 302

        assert export(asked)
        assert AuditEvent.objects.get(action="break_glass.approved").detail["what"]["single"] is True
        assert "One operator approves alone" in admin.get("/admin/").content.decode()

    @pytest.mark.parametrize(
        ("changes", "state"),
        [
            ({"asked_at": timedelta(hours=25)}, "it was not approved in time"),
            ({"withdrawn_at": timedelta()}, "withdrawn"),
            ({"approved_at": timedelta()}, "approved"),
        ],
    )
    def test_is_not_approved_when_it_is_over(
        self, asked: BreakGlass, hugo: User, changes: dict[str, timedelta], state: str
    ) -> None:
        now = database_now()
        BreakGlass.objects.update(**{name: now - age for name, age in changes.items()})

        with pytest.raises(RequestOver, match=state):
            break_glass.approve(asked, operator=hugo)

    def test_is_over_an_hour_after_its_approval(self, asked: BreakGlass, hugo: User) -> None:
        break_glass.approve(asked, operator=hugo)
        BreakGlass.objects.update(approved_at=database_now() - timedelta(minutes=61))

        with pytest.raises(CommandError, match="not used in time"):
            export(asked)

    def test_is_withdrawn_also_after_its_approval(self, asked: BreakGlass, hugo: User, admin: Client) -> None:
        break_glass.approve(asked, operator=hugo)

        assert admin.post(f"{PAGE}{asked.pk}/withdraw/").status_code == 302

        with pytest.raises(CommandError, match="withdrawn"):
            export(asked)
        assert admin.post(f"{PAGE}{asked.pk}/withdraw/").status_code == 409

    def test_is_not_spent_while_the_vault_is_shut(self, asked: BreakGlass, hugo: User, settings: Any) -> None:
        break_glass.approve(asked, operator=hugo)
        path = settings.RENSEI_VAULT_KEYRING
        ring = path.read_text()
        path.write_text("{}")
        from integrations.vault import data_keys

        data_keys.unwrapped.clear()
        with pytest.raises(CommandError, match="damaged"):
            export(asked)
        path.write_text(ring)

        assert export(asked)

    def test_of_a_pools_key_tells_the_operators(self, grace: User, hugo: User, make_key: Callable[..., str]) -> None:
        key = make_key()
        row = platform.add_platform_key(actor=None, provider="claude", pool="metered", name="x", api_key=Secret(key))
        request = break_glass.ask("export", target=row.pk, reason=WHY, operator=grace)
        break_glass.approve(request, operator=hugo)

        assert export(request) == key
        assert {message.to[0] for message in mail.outbox} == {grace.email, hugo.email}
        assert PlatformKey.objects.get()

    @pytest.mark.parametrize(
        ("kind", "target", "reason"),
        [
            ("export", "int_none", WHY),
            ("export", "", WHY),
            ("other", "x", WHY),
            ("address", "ftp://x", WHY),
            ("address", "http://other.example", WHY),
            ("address", "https://u:p@other.example", WHY),
            ("address", OTHER, " "),
            ("address", OTHER, "x" * 501),
        ],
    )
    def test_is_asked_for_in_the_right_form(self, admin: Client, kind: str, target: str, reason: str) -> None:
        answer = admin.post(f"{PAGE}ask/{kind}/", {"target": target, "reason": reason})

        assert answer.status_code == 400
        assert not BreakGlass.objects.exists()

    def test_of_what_is_not_there_is_not_found(self, admin: Client) -> None:
        assert admin.get(f"{PAGE}glass_none/approve/").status_code == 404
        with pytest.raises(CommandError):
            call_command("vault", "export-key", "glass_none", stdout=StringIO())


class TestDefaultAddress:
    @pytest.fixture
    def opened(self, connected: Integration) -> Callable[[], str]:
        def open_() -> str:
            return services.open_integration(Integration.objects.select_related("org").get(pk=connected.pk)).base_url

        return open_

    def test_is_that_of_the_first_use(self, opened: Callable[[], str], settings: Any) -> None:
        assert opened() == settings.RENSEI_ANTHROPIC_BASE_URL == DefaultAddress.objects.get().base_url

    def test_is_changed_by_two_operators(
        self, opened: Callable[[], str], settings: Any, grace: User, hugo: User, ada: User, admin: Client
    ) -> None:
        opened()
        settings.RENSEI_ANTHROPIC_BASE_URL = OTHER
        with pytest.raises(CredentialUnreadable) as caught:
            opened()
        assert "approves the new address" in str(caught.value.fix)
        assert not caught.value.retryable
        for page in ("/admin/", PAGE):
            assert OTHER in admin.get(page).content.decode()

        request = break_glass.ask("address", target=OTHER, reason=WHY, operator=grace)
        with pytest.raises(CredentialUnreadable):
            opened()
        break_glass.approve(request, operator=hugo)

        assert opened() == OTHER
        assert DefaultAddress.objects.get().base_url == OTHER
        assert [ada.email] in [message.to for message in mail.outbox]
        with pytest.raises(RequestOver):
            break_glass.withdraw(request, operator=grace)
        assert "not approved" not in admin.get("/admin/").content.decode()

    def test_holds_for_pools_and_unsaved_keys_too(self, opened: Any, settings: Any, make_key: Any) -> None:
        opened()
        row = platform.add_platform_key(
            actor=None, provider="claude", pool="metered", name="x", api_key=Secret(make_key())
        )
        settings.RENSEI_ANTHROPIC_BASE_URL = OTHER

        with pytest.raises(CredentialUnreadable):
            platform.open_platform_key(row)

    def test_does_not_concern_keys_with_an_address_of_their_own(
        self, opened: Any, connected: Integration, settings: Any
    ) -> None:
        opened()
        settings.RENSEI_ANTHROPIC_BASE_URL = OTHER
        connected.base_url = "https://own.example"

        from integrations.keys import credentials

        assert credentials.credential(connected, Secret("x")).base_url == "https://own.example"

    def test_is_accepted_with_an_event_where_there_is_one_operator(self, opened: Any, settings: Any) -> None:
        before = opened()
        settings.RENSEI_ANTHROPIC_BASE_URL = OTHER
        settings.RENSEI_SINGLE_OPERATOR = True

        assert opened() == OTHER

        event = AuditEvent.objects.get(action=default_address.CHANGED)
        assert event.detail == {"before": before, "after": OTHER}

    def test_is_not_asked_of_the_database_again(
        self, opened: Any, connected: Integration, django_assert_num_queries: Any
    ) -> None:
        opened()
        with django_assert_num_queries(0):
            default_address.require_approved("claude")

    def test_of_a_simulated_installation_is_free(self, opened: Any, settings: Any) -> None:
        opened()
        settings.RENSEI_ANTHROPIC_BASE_URL, settings.RENSEI_SIMULATED = OTHER, True

        assert opened() == OTHER


class TestAccess:
    def test_is_for_operators_who_may(
        self, make_user: Callable[..., User], page_as: Callable[[User], Client], asked: BreakGlass, acme: Org
    ) -> None:
        reader = make_user("reader@platform.test", is_staff=True)
        reader.user_permissions.add(Permission.objects.get(codename="view_breakglass"))
        client = page_as(reader)

        assert "Approve…" not in client.get(PAGE).content.decode()
        for page in (f"{PAGE}ask/export/", f"{PAGE}{asked.pk}/approve/", f"{PAGE}{asked.pk}/withdraw/"):
            assert client.get(page).status_code == client.post(page).status_code == 403
        assert page_as(make_user("nobody@platform.test", is_staff=True)).get(PAGE).status_code == 403

    def test_a_form_that_is_refused_keeps_what_was_typed(self, admin: Client) -> None:
        page = admin.post(f"{PAGE}ask/export/", {"target": "int_none", "reason": WHY}).content.decode()

        assert "int_none" in page
        assert "There is no integration" in page
        with pytest.raises(FieldError):
            break_glass._find("int_none")
