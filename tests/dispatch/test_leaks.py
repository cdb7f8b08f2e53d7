"""Keys of this installation in runs: blotted out in all that is kept and shown, with their owners told once."""

import json
import secrets
from collections.abc import Callable
from typing import Any

import pytest
from django.core import mail
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from integrations.keys import leaks, services
from integrations.models import Integration, KeyOpening
from integrations.providers.anthropic import errors
from integrations.vault import sealed, vault
from integrations.vault.errors import CredentialUnreadable, KeyServiceSilent
from rensei import worker
from rensei.audit.models import AuditEvent
from rensei.core.later import later
from rensei.core.secret import Secret
from rensei.dispatch import withheld
from rensei.dispatch.host_sessions import leases
from rensei.dispatch.models import Run, RunChunk, RunInput, SearchEntry
from rensei.orgs.access import Access
from rensei.orgs.models import Org, User
from rensei.tokens.models import ApiToken
from rensei.tokens.services import create_token
from rensei.workflows.models import WorkflowRun
from tests import factories
from tests.dispatch.reconcile import assert_explained
from tests.integrations.anthropic.test_growth import lines

# Put together here, so that no file has a text of the shape of a key.
KEY_LIKE = f"sk-ant-api03-{'a' * 20} "

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def own(ada_access: Access, key: str) -> Integration:
    """Acme's key, whose text is `key`."""
    return factories.connect_key(ada_access, key, name="Main")


@pytest.fixture
def client(ada: User, own: Integration, make_profile: Any, api_as: Callable[..., APIClient]) -> APIClient:
    make_profile(auth_modes=["byok"])
    return api_as(ada)


@pytest.fixture
def run_of(client: APIClient, simulator: Any, work: Any) -> Callable[..., Run]:
    """Dispatch over REST and execute."""

    def run(text: str, **fields: Any) -> Run:
        answer = client.post("/api/v1/runs", {"profileId": "prof_deep", "input": text, **fields})
        assert answer.status_code == 202, answer.json()
        work()
        return Run.objects.get(id=answer.json()["id"])

    return run


def stored_texts(*secret_texts: str) -> set[str]:
    """Name the tables that hold one of these texts."""
    found = set()
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names():
            cursor.execute(f'SELECT * FROM "{table}"')
            if any(text in repr(row) for row in cursor.fetchall() for text in secret_texts):
                found.add(table)
    return found


class TestInput:
    def test_is_sent_as_it_is_and_kept_without_the_key(
        self, run_of: Callable[..., Run], client: APIClient, simulator: Any, key: str, own: Integration
    ) -> None:
        run = run_of(f"Use {key} for it.", metadata={"note": f"key={key}"})

        (sent,) = [one for one in simulator.requests() if one["path"].startswith("/v1/messages")]
        assert f"Use {key} for it." in json.dumps(sent["body"])
        assert run.state == Run.State.SUCCEEDED
        mark = f"[key removed: {own.key_hint}]"
        assert mark in json.dumps(RunInput.objects.get().body, ensure_ascii=False)
        assert run.metadata == {"note": f"key={mark}"}
        assert mark in SearchEntry.objects.get().excerpt
        assert stored_texts(key) == set()
        assert key not in client.get(f"/api/v1/runs/{run.id}").content.decode()

    def test_that_is_sealed_is_deleted_after_the_run_and_its_bytes_are_released(
        self, run_of: Callable[..., Run], key: str
    ) -> None:
        run_of(f"Use {key}.")
        assert RunInput.objects.get().original is not None

        withheld.drop_of_ended_runs()

        assert RunInput.objects.get().original is None
        assert worker.count_stored_bytes() == {}

    def test_opens_under_a_new_data_key_and_the_opening_is_recorded(
        self, client: APIClient, acme: Org, work: Any, simulator: Any, key: str
    ) -> None:
        client.post("/api/v1/runs", {"profileId": "prof_deep", "input": f"Use {key}."})
        sealed.rotate_data_key(acme)
        work()

        run = Run.objects.get()
        assert run.state == Run.State.SUCCEEDED
        assert set(KeyOpening.objects.filter(run_id=run.id).values_list("record_id", flat=True)) >= {run.id}

    def test_of_something_that_only_looks_like_a_key_is_left_alone(
        self, run_of: Callable[..., Run], make_key: Callable[..., str]
    ) -> None:
        other, token = make_key(), f"rsk_live_{secrets.token_hex(32)}"

        run_of(f"Use {other} or {token}.")

        given = RunInput.objects.get()
        assert given.body["messages"][0]["content"] in (
            f"Use {other} or {token}.",
            [{"type": "text", "text": f"Use {other} or {token}."}],
        )
        assert given.original is None
        assert not AuditEvent.objects.filter(action="key.leaked").exists()

    def test_is_refused_while_the_vault_cannot_tell(
        self, client: APIClient, key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def silent(*args: Any, **options: Any) -> Any:
            raise CredentialUnreadable(reason=KeyServiceSilent("silent"))

        monkeypatch.setattr(vault, "fingerprints_of_each", silent)

        answer = client.post("/api/v1/runs", {"profileId": "prof_deep", "input": f"Use {key}."})

        assert (answer.status_code, answer.json()["code"]) == (503, "CREDENTIAL_UNREADABLE")
        assert not Run.objects.exists()


class TestOutput:
    def test_has_no_key_in_the_answer_nor_in_the_events(
        self, run_of: Callable[..., Run], key: str, own: Integration
    ) -> None:
        run = run_of(f"[[echo before {key} after]]")

        text = f"before [key removed: {own.key_hint}] after"
        assert run.output_text == text
        assert text in json.dumps(run.output_content, ensure_ascii=False)
        deltas = RunChunk.objects.filter(kind=RunChunk.Kind.DELTA).order_by("seq").values_list("data", flat=True)
        assert "".join(data["text"] for data in deltas) == text
        assert stored_texts(key) == set()

    def test_has_none_where_each_piece_of_a_stream_is_written_by_itself(
        self, run_of: Callable[..., Run], key: str, own: Integration, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rensei.dispatch.execution.provider_call.FLUSH_BYTES", 1)

        run_of(f"[[echo say sk-ant or {key} or risk]]")

        deltas = RunChunk.objects.filter(kind=RunChunk.Kind.DELTA).order_by("seq").values_list("data", flat=True)
        assert len(deltas) > 1
        assert "".join(data["text"] for data in deltas) == f"say sk-ant or [key removed: {own.key_hint}] or risk"

    def test_has_nothing_of_that_shape_while_the_vault_cannot_tell(
        self, acme: Org, own: Integration, key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def silent(*args: Any, **options: Any) -> Any:
            raise CredentialUnreadable(reason=KeyServiceSilent("silent"))

        monkeypatch.setattr(vault, "fingerprints_of_each", silent)

        assert key not in leaks.find_or_blot(key, org=acme).blot(key)

    def test_is_kept_and_charged_where_the_database_fails_while_keys_are_looked_up(
        self, client: APIClient, simulator: Any, work: Any, key: str, own: Integration, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The call is under way and is paid, also if the look-up fails."""
        client.post("/api/v1/runs", {"profileId": "prof_deep", "input": f"[[echo before {key} after]]"})
        find, faults = leaks.find, [OperationalError("the database is away")]

        def failing_once(*args: Any, **options: Any) -> Any:
            if faults:
                raise faults.pop()
            return find(*args, **options)

        monkeypatch.setattr(leaks, "find", failing_once)

        (run,) = work()

        assert (run.state, run.error, faults) == (Run.State.SUCCEEDED, None, [])
        assert run.output_text == f"before [key removed: {own.key_hint}] after"
        assert run.amount_picodollars
        assert_explained(simulator)
        assert stored_texts(key) == set()


class TestAnError:
    def test_has_no_key_that_the_provider_quotes(
        self,
        client: APIClient,
        ada_access: Access,
        simulator: Any,
        work: Any,
        make_key: Callable[..., str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The key that signs the call is removed from its message anyway; this is another one."""
        quoted = make_key()
        other = factories.connect_key(ada_access, quoted, name="Other")
        monkeypatch.setattr(errors, "_quote", lambda said: f"The prompt 'Use {quoted}' is refused.")

        client.post("/api/v1/runs", {"profileId": "prof_deep", "input": "Hi. [[fault:422]]"})
        (run,) = work()

        assert f"Use [key removed: {other.key_hint}]' is refused." in run.error["detail"]
        assert stored_texts(quoted) == set()
        event = AuditEvent.objects.get(action="key.leaked")
        assert (event.object_id, event.detail) == (other.id, {"place": "output"})


class TestAMachinesAnswer:
    @pytest.mark.parametrize("pieces", [1, 2, 7, 30])
    def test_has_no_key_that_arrives_in_pieces(
        self, ada_access: Access, own: Integration, key: str, pieces: int
    ) -> None:
        run = factories.past_run(ada_access.org, ada_access.user)
        size = -(-len(key) // pieces)
        told = ["Use ", *(key[start : start + size] for start in range(0, len(key), size)), "_or-not, sk-", "ant."]

        for seq, text in enumerate(told):
            text = leases._without_keys(run, text)
            RunChunk.objects.create(run=run, seq=seq, kind=RunChunk.Kind.DELTA, data={"text": text})

        deltas = RunChunk.objects.order_by("seq").values_list("data", flat=True)
        assert "".join(data["text"] for data in deltas) == f"Use [key removed: {own.key_hint}]_or-not, sk-ant."


class TestAWorkflow:
    @pytest.fixture
    def start(self, client: APIClient, simulator: Any) -> Callable[[str], Any]:
        """Start a workflow with an input."""
        config = {"profileId": "prof_deep", "prompt": "Say {{ input }}"}
        nodes = [{"nodeId": "only", "nodeType": "action/llm.inference", "config": config}]
        made = client.post("/api/v1/workflows", {"document": {"name": "leaky", "nodes": nodes}})
        assert made.status_code in (200, 201), made.json()
        return lambda text: client.post(f"/api/v1/workflows/{made.json()['id']}/runs", {"input": text})

    def test_has_its_owners_told(self, start: Callable[[str], Any], alan: User, key: str, own: Integration) -> None:
        start(f"it is {key}")
        start(f"it is {key}")
        later.wait()

        event = AuditEvent.objects.get(action="key.leaked")
        assert (event.object_id, event.detail) == (own.id, {"place": "input"})
        (message,) = mail.outbox
        assert sorted(message.recipients()) == ["ada@acme.test", "alan@acme.test"]

    def test_is_refused_while_the_vault_cannot_tell(
        self, start: Callable[[str], Any], key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What only looks like a key would otherwise be removed for good, and the call changed."""

        def silent(*args: Any, **options: Any) -> Any:
            raise CredentialUnreadable(reason=KeyServiceSilent("silent"))

        monkeypatch.setattr(vault, "fingerprints_of_each", silent)

        answer = start(f"it is {key}")

        assert (answer.status_code, answer.json()["code"]) == (503, "CREDENTIAL_UNREADABLE")
        assert not WorkflowRun.objects.exists()

    def test_gets_its_input_without_the_key(self, start: Callable[[str], Any], key: str, own: Integration) -> None:
        started = start(f"it is {key}")

        assert started.status_code == 202, started.json()
        assert WorkflowRun.objects.get().input == f"it is [key removed: {own.key_hint}]"
        assert stored_texts(key) == set()


class TestOwners:
    def test_are_told_once_until_the_key_is_replaced(
        self,
        run_of: Callable[..., Run],
        ada_access: Access,
        ada: User,
        alan: User,
        mia: User,
        own: Integration,
        key: str,
        page_as: Callable[[User], Client],
        make_key: Callable[..., str],
    ) -> None:
        for _ in range(2):
            run_of(f"[[echo {key}]]")
        later.wait()

        (message,) = mail.outbox
        assert sorted(message.recipients()) == ["ada@acme.test", "alan@acme.test"]
        assert key not in message.body
        assert f"/o/acme/settings/integrations/{own.id}/rotate" in message.body
        event = AuditEvent.objects.get(action="key.leaked")
        assert (event.object_id, event.org_id, event.detail) == (own.id, ada_access.org.id, {"place": "input"})
        page = page_as(ada)
        assert "Main: the key appeared in a run" in page.get("/o/acme/").content.decode()

        own.refresh_from_db()
        services.rotate_integration(ada_access, own, api_key=Secret(make_key()), force=True)

        assert "appeared in a run" not in page.get("/o/acme/").content.decode()

    def test_of_a_token_of_another_organization_are_told_and_not_of_whose_run(
        self, run_of: Callable[..., Run], eve: User, access_of: Callable[..., Access]
    ) -> None:
        token, secret = create_token(access_of(eve, "evil"), name="theirs")
        run = run_of(f"curl -H 'x-api-key: {secret.reveal()}' there")
        later.wait()

        assert stored_texts(secret.reveal()) == set()
        assert ApiToken.objects.get(pk=token.pk).leaked_at is not None
        (message,) = mail.outbox
        assert message.recipients() == ["eve@evil.test"]
        event = AuditEvent.objects.get(action="key.leaked")
        assert event.org_id == token.org_id
        assert run.id not in f"{message.body} {event.detail}"

    def test_of_another_organizations_key_are_not_found(
        self, run_of: Callable[..., Run], eve: User, access_of: Callable[..., Access], make_key: Callable[..., str]
    ) -> None:
        """Or a prompt would tell whether another organization has a key."""
        theirs = make_key()
        factories.connect_key(access_of(eve, "evil"), theirs, name="theirs")

        run_of(f"Use {theirs}.")

        assert theirs in json.dumps(RunInput.objects.get().body)
        assert not AuditEvent.objects.filter(action="key.leaked").exists()


class TestAKey:
    @pytest.mark.parametrize("after", ["", "_", "-and-more", "x" * 500, "sk-ant-api03-", ".", "é"])
    def test_is_recognised_whatever_follows(self, acme: Org, own: Integration, key: str, after: str) -> None:
        text = f"{key}{after}"

        assert leaks.find(text, org=acme).blot(text) == f"[key removed: {own.key_hint}]{after}"

    def test_is_recognised_directly_after_something_of_its_shape(
        self, acme: Org, own: Integration, key: str, make_key: Callable[..., str]
    ) -> None:
        other = make_key()
        text = f"{other}{key}{key}"

        mark = f"[key removed: {own.key_hint}]"
        assert leaks.find(text, org=acme).blot(text) == f"{other}{mark}{mark}"


class TestSplitUnfinished:
    @pytest.mark.parametrize("length", range(1, 60, 7))
    def test_keeps_the_beginning_of_a_key_back(self, key: str, length: int) -> None:
        assert leaks.split_unfinished(f"Use {key[:length]}") == ("Use ", key[:length])

    @pytest.mark.parametrize("text", ["", "Use it.", "sk-ant-api03-x done", "rsk_live_nothing", "-" * 2000])
    def test_keeps_nothing_else_back(self, text: str) -> None:
        assert leaks.split_unfinished(text) == (text, "")

    def test_keeps_no_more_back_than_a_key_is_long(self) -> None:
        text = "sk-ant-api03-" + "a" * 3000

        assert leaks.split_unfinished(text) == (text, "")


class TestCost:
    @pytest.mark.parametrize("piece", ["sk-ant-api03-", "rsk_live_", KEY_LIKE, "sk-ant-a-"])
    def test_grows_no_faster_than_the_text(self, acme: Org, piece: str) -> None:
        marks = leaks.Leaks(marks={KEY_LIKE.strip(): "[key]"})

        def work(times: int) -> int:
            text = piece * times
            return lines(lambda: (leaks.find([text], org=acme), marks.blot(text)), of="leaks.py")

        # Beyond so many, texts of the shape of a key are not compared.
        assert work(20_000) < 4.5 * work(5_000)
        # For each place where a key may begin, as much as for a few lengths, not for each length that it could have.
        assert work(5_000) < 100 * 5_000

    def test_is_no_query_without_such_a_text(self, acme: Org, django_assert_num_queries: Any) -> None:
        with django_assert_num_queries(0):
            assert not leaks.find({"messages": ["sk-ant-api", "rsk_live_0", "risk"] * 1000}, org=acme)

    def test_is_the_same_queries_for_many(self, acme: Org, make_key: Callable[..., str]) -> None:
        leaks.find(make_key(), org=acme)
        with CaptureQueriesContext(connection) as first:
            leaks.find(make_key(), org=acme)

        for count in (1, 50):
            with CaptureQueriesContext(connection) as queries:
                leaks.find([make_key() for _ in range(count)], org=acme)
            assert len(queries) == len(first)
