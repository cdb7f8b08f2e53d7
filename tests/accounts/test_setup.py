"""The first account of a new server."""

import stat

import pytest

from rensei.accounts import setup
from rensei.core.errors import NotFound
from rensei.core.secret import Secret
from rensei.orgs.access import for_member
from rensei.orgs.models import Org, Role, User

FORM = {
    "name": "Ada",
    "email": "Ada@Acme.test",
    "password": "correct horse battery",
    "org_name": "Acme",
    "org_slug": "acme",
}


@pytest.fixture(autouse=True)
def _data_dir(settings, tmp_path):
    settings.DATA_DIR = tmp_path


@pytest.fixture
def code(db):
    return setup.link().partition("?code=")[2]


class TestLink:
    def test_leaves_only_a_hash_behind(self, code, tmp_path):
        file = tmp_path / "setup_code"

        assert code not in file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_ends_an_earlier_one(self, code):
        setup.link()

        assert not setup.is_right(code)

    def test_is_none_once_somebody_has_an_account(self, ada):
        assert setup.link() is None


class TestPage:
    def test_makes_the_operator_and_the_first_organization(self, client, code):
        shown = client.get("/setup", {"code": code})
        answer = client.post("/setup", {**FORM, "code": code})

        user = User.objects.get()
        assert b'name="org_slug"' in shown.content
        assert (answer.status_code, answer.headers["Location"]) == (302, "/")
        assert (user.email, user.is_staff, user.is_superuser) == ("ada@acme.test", True, True)
        assert for_member(user=user, slug="acme").role == Role.OWNER
        assert client.get("/api/v1/me").json()["org"]["slug"] == "acme"

    def test_works_once(self, client, code):
        client.post("/setup", {**FORM, "code": code})

        assert client.get("/setup", {"code": code}).status_code == 404
        assert client.post("/setup", {**FORM, "email": "eve@evil.test", "code": code}).status_code == 404
        assert User.objects.count() == 1

    @pytest.mark.parametrize("wrong", ["", "x", "ü", "0" * 43])
    def test_is_shut_without_the_code(self, client, code, wrong):
        shown = client.get("/setup", {"code": wrong})
        answer = client.post("/setup", {**FORM, "code": wrong})

        assert (shown.status_code, answer.status_code) == (403, 403)
        assert b"org_slug" not in shown.content
        assert not User.objects.exists()

    def test_is_shut_before_any_link_was_made(self, client, db):
        assert client.get("/setup", {"code": "x"}).status_code == 403

    @pytest.mark.parametrize(
        ("field", "value"),
        [("password", "short"), ("password", "password12"), ("org_slug", "Not A Slug"), ("email", "x"), ("name", "")],
    )
    def test_shows_what_is_wrong_and_makes_nothing(self, client, code, field, value):
        answer = client.post("/setup", {**FORM, "code": code, field: value})

        assert answer.status_code == 400
        assert answer.context["form"].errors[field]
        assert FORM["password"] not in answer.content.decode()
        assert not User.objects.exists()
        assert not Org.objects.exists()
        assert setup.is_right(code)

    def test_stays_out_of_caches_and_referrers(self, client, code):
        answer = client.get("/setup", {"code": code})

        assert "no-store" in answer.headers["Cache-Control"]
        assert answer.headers["Referrer-Policy"] == "same-origin"


class TestFinish:
    def test_lets_only_one_of_two_requests_through(self, code, monkeypatch, tmp_path):
        """Both have seen that nobody has an account; the file can go only once."""
        monkeypatch.setattr(setup, "is_right", lambda given: True)
        (tmp_path / "setup_code").unlink()

        with pytest.raises(NotFound):
            setup.finish(
                code=code, name="Ada", email="ada@acme.test", password=Secret("correct horse battery"),
                org_name="Acme", org_slug="acme",
            )  # fmt: skip

        assert not User.objects.exists()
