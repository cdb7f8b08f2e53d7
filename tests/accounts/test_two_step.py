"""Two-step sign-in: set up, asked for at every door, sealed, and required of operators where the setting says so."""

import base64
import json
import re
from functools import partial

import pytest
from allauth.mfa.models import Authenticator
from django.core import mail
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client

from integrations.vault import data_keys, keyring
from rensei.accounts import invitations
from rensei.audit.models import AuditEvent
from rensei.core.later import later
from rensei.orgs.models import Membership, Role
from rensei.tokens import device_codes
from rensei.tokens.models import DeviceCode
from tests.accounts.totp import code_at, code_now

pytestmark = pytest.mark.usefixtures("keyring_elsewhere")

PASSWORD = "correct horse battery"


def sign_in(client, user, *, to="/"):
    return client.post(f"/accounts/login/?next={to}", {"login": user.email, "password": PASSWORD})


def confirm_password(client):
    client.post("/accounts/reauthenticate/?next=/account", {"password": PASSWORD})


def set_up(client):
    """Set up two-step sign-in as a person does, and give back the app's key."""
    confirm_password(client)
    page = client.get("/accounts/2fa/totp/activate/")
    key = page.context["form"].secret
    answer = client.post("/accounts/2fa/totp/activate/", {"code": code_now(key)})
    assert answer.headers["Location"] == "/accounts/2fa/recovery-codes/", answer.content
    return key


def lose_the_key(settings, folder):
    """Put another key in the place of the vault's."""
    settings.RENSEI_VAULT_KEYRING = folder / "another.json"
    keyring.create(settings.RENSEI_VAULT_KEYRING)
    data_keys.unwrapped.clear()


def is_signed_in(client):
    return "_auth_user_id" in client.session


@pytest.fixture
def committed(django_capture_on_commit_callbacks):
    """The library tells of a change when it is committed, which the transaction of a test never is."""
    return partial(django_capture_on_commit_callbacks, execute=True)


@pytest.fixture
def key(acme, ada, page_as):
    """Ada's key, set up in a browser of hers."""
    return set_up(page_as(ada))


class TestSetUp:
    def test_asks_for_the_password_first(self, acme, ada, page_as):
        answer = page_as(ada).get("/accounts/2fa/totp/activate/")

        assert answer.headers["Location"].startswith("/accounts/reauthenticate/")

    def test_shows_the_key_as_a_picture_and_as_text(self, acme, ada, page_as):
        browser = page_as(ada)
        confirm_password(browser)

        page = browser.get("/accounts/2fa/totp/activate/")

        html, key = page.content.decode(), page.context["form"].secret
        assert re.search(r'<img class="qr" src="data:image/svg\+xml;base64,', html)
        assert key in html
        assert page.context["totp_url"].startswith(f"otpauth://totp/ada%40acme.test?secret={key}&issuer=Rensei")

    def test_refuses_a_code_that_is_not_the_apps(self, acme, ada, page_as):
        browser = page_as(ada)
        confirm_password(browser)
        key = browser.get("/accounts/2fa/totp/activate/").context["form"].secret
        wrong = f"{(int(code_now(key)) + 1) % 10**6:06d}"

        answer = browser.post("/accounts/2fa/totp/activate/", {"code": wrong})

        assert "This code is not right." in answer.content.decode()
        assert not Authenticator.objects.exists()

    def test_is_shown_on_the_account_page_and_written_down(self, acme, ada, page_as, committed):
        browser = page_as(ada)

        with committed():
            set_up(browser)

        assert "10 left" in browser.get("/account").content.decode()
        assert set(AuditEvent.objects.filter(user_id=ada.pk).values_list("action", flat=True)) >= {
            "two_step.added",
            "recovery_codes.added",
        }

    def test_ends_the_sessions_that_had_no_second_step(self, acme, ada, page_as, committed):
        here, elsewhere = page_as(ada), page_as(ada)
        elsewhere.get("/account")

        with committed():
            set_up(here)

        assert elsewhere.get("/api/v1/me").status_code == 401
        assert here.get("/api/v1/me").status_code == 200

    def test_keeps_key_and_codes_sealed(self, acme, ada, page_as):
        browser = page_as(ada)
        key = set_up(browser)
        codes = re.findall(r"<code>(\d{8})</code>", browser.get("/accounts/2fa/recovery-codes/").content.decode())

        with connection.cursor() as cursor:
            cursor.execute("SELECT data FROM mfa_authenticator")
            stored = [row[0] if isinstance(row[0], str) else json.dumps(row[0]) for row in cursor.fetchall()]

        assert len(codes) == 10
        assert len(stored) == 2
        for text in stored:
            assert key not in text
            assert not any(code in text for code in codes)
        sealed = Authenticator.objects.get(type="totp").data["secret"]
        assert base64.b64decode(sealed).startswith(b"RNS1")


class TestAStoredSecret:
    """It opens for the person whose row holds it."""

    @pytest.fixture
    def eves(self, key, eve, page_as):
        browser = page_as(eve)
        eves_key = set_up(browser)
        page = browser.get("/accounts/2fa/recovery-codes/").content.decode()
        return eves_key, re.search(r"<code>(\d{8})</code>", page)[1]

    @pytest.mark.parametrize("kind", ["totp", "recovery_codes"])
    def test_does_not_open_in_another_persons_row(self, ada, eve, eves, kind):
        planted = Authenticator.objects.get(user=eve, type=kind).data
        Authenticator.objects.filter(user=ada, type=kind).update(data=planted)
        client = Client(raise_request_exception=False)
        sign_in(client, ada)
        eves_key, eves_recovery_code = eves
        code = code_now(eves_key) if kind == "totp" else eves_recovery_code

        answer = client.post("/accounts/2fa/authenticate/", {"code": code})

        assert answer.status_code == 503
        assert not is_signed_in(client)


class TestSignIn:
    def test_asks_for_a_code_after_the_password(self, key, ada):
        client = Client()

        asked = sign_in(client, ada, to="/o/acme/usage")
        half = is_signed_in(client)
        done = client.post(asked.headers["Location"], {"code": code_now(key)})

        assert asked.headers["Location"] == "/accounts/2fa/authenticate/"
        assert not half
        assert done.headers["Location"] == "/o/acme/usage"
        assert is_signed_in(client)

    def test_takes_a_code_once(self, key, ada):
        first, second, code = Client(), Client(), code_now(key)

        for client in (first, second):
            sign_in(client, ada)
            client.post("/accounts/2fa/authenticate/", {"code": code})

        assert is_signed_in(first)
        assert not is_signed_in(second)

    def test_takes_no_code_of_earlier(self, key, ada):
        client = Client()
        sign_in(client, ada)

        client.post("/accounts/2fa/authenticate/", {"code": code_at(key, 0)})

        assert not is_signed_in(client)

    def test_takes_each_recovery_code_once(self, acme, ada, page_as):
        browser = page_as(ada)
        set_up(browser)
        page = browser.get("/accounts/2fa/recovery-codes/").content.decode()
        code = re.search(r"<code>(\d{8})</code>", page)[1]
        first, second = Client(), Client()

        for client in (first, second):
            sign_in(client, ada)
            client.post("/accounts/2fa/authenticate/", {"code": code})

        assert is_signed_in(first)
        assert not is_signed_in(second)
        assert "9 left" in first.get("/account").content.decode()

    def test_locks_after_several_wrong_codes(self, key, ada):
        client = Client()
        sign_in(client, ada)
        for _ in range(10):
            client.post("/accounts/2fa/authenticate/", {"code": "000000"})

        client.post("/accounts/2fa/authenticate/", {"code": code_now(key)})

        assert not is_signed_in(client)

    def test_says_so_when_the_vault_has_lost_its_key(self, key, ada, settings, tmp_path):
        client = Client(raise_request_exception=False)
        sign_in(client, ada)
        lose_the_key(settings, tmp_path)

        answer = client.post("/accounts/2fa/authenticate/", {"code": code_now(key)})

        assert answer.status_code == 503
        assert "Stored credentials cannot be used now" in answer.content.decode()
        assert not is_signed_in(client)

    def test_shows_no_recovery_codes_when_the_vault_has_lost_its_key(self, acme, ada, page_as, settings, tmp_path):
        browser = page_as(ada)
        set_up(browser)
        lose_the_key(settings, tmp_path)
        browser.raise_request_exception = False

        answer = browser.get("/accounts/2fa/recovery-codes/")

        assert answer.status_code == 503
        assert "Stored credentials cannot be used now" in answer.content.decode()


class TestTheSecondStep:
    """It is asked for at every door, and there is no way round."""

    @pytest.fixture
    def halfway(self, key, ada):
        client = Client()
        sign_in(client, ada)
        return client

    @pytest.mark.parametrize("path", ["/o/acme/", "/account", "/admin/", "/device", "/accounts/password/change/"])
    def test_stands_before_every_page(self, halfway, path):
        answer = halfway.get(path)

        assert answer.status_code == 302
        assert "login" in answer.headers["Location"]

    def test_stands_before_rest(self, halfway):
        assert halfway.get("/api/v1/me").status_code == 401

    def test_stands_before_the_approval_of_a_machine(self, halfway):
        asked = device_codes.ask(host_name="laptop", address=None)

        halfway.post("/device", {"code": asked.user_code, "organization": "acme", "approve": ""})

        assert DeviceCode.objects.get().state == DeviceCode.State.PENDING

    def test_stands_before_an_invitation(self, halfway, ada, eve, access_of):
        invitations.invite(access_of(eve, "evil"), email=ada.email, role=Role.OWNER)
        link = re.search(r"/invitations/\S+", mail.outbox[-1].body)[0]
        halfway.get(link)

        halfway.post("/invitation")

        assert not Membership.objects.filter(user=ada, org__slug="evil").exists()

    @pytest.mark.django_db(transaction=True)
    def test_is_not_passed_by_a_password_that_was_reset(self, key, ada, client):
        client.post("/accounts/password/reset/", {"email": ada.email})
        later.wait()
        link = re.search(r"https?://[^/]+(/\S+)", mail.outbox[-1].body)[1]
        form = client.get(link, follow=True)
        new = "another horse battery"
        client.post(form.request["PATH_INFO"], {"password1": new, "password2": new})

        client.post("/accounts/login/", {"login": ada.email, "password": new})

        assert not is_signed_in(client)

    def test_stands_in_the_admins_own_sign_in(self, grace, page_as):
        key = set_up(page_as(grace))
        client = Client()

        door = client.get("/admin/login/?next=/admin/")
        by_hand = client.post("/admin/login/?next=/admin/", {"username": grace.email, "password": PASSWORD})
        sign_in(client, grace, to="/admin/")
        halfway = client.get("/admin/")
        done = client.post("/accounts/2fa/authenticate/", {"code": code_now(key)})

        assert door.headers["Location"].startswith("/accounts/login/")
        assert by_hand.headers["Location"].startswith("/accounts/login/")
        assert halfway.status_code == 302
        assert done.headers["Location"] == "/admin/"
        assert client.get("/admin/").status_code == 200


class TestTurningOff:
    def test_asks_for_the_password_first(self, acme, ada, page_as):
        browser = page_as(ada)
        set_up(browser)
        fresh = Client()
        fresh.force_login(ada)

        answer = fresh.post("/accounts/2fa/totp/deactivate/")

        assert answer.headers["Location"].startswith("/accounts/")
        assert Authenticator.objects.filter(user=ada, type="totp").exists()

    def test_takes_the_recovery_codes_with_it(self, acme, ada, page_as):
        browser = page_as(ada)
        set_up(browser)

        browser.post("/accounts/2fa/totp/deactivate/")
        again = Client()
        sign_in(again, ada)

        assert not Authenticator.objects.exists()
        assert is_signed_in(again)
        assert AuditEvent.objects.filter(user_id=ada.pk, action="two_step.removed").exists()


class TestRecoveryCodes:
    def test_made_anew_end_the_earlier_ones(self, acme, ada, page_as, committed):
        browser = page_as(ada)
        set_up(browser)

        def codes():
            return re.findall(r"<code>(\d{8})</code>", browser.get("/accounts/2fa/recovery-codes/").content.decode())

        before = codes()
        with committed():
            browser.post("/accounts/2fa/recovery-codes/generate/")

        assert not set(before) & set(codes())
        assert AuditEvent.objects.filter(user_id=ada.pk, action="recovery_codes.renewed").exists()

    def test_can_be_downloaded_by_whoever_confirmed_the_password(self, acme, ada, page_as):
        browser = page_as(ada)
        set_up(browser)
        stranger = Client()
        stranger.force_login(ada)

        file = browser.get("/accounts/2fa/recovery-codes/download/")

        assert re.fullmatch(r"(\d{8}\s){10}\s*", file.content.decode())
        assert "no-store" in file.headers["Cache-Control"]
        assert stranger.get("/accounts/2fa/recovery-codes/download/").status_code == 302


class TestRequired:
    @pytest.fixture(autouse=True)
    def _required(self, settings):
        settings.RENSEI_REQUIRE_STAFF_MFA = True

    @pytest.mark.parametrize("path", ["/admin/", "/admin/orgs/user/", "/admin/billing/entitlement/"])
    def test_of_operators_before_anything_of_the_admin_opens(self, grace, page_as, path):
        browser = page_as(grace)

        refused = browser.get(path)
        led = browser.get(refused.headers["Location"])

        assert refused.headers["Location"].startswith("/admin/login/")
        assert led.headers["Location"] == "/accounts/2fa/totp/activate/"
        confirm_password(browser)
        assert "The admin opens once" in browser.get(led.headers["Location"]).content.decode()

    def test_opens_the_admin_once_it_is_set_up(self, grace, page_as):
        browser = page_as(grace)

        set_up(browser)

        assert browser.get("/admin/").status_code == 200

    def test_is_not_turned_off_by_operators(self, grace, page_as):
        browser = page_as(grace)
        set_up(browser)

        page = browser.get("/accounts/2fa/totp/deactivate/")
        browser.post("/accounts/2fa/totp/deactivate/")

        assert "cannot be turned off" in page.content.decode()
        assert Authenticator.objects.filter(user=grace, type="totp").exists()

    def test_stops_no_post_either(self, grace, page_as, acme):
        answer = page_as(grace).post("/admin/orgs/org/add/", {"name": "Sly", "slug": "sly", "owner": grace.email})

        assert answer.headers["Location"].startswith("/admin/login/")
        assert not Membership.objects.filter(org__slug="sly").exists()

    def test_asks_nothing_of_members(self, acme, ada, page_as):
        assert page_as(ada).get("/o/acme/").status_code == 200

    def test_keeps_the_admin_shut_to_whoever_is_no_operator(self, acme, ada, page_as):
        browser = page_as(ada)

        assert browser.get(browser.get("/admin/").headers["Location"]).status_code == 403


class TestWithoutTheSetting:
    def test_the_admin_opens_with_the_password(self, grace, page_as):
        assert page_as(grace).get("/admin/").status_code == 200


class TestRemoveTwoStep:
    def test_lets_somebody_in_who_has_lost_everything(self, key, ada, capsys):
        call_command("remove_two_step", "ADA@acme.test")

        client = Client()
        sign_in(client, ada)
        assert is_signed_in(client)
        assert AuditEvent.objects.get(action="two_step.removed").actor == "manage.py remove_two_step"

    @pytest.mark.parametrize("email", ["nobody@acme.test", "ada@acme.test"])
    def test_says_when_there_is_nothing_to_remove(self, acme, ada, email):
        with pytest.raises(CommandError):
            call_command("remove_two_step", email)


class TestTheAdmin:
    @pytest.mark.parametrize(
        "path", ["mfa/authenticator", "usersessions/usersession", "socialaccount/socialapp", "account/emailaddress"]
    )
    def test_shows_none_of_the_librarys_secrets(self, grace, page_as, path):
        assert page_as(grace).get(f"/admin/{path}/").status_code == 404
