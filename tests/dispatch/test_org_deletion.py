"""Deleting an organization: who may, what ends at once, what goes and what stays, and after a crash in between."""

import itertools
import json
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core import mail
from django.db import connection
from django.test import Client
from rest_framework.test import APIClient

from billing.integrity import anchor_keys
from billing.integrity.anchor_keys import AnchorKeyUnavailable
from billing.models import CostEvent
from integrations.keys import services as keys
from integrations.models import DataKey, Integration
from integrations.vault import vault
from integrations.vault.errors import CredentialUnreadable, KeyServiceSilent
from profiles.models import ModelProfile
from rensei import worker
from rensei.accounts import invitations
from rensei.accounts.models import Invitation
from rensei.audit.models import AuditEvent
from rensei.core.clock import database_now
from rensei.core.errors import FieldError, NotFound, NotPermitted
from rensei.core.ids import new_id
from rensei.core.later import later
from rensei.core.secret import Secret
from rensei.dispatch import org_deletion
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Attempt, Run, RunChunk, RunInput, Sandbox, SearchEntry
from rensei.dispatch.queue import claims
from rensei.dispatch.settlement import audit
from rensei.orgs import entering, services, storage
from rensei.orgs.access import Access
from rensei.orgs.models import Host, Membership, Org, Project, StoredBytes, User
from rensei.policies.models import AccessPolicy
from rensei.tokens.look_up import for_token
from rensei.tokens.machines import register_host
from rensei.tokens.models import ApiToken
from rensei.tokens.services import create_token
from rensei.workflows import services as workflows
from rensei.workflows.models import Workflow, WorkflowRun
from tests.dispatch.reconcile import assert_explained

pytestmark = pytest.mark.django_db(transaction=True)

NODE = {"nodeId": "a", "nodeType": "action/llm.inference", "config": {"profileId": "prof_deep", "prompt": "Hi."}}

NODE_OF_THE_DEFAULT_PROFILE = {"nodeId": "a", "nodeType": "action/llm.inference", "config": {"prompt": "Hi."}}


@pytest.fixture(autouse=True)
def _anchor_key(settings: Any, _anchors: None) -> None:
    anchor_keys.create(settings.RENSEI_LEDGER_ANCHOR_KEY)


@pytest.fixture(autouse=True)
def _known_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(org_deletion, "KNOWN_TO_ALL", timedelta())


@pytest.fixture(autouse=True)
def _long_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(org_deletion, "TURN_SECONDS", 600)


@pytest.fixture
def lived_in(
    ada_access: Access,
    mia: User,
    connected: Integration,
    make_profile: Any,
    project: Project,
    work: Any,
    simulator: Any,
) -> Run:
    """Acme with what an organization has, and a run that has ended."""
    make_profile(auth_modes=["byok"], max_tokens=1000, effort="low", integration=connected)
    AccessPolicy.objects.create(scope="organization", org=ada_access.org, matrix={"*": {"shared": {"allowed": False}}})
    invitations.invite(ada_access, email="zoe@acme.test", role="member")
    workflow, _ = workflows.apply_document(ada_access, {"name": "one", "nodes": [NODE]})
    workflows.start(ada_access, workflow)
    run = dispatch(ada_access, "A secret of the sea.")
    work()
    return run


def dispatch(access: Access, text: str = "Hi.") -> Run:
    request = DispatchRequest(profile_id="prof_deep", messages=messages_from(text=text, messages=None))
    return admit.dispatch(access, request)


def delete(access: Access) -> None:
    org_deletion.delete_org(access, confirm="acme")
    later.wait()


def begin_only(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    """End all access, and leave the rest to the periodic job."""
    with monkeypatch.context() as stopped:
        stopped.setattr(org_deletion, "_go_on", lambda org_id: None)
        delete(access)


class TestAnOwner:
    def test_ends_all_access_at_once(
        self, lived_in: Run, ada_access: Access, ada: User, page_as: Callable[[User], Client]
    ) -> None:
        _, secret = create_token(ada_access, name="ci")
        host, _, of_host = register_host(ada_access, name="laptop")
        page = page_as(ada)

        answer = page.post("/o/acme/settings/organization/delete", {"typed": "acme"})

        assert (answer.status_code, answer.headers["Location"]) == (302, "/orgs/new")
        assert page.get("/o/acme/").status_code == 404
        assert for_token(token=secret.reveal()) is None
        assert for_token(token=of_host.reveal()) is None
        assert not Membership.objects.exists()
        assert not ApiToken.objects.exists()
        assert not Invitation.objects.exists()
        assert not Host.objects.filter(pk=host.pk, revoked_at=None).exists()
        later.wait()

    def test_deletes_what_it_holds_and_keeps_the_ledger(
        self, lived_in: Run, ada_access: Access, simulator: Any
    ) -> None:
        before = list(CostEvent.objects.order_by("pk").values())

        delete(ada_access)

        org = Org.objects.get()
        assert org.deleted_at is not None
        for model in (
            Integration, ModelProfile, Project, AccessPolicy, Workflow, WorkflowRun, RunInput, RunChunk,
            SearchEntry, Host,
        ):  # fmt: skip
            assert not model._default_manager.exists(), model
        assert not DataKey.objects.filter(org=org).exists()
        assert list(CostEvent.objects.order_by("pk").values()) == before
        run = Run.objects.get(pk=lived_in.pk)
        assert (run.output_text, run.output_content, run.metadata, run.trace, run.error) == ("", [], {}, [], None)
        assert run.amount_picodollars
        assert run.usage["output_tokens"]
        row = StoredBytes.objects.get()
        assert (row.used, row.held) == (0, 0)
        assert worker.count_stored_bytes() == {}
        assert [str(one) for one in audit.differences()] == []
        assert_explained(simulator)

    def test_has_a_line_for_a_sandbox_that_a_dead_worker_left(self, lived_in: Run, ada_access: Access) -> None:
        Sandbox.objects.create(
            org=ada_access.org, run=lived_in, epoch=1, pool="e2b", provider_id="e2b", token_digest="x", calls_left=0,
            vcpus=2, memory_mib=512, second_picodollars=30_250_000, created_at=database_now() - timedelta(seconds=90),
        )  # fmt: skip

        delete(ada_access)
        # A worker may still end it, with the key.
        assert (Sandbox.objects.count(), Integration.objects.exists()) == (1, True)
        Org.objects.update(deleting_at=database_now() - org_deletion.SANDBOXES_END_WITHIN)
        org_deletion.go_on()

        line = CostEvent.objects.get(kind="capacity")
        assert (line.estimated, line.sandbox_seconds >= 90) == (True, True)
        assert line.amount_picodollars == line.sandbox_seconds * 30_250_000
        assert not Sandbox.objects.exists()
        assert [str(one) for one in audit.differences()] == []

    def test_goes_on_when_a_sandbox_in_a_cloud_has_ended(self, lived_in: Run, ada_access: Access) -> None:
        box = Sandbox.objects.create(
            org=ada_access.org, run=lived_in, epoch=1, pool="e2b", provider_id="e2b", token_digest="x", calls_left=0,
            created_at=database_now(),
        )  # fmt: skip
        delete(ada_access)
        assert DataKey.objects.filter(org=ada_access.org).exists()

        Sandbox.objects.filter(id=box.id).update(ended_at=database_now())
        org_deletion.go_on()

        assert not DataKey.objects.filter(org=ada_access.org).exists()

    def test_leaves_no_text_of_an_attempt(self, lived_in: Run, ada_access: Access) -> None:
        Attempt.objects.update(error={"code": "PROVIDER_ERROR", "detail": "Anthropic says: the sea.", "fix": ""})

        delete(ada_access)

        assert Attempt.objects.exists()
        assert not Attempt.objects.filter(error__isnull=False).exists()

    def test_gets_a_signed_receipt_of_the_keys_by_mail_and_in_the_audit_log(
        self, lived_in: Run, ada_access: Access
    ) -> None:
        delete(ada_access)
        later.wait()

        receipt = AuditEvent.objects.get(action="vault.keys_destroyed").detail
        assert receipt["signature"]
        assert receipt["organization"] == ada_access.org.pk
        assert receipt["orderedBy"] == "ada@acme.test"
        [message] = [one for one in mail.outbox if "keys of Acme were destroyed" in one.subject]
        assert message.to == ["ada@acme.test"]
        assert json.loads(message.body[message.body.index("{") :]) == receipt
        started, ended = AuditEvent.objects.filter(action__startswith="org.delet").order_by("pk")
        assert (started.action, started.actor) == ("org.deletion_started", "ada@acme.test")
        assert ended.action == "org.deleted"

    def test_has_the_members_told(self, lived_in: Run, ada_access: Access) -> None:
        later.wait()
        mail.outbox.clear()

        delete(ada_access)
        later.wait()

        told = [one for one in mail.outbox if "Acme was deleted" in one.subject]
        assert sorted(address for one in told for address in one.to) == ["ada@acme.test", "mia@acme.test"]

    def test_cancels_what_waits_and_what_runs(self, lived_in: Run, ada_access: Access, work: Any) -> None:
        waiting = dispatch(ada_access)
        running = dispatch(ada_access)
        lease = database_now() + timedelta(minutes=1)
        Run.objects.filter(pk=running.pk).update(state=Run.State.RUNNING, lease_until=lease, lease_owner="other")

        delete(ada_access)

        assert Run.objects.get(pk=waiting.pk).state == Run.State.CANCELLED
        assert Run.objects.get(pk=running.pk).cancel_requested_at is not None
        # What a call has used is settled before anything of it is deleted.
        assert Org.objects.get().deleted_at is None
        assert RunInput.objects.filter(run=running).exists()
        Run.objects.filter(pk=running.pk).update(lease_until=database_now() - timedelta(minutes=1))
        worker.reaper.reap()
        org_deletion.go_on()
        assert Run.objects.get(pk=running.pk).state == Run.State.CANCELLED
        assert Org.objects.get().deleted_at is not None

    def test_deletes_a_run_that_another_process_adds_at_the_same_moment(
        self, lived_in: Run, ada_access: Access, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(org_deletion, "KNOWN_TO_ALL", timedelta(hours=1))
        delete(ada_access)
        late = Run.objects.get(pk=lived_in.pk)
        late.pk, late.state = new_id("run"), Run.State.QUEUED
        late.save(force_insert=True)
        RunInput.objects.create(run=late, body={"system": None, "messages": []})
        assert claims.claim_next(owner="other") is None
        assert Org.objects.get().deleted_at is None

        monkeypatch.setattr(org_deletion, "KNOWN_TO_ALL", timedelta())
        org_deletion.go_on()

        assert Run.objects.get(pk=late.pk).state == Run.State.CANCELLED
        assert not RunInput.objects.exists()
        assert Org.objects.get().deleted_at is not None

    @pytest.mark.parametrize("fault", [CredentialUnreadable(reason=KeyServiceSilent("")), AnchorKeyUnavailable()])
    def test_keeps_no_text_while_the_keys_cannot_be_destroyed(
        self, lived_in: Run, ada_access: Access, monkeypatch: pytest.MonkeyPatch, fault: Exception
    ) -> None:
        def refuse(*args: Any, **kwargs: Any) -> None:
            raise fault

        with monkeypatch.context() as refusing:
            refusing.setattr(org_deletion.destruction, "_destroy_outer_keys", refuse)
            delete(ada_access)

        org = Org.objects.get()
        assert (RunInput.objects.exists(), ModelProfile.objects.exists(), org.deleted_at) == (False, False, None)
        assert DataKey.objects.filter(org=org).exists()

        org_deletion.go_on()

        assert Org.objects.get().deleted_at is not None
        receipt = AuditEvent.objects.get(action="vault.keys_destroyed").detail
        assert len(receipt["integrations"]) == 1

    def test_leaves_the_id_taken(self, lived_in: Run, ada_access: Access, eve: User) -> None:
        delete(ada_access)

        with pytest.raises(services.AlreadyExists):
            services.create_org(name="Acme", slug="acme", owner=eve)

    def test_leaves_others_alone(self, lived_in: Run, ada_access: Access, eve: User, page_as: Any) -> None:
        delete(ada_access)

        assert page_as(eve).get("/o/evil/").status_code == 200


class TestATurn:
    def test_ends_and_the_next_one_goes_on(
        self, lived_in: Run, ada_access: Access, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begin_only(ada_access, monkeypatch)
        seconds = itertools.count()
        monkeypatch.setattr(org_deletion, "monotonic", lambda: next(seconds))
        # The start, the look whether the turn is over before an organization, and one step.
        monkeypatch.setattr(org_deletion, "TURN_SECONDS", 2)
        monkeypatch.setattr(org_deletion, "BATCH", 1)

        org_deletion.go_on()
        assert next(seconds) == 3
        assert RunInput.objects.exists()
        turns = 1
        while Org.objects.get().deleted_at is None:
            org_deletion.go_on()
            turns += 1
            assert turns < 100

        assert turns > 5
        assert not RunInput.objects.exists()
        assert not Workflow.objects.exists()

    def test_changes_no_more_rows_at_once_than_a_batch_has(
        self, lived_in: Run, ada_access: Access, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, _, _ = register_host(ada_access, name="laptop")
        workflow = Workflow.objects.get()
        for _ in range(4):
            workflows.start(ada_access, workflow)
        Workflow.objects.update(project=project)
        WorkflowRun.objects.update(project=project, host=host)
        Run.objects.update(project=project, host=host)
        begin_only(ada_access, monkeypatch)
        monkeypatch.setattr(org_deletion, "BATCH", 2)
        most: Counter[str] = Counter()

        def count(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            result = execute(sql, params, many, context)
            if sql.startswith(("DELETE", "UPDATE")):
                most[" ".join(sql.split()[:3])] = max(most[" ".join(sql.split()[:3])], context["cursor"].rowcount)
            return result

        with connection.execute_wrapper(count):
            for _ in range(3):
                org_deletion.go_on()

        assert Org.objects.get().deleted_at is not None
        assert Run.objects.count() == 6
        assert not Run.objects.exclude(project=None, host=None).exists()
        assert most['DELETE FROM "workflows_workflowrun"'] == 2
        assert {sql: rows for sql, rows in most.items() if rows > 2} == {}
        assert StoredBytes.objects.get().used == 0


class TestBehindADeletion:
    """A caller whose access was read before it."""

    def test_no_key_is_added(self, ada_access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
        seal = keys.credentials.seal_key

        def seal_slowly(*given: Any) -> None:
            seal(*given)
            delete(ada_access)

        monkeypatch.setattr(keys.credentials, "seal_key", seal_slowly)

        with pytest.raises(NotFound):
            keys.add_integration(ada_access, provider="claude", api_key=Secret(f"sk-ant-api03-{'a' * 93}AA"))

        assert not Integration.objects.exists()
        assert not DataKey.objects.exclude(org=None).exists()

    def test_no_data_key_is_made(self, lived_in: Run, ada_access: Access) -> None:
        delete(ada_access)

        with pytest.raises(CredentialUnreadable, match="was deleted"):
            vault.fetch_key(org=ada_access.org)

        assert not DataKey.objects.filter(org=ada_access.org).exists()

    def test_no_profile_is_saved(self, ada_access: Access, make_profile: Any) -> None:
        delete(ada_access)

        with pytest.raises(NotFound):
            make_profile(auth_modes=["byok"])

        assert not ModelProfile.objects.exists()

    def test_no_run_is_queued(self, lived_in: Run, ada_access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
        write = admit.write

        def write_slowly(plans: Any) -> Any:
            delete(ada_access)
            return write(plans)

        monkeypatch.setattr(admit, "write", write_slowly)

        with pytest.raises(storage.StorageLimitReached):
            dispatch(ada_access)

        assert Run.objects.count() == 2
        assert not RunInput.objects.exists()

    def test_no_workflow_is_saved(self, ada_access: Access) -> None:
        delete(ada_access)

        with pytest.raises(NotFound):
            workflows.apply_document(ada_access, {"name": "late", "nodes": [NODE_OF_THE_DEFAULT_PROFILE]})

        assert not Workflow.objects.exists()

    def test_what_was_written_all_the_same_is_deleted_by_a_later_look(self, lived_in: Run, ada_access: Access) -> None:
        delete(ada_access)
        Project.objects.create(org=ada_access.org, slug="late", name="Late")

        org_deletion.look_again()

        assert not Project.objects.exists()
        assert AuditEvent.objects.filter(action="org.deleted").count() == 1
        assert org_deletion.look_again in {job.run for job in worker.SLOW_JOBS}

    def test_a_second_one_is_refused(self, ada_access: Access) -> None:
        delete(ada_access)

        with pytest.raises(NotFound):
            delete(ada_access)

        assert AuditEvent.objects.filter(action="org.deletion_started").count() == 1


class TestACrash:
    @pytest.mark.parametrize("step", ["_destroy_keys", "_cancel_runs", "_empty_runs", "_delete_rest"])
    def test_leaves_a_rest_that_the_periodic_job_deletes(
        self, lived_in: Run, ada_access: Access, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        with monkeypatch.context() as broken:
            broken.setattr(org_deletion, step, lambda org: 1 / 0)
            delete(ada_access)
            assert Org.objects.get().deleted_at is None

        org_deletion.go_on()
        org_deletion.go_on()

        assert Org.objects.get().deleted_at is not None
        assert not Integration.objects.exists()
        assert not RunInput.objects.exists()
        assert AuditEvent.objects.filter(action="org.deleted").count() == 1
        assert AuditEvent.objects.filter(action="vault.keys_destroyed").count() == 1

    def test_is_noticed_by_the_workers(self, lived_in: Run, ada_access: Access) -> None:
        assert org_deletion.ANY_DUE in {job.has_work for job in worker.JOBS}


class TestOthers:
    @pytest.mark.parametrize("person", ["alan", "mia", "otto"])
    def test_may_not(
        self, request: Any, acme: Org, page_as: Callable[..., Client], api_as: Callable[..., APIClient], person: str
    ) -> None:
        user = request.getfixturevalue(person)
        page = page_as(user)

        shown = page.get("/o/acme/settings/organization")
        asked = page.post("/o/acme/settings/organization/delete", {"typed": "acme"})
        by_rest = api_as(user).delete(f"/api/v1/orgs/{acme.pk}?confirm=acme")

        assert "Only an owner can." in shown.content.decode()
        assert (asked.status_code, by_rest.status_code) == (403, 403)
        assert "This is up to an owner: " in asked.content.decode()
        assert "admin:" not in asked.content.decode()
        assert "Only an owner may do this." in by_rest.json()["detail"]
        assert Org.objects.get().deleting_at is None

    def test_may_not_with_a_token_of_a_project(self, ada_access: Access, project: Project) -> None:
        _, secret = create_token(ada_access, name="ci", project=project)
        bound = for_token(token=secret.reveal())
        assert bound is not None

        with pytest.raises(NotPermitted):
            org_deletion.delete_org(bound, confirm="acme")

    def test_are_not_deleted_by_another_id(self, acme: Org, ada: User, eve: User, api_as: Callable[..., Any]) -> None:
        theirs = Org.objects.get(slug="evil")

        answer = api_as(ada).delete(f"/api/v1/orgs/{theirs.pk}?confirm=evil")

        assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")

    def test_view_nothing_of_it(self, ada_access: Access, grace: User) -> None:
        delete(ada_access)

        with pytest.raises(FieldError):
            entering.view_as(Org.objects.get(), operator=grace, reason="x", hours=1, address=None)


class TestTheConfirmation:
    def test_asks_for_the_id(self, ada_access: Access, ada: User, page_as: Callable[..., Client]) -> None:
        page = page_as(ada)

        asked = page.get("/o/acme/settings/organization/delete").content.decode()
        refused = page.post("/o/acme/settings/organization/delete", {"typed": "Acme"})

        assert all(sentence in asked for sentence in org_deletion.CONSEQUENCES)
        assert refused.status_code == 422
        with pytest.raises(FieldError):
            org_deletion.delete_org(ada_access, confirm="other")
        assert Org.objects.get().deleting_at is None


class TestRest:
    def test_deletes_it(self, acme: Org, ada: User, api_as: Callable[..., APIClient]) -> None:
        answer = api_as(ada).delete(f"/api/v1/orgs/{acme.pk}?confirm=acme")

        later.wait()
        assert answer.status_code == 204
        assert Org.objects.get().deleted_at is not None


def test_every_table_of_an_organization_goes_or_is_named() -> None:
    """A table that is added later goes with its organization, unless it is named here as one that stays."""
    assert {model.__name__ for model in org_deletion.STAYING} == {
        "BudgetHold", "BudgetUsage", "CapHold", "CostEvent", "Entitlement", "Hold", "LedgerAnchor", "LedgerSeal",
        "Run", "SharedSpending", "SharedUsage", "Statement", "StoredBytes", "UsageDaily",
    }  # fmt: skip
