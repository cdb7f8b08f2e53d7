"""`manage.py create_org`."""

import io
import json

import pytest
from django.core.management import CommandError, call_command

from rensei.orgs.models import Org, Role, User
from rensei.tokens.look_up import for_token


@pytest.fixture
def create_org(db, monkeypatch, capsys):
    def run(*arguments, password="correct horse battery", slug="acme", owner="ada@acme.test"):
        monkeypatch.setattr("sys.stdin", io.StringIO(password + "\n"))
        out = io.StringIO()
        call_command("create_org", "--name", "Acme", "--slug", slug, "--owner", owner, *arguments, stdout=out)
        return out.getvalue()

    return run


class TestCreateOrg:
    def test_prints_a_token_that_works(self, create_org):
        made = json.loads(create_org("--password-stdin", "--json"))

        access = for_token(token=made["token"])
        assert made == {
            "id": Org.objects.get().id, "slug": "acme", "owner": "ada@acme.test", "token": made["token"]
        }  # fmt: skip
        assert (access.org.slug, access.role, access.user.email) == ("acme", Role.OWNER, "ada@acme.test")
        assert access.user.check_password("correct horse battery")

    def test_prints_for_people_too(self, create_org):
        assert "rsk_live_" in create_org("--password-stdin")

    def test_takes_a_person_who_is_there(self, create_org, ada):
        made = json.loads(create_org("--json"))

        assert for_token(token=made["token"]).user == ada

    def test_needs_a_password_for_a_new_person(self, create_org):
        with pytest.raises(CommandError, match="Give a password"):
            create_org("--json")

        assert not User.objects.exists()

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"slug": "Not a slug"}, "small letters"),
            ({"owner": "nobody"}, "not an email address"),
            ({"password": "short"}, "too short"),
            ({"password": "password12"}, "too common"),
        ],
    )
    def test_says_what_is_wrong_and_makes_nothing(self, create_org, options, sentence):
        with pytest.raises(CommandError, match=sentence):
            create_org("--password-stdin", **options)

        assert not User.objects.exists()
        assert not Org.objects.exists()

    def test_refuses_a_taken_slug_and_keeps_nobody(self, create_org, acme):
        with pytest.raises(CommandError, match="already exists"):
            create_org("--password-stdin", owner="new@acme.test")

        assert not User.objects.filter(email="new@acme.test").exists()
