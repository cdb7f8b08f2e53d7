import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from threading import Barrier, Thread
from typing import Any

import pytest
from django.db import connection, transaction

from integrations.keys import services
from integrations.models import Integration
from integrations.outbound.http import BaseUrlRefused
from integrations.providers.base import ADAPTERS, KeyKindRefused, Verdict
from integrations.vault.errors import CredentialUnreadable
from profiles.models import ModelProfile
from rensei.audit.models import AuditEvent
from rensei.core.errors import AlreadyExists, FieldError, InUse, NotFound, NotPermitted, RenseiError
from rensei.core.secret import Secret
from rensei.orgs.access import Access
from rensei.orgs.models import Org, User

# An address by number: these tests have no name service.
GATEWAY = "https://93.184.215.14/anthropic"


@pytest.fixture
def key(make_key: Callable[..., str]) -> Secret:
    return Secret(make_key())


@pytest.fixture
def connect(access: Access, make_key: Callable[..., str]) -> Callable[..., Integration]:
    """Connect a provider with a fresh key."""

    def add(**fields: Any) -> Integration:
        fields.setdefault("api_key", Secret(make_key()))
        return services.add_integration(access, provider="claude", **fields)

    return add


def opened(integration: Integration) -> str:
    return services.open_integration(Integration.objects.get(pk=integration.pk)).secret.reveal()


def actions() -> list[str]:
    return list(AuditEvent.objects.filter(action__startswith="integration").values_list("action", flat=True))


class TestAddIntegration:
    def test_seals_the_key_and_shows_its_ends(self, access: Access, key: Secret) -> None:
        integration = services.add_integration(access, provider="claude", api_key=key, workspace_id="wrkspc_1")

        stored = Integration.objects.get()
        assert opened(stored) == key.reveal()
        assert stored.key_hint == f"sk-ant-api{3:02d}-…{key.reveal()[-4:]}"
        assert key.reveal().encode() not in bytes(stored.sealed_key)
        assert (stored.name, stored.status, stored.workspace_id) == ("Anthropic Claude", "untested", "wrkspc_1")
        assert stored.created_by == access.user
        assert integration.pk == stored.pk

    def test_strips_what_a_paste_brings_along(self, access: Access, key: Secret) -> None:
        integration = services.add_integration(access, provider="claude", api_key=Secret(f" \t{key.reveal()}\r\n"))

        assert opened(integration) == key.reveal()

    def test_makes_the_first_one_the_default_and_no_other(self, connect: Callable[..., Integration]) -> None:
        first, second = connect(is_default=False), connect()

        assert first.is_default
        assert not second.is_default
        assert second.name == "Anthropic Claude 2"

    def test_takes_the_default_over_when_asked(self, connect: Callable[..., Integration]) -> None:
        connect()
        second = connect(is_default=True)

        assert list(Integration.objects.filter(is_default=True)) == [second]

    def test_keeps_the_verdict_of_a_test_made_just_before(self, connect: Callable[..., Integration]) -> None:
        models = [{"id": "claude-x", "displayName": "X"}]
        integration = connect(verdict=Verdict(ok=True, code="OK", message="Good.", fix="", models=models))

        assert (integration.status, integration.model_list) == ("ok", models)
        assert integration.tested_at is not None

    def test_refuses_a_key_that_is_connected_already_and_names_it(
        self, connect: Callable[..., Integration], key: Secret
    ) -> None:
        first = connect(api_key=key, name="Production")

        with pytest.raises(AlreadyExists, match=f"'Production' \\({first.id}\\)"):
            connect(api_key=key, name="Another")
        assert Integration.objects.count() == 1

    def test_tells_nothing_of_a_key_in_another_organization(
        self, connect: Callable[..., Integration], key: Secret, eve: User, access_of: Callable[..., Access]
    ) -> None:
        connect(api_key=key)

        theirs = services.add_integration(access_of(eve, "evil"), provider="claude", api_key=key)

        assert theirs.fingerprint != Integration.objects.exclude(pk=theirs.pk).get().fingerprint

    def test_refuses_a_name_that_is_taken(self, connect: Callable[..., Integration]) -> None:
        connect(name="Production")

        with pytest.raises(AlreadyExists, match="Production"):
            connect(name="Production")

    @pytest.mark.parametrize(
        ("paste", "reason"),
        [
            ("", "empty"),
            ("   \n", "empty"),
            ("sk-ant-api03-…abcd", "shortened"),
            ("sk-ant-api03-...abcd", "shortened"),
            ("************************abcd", "shortened"),
            ("too-short", "20 to 512"),
            ("a" * 513, "20 to 512"),
            ("a" * 100_000, "20 to 512"),
            (f"{'a' * 20}\n{'b' * 20}", "20 to 512"),
            (f"{'a' * 20}\0{'b' * 20}", "20 to 512"),
            (f"{'a' * 20} {'b' * 20}", "20 to 512"),
            (f"{'a' * 20}é{'b' * 20}", "20 to 512"),
            ("a" * 40, "look like"),
        ],
    )
    def test_refuses_what_is_no_key(self, access: Access, paste: str, reason: str) -> None:
        with pytest.raises(FieldError, match=reason) as caught:
            services.add_integration(access, provider="claude", api_key=Secret(paste))

        assert caught.value.errors[0]["pointer"] == "/apiKey"
        assert not Integration.objects.exists()

    @pytest.mark.parametrize("kind", ["admin01", "oat01", "ort01"])
    def test_refuses_keys_of_another_kind_without_repeating_them(self, access: Access, kind: str) -> None:
        text = secrets.token_hex(40)

        with pytest.raises(KeyKindRefused) as caught:
            services.add_integration(access, provider="claude", api_key=Secret(f"sk-ant-{kind}-{text}"))

        assert text not in str(caught.value)
        assert not Integration.objects.exists()

    @pytest.mark.parametrize(
        "url",
        [
            "http://gateway.example",
            "https://127.0.0.1",
            "https://localhost:8443",
            "https://169.254.169.254/latest",
            "https://[::1]",
            "https://user:pass@gateway.example",
            "file:///etc/passwd",
            "https://2130706433",
        ],
    )
    def test_refuses_to_send_a_key_inside(self, access: Access, key: Secret, url: str) -> None:
        with pytest.raises(BaseUrlRefused):
            services.add_integration(access, provider="claude", api_key=key, base_url=url)
        with pytest.raises(BaseUrlRefused):
            services.check_connection(access, provider="claude", api_key=key, base_url=url)

        assert not Integration.objects.exists()

    @pytest.mark.parametrize(
        ("fields", "pointer"),
        [
            ({"provider": "nobody"}, "/provider"),
            ({"workspace_id": "a b"}, "/workspaceId"),
            ({"workspace_id": "x\r\nX-Evil: 1"}, "/workspaceId"),
            ({"name": "line\nbreak"}, "/name"),
            ({"name": "x" * 121}, "/name"),
        ],
    )
    def test_names_the_field_that_is_wrong(
        self, access: Access, key: Secret, fields: dict[str, str], pointer: str
    ) -> None:
        with pytest.raises(FieldError) as caught:
            services.add_integration(access, **{"provider": "claude", "api_key": key, **fields})

        assert caught.value.errors[0]["pointer"] == pointer

    @pytest.mark.parametrize("person", ["mia", "otto"])
    def test_is_for_owners_and_admins(
        self, person: str, request: Any, access_of: Callable[..., Access], key: Secret
    ) -> None:
        with pytest.raises(NotPermitted):
            services.add_integration(access_of(request.getfixturevalue(person)), provider="claude", api_key=key)

    def test_saves_nothing_while_the_vault_cannot_seal(self, access: Access, key: Secret, settings: Any) -> None:
        settings.RENSEI_VAULT_KEYRING.unlink()

        with pytest.raises(CredentialUnreadable):
            services.add_integration(access, provider="claude", api_key=key)

        assert not Integration.objects.exists()

    def test_writes_down_who_did_it_without_the_key(self, access: Access, key: Secret) -> None:
        integration = services.add_integration(access, provider="claude", api_key=key)

        event = AuditEvent.objects.get(action="integration.added")
        assert (event.actor, event.object_id) == (access.user.email, integration.id)
        assert key.reveal() not in str(event.detail)

    @pytest.mark.django_db(transaction=True)
    def test_keeps_one_default_however_many_come_first_at_once(
        self, access: Access, make_key: Callable[..., str]
    ) -> None:
        start, failures = Barrier(6), []

        def add() -> None:
            try:
                start.wait()
                services.add_integration(access, provider="claude", api_key=Secret(make_key()))
            except Exception as failure:  # noqa: BLE001 - told below
                failures.append(failure)
            finally:
                connection.close()

        threads = [Thread(target=add) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert failures == []
        assert Integration.objects.count() == 6
        assert Integration.objects.filter(is_default=True).count() == 1


class TestUpdateIntegration:
    def test_changes_what_is_given_and_nothing_else(
        self, access: Access, connect: Callable[..., Integration], key: Secret
    ) -> None:
        integration = connect(api_key=key, verdict=Verdict(ok=True, code="OK", message="", fix=""))

        services.update_integration(access, integration, name="Renamed")

        stored = Integration.objects.get()
        assert (stored.name, stored.status, stored.secret_version) == ("Renamed", "ok", 1)
        assert opened(stored) == key.reveal()

    def test_needs_the_key_again_for_another_address(self, access: Access, connect: Callable[..., Integration]) -> None:
        integration = connect()

        with pytest.raises(FieldError, match="needs the key again"):
            services.update_integration(access, integration, base_url=GATEWAY)

        assert Integration.objects.get().base_url == ""

    def test_moves_a_key_together_with_its_address(
        self, access: Access, connect: Callable[..., Integration], key: Secret
    ) -> None:
        integration = connect(verdict=Verdict(ok=True, code="OK", message="", fix=""))

        services.update_integration(access, integration, base_url=GATEWAY, api_key=key)

        stored = Integration.objects.get()
        credential = services.open_integration(stored)
        assert (credential.secret.reveal(), credential.base_url, credential.version) == (key.reveal(), GATEWAY, 2)
        assert stored.status == "untested"

    def test_cannot_be_moved_by_changing_the_row(self, connect: Callable[..., Integration]) -> None:
        integration = connect()
        Integration.objects.update(base_url="https://attacker.example")

        with pytest.raises(CredentialUnreadable):
            opened(integration)

    def test_sends_a_new_key_for_the_same_address_to_rotation(
        self, access: Access, connect: Callable[..., Integration], key: Secret
    ) -> None:
        integration = connect()

        with pytest.raises(FieldError, match="rotate"):
            services.update_integration(access, integration, api_key=key)

    def test_changes_the_default(self, access: Access, connect: Callable[..., Integration]) -> None:
        connect()
        second = connect()

        services.update_integration(access, second, is_default=True)

        assert list(Integration.objects.filter(is_default=True)) == [second]

    def test_leaves_no_provider_without_a_default(self, access: Access, connect: Callable[..., Integration]) -> None:
        integration = connect()

        with pytest.raises(FieldError, match="One must be the default"):
            services.update_integration(access, integration, is_default=False)

    def test_does_not_take_the_default_back_by_an_old_copy(
        self, access: Access, connect: Callable[..., Integration]
    ) -> None:
        old_copy = connect()
        connect(is_default=True)

        services.update_integration(access, old_copy, name="Renamed")

        assert Integration.objects.get(is_default=True).pk != old_copy.pk

    def test_forgets_the_test_when_the_workspace_changes(
        self, access: Access, connect: Callable[..., Integration]
    ) -> None:
        integration = connect(verdict=Verdict(ok=True, code="OK", message="", fix=""))

        services.update_integration(access, integration, workspace_id="wrkspc_2")

        stored = Integration.objects.get()
        assert (stored.workspace_id, stored.status) == ("wrkspc_2", "untested")

    def test_hides_another_organizations(
        self, connect: Callable[..., Integration], eve: User, access_of: Callable[..., Access]
    ) -> None:
        integration = connect()
        theirs = access_of(eve, "evil")

        for act in (
            lambda: services.update_integration(theirs, integration, name="Mine"),
            lambda: services.rotate_integration(theirs, integration, api_key=Secret("x")),
            lambda: services.remove_integration(theirs, integration),
            lambda: services.check_integration(theirs, integration),
        ):
            with pytest.raises(NotFound):
                act()


@pytest.mark.usefixtures("simulator")
class TestRotateIntegration:
    def test_replaces_the_key_after_a_good_test(
        self, access: Access, connect: Callable[..., Integration], key: Secret
    ) -> None:
        integration = connect()
        before = integration.fingerprint

        services.rotate_integration(access, integration, api_key=key)

        stored = Integration.objects.get()
        assert opened(stored) == key.reveal()
        assert (stored.secret_version, stored.status) == (2, "ok")
        assert stored.fingerprint != before
        assert actions() == ["integration.added", "integration.rotated"]

    def test_keeps_the_old_key_when_the_new_one_fails(
        self, access: Access, connect: Callable[..., Integration], key: Secret, make_key: Callable[..., str]
    ) -> None:
        integration = connect(api_key=key)

        with pytest.raises(services.KeyNotAccepted) as caught:
            services.rotate_integration(access, integration, api_key=Secret(make_key("revoked-")))

        assert caught.value.errors[0]["pointer"] == "/apiKey"
        assert opened(integration) == key.reveal()
        assert Integration.objects.get().secret_version == 1

    def test_stores_it_untested_by_force(
        self, access: Access, connect: Callable[..., Integration], make_key: Callable[..., str], simulator: Any
    ) -> None:
        integration = connect()
        revoked = make_key("revoked-")

        services.rotate_integration(access, integration, api_key=Secret(revoked), force=True)

        assert opened(integration) == revoked
        assert Integration.objects.get().status == "untested"
        assert simulator.requests() == []

    def test_refuses_the_key_of_another_integration(
        self, access: Access, connect: Callable[..., Integration], key: Secret
    ) -> None:
        connect(api_key=key)
        second = connect()

        with pytest.raises(AlreadyExists):
            services.rotate_integration(access, second, api_key=key, force=True)

    def test_lets_the_first_of_two_at_once_stand(
        self, access: Access, connect: Callable[..., Integration], make_key: Callable[..., str]
    ) -> None:
        integration = connect()
        stale = Integration.objects.get(pk=integration.pk)
        first = make_key()
        services.rotate_integration(access, integration, api_key=Secret(first))

        with pytest.raises(services.ChangedMeanwhile):
            services.rotate_integration(access, stale, api_key=Secret(make_key()))

        assert opened(integration) == first


class TestRemoveIntegration:
    def test_promotes_the_oldest_other_to_default(self, access: Access, connect: Callable[..., Integration]) -> None:
        first, second, _ = connect(), connect(), connect()

        services.remove_integration(access, first)

        assert list(Integration.objects.filter(is_default=True)) == [second]
        assert actions()[-1] == "integration.removed"

    def test_names_the_profiles_that_hold_it(
        self, access: Access, acme: Org, connect: Callable[..., Integration]
    ) -> None:
        integration = connect(name="Production")
        for name in ("prof_writer", "prof_coder"):
            ModelProfile.objects.create(
                org=acme,
                public_id=name,
                name=name,
                provider="claude",
                model_id="x",
                auth_modes=["byok"],
                integration=integration,
            )

        with pytest.raises(InUse, match=r"'Production' is used by prof_coder, prof_writer") as caught:
            services.remove_integration(access, integration)

        assert (caught.value.code, caught.value.status) == ("IN_USE", 409)
        assert Integration.objects.exists()
        assert "integration.removed" not in actions()

    def test_can_be_done_once(self, access: Access, connect: Callable[..., Integration]) -> None:
        integration = connect()
        again = Integration.objects.get()
        services.remove_integration(access, integration)

        with pytest.raises(NotFound):
            services.remove_integration(access, again)


class TestCheckConnection:
    def test_tries_a_key_and_stores_nothing(self, access: Access, key: Secret, simulator: Any) -> None:
        verdict = services.check_connection(access, provider="claude", api_key=key)

        assert verdict.ok
        assert {"id", "displayName"} == set(verdict.models[0])
        assert [request["path"] for request in simulator.requests()] == ["/v1/models"]
        assert not Integration.objects.exists()
        assert not AuditEvent.objects.filter(action__startswith="integration").exists()

    def test_says_what_is_wrong(self, access: Access, make_key: Callable[..., str], simulator: Any) -> None:
        verdict = services.check_connection(access, provider="claude", api_key=Secret(make_key("revoked-")))

        assert not verdict.ok
        assert verdict.message
        assert verdict.fix

    def test_is_for_owners_and_admins(self, mia: User, access_of: Callable[..., Access], key: Secret) -> None:
        with pytest.raises(NotPermitted):
            services.check_connection(access_of(mia), provider="claude", api_key=key)


@pytest.mark.usefixtures("simulator")
class TestCheckIntegration:
    def test_stores_a_good_verdict_with_the_models(self, access: Access, connect: Callable[..., Integration]) -> None:
        integration = connect()

        verdict = services.check_integration(access, integration)

        stored = Integration.objects.get()
        assert verdict.ok
        assert (stored.status, stored.last_error, stored.model_list) == ("ok", None, verdict.models)
        assert stored.tested_at is not None
        assert actions() == ["integration.added", "integration.tested"]

    def test_stores_what_is_wrong(
        self, access: Access, connect: Callable[..., Integration], make_key: Callable[..., str]
    ) -> None:
        integration = connect(api_key=Secret(make_key("revoked-")))

        verdict = services.check_integration(access, integration)

        stored = Integration.objects.get()
        assert stored.status == "failing"
        assert stored.last_error == {"code": verdict.code, "detail": verdict.message, "fix": verdict.fix}

    def test_does_not_blame_the_key_for_a_busy_provider(
        self, access: Access, connect: Callable[..., Integration], make_key: Callable[..., str]
    ) -> None:
        integration = connect(api_key=Secret(make_key("overloaded-")))

        services.check_integration(access, integration)

        stored = Integration.objects.get()
        assert stored.status == "untested"
        assert stored.last_error is not None

    def test_overwrites_nothing_that_changed_meanwhile(
        self, access: Access, connect: Callable[..., Integration], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        integration = connect(name="Before")
        real = ADAPTERS["claude"].test_connection

        def rename_meanwhile(**options: Any) -> Verdict:
            Integration.objects.update(name="After")
            return real(**options)

        monkeypatch.setattr(ADAPTERS["claude"], "test_connection", rename_meanwhile)
        services.check_integration(access, integration)

        stored = Integration.objects.get()
        assert (stored.name, stored.status) == ("After", "ok")

    def test_does_not_judge_a_key_that_was_replaced_meanwhile(
        self, access: Access, connect: Callable[..., Integration], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        integration = connect()
        real = ADAPTERS["claude"].test_connection

        def rotate_meanwhile(**options: Any) -> Verdict:
            Integration.objects.update(secret_version=2)
            return real(**options)

        monkeypatch.setattr(ADAPTERS["claude"], "test_connection", rotate_meanwhile)
        services.check_integration(access, integration)

        assert Integration.objects.get().status == "untested"


class TestNetwork:
    @pytest.mark.django_db(transaction=True)
    def test_is_never_used_inside_a_transaction(
        self, access: Access, connect: Callable[..., Integration], key: Secret, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []

        def look(**options: Any) -> Verdict:
            seen.append(connection.in_atomic_block)
            return Verdict(ok=True, code="OK", message="", fix="")

        monkeypatch.setattr(ADAPTERS["claude"], "test_connection", look)
        integration = connect()
        services.check_integration(access, integration)
        services.check_connection(access, provider="claude", api_key=key)
        services.rotate_integration(access, integration, api_key=key)

        assert seen == [False, False, False]

    @pytest.mark.django_db(transaction=True)
    def test_refuses_a_caller_that_has_a_transaction_open(self, access: Access, key: Secret) -> None:
        with transaction.atomic(), pytest.raises(RuntimeError, match="durable"):
            services.add_integration(access, provider="claude", api_key=key)


def default_of(org: Org, provider: str) -> Integration | None:
    return Integration.objects.for_org(org).filter(provider=provider, is_default=True).first()


class TestDefaultIntegration:
    def test_finds_the_default_of_that_organization_and_provider(
        self, acme: Org, connect: Callable[..., Integration]
    ) -> None:
        connect()
        second = connect(is_default=True)

        assert default_of(acme, "claude") == second
        assert default_of(acme, "toy") is None

    def test_finds_none_of_another_organization(self, connect: Callable[..., Integration], eve: User) -> None:
        connect()

        assert default_of(Org.objects.get(slug="evil"), "claude") is None


class TestOpenIntegration:
    def test_goes_to_the_address_that_the_operator_set(
        self, connect: Callable[..., Integration], settings: Any
    ) -> None:
        integration = connect()
        settings.RENSEI_ANTHROPIC_BASE_URL = "https://elsewhere.example"

        credential = services.open_integration(integration)

        assert (credential.id, credential.base_url) == (integration.id, "https://elsewhere.example")

    def test_prints_nothing_of_the_key(self, connect: Callable[..., Integration], key: Secret) -> None:
        credential = services.open_integration(connect(api_key=key))

        assert key.reveal() not in f"{credential!r} {credential}"

    def test_refuses_the_sealed_bytes_of_another_integration(self, connect: Callable[..., Integration]) -> None:
        first, second = connect(), connect()
        Integration.objects.filter(pk=second.pk).update(sealed_key=first.sealed_key)

        with pytest.raises(RenseiError) as caught:
            opened(second)
        assert caught.value.code == "CREDENTIAL_UNREADABLE"


class TestNoteUsed:
    def test_remembers_to_the_minute(self, connect: Callable[..., Integration]) -> None:
        integration = connect()
        moment = datetime(2026, 1, 1, tzinfo=UTC)

        for seconds in (0, 30, 61):
            services.note_used(integration.id, moment + timedelta(seconds=seconds))
            integration.refresh_from_db()
            expected = moment + timedelta(seconds=61 if seconds == 61 else 0)
            assert integration.last_used_at == expected
