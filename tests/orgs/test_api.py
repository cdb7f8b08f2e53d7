"""REST over the organization: what comes back, to whom, and how it refuses."""

import pytest
from django.core import mail
from rest_framework.test import APIClient

from rensei.audit.models import AuditEvent
from rensei.orgs.models import Membership, Project
from rensei.tokens.models import ApiToken


class TestMe:
    def test_says_who_where_and_as_what(self, acme, mia, api_as):
        answer = api_as(mia).get("/api/v1/me")

        assert answer.json() == {
            "user": {"email": "mia@acme.test", "name": "Mia"},
            "org": {"id": acme.id, "name": "Acme", "slug": "acme"},
            "role": "member",
            "projectId": None,
            "host": None,
            "scopes": ["read", "runs", "gateway", "manage", "billing"],
        }

    def test_names_the_tokens_project(self, project, mia, api_as):
        assert api_as(mia, project=project).get("/api/v1/me").json()["projectId"] == "my-project"

    def test_names_the_tokens_machine(self, acme, mia, api_as):
        made = api_as(mia).post("/api/v1/hosts", {"name": "laptop"}).json()
        client = APIClient(headers={"Authorization": f"Bearer {made['token']}"})

        assert client.get("/api/v1/me").json()["host"] == {"id": made["id"], "name": "laptop"}

    def test_takes_the_session_of_a_person_with_one_organization(self, acme, ada, page_as):
        assert page_as(ada).get("/api/v1/me").json()["org"]["slug"] == "acme"

    def test_asks_a_person_of_several_organizations_to_name_one(self, acme, eve, page_as):
        Membership.objects.create(org=acme, user=eve, role="auditor")
        browser = page_as(eve)

        assert browser.get("/api/v1/me").status_code == 400
        assert browser.get("/api/v1/me", headers={"X-Rensei-Org": "acme"}).json()["role"] == "auditor"

    def test_does_not_open_a_foreign_organization_to_a_session(self, acme, eve, page_as):
        answer = page_as(eve).get("/api/v1/me", headers={"X-Rensei-Org": "acme"})

        assert (answer.status_code, answer.json()["code"]) == (401, "NOT_AUTHENTICATED")

    @pytest.mark.parametrize(
        "header", ["", "Bearer", "Bearer ", "Bearer rsk_live_", "Bearer rsk_live_" + "0" * 64, "Basic eDp5", "Bearer ü"]
    )
    def test_refuses_whoever_is_not_known(self, acme, header):
        answer = APIClient().get("/api/v1/me", headers={"Authorization": header})

        assert (answer.status_code, answer.json()["code"]) == (401, "NOT_AUTHENTICATED")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


class TestProjects:
    def test_go_through_their_life(self, acme, ada, api_as):
        api = api_as(ada)

        made = api.post("/api/v1/projects", {"id": "web", "name": "Web"})
        renamed = api.patch("/api/v1/projects/web", {"name": "Website"})
        gone = api.delete("/api/v1/projects/web")

        assert (made.status_code, made.headers["Location"]) == (201, "/api/v1/projects/web")
        assert made.json()["id"] == "web"
        assert renamed.json()["name"] == "Website"
        assert (gone.status_code, gone.content) == (204, b"")
        assert api.get("/api/v1/projects/web").status_code == 404
        assert list(
            AuditEvent.objects.filter(action__startswith="project").order_by("id").values_list("action", flat=True)
        ) == ["project.created", "project.updated", "project.deleted"]

    def test_are_read_by_every_member_and_changed_by_managers(self, project, mia, otto, api_as):
        for person in (mia, otto):
            api = api_as(person)
            assert api.get("/api/v1/projects").json()["results"][0]["id"] == "my-project"
            assert api.post("/api/v1/projects", {"id": "web", "name": "Web"}).status_code == 403
            assert api.patch("/api/v1/projects/my-project", {"name": "X"}).status_code == 403
            assert api.delete("/api/v1/projects/my-project").status_code == 403

    def test_are_absent_to_others(self, project, eve, api_as):
        api = api_as(eve, "evil")

        foreign, absent = api.get("/api/v1/projects/my-project"), api.get("/api/v1/projects/no-project")

        assert foreign.status_code == absent.status_code == 404
        assert {**foreign.json(), "requestId": ""} == {**absent.json(), "requestId": ""}
        assert api.get("/api/v1/projects").json()["results"] == []

    def test_are_hidden_from_a_token_of_another_project(self, project, ada, api_as):
        Project.objects.create(org=project.org, slug="other", name="Other")
        api = api_as(ada, project=project)

        assert [row["id"] for row in api.get("/api/v1/projects").json()["results"]] == ["my-project"]
        assert api.get("/api/v1/projects/other").status_code == 404

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ({}, "/id"),
            ({"id": "web"}, "/name"),
            ({"id": "Web!", "name": "Web"}, "/id"),
            ({"id": "web", "name": " "}, "/name"),
            ({"id": "web", "name": "Web", "org": "evil"}, "/org"),
            ({"id": "web", "name": "Web", "createdAt": "2020-01-01T00:00:00Z"}, "/createdAt"),
            ({"id": {"$ne": 1}, "name": "Web"}, "/id"),
            # Longer than the document allows, though not without the white space around it.
            ({"id": "web" + " " * 61, "name": "Web"}, "/id"),
        ],
    )
    def test_refuse_a_body_with_a_pointer_to_the_field(self, acme, ada, api_as, body, pointer):
        answer = api_as(ada).post("/api/v1/projects", body)

        assert (answer.status_code, answer.json()["code"]) == (400, "VALIDATION_FAILED")
        assert pointer in [error["pointer"] for error in answer.json()["errors"]]

    def test_say_when_a_slug_is_taken(self, project, ada, api_as):
        answer = api_as(ada).post("/api/v1/projects", {"id": "my-project", "name": "Again"})

        assert (answer.status_code, answer.json()["code"]) == (409, "ALREADY_EXISTS")


class TestMembers:
    def test_are_changed_and_removed_by_managers(self, acme, ada, mia, api_as):
        api = api_as(ada)
        place = f"/api/v1/members/{Membership.objects.get(user=mia).pk}"

        changed = api.patch(place, {"role": "auditor"})
        gone = api.delete(place)

        assert changed.json()["role"] == "auditor"
        assert gone.status_code == 204

    def test_are_invited_and_nobody_is_added_without_accepting(self, acme, ada, make_user, api_as):
        make_user("nina@acme.test", name="Nina")
        api = api_as(ada)

        made = api.post("/api/v1/members", {"email": "nina@acme.test", "role": "member"})

        assert (made.status_code, made.json()["email"], made.json()["link"]) == (201, "nina@acme.test", None)
        assert api.get(made.headers["Location"]).json()["role"] == "member"
        assert not Membership.objects.filter(user__email="nina@acme.test").exists()

    def test_are_invited_alike_with_an_account_and_without(self, acme, ada, make_user, api_as):
        make_user("nina@acme.test", name="Nina")

        def told(email):
            answer = api_as(ada).post("/api/v1/members", {"email": email, "role": "member"})
            varying = {"id", "email", "createdAt", "expiresAt"}
            return answer.status_code, {name: value for name, value in answer.json().items() if name not in varying}

        assert told("nina@acme.test") == told("nobody@acme.test")
        assert len(mail.outbox) == 2

    def test_keep_their_last_owner(self, acme, ada, api_as):
        api = api_as(ada)
        owner = Membership.objects.get(user=ada)

        answer = api.delete(f"/api/v1/members/{owner.pk}")

        assert (answer.status_code, answer.json()["code"]) == (409, "IN_USE")

    def test_may_leave_but_not_remove_others(self, acme, mia, otto, api_as):
        api = api_as(mia)
        other, own = Membership.objects.get(user=otto), Membership.objects.get(user=mia)

        assert api.delete(f"/api/v1/members/{other.pk}").status_code == 403
        assert api.delete(f"/api/v1/members/{own.pk}").status_code == 204
        assert api.get("/api/v1/me").status_code == 401

    def test_are_absent_to_others(self, acme, mia, eve, api_as):
        member = Membership.objects.get(user=mia)
        api = api_as(eve, "evil")

        for answer in (
            api.get(f"/api/v1/members/{member.pk}"),
            api.patch(f"/api/v1/members/{member.pk}", {"role": "auditor"}),
            api.delete(f"/api/v1/members/{member.pk}"),
        ):
            assert answer.status_code == 404
        assert [row["email"] for row in api.get("/api/v1/members").json()["results"]] == [eve.email]


class TestTokens:
    def test_are_shown_once(self, acme, mia, api_as):
        api = api_as(mia)

        made = api.post("/api/v1/tokens", {"name": "ci", "expires_at": "2999-01-01T00:00:00Z"})

        token = made.json()["token"]
        assert made.status_code == 201
        assert made.json()["hint"] == token[-4:]
        assert made.json()["expiresAt"] == "2999-01-01T00:00:00Z"
        assert token not in api.get("/api/v1/tokens").content.decode()
        assert token not in api.get(made.headers["Location"]).content.decode()
        assert APIClient(headers={"Authorization": f"Bearer {token}"}).get("/api/v1/me").status_code == 200

    def test_are_shut_at_once(self, acme, mia, api_as):
        api = api_as(mia)
        made = api.post("/api/v1/tokens", {"name": "ci"})

        gone = api.delete(made.headers["Location"])

        assert gone.status_code == 204
        client = APIClient(headers={"Authorization": f"Bearer {made.json()['token']}"})
        assert client.get("/api/v1/me").status_code == 401

    def test_show_everyones_only_to_those_who_manage_or_audit(self, acme, ada, mia, otto, api_as):
        apis = {person.email: api_as(person) for person in (ada, mia, otto)}

        seen = {email: len(api.get("/api/v1/tokens").json()["results"]) for email, api in apis.items()}

        assert seen == {"ada@acme.test": 3, "mia@acme.test": 1, "otto@acme.test": 3}

    def test_of_others_are_absent_to_a_member(self, acme, ada, mia, api_as):
        api_as(ada)
        token = ApiToken.objects.get(membership__user=ada)
        api = api_as(mia)

        assert api.get(f"/api/v1/tokens/{token.pk}").status_code == 404
        assert api.delete(f"/api/v1/tokens/{token.pk}").status_code == 404

    def test_are_read_but_not_revoked_by_an_auditor(self, acme, ada, otto, api_as):
        api_as(ada)
        token = ApiToken.objects.get(membership__user=ada)

        assert api_as(otto).delete(f"/api/v1/tokens/{token.pk}").status_code == 403

    @pytest.mark.parametrize("field", ["membership", "member", "userId", "role", "org", "digest", "hostId"])
    def test_cannot_be_made_for_anyone_else(self, acme, mia, api_as, field):
        answer = api_as(mia).post("/api/v1/tokens", {"name": "ci", field: "ada@acme.test"})

        assert answer.status_code == 400
        assert answer.json()["errors"][0]["pointer"] == f"/{field}"

    def test_know_no_foreign_project(self, project, eve, api_as):
        answer = api_as(eve, "evil").post("/api/v1/tokens", {"name": "ci", "projectId": "my-project"})

        assert answer.status_code == 404


class TestHosts:
    def test_give_their_token_once(self, acme, mia, api_as):
        api = api_as(mia)

        made = api.post("/api/v1/hosts", {"name": "laptop", "login": "claude-code"})

        assert made.status_code == 201
        assert made.json()["login"] == "claude-code"
        assert made.json()["token"] not in api.get("/api/v1/hosts").content.decode()

    def test_are_changed_by_their_owner_alone(self, acme, ada, mia, api_as):
        made = api_as(mia).post("/api/v1/hosts", {"name": "laptop"})

        assert api_as(ada).patch(made.headers["Location"], {"login": "console"}).status_code == 403
        assert api_as(mia).patch(made.headers["Location"], {"login": "console"}).json()["login"] == "console"

    def test_are_shut_by_managers(self, acme, alan, mia, api_as):
        made = api_as(mia).post("/api/v1/hosts", {"name": "laptop"})

        gone = api_as(alan).delete(made.headers["Location"])

        assert gone.status_code == 204
        client = APIClient(headers={"Authorization": f"Bearer {made.json()['token']}"})
        assert client.get("/api/v1/me").status_code == 401

    def test_are_not_for_auditors_to_make(self, acme, otto, api_as):
        assert api_as(otto).post("/api/v1/hosts", {"name": "laptop"}).status_code == 403

    def test_are_absent_to_others(self, acme, mia, eve, api_as):
        made = api_as(mia).post("/api/v1/hosts", {"name": "laptop"})
        api = api_as(eve, "evil")

        assert api.get(made.headers["Location"]).status_code == 404
        assert api.delete(made.headers["Location"]).status_code == 404
