"""Single sign-on against a provider on loopback: who is let in, and what of the provider's answers is believed."""

import time
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.test import Client

from rensei.accounts import invitations
from rensei.orgs.models import Membership, Org, Role, User
from rensei.tokens.look_up import for_token
from rensei.tokens.services import create_token
from tests.accounts.openid_provider import CLIENT_ID, OpenIdProvider

BEGIN = "/accounts/oidc/sso/login/"
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def running_provider():
    provider = OpenIdProvider()
    yield provider
    provider.stop()


@pytest.fixture
def provider(running_provider, settings):
    running_provider.person = {"sub": "42", "email": "Ada@acme.test", "email_verified": True, "name": "Ada Byron"}
    running_provider.token_claims, running_provider.requests = {}, []
    running_provider.forge = running_provider.refuse = running_provider.leaves_out_id_token = False
    app = {
        "provider_id": "sso",
        "name": "Acme Login",
        "client_id": CLIENT_ID,
        "secret": running_provider.client_secret,
        "settings": {"server_url": running_provider.issuer},
    }
    settings.SOCIALACCOUNT_PROVIDERS = {"openid_connect": {"OAUTH_PKCE_ENABLED": True, "APPS": [app]}}
    return running_provider


def walk(client, *, begin=BEGIN):
    """Go to the provider as a browser does, and come back with what it says. The last answer is Rensei's."""
    there = client.get(begin)
    assert there.status_code == 302, there.content
    back = requests.get(there.headers["Location"], allow_redirects=False, timeout=5)
    address = urlsplit(back.headers["Location"])
    return client.get(f"{address.path}?{address.query}")


def is_signed_in(client):
    return "_auth_user_id" in client.session


class TestThePage:
    def test_offers_the_provider_by_its_name(self, provider, db, client):
        page = client.get("/accounts/login/?next=/o/acme/").content.decode()

        assert "Continue with Acme Login" in page
        assert f'href="{BEGIN}?next=/o/acme/"' in page

    def test_offers_nothing_where_none_is_set_up(self, db, client):
        assert "Continue with" not in client.get("/accounts/login/").content.decode()


class TestBegin:
    def test_asks_the_provider_with_state_and_a_challenge(self, provider, db, client):
        there = client.get(BEGIN)

        asked = parse_qs(urlsplit(there.headers["Location"]).query)
        assert there.headers["Location"].startswith(f"{provider.issuer}/authorize?")
        assert set(asked["scope"][0].split()) == {"openid", "email", "profile"}
        assert asked["redirect_uri"] == ["http://testserver/accounts/oidc/sso/login/callback/"]
        assert len(asked["state"][0]) >= 16
        assert asked["code_challenge_method"] == ["S256"]

    def test_asks_with_another_nonce_each_time(self, provider, db, client):
        asked = [parse_qs(urlsplit(client.get(BEGIN).headers["Location"]).query)["nonce"][0] for _ in range(2)]

        assert asked[0] != asked[1]
        assert min(map(len, asked)) >= 40

    def test_is_not_started_unseen_by_another_site(self, provider, db):
        answer = Client(headers={"Sec-Fetch-Site": "cross-site"}).get(BEGIN)

        assert answer.headers["Location"] == "/accounts/login/"
        assert provider.requests == []

    def test_knows_no_other_provider(self, provider, db, client):
        assert client.get("/accounts/oidc/evil/login/").status_code == 404
        assert client.get("/accounts/oidc/evil/login/callback/?code=x&state=y").status_code == 404

    def test_connects_nothing_to_an_account_on_a_visitors_word(self, provider, acme, eve, client):
        """The library's own page would take `process=connect` from the address."""
        client.force_login(eve)

        walk(client, begin=f"{BEGIN}?process=connect")

        assert not SocialAccount.objects.filter(user=eve).exists()

    def test_says_so_when_the_provider_cannot_be_reached(self, provider, db, client, settings, caplog):
        settings.SOCIALACCOUNT_PROVIDERS["openid_connect"]["APPS"][0]["settings"]["server_url"] = "http://127.0.0.1:9"

        answer = client.get(BEGIN)

        assert answer.status_code == 401
        assert "Acme Login could not be asked" in answer.content.decode()


class TestAPersonWithAnAccount:
    def test_is_signed_in_by_their_verified_address(self, provider, acme, ada, client):
        answer = walk(client, begin=f"{BEGIN}?next=/o/acme/usage")

        assert answer.headers["Location"] == "/o/acme/usage"
        assert client.get("/api/v1/me").json()["user"]["email"] == "ada@acme.test"

    def test_keeps_the_password_that_an_operator_gave(self, provider, acme, ada, client):
        walk(client)

        ada.refresh_from_db()
        assert ada.check_password(PASSWORD)

    def test_loses_a_password_that_was_set_with_a_link_nobody_mailed(self, provider, acme, ada, access_of, client):
        """Whoever handed the link over may have used it: the owner of the address has come only now."""
        EmailAddress.objects.create(user=ada, email=ada.email, verified=False, primary=True)
        squatter = Client()
        squatter.force_login(ada)
        squatter.get("/account")
        _, token = create_token(access_of(ada), name="kept")

        walk(client)

        ada.refresh_from_db()
        assert not ada.has_usable_password()
        assert is_signed_in(client)
        assert squatter.get("/api/v1/me").status_code == 401
        assert for_token(token=token.reveal()) is None

    def test_is_known_by_the_providers_id_when_their_address_changes_there(self, provider, acme, ada, client):
        walk(client)
        provider.person = {**provider.person, "email": "countess@acme.test"}
        later = Client()

        walk(later)

        assert later.get("/api/v1/me").json()["user"]["email"] == "ada@acme.test"

    @pytest.mark.parametrize("verified", [False, "false", None, 1])
    def test_is_not_let_in_by_an_address_that_is_not_verified(self, provider, acme, ada, client, verified):
        provider.person = {**provider.person, "email_verified": verified}

        answer = walk(client)

        assert answer.status_code == 403
        assert "not verified" in answer.content.decode()
        assert not is_signed_in(client)
        assert not SocialAccount.objects.exists()

    def test_is_not_let_in_once_it_is_off(self, provider, acme, ada, client):
        ada.is_active = False
        ada.save()

        walk(client)

        assert not is_signed_in(client)

    def test_is_not_found_under_an_address_that_they_had_once(self, provider, acme, ada, client):
        EmailAddress.objects.create(user=ada, email="ada@acme.test", verified=True, primary=True)
        User.objects.filter(pk=ada.pk).update(email="countess@acme.test")

        answer = walk(client)

        assert answer.status_code == 403
        assert not is_signed_in(client)


class TestAnOperator:
    """A provider that says it has verified an operator's address does not become the operator."""

    @pytest.fixture
    def operator(self, provider, grace):
        provider.person = {"sub": "7", "email": grace.email, "email_verified": True}
        return grace

    def pin(self, user, issuer):
        User.objects.filter(pk=user.pk).update(single_sign_on_issuer=issuer)

    def test_is_refused_and_connected_to_nothing(self, operator, client):
        answer = walk(client)

        assert answer.status_code == 403
        assert "Operators need a second factor here" in answer.content.decode()
        assert not is_signed_in(client)
        assert not SocialAccount.objects.exists()

    def test_who_became_one_later_is_refused_as_well(self, provider, acme, ada, client):
        walk(Client())
        User.objects.filter(pk=ada.pk).update(is_staff=True)

        assert walk(client).status_code == 403
        assert not is_signed_in(client)

    def test_with_two_step_sign_in_is_asked_for_the_code(self, operator, client):
        Authenticator.objects.create(user=operator, type=Authenticator.Type.TOTP, data={"secret": ""})

        answer = walk(client)

        assert answer.headers["Location"] == "/accounts/2fa/authenticate/"
        assert not is_signed_in(client)

    @pytest.mark.parametrize("slash", ["", "/"])
    def test_is_signed_in_by_the_issuer_that_is_pinned(self, operator, provider, client, slash):
        self.pin(operator, provider.issuer + slash)

        walk(client)

        assert is_signed_in(client)

    @pytest.mark.parametrize("issuer", ["https://login.example.com", "http://127.0.0.1"])
    def test_is_not_signed_in_by_another_issuer(self, operator, client, issuer):
        self.pin(operator, issuer)

        assert walk(client).status_code == 403
        assert not is_signed_in(client)

    def test_is_pinned_by_operators_in_the_admin(self, provider, operator, page_as, make_user):
        chief = make_user("chief@rensei.test", is_staff=True, is_superuser=True)
        browser = page_as(chief)
        path = f"/admin/orgs/user/{operator.pk}/change/"
        fields = {"email": operator.email, "is_active": "on", "is_staff": "on", "date_joined_0": "2026-01-01"}

        page = browser.get(path)
        browser.post(path, {**fields, "single_sign_on_issuer": provider.issuer, "name": ""})

        assert "single_sign_on_issuer" in page.content.decode()
        assert User.objects.get(pk=operator.pk).single_sign_on_issuer == provider.issuer


class TestAPersonWithoutAnAccount:
    def test_is_told_to_ask_for_an_invitation(self, provider, acme, client):
        provider.person = {**provider.person, "sub": "7", "email": "zoe@acme.test"}

        answer = walk(client)

        assert answer.status_code == 403
        assert "zoe@acme.test has no account here" in answer.content.decode()
        assert not User.objects.filter(email="zoe@acme.test").exists()

    def test_joins_who_was_invited(self, provider, acme, ada, access_of, client):
        invitations.invite(access_of(ada), email="zoe@acme.test", role=Role.AUDITOR)
        provider.person = {"sub": "7", "email": "Zoe@acme.test", "email_verified": True, "name": "Zoe"}

        walk(client)

        zoe = User.objects.get(email="zoe@acme.test")
        assert (zoe.name, zoe.has_usable_password(), zoe.is_staff) == ("Zoe", False, False)
        assert Membership.objects.get(user=zoe).role == Role.AUDITOR
        assert client.get("/api/v1/me").json()["role"] == "auditor"

    def test_comes_from_the_invitation_to_the_organization(self, provider, acme, ada, access_of, client, settings):
        settings.EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"
        sent = invitations.invite(access_of(ada), email="zoe@acme.test", role=Role.MEMBER)
        provider.person = {"sub": "7", "email": "zoe@acme.test", "email_verified": True}
        page = client.get(urlsplit(sent.link.reveal()).path, follow=True).content.decode()

        answer = walk(client, begin=f"{BEGIN}?next=/invitation")

        assert f'href="{BEGIN}?next=/invitation"' in page
        assert client.get(answer.headers["Location"]).headers["Location"] == "/o/acme/"

    def test_is_not_let_in_by_an_invitation_that_was_taken_back(self, provider, acme, ada, access_of, client):
        sent = invitations.invite(access_of(ada), email="zoe@acme.test", role=Role.MEMBER)
        invitations.revoke(access_of(ada), sent.invitation)
        provider.person = {"sub": "7", "email": "zoe@acme.test", "email_verified": True}

        assert walk(client).status_code == 403
        assert not User.objects.filter(email="zoe@acme.test").exists()

    def test_gets_an_account_without_an_organization_where_the_setting_allows_it(
        self, provider, acme, client, settings
    ):
        settings.RENSEI_OIDC_SIGN_UP = True
        provider.person = {"sub": "7", "email": "zoe@acme.test", "email_verified": True}

        walk(client)

        assert is_signed_in(client)
        assert not Org.objects.filter(memberships__user__email="zoe@acme.test").exists()


class TestTheAnswer:
    @pytest.mark.parametrize(
        "claims",
        [
            {"iss": "https://evil.test"},
            {"aud": "another-client"},
            {"exp": int(time.time()) - 60},
            {"nonce": "that of another sign-in"},
            {"nonce": None},
            {"nonce": ["é"]},
        ],
        ids=["issuer", "audience", "expired", "nonce", "no nonce", "nonce that is no text"],
    )
    def test_is_refused_with_a_claim_that_is_wrong(self, provider, acme, client, claims):
        provider.token_claims = claims

        assert walk(client).status_code == 401
        assert not is_signed_in(client)

    def test_is_refused_with_a_signature_that_is_not_the_providers(self, provider, acme, client):
        provider.forge = True

        assert walk(client).status_code == 401
        assert "/jwks" in provider.requests
        assert not is_signed_in(client)

    def test_is_refused_without_an_id_token(self, provider, acme, client):
        provider.leaves_out_id_token = True

        assert walk(client).status_code == 401
        assert not is_signed_in(client)

    def test_is_refused_when_it_is_about_two_people(self, provider, acme, client):
        provider.token_claims = {"sub": "666"}

        answer = walk(client)

        assert answer.status_code == 403
        assert "two different people" in answer.content.decode()
        assert not is_signed_in(client)

    def test_works_once(self, provider, acme, client):
        there = client.get(BEGIN)
        back = requests.get(there.headers["Location"], allow_redirects=False, timeout=5).headers["Location"]
        address = urlsplit(back)
        client.get(f"{address.path}?{address.query}")
        client.post("/accounts/logout/")

        assert client.get(f"{address.path}?{address.query}").status_code == 401
        assert not is_signed_in(client)

    def test_is_for_the_browser_that_asked(self, provider, acme, client):
        there = client.get(BEGIN)
        back = requests.get(there.headers["Location"], allow_redirects=False, timeout=5).headers["Location"]
        address, victim = urlsplit(back), Client()

        assert victim.get(f"{address.path}?{address.query}").status_code == 401
        assert not is_signed_in(victim)

    def test_may_be_no(self, provider, acme, client):
        provider.refuse = True

        answer = client.get(walk(client).headers["Location"])

        assert "Sign-in cancelled" in answer.content.decode()


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"RENSEI_OIDC_ISSUER": "http://login.example.com"}, "https://"),
            ({"RENSEI_OIDC_CLIENT_SECRET": ""}, "RENSEI_OIDC_CLIENT_SECRET"),
        ],
    )
    def test_are_refused_when_they_are_unsafe_or_half(self, settings, changes, complaint):
        given = {"ISSUER": "https://login.example.com", "CLIENT_ID": "rensei", "CLIENT_SECRET": "x"}
        for name, value in {**{f"RENSEI_OIDC_{name}": value for name, value in given.items()}, **changes}.items():
            setattr(settings, name, value)

        with pytest.raises(SystemCheckError, match=complaint):
            call_command("check")
