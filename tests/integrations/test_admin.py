from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from catalog.models import CatalogEntry
from integrations.keys import platform, rotations, services
from integrations.models import DataKey, Integration, PlatformKey, Rotation
from integrations.vault import keyring
from rensei.audit.models import AuditEvent
from rensei.core.secret import Secret
from rensei.orgs.access import Access
from rensei.orgs.models import Org, User

# A key is tested before it is saved.
pytestmark = pytest.mark.usefixtures("keyring_elsewhere", "simulator")

ADD = "/admin/integrations/platformkey/add/"
LIST = "/admin/integrations/platformkey/"


@pytest.fixture
def admin(grace: User, page_as: Callable[[User], Client]) -> Client:
    return page_as(grace)


@pytest.fixture(autouse=True)
def entry(db: None) -> CatalogEntry:
    return CatalogEntry.objects.get_or_create(
        org=None, provider="claude", model_id="claude-a", defaults={"display_name": "Claude A"}
    )[0]


def form(**fields: Any) -> dict[str, Any]:
    return {"provider": "claude", "pool": "metered", "name": "one", "weight": "1", "active": "on", **fields}


class TestPlatformKey:
    def test_is_added_by_an_operator(self, admin: Client, grace: User, make_key: Callable[..., str]) -> None:
        text = make_key()

        answer = admin.post(ADD, form(api_key=f" {text}\n"), follow=True)

        key = PlatformKey.objects.get()
        assert platform.open_platform_key(key).secret.reveal() == text
        assert text not in answer.content.decode()
        assert key.key_hint in answer.content.decode()
        assert AuditEvent.objects.get(action="platform_key.added").user_id == grace.pk

    def test_is_never_shown(self, admin: Client, make_key: Callable[..., str]) -> None:
        text = make_key()
        admin.post(ADD, form(api_key=text))
        key = PlatformKey.objects.get()

        for path in (LIST, f"{LIST}{key.pk}/change/", f"{LIST}{key.pk}/history/", "/admin/"):
            page = admin.get(path)
            assert page.status_code == 200
            assert text not in page.content.decode()
            assert bytes(key.sealed_key).hex() not in page.content.decode()
        assert 'type="password"' in admin.get(f"{LIST}{key.pk}/change/").content.decode()

    @pytest.mark.parametrize(
        ("fields", "sentence"),
        [
            ({}, "Enter the key, or the three ids of a federation"),
            ({"api_key": "short"}, "20 to 512"),
            ({"api_key": "sk-ant-" + "admin01-" + "x" * 60}, "Admin key"),
            ({"pool": "shared", "max_tokens_cap": "100"}, "names the models"),
            ({"pool": "shared", "model_ids": ["claude-a"]}, "caps the tokens"),
            ({"model_ids": ["claude-none"]}, "not one of the available choices"),
        ],
        ids=str,
    )
    def test_refuses_bad_input_on_the_page(
        self, admin: Client, make_key: Callable[..., str], fields: dict[str, Any], sentence: str
    ) -> None:
        text = make_key()
        given = {"api_key": text, **fields} if fields else {}

        page = admin.post(ADD, form(**given))

        assert page.status_code == 200
        assert sentence in page.content.decode()
        assert text not in page.content.decode()
        assert not PlatformKey.objects.exists()

    def test_keeps_its_key_when_the_field_is_left_empty(self, admin: Client, make_key: Callable[..., str]) -> None:
        text = make_key()
        admin.post(ADD, form(api_key=text))
        key = PlatformKey.objects.get()

        admin.post(f"{LIST}{key.pk}/change/", form(api_key="", name="two", active=""))

        stored = PlatformKey.objects.get()
        assert (stored.name, stored.active, stored.secret_version) == ("two", False, 1)
        assert platform.open_platform_key(stored).secret.reveal() == text

    def test_takes_another_key_in_place_of_its_own(self, admin: Client, make_key: Callable[..., str]) -> None:
        admin.post(ADD, form(api_key=make_key()))
        key, text = PlatformKey.objects.get(), make_key()

        admin.post(f"{LIST}{key.pk}/change/", form(api_key=text))

        stored = PlatformKey.objects.get()
        assert platform.open_platform_key(stored).secret.reveal() == text
        assert stored.secret_version == 2

    def test_stays_in_its_pool(self, admin: Client, make_key: Callable[..., str]) -> None:
        admin.post(ADD, form(api_key=make_key()))
        key = PlatformKey.objects.get()

        shared = form(api_key="", pool="shared", model_ids=["claude-a"], max_tokens_cap="5")
        admin.post(f"{LIST}{key.pk}/change/", shared)

        assert PlatformKey.objects.get().pool == "metered"
        assert platform.open_platform_key(PlatformKey.objects.get())

    def test_says_what_the_vault_lacks_and_saves_nothing(
        self, admin: Client, make_key: Callable[..., str], settings: Any
    ) -> None:
        settings.RENSEI_VAULT_KEYRING.unlink()

        page = admin.post(ADD, form(api_key=make_key()), follow=True)

        assert "cannot be read" in page.content.decode()
        assert not PlatformKey.objects.exists()

    def test_refuses_a_taken_name_on_a_change(self, admin: Client, make_key: Callable[..., str]) -> None:
        admin.post(ADD, form(api_key=make_key()))
        admin.post(ADD, form(api_key=make_key(), name="two"))
        key = PlatformKey.objects.get(name="two")

        page = admin.post(f"{LIST}{key.pk}/change/", form(api_key="", name="one"), follow=True)

        assert "already exists" in page.content.decode()
        assert PlatformKey.objects.get(pk=key.pk).name == "two"

    @pytest.mark.parametrize("word", ["revoked-"])
    def test_is_tested_before_it_is_saved(self, admin: Client, make_key: Callable[..., str], word: str) -> None:
        text = make_key(word)
        refused = admin.post(ADD, form(api_key=text))
        before = PlatformKey.objects.count()

        admin.post(ADD, form(api_key=text, force="on"))

        assert refused.status_code == 200
        assert refused.context["adminform"].form.errors["api_key"]
        assert text not in refused.content.decode()
        assert (before, PlatformKey.objects.count()) == (0, 1)

    def test_is_not_tested_for_those_who_may_not_save_it(
        self,
        make_user: Callable[..., User],
        page_as: Callable[[User], Client],
        make_key: Callable[..., str],
        simulator: Any,
    ) -> None:
        page = page_as(make_user("reader@platform.test", name="Reader", is_staff=True))

        assert page.post(ADD, form(api_key=make_key())).status_code == 403
        assert page.post(f"{LIST}1/change/", form(api_key=make_key())).status_code in {302, 403}
        assert simulator.requests() == []

    def test_is_tested_before_it_replaces_another(self, admin: Client, make_key: Callable[..., str]) -> None:
        admin.post(ADD, form(api_key=make_key()))
        key = PlatformKey.objects.get()

        page = admin.post(f"{LIST}{key.pk}/change/", form(api_key=make_key("revoked-")))

        assert page.context["adminform"].form.errors["api_key"]
        assert PlatformKey.objects.get().secret_version == 1

    def test_offers_no_retired_model_but_those_it_names(self, admin: Client, make_key: Callable[..., str]) -> None:
        CatalogEntry.objects.filter(model_id="claude-a").update(retires_on="2020-01-01")
        admin.post(ADD, form(api_key=make_key()))
        key = PlatformKey.objects.get()

        before = admin.get(f"{LIST}{key.pk}/change/").content.decode()
        PlatformKey.objects.update(model_ids=["claude-a"])
        after = admin.get(f"{LIST}{key.pk}/change/").content.decode()

        assert "claude-a (retired)" not in before
        assert "claude-a (retired)" in after

    @pytest.mark.parametrize(("word", "level"), [("", "success"), ("revoked-", "error")])
    def test_is_tested_from_the_list(self, admin: Client, make_key: Callable[..., str], word: str, level: str) -> None:
        admin.post(ADD, form(api_key=make_key(word), force="on"))
        key = PlatformKey.objects.get()

        page = admin.post(LIST, {"action": "test_connection", "_selected_action": [key.pk]}, follow=True)

        *_, message = page.context["messages"]
        assert message.level_tag == level
        assert key.key_hint in message.message
        assert bool(PlatformKey.objects.get().last_error) is (level == "error")

    def test_is_removed_with_a_line_in_the_audit_log(self, admin: Client, make_key: Callable[..., str]) -> None:
        admin.post(ADD, form(api_key=make_key()))
        key = PlatformKey.objects.get()

        admin.post(f"{LIST}{key.pk}/delete/", {"post": "yes"})

        assert not PlatformKey.objects.exists()
        assert AuditEvent.objects.filter(action="platform_key.removed", object_id=key.pk).exists()

    def test_needs_nothing_that_the_content_policy_forbids(self, admin: Client) -> None:
        page = admin.get(ADD)

        policy = page["Content-Security-Policy"]
        assert "unsafe" not in policy
        for forbidden in (" style=", " onclick=", " onchange=", "<style"):
            assert forbidden not in page.content.decode()


class TestReadOnly:
    @pytest.fixture
    def integration(
        self, acme: Org, ada: User, access_of: Callable[..., Access], make_key: Callable[..., str]
    ) -> Integration:
        return services.add_integration(access_of(ada), provider="claude", api_key=Secret(make_key()))

    def test_shows_integrations_without_what_is_sealed(self, admin: Client, integration: Integration) -> None:
        for path in ("", f"{integration.pk}/change/"):
            page = admin.get(f"/admin/integrations/integration/{path}").content.decode()
            assert integration.key_hint in page
            assert integration.fingerprint not in page
            assert "sealed" not in page

    def test_shows_how_far_a_rotation_of_the_outer_key_is(
        self, admin: Client, make_key: Callable[..., str], settings: Any
    ) -> None:
        admin.post(ADD, form(api_key=make_key()))
        old = keyring.load(settings.RENSEI_VAULT_KEYRING).current
        keyring.add_key(settings.RENSEI_VAULT_KEYRING, current=True)

        before = admin.get("/admin/integrations/keycheck/").content.decode()
        rotations.follow(rotations.start(Rotation.Kind.REWRAP, actor="test"))
        after = admin.get("/admin/integrations/keycheck/").content.decode()

        assert old in before
        assert "to re-wrap" in before
        assert "local keyring" in before
        assert "not needed" in after
        assert "current" in after

    @pytest.mark.parametrize("model", ["integration", "datakey", "keycheck"])
    def test_lets_nobody_change_anything(self, admin: Client, integration: Integration, model: str) -> None:
        row = integration.pk if model == "integration" else DataKey.objects.filter(org__isnull=False).get().pk
        base = f"/admin/integrations/{model}/"
        assert admin.get(base).status_code == 200

        if model != "keycheck":
            assert admin.get(f"{base}{row}/change/").status_code == 200
            assert admin.post(f"{base}{row}/change/", {"name": "x"}).status_code == 403
            assert admin.post(f"{base}{row}/delete/", {"post": "yes"}).status_code == 403
        assert admin.get(f"{base}add/").status_code == 403

    def test_is_closed_to_members(self, ada: User, page_as: Callable[[User], Client], acme: Org) -> None:
        assert page_as(ada).get(LIST).status_code == 302
