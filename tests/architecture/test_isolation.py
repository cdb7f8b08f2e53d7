"""
Who reaches what: every address times every kind of caller, from the URL resolver.

Each address has a row that declares who may use it. One without a row fails, so a new one cannot be forgotten.
"""

import contextlib
import json
import re
from datetime import date
from typing import NamedTuple

import pytest
from allauth.usersessions.models import UserSession
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from billing.integrity import anchor_keys
from billing.models import Statement
from catalog.models import CatalogEntry
from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.accounts import invitations
from rensei.core.clock import database_now
from rensei.core.models import WindowCount
from rensei.dispatch import decision_changes
from rensei.dispatch.models import CapacityPool, Run, RunFile, SavedView
from rensei.orgs import services
from rensei.orgs.models import Host, Membership, OrgScopedQuerySet, Project
from rensei.orgs.scopes import Scope
from rensei.tokens.machines import register_host
from rensei.tokens.models import ApiToken
from rensei.tokens.services import create_token
from rensei.workflows import services as workflows
from rensei.workflows.models import WorkflowRun
from tests.architecture import routes

CANARY = "canary-of-acme"

OWNER, ADMIN, MEMBER, AUDITOR = "owner", "admin", "member", "auditor"
EVERYONE = {OWNER, ADMIN, MEMBER, AUDITOR}
WRITERS = {OWNER, ADMIN, MEMBER}
MANAGERS = {OWNER, ADMIN}


class Row(NamedTuple):
    """Who may, what they send, and whether the address names an object of the organization."""

    may: set[str]
    body: dict | None = None
    object: bool = False


PROFILE = {"name": "New", "provider": "claude", "modelId": "known-model", "authModes": ["byok"]}
NODE = {"nodeType": "action/llm.inference", "config": {"profileId": "prof_canary", "prompt": "Hello."}}
WORKFLOW = {"nodeId": "new", **NODE}
REST = {
    ("GET", "me"): Row(EVERYONE),
    ("GET", "audit-events"): Row(MANAGERS | {AUDITOR}),
    ("GET", "projects"): Row(EVERYONE),
    ("POST", "projects"): Row(MANAGERS, {"id": "new", "name": "New"}),
    ("GET", "projects/<project_id>"): Row(EVERYONE, object=True),
    ("PATCH", "projects/<project_id>"): Row(MANAGERS, {"name": "New"}, object=True),
    ("DELETE", "projects/<project_id>"): Row(MANAGERS, object=True),
    ("GET", "projects/<project_id>/pool"): Row(EVERYONE, object=True),
    ("PUT", "projects/<project_id>/pool"): Row(MANAGERS, {"pool": "sandbox"}, object=True),
    ("GET", "members"): Row(EVERYONE),
    ("POST", "members"): Row(MANAGERS, {"email": "newcomer@acme.test", "role": "member"}),
    ("GET", "members/<member_id>"): Row(EVERYONE, object=True),
    ("PATCH", "members/<member_id>"): Row(MANAGERS, {"role": "auditor"}, object=True),
    ("DELETE", "members/<member_id>"): Row(MANAGERS, object=True),
    ("GET", "invitations"): Row(EVERYONE),
    ("POST", "invitations"): Row(MANAGERS, {"email": "somebody@acme.test", "role": "member"}),
    ("GET", "invitations/<invitation_id>"): Row(EVERYONE, object=True),
    ("DELETE", "invitations/<invitation_id>"): Row(MANAGERS, object=True),
    ("POST", "invitations/<invitation_id>/resend"): Row(MANAGERS, object=True),
    ("GET", "tokens"): Row(EVERYONE),
    ("POST", "tokens"): Row(EVERYONE, {"name": "New"}),
    ("GET", "tokens/<token_id>"): Row(MANAGERS | {AUDITOR}, object=True),
    ("PATCH", "tokens/<token_id>"): Row(MANAGERS, {"cap": None}, object=True),
    ("DELETE", "tokens/<token_id>"): Row(MANAGERS, object=True),
    ("GET", "hosts"): Row(EVERYONE),
    ("POST", "hosts"): Row(WRITERS, {"name": "New"}),
    ("GET", "hosts/<host_id>"): Row(MANAGERS | {AUDITOR}, object=True),
    ("PATCH", "hosts/<host_id>"): Row(set(), {"name": "New"}, object=True),
    ("DELETE", "hosts/<host_id>"): Row(MANAGERS, object=True),
    ("GET", "providers"): Row(EVERYONE),
    ("GET", "providers/<provider>/identity"): Row(MANAGERS),
    ("GET", "catalog"): Row(EVERYONE),
    ("POST", "catalog"): Row(MANAGERS, {"provider": "claude", "modelId": "new-model", "displayName": "New"}),
    ("GET", "catalog/<model_id>"): Row(EVERYONE, object=True),
    ("DELETE", "catalog/<model_id>"): Row(MANAGERS, object=True),
    ("GET", "integrations"): Row(EVERYONE),
    ("POST", "integrations"): Row(MANAGERS, {"provider": "claude", "apiKey": "x"}),
    ("POST", "integrations/test"): Row(MANAGERS, {"provider": "claude", "apiKey": "x"}),
    ("GET", "integrations/<integration_id>"): Row(EVERYONE, object=True),
    ("PATCH", "integrations/<integration_id>"): Row(MANAGERS, {"name": "New"}, object=True),
    ("DELETE", "integrations/<integration_id>"): Row(MANAGERS, object=True),
    ("POST", "integrations/<integration_id>/test"): Row(MANAGERS, {}, object=True),
    ("POST", "integrations/<integration_id>/rotate"): Row(MANAGERS, {"apiKey": "x"}, object=True),
    ("POST", "data-keys/destroy"): Row({OWNER}, {"confirm": "x"}),
    ("DELETE", "orgs/<org_id>"): Row({OWNER}, object=True),
    ("GET", "profiles"): Row(EVERYONE),
    ("POST", "profiles"): Row(WRITERS, PROFILE),
    ("GET", "profiles/<profile_id>"): Row(EVERYONE, object=True),
    ("PATCH", "profiles/<profile_id>"): Row(WRITERS, {"name": "New"}, object=True),
    ("DELETE", "profiles/<profile_id>"): Row(WRITERS, object=True),
    ("POST", "profiles/<profile_id>/resolve"): Row(EVERYONE, {}, object=True),
    ("POST", "why"): Row(EVERYONE, {}),
    ("GET", "usage"): Row(EVERYONE),
    ("GET", "cost-events"): Row(EVERYONE),
    ("GET", "cost-events.csv"): Row(EVERYONE),
    ("GET", "entitlements"): Row(EVERYONE),
    ("GET", "statements"): Row(EVERYONE),
    ("GET", "statements/<month>"): Row(EVERYONE, object=True),
    ("GET", "statements/<month>.csv"): Row(EVERYONE, object=True),
    ("GET", "runs"): Row(EVERYONE),
    ("POST", "runs"): Row(WRITERS, {"profileId": "prof_canary", "input": "Hello."}),
    ("GET", "runs/<run_id>"): Row(EVERYONE, object=True),
    ("GET", "runs/<run_id>/events"): Row(EVERYONE, object=True),
    ("GET", "runs/<run_id>/receipt"): Row(EVERYONE, object=True),
    ("GET", "runs/<run_id>/calls"): Row(EVERYONE, object=True),
    ("GET", "runs/<run_id>/files/<file_id>"): Row(EVERYONE, object=True),
    ("POST", "runs/<run_id>/cancel"): Row(WRITERS, {}, object=True),
    # Only the machine itself, with its own token; nobody of the matrix has that.
    ("POST", "hosts/<host_id>/lease"): Row(set(), {}, object=True),
    ("POST", "runs/<run_id>/lease/heartbeat"): Row(WRITERS, {"epoch": 0}, object=True),
    ("POST", "runs/<run_id>/lease/chunks"): Row(WRITERS, {"epoch": 0}, object=True),
    ("POST", "runs/<run_id>/lease/finish"): Row(
        WRITERS, {"epoch": 0, "state": "CANCELLED", "sent": False}, object=True
    ),
    ("GET", "workflows"): Row(EVERYONE),
    ("POST", "workflows"): Row(WRITERS, {"document": WORKFLOW}),
    ("GET", "workflows/<workflow_id>"): Row(EVERYONE, object=True),
    ("PUT", "workflows/<workflow_id>"): Row(WRITERS, {"document": WORKFLOW}, object=True),
    ("DELETE", "workflows/<workflow_id>"): Row(WRITERS, object=True),
    ("GET", "workflows/<workflow_id>/runs"): Row(EVERYONE, object=True),
    ("POST", "workflows/<workflow_id>/runs"): Row(WRITERS, {"input": "Hello."}, object=True),
    ("GET", "workflow-runs/<workflow_run_id>"): Row(EVERYONE, object=True),
    ("POST", "workflow-runs/<workflow_run_id>/cancel"): Row(WRITERS, {}, object=True),
    ("POST", "workflow-runs/<workflow_run_id>/retry"): Row(WRITERS, {"nodeId": CANARY}, object=True),
    ("GET", "access-policy"): Row(EVERYONE),
    ("PUT", "access-policy"): Row(MANAGERS, {"matrix": {"*": {"shared": {"allowed": False}}}}),
    ("POST", "access-policy/preview"): Row(MANAGERS, {"matrix": {"*": {"shared": {"allowed": False}}}}),
    ("GET", "projects/<project_id>/access-policy"): Row(EVERYONE, object=True),
    ("PUT", "projects/<project_id>/access-policy"): Row(MANAGERS, {"matrix": {}}, object=True),
    ("POST", "projects/<project_id>/access-policy/preview"): Row(MANAGERS, {"matrix": {}}, object=True),
    ("GET", "capacity"): Row(EVERYONE),
    ("GET", "capacity/cost"): Row(EVERYONE),
    ("GET", "pools"): Row(EVERYONE),
    ("POST", "pools"): Row(MANAGERS, {"name": "new", "providerId": "e2b"}),
    ("GET", "pools/<pool_id>"): Row(EVERYONE, object=True),
    ("PATCH", "pools/<pool_id>"): Row(MANAGERS, {"active": False}, object=True),
    ("DELETE", "pools/<pool_id>"): Row(MANAGERS, object=True),
}
# Which scopes of a token open each route. "grant" is `manage`, but never with the token of a machine.
NEEDS = {
    "any": [("GET", "me")],
    "read": [
        ("GET", "audit-events"), ("GET", "members"), ("GET", "members/<member_id>"), ("GET", "invitations"),
        ("GET", "invitations/<invitation_id>"), ("GET", "tokens"), ("GET", "tokens/<token_id>"), ("GET", "hosts"),
        ("GET", "integrations"), ("GET", "integrations/<integration_id>"), ("GET", "access-policy"),
        ("GET", "projects/<project_id>/access-policy"), ("POST", "access-policy/preview"),
        ("POST", "projects/<project_id>/access-policy/preview"),
    ],
    "read runs": [
        ("GET", "projects/<project_id>/pool"),
        ("GET", "projects"), ("GET", "projects/<project_id>"), ("GET", "providers"), ("GET", "catalog"),
        ("GET", "catalog/<model_id>"), ("GET", "profiles"), ("GET", "profiles/<profile_id>"),
        ("POST", "profiles/<profile_id>/resolve"), ("POST", "why"), ("GET", "runs"), ("GET", "runs/<run_id>"),
        ("GET", "runs/<run_id>/events"), ("GET", "runs/<run_id>/receipt"), ("GET", "runs/<run_id>/calls"),
        ("GET", "runs/<run_id>/files/<file_id>"), ("GET", "workflows"),
        ("GET", "workflows/<workflow_id>"),
        ("GET", "workflows/<workflow_id>/runs"), ("GET", "workflow-runs/<workflow_run_id>"), ("GET", "pools"),
        ("GET", "pools/<pool_id>"), ("GET", "capacity"),
    ],
    "runs": [
        ("POST", "runs"), ("POST", "runs/<run_id>/cancel"), ("POST", "workflows/<workflow_id>/runs"),
        ("POST", "workflow-runs/<workflow_run_id>/cancel"), ("POST", "workflow-runs/<workflow_run_id>/retry"),
    ],
    "manage": [
        ("POST", "projects"), ("PATCH", "projects/<project_id>"), ("DELETE", "projects/<project_id>"),
        ("PUT", "projects/<project_id>/pool"),
        ("POST", "catalog"), ("DELETE", "catalog/<model_id>"), ("POST", "integrations"), ("POST", "integrations/test"),
        ("GET", "providers/<provider>/identity"),
        ("PATCH", "integrations/<integration_id>"), ("DELETE", "integrations/<integration_id>"),
        ("POST", "integrations/<integration_id>/test"), ("POST", "integrations/<integration_id>/rotate"),
        ("POST", "profiles"), ("PATCH", "profiles/<profile_id>"), ("DELETE", "profiles/<profile_id>"),
        ("POST", "workflows"), ("PUT", "workflows/<workflow_id>"), ("DELETE", "workflows/<workflow_id>"),
        ("POST", "pools"), ("PATCH", "pools/<pool_id>"), ("DELETE", "pools/<pool_id>"),
    ],
    "grant": [
        ("POST", "members"), ("PATCH", "members/<member_id>"), ("DELETE", "members/<member_id>"),
        ("POST", "invitations"), ("DELETE", "invitations/<invitation_id>"),
        ("POST", "invitations/<invitation_id>/resend"), ("POST", "tokens"), ("PATCH", "tokens/<token_id>"),
        ("DELETE", "tokens/<token_id>"),
        ("POST", "hosts"), ("DELETE", "hosts/<host_id>"), ("PUT", "access-policy"),
        ("PUT", "projects/<project_id>/access-policy"), ("POST", "data-keys/destroy"),
        ("DELETE", "orgs/<org_id>"),
    ],
    "billing": [
        ("GET", "usage"), ("GET", "cost-events"), ("GET", "cost-events.csv"), ("GET", "entitlements"),
        ("GET", "statements"), ("GET", "statements/<month>"), ("GET", "statements/<month>.csv"),
        ("GET", "capacity/cost"),
    ],
    "leases": [
        ("POST", "hosts/<host_id>/lease"), ("POST", "runs/<run_id>/lease/heartbeat"),
        ("POST", "runs/<run_id>/lease/chunks"), ("POST", "runs/<run_id>/lease/finish"),
    ],
    "read leases": [("GET", "hosts/<host_id>")],
    "manage leases": [("PATCH", "hosts/<host_id>")],
}  # fmt: skip
# Open to everyone, and the same for everyone.
# A machine asks to be let in before it has any token.
OPEN_REST = {("GET", "schema"), ("GET", "receipt-keys"), ("POST", "device-codes"), ("POST", "device-codes/token")}
# Addresses that belong to no organization; each has its own tests.
OTHERS = re.compile(
    r"accounts/.*|account(/.*)?|invitations?(/.*)?|api/docs|healthz|readyz|metrics|setup|device|theme|orgs(/new)?|docs(/.*)?"
    r"|components|\.well-known/(openid-configuration|jwks\.json)|"
)
# A member may leave, and then it is not the member of the row.
LEAVING = {("DELETE", "members/<member_id>", MEMBER), ("DELETE", "members/<member_id>", AUDITOR)}


class Stage(NamedTuple):
    """An organization with one object of each kind, and a client for each kind of caller."""

    ids: dict[str, str]
    clients: dict[str, APIClient]
    machines: dict[str, APIClient]
    browsers: dict[str, Client]


@pytest.fixture
def stage(acme, ada, alan, mia, otto, eve, make_user, make_key, api_as, page_as, access_of, settings):
    CatalogEntry.objects.create(
        provider="claude", model_id="known-model", display_name="Known", context_window_tokens=200_000,
        max_output_tokens=8192, auth_modes=["byok", "host-session"],
    )  # fmt: skip
    make_user("newcomer@acme.test")
    other = make_user("other@acme.test", name=CANARY)
    gone = make_user("gone@acme.test")
    for user in (other, gone):
        Membership.objects.create(org=acme, user=user, role="member")
    project = Project.objects.create(org=acme, slug="canary-project", name=CANARY)
    integration = Integration.objects.create(
        org=acme, provider="claude", name=CANARY, sealed_key=b"x", key_hint="…", fingerprint="x", is_default=True
    )
    profile = ModelProfile.objects.create(
        org=acme, public_id="prof_canary", name=CANARY, provider="claude",
        model_id="known-model", auth_modes=["host-session"],
    )  # fmt: skip
    pool = CapacityPool.objects.create(org=acme, name=CANARY, provider_id="e2b")
    entry = CatalogEntry.objects.create(org=acme, provider="claude", model_id="acme-model", display_name=CANARY)
    now = database_now()
    run = Run.objects.create(
        org=acme, profile_id=profile.public_id, profile_name=CANARY, provider="claude", model_id=entry.model_id,
        served_model_id=entry.model_id, auth_mode="byok", payer="organization", max_tokens=10, deadline_at=now,
        created_at=now, state=Run.State.SUCCEEDED, output_text=CANARY, finished_at=now,
    )  # fmt: skip
    file = RunFile.objects.create(run=run, path=CANARY, content=CANARY.encode())
    Statement.objects.create(
        org=acme, month=date(2026, 3, 1), adjustments=[], total_picodollars=7, digest="", closed_at=now,
        lines=[{"provider": "claude", "served_model_id": CANARY, "token_class": "input", "count": 7,
                "unit_picodollars": 1}],
    )  # fmt: skip
    anchor_keys.create(settings.RENSEI_LEDGER_ANCHOR_KEY)
    host, _, _ = register_host(access_of(other), name=CANARY)
    token, _ = create_token(access_of(other), name=CANARY)
    invitation = invitations.invite(access_of(ada), email=f"{CANARY}@acme.test", role="member").invitation
    workflow, _ = workflows.apply_document(access_of(other), {"nodeId": CANARY, **NODE})
    workflow_run = WorkflowRun.objects.create(
        org=acme, version=workflow.versions.get(), created_by=other, input=CANARY, created_at=now
    )
    view = SavedView.objects.create(
        org=acme, membership=Membership.objects.get(user=other), name=CANARY, query="state=FAILED"
    )
    people = {OWNER: ada, ADMIN: alan, MEMBER: mia, AUDITOR: otto}
    clients = {role: api_as(person) for role, person in people.items()}
    clients |= {"foreign": api_as(eve, "evil"), "ex-member": api_as(gone), "anonymous": APIClient()}
    clients["anonymous"].default_format = "json"
    machines = {"foreign": machine_of(access_of(eve, "evil"))}
    machines |= {role: machine_of(access_of(people[role])) for role in WRITERS}
    browsers = {role: page_as(person) for role, person in people.items()}
    browsers |= {"foreign": page_as(eve), "ex-member": page_as(gone), "anonymous": Client()}
    for client in (*clients.values(), *machines.values(), *browsers.values()):
        client.raise_request_exception = False
    services.remove_member(access_of(ada), Membership.objects.get(user=gone))
    ids = {
        "org": acme.slug, "org_id": acme.pk, "project_id": project.slug, "integration_id": integration.pk,
        "run_id": run.pk, "file_id": file.pk,
        "profile_id": profile.public_id, "pool_id": pool.pk, "model_id": entry.model_id, "host_id": host.pk,
        "machine_id": host.pk, "token_id": token.pk, "provider": "claude", "month": "2026-03", "rest": "none",
        "workflow_id": workflow.pk, "workflow_run_id": workflow_run.pk, "node_id": CANARY,
        "member_id": Membership.objects.get(user=other).pk, "invitation_id": invitation.pk,
        "view_id": view.pk,
    }  # fmt: skip
    return Stage(ids, clients, {**clients, **machines}, browsers)


def machine_of(access):
    """Make a client with the token of a machine of the caller's, which may do all that machines may."""
    _, _, secret = register_host(access, name="machine", scopes=list(Scope))
    return as_bearer(secret)


def as_bearer(secret):
    client = APIClient(headers={"Authorization": f"Bearer {secret.reveal()}"})
    client.raise_request_exception = False
    return client


@contextlib.contextmanager
def undone():
    """Undo whatever a call changes, so that the next caller finds the same stage."""
    block = transaction.atomic()
    # Durable services accept a transaction around them only if it is a test's.
    block._from_testcase = True
    with block:
        yield
        transaction.set_rollback(True)


TIMES_OF_USE = {"last_used_at", "last_used_address", "last_login"}


def rows_of_everything():
    """Take a picture of all that organizations own: no times of use, sessions, counts and reported changes."""
    not_owned = {Session._meta.db_table, UserSession._meta.db_table, WindowCount._meta.db_table, decision_changes.NAME}
    return rows_of(set(connection.introspection.table_names()) - not_owned)


def rows_of(tables):
    picture = {}
    with connection.cursor() as cursor:
        for table in sorted(tables):
            cursor.execute(f'SELECT * FROM "{table}"')
            names = [column.name if hasattr(column, "name") else column[0] for column in cursor.description]
            keep = [place for place, name in enumerate(names) if name not in TIMES_OF_USE]
            picture[table] = sorted(repr([row[place] for place in keep]) for row in cursor.fetchall())
    return picture


class Watch:
    """The statements of a block that may have changed rows, so that only tables named there need be compared."""

    def __init__(self):
        self._statements = []

    def note(self, execute, sql, params, many, context):
        if not READING.match(sql):
            self._statements.append(sql)
        return execute(sql, params, many, context)

    def changes(self, before):
        """List the tables whose rows are others than before."""
        named = {table for table in before if any(table in sql for sql in self._statements)}
        return [table for table, rows in rows_of(named).items() if rows != before[table]]


READING = re.compile(r"\s*(?:SELECT|SAVEPOINT|RELEASE|ROLLBACK)\b")


@contextlib.contextmanager
def watched():
    watch = Watch()
    with connection.execute_wrapper(watch.note):
        yield watch


def call(client, method, route, ids, body):
    path = "/api/v1/" + re.sub(r"<(\w+)>", lambda found: str(ids[found[1]]), route)
    return client.generic(method, path, "" if body is None else json.dumps(body), content_type="application/json")


def content(answer):
    return (b"".join(answer.streaming_content) if answer.streaming and not answer.is_async else answer.content
            if not answer.streaming else b"").decode()  # fmt: skip


def without_request_id(answer):
    return {name: value for name, value in answer.json().items() if name != "requestId"}


def wrong_answers(stage, before, method, route, row):
    """Call an address as every kind of caller, and list those who got another answer than the row declares."""
    wrong = []
    absent = {name: f"absent-{name.replace('_', '-')}" for name in stage.ids}
    callers = stage.machines if (method, route) in NEEDS["leases"] else stage.clients
    for caller, client in callers.items():
        with undone():
            with watched() as watch:
                answer = call(client, method, route, stage.ids, row.body)
                code, text = answer.status_code, content(answer)
            changed = method != "GET" and watch.changes(before)
        if caller in {"ex-member", "anonymous"}:
            right = code == 401 and CANARY not in text
        elif caller == "foreign" and row.object:
            twin = call(client, method, route, absent, row.body)
            right = code == 404 and without_request_id(answer) == without_request_id(twin)
        elif caller == "foreign":
            right, changed = code < 500 and CANARY not in text, False
        elif caller in row.may or ((method, route, caller) in LEAVING and code == 403):
            right, changed = (
                code not in {401, 404, 500} and (code != 403 or caller not in row.may or _refused_by_policy(answer)),
                False,
            )
        else:
            right = code in {403, 404}
        if not right or changed:
            wrong.append(f"{caller}: {code}{f' and changed {changed}' if changed else ''}: {text[:200]}")
    return wrong


def _refused_by_policy(answer):
    """A writer may dispatch and be refused by a gate, which is no matter of roles."""
    return answer.json()["code"] != "NOT_PERMITTED"


class TestRest:
    def test_has_a_row_for_each_address(self):
        assert routes.rest() - OPEN_REST == set(REST)

    def test_answers_each_caller_as_declared(self, subtests, stage):
        before = rows_of_everything()
        for method, route in sorted(REST):
            with subtests.test(f"{method} {route}"):
                assert wrong_answers(stage, before, method, route, REST[method, route]) == []
        assert rows_of_everything() == before


def opening(kind):
    """Name the scopes that open a route of a kind."""
    return set(Scope) if kind == "any" else {Scope(word) for word in kind.replace("grant", "manage").split()}


class TestScopes:
    """Every kind of token times every route: a token does what it was made for."""

    @pytest.fixture
    def clients(self, stage, ada, access_of):
        """A client of the owner for each scope alone, and one of a machine that may do all that machines may."""
        access = access_of(ada)
        secrets = {
            scope: create_token(access, name=scope, scopes=[scope])[1] for scope in Scope if scope is not Scope.LEASES
        }
        secrets[Scope.LEASES] = register_host(access, name="runner", scopes=[Scope.LEASES])[2]
        clients = {name: as_bearer(secret) for name, secret in secrets.items()}
        return {**clients, "machine": machine_of(access)}

    def test_are_declared_by_every_route(self):
        declared = {route: needs for _, route, needs in routes.needs()}

        assert set(declared) - OPEN_REST == {route for listed in NEEDS.values() for route in listed}
        assert [route for route in set(declared) - OPEN_REST if declared[route] is None] == []

    @pytest.mark.outside
    def test_open_what_they_name_and_nothing_else(self, subtests, stage, clients):
        before = rows_of_everything()
        for kind, listed in NEEDS.items():
            for method, route in listed:
                with subtests.test(f"{method} {route}"):
                    refused = set()
                    for name, client in clients.items():
                        with undone():
                            answer = call(client, method, route, stage.ids, REST[method, route].body)
                        if answer.status_code == 403 and answer.json()["code"] == "SCOPE_MISSING":
                            refused.add(name)
                        assert answer.status_code < 500 or answer.status_code == 503
                    expected = set(Scope) - opening(kind) | ({"machine"} if kind == "grant" else set())
                    assert refused == expected
        assert rows_of_everything() == before

    def test_refuse_before_anything_of_the_address_is_told(self, stage, clients):
        absent = dict.fromkeys(stage.ids, "absent")

        for ids in (stage.ids, absent):
            answer = call(clients[Scope.GATEWAY], "GET", "runs/<run_id>", ids, None)
            assert (answer.status_code, answer.json()["code"]) == (403, "SCOPE_MISSING")

    def test_that_a_route_forgot_to_declare_close_it_to_tokens(self, stage, monkeypatch):
        monkeypatch.delattr("rensei.orgs.api.Projects.scopes")

        assert call(stage.clients[OWNER], "GET", "projects", stage.ids, None).json()["code"] == "SCOPE_MISSING"


class TestATokenOfOneProject:
    """It changes nothing outside of its project, whoever owns it."""

    def test_changes_nothing_of_the_organization(self, subtests, stage, acme, ada, access_of):
        own = Project.objects.create(org=acme, slug="its-own", name="Its own")
        _, secret = create_token(access_of(ada), name="bound", project=own)
        register_host(access_of(ada), name="adas")
        client = as_bearer(secret)
        member = Membership.objects.get(org=acme, user=ada)
        mine = {"host_id": Host.objects.get(name="adas").pk, "token_id": ada_token(ada), "member_id": member.pk}
        before = rows_of_everything()
        for ids in (stage.ids, {**stage.ids, **mine}):
            for (method, route), row in REST.items():
                if method == "GET" or (method, route) in OF_A_PROJECT:
                    continue
                with subtests.test(f"{method} {route}"), undone():
                    with watched() as watch:
                        answer = call(client, method, route, ids, row.body)

                    assert answer.status_code in {403, 404}, answer.content
                    assert watch.changes(before) == []


# What a token of one project does is for that project: they make or change what is of it, or change nothing.
OF_A_PROJECT = {
    ("POST", "tokens"), ("POST", "profiles"), ("POST", "runs"), ("POST", "profiles/<profile_id>/resolve"),
    ("POST", "why"),
    ("POST", "workflows"), ("POST", "workflows/<workflow_id>/runs"),
}  # fmt: skip


def ada_token(ada):
    return ApiToken.objects.filter(membership__user=ada, project=None, host=None).first().pk


class TestPlantedLeaks:
    """The matrix must find a leak, or it proves nothing."""

    def test_of_a_forgotten_organization_are_found(self, stage, monkeypatch):
        monkeypatch.setattr(OrgScopedQuerySet, "for_org", lambda rows, org: rows.all())

        before = rows_of_everything()

        for place in (("GET", "projects"), ("GET", "projects/<project_id>"), ("GET", "members/<member_id>")):
            assert any("foreign" in wrong for wrong in wrong_answers(stage, before, *place, REST[place])), place

    def test_of_a_forgotten_role_are_found(self, stage, monkeypatch):
        monkeypatch.setattr("rensei.orgs.permissions.ManagersWrite.has_permission", lambda self, request, view: True)
        monkeypatch.setattr("rensei.orgs.access.Access.require_manager", lambda access: None)

        wrong = wrong_answers(stage, rows_of_everything(), "POST", "projects", REST["POST", "projects"])

        assert [line.partition(":")[0] for line in wrong] == ["member", "auditor", "anonymous"]

    def test_of_a_dead_token_are_found(self, stage, monkeypatch):
        ApiToken.objects.filter(membership__user__email="mia@acme.test").update(revoked_at=timezone.now())

        wrong = wrong_answers(stage, rows_of_everything(), "GET", "me", REST["GET", "me"])

        assert [line.partition(":")[0] for line in wrong] == ["member"]


def pages(ids):
    """Write the address of every page about these objects, each within a block that undoes what is changed there."""
    for route in sorted(routes.pages()):
        with undone():
            yield "/" + re.sub(r"<(\w+)>", lambda found: str(ids[found[1]]), route)


class TestPages:
    def test_are_absent_to_whoever_is_not_a_member(self, subtests, stage):
        before = rows_of_everything()

        for path in pages(stage.ids):
            with subtests.test(path), watched() as watch:
                for caller, status in (("foreign", 404), ("ex-member", 404), ("anonymous", 302)):
                    for method in ("get", "post"):
                        answer = getattr(stage.browsers[caller], method)(path)
                        assert answer.status_code in {status, 405}, (caller, method)
                        assert CANARY not in content(answer).replace(path, "")
                assert watch.changes(before) == []

    def test_hide_foreign_objects_from_another_organization(self, subtests, stage):
        before = rows_of_everything()

        for path in pages({**stage.ids, "org": "evil"}):
            with subtests.test(path):
                for method in ("get", "post"):
                    answer = getattr(stage.browsers["foreign"], method)(path)

                    assert answer.status_code < 500, method
                    assert CANARY not in content(answer).replace(path, ""), method
                after = rows_of_everything()
                lost = {name: gone for name in before if (gone := set(before[name]) - set(after[name]))}
                assert lost == {}

    def test_change_nothing_for_an_auditor(self, subtests, stage):
        before = rows_of_everything()

        for path in pages(stage.ids):
            with subtests.test(path), watched() as watch:
                answer = stage.browsers[AUDITOR].post(path)

                assert answer.status_code < 500
                assert watch.changes(before) == []

    def test_open_without_a_fault(self, subtests, stage):
        for path in pages(stage.ids):
            with subtests.test(path):
                for role in (OWNER, AUDITOR):
                    assert stage.browsers[role].get(path).status_code in {200, 302, 403, 404, 405}, role


class TestOtherAddresses:
    def test_are_all_known(self):
        assert [route for route in routes.others() if not OTHERS.fullmatch(route)] == []
