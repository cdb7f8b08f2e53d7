"""Workflow runs from their first node to their end: in order, side by side, failing, cancelled, interrupted."""

import base64
import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from profiles import services as profiles
from rensei.core.clock import database_now
from rensei.core.rates import rates
from rensei.dispatch import token_rate
from rensei.dispatch.models import Attempt, Run
from rensei.orgs import services as orgs
from rensei.orgs.access import Access
from rensei.orgs.models import Membership, User
from rensei.workflows import execution, services
from rensei.workflows.models import WorkflowRun
from rensei.workflows.wire import WorkflowRunDetailAnswer
from tests.dispatch.reconcile import assert_explained
from tests.dying import die_at
from tests.waiting import wait_until
from tests.workflows.conftest import DOCUMENTED, node, workflow
from tests.workflows.dying_worker import plant_death

pytestmark = pytest.mark.django_db(transaction=True)

CHAIN = (
    node("a", "[[echo one]]"),
    node("b", "[[echo {{ nodes.a.output }} two]]"),
    node("c", "[[echo {{ nodes.b.output }} three]]"),
)


@pytest.fixture
def begin(ada_access: Access) -> Callable[..., WorkflowRun]:
    def begin(*nodes: dict[str, Any], given: Any = None, access: Access = ada_access) -> WorkflowRun:
        made, _ = services.apply_document(access, workflow(*nodes))
        return services.start(access, made, given=given)

    return begin


def look(workflow_run: WorkflowRun) -> dict[str, Any]:
    """Look at a workflow run as REST shows it, with its nodes by their ids."""
    body = WorkflowRunDetailAnswer(services.workflow_runs_to_show().get(id=workflow_run.id)).data
    return {**body, "nodes": {one["nodeId"]: one for one in body["nodes"]}}


def states(workflow_run: WorkflowRun) -> dict[str, str]:
    return {name: one["state"] for name, one in look(workflow_run)["nodes"].items()}


class TestTheDocumentationsNode:
    def test_runs_as_printed(
        self, simulator: Any, connect: Any, deep_reasoning: Any, ada_access: Access, work: Any
    ) -> None:
        connect()
        made, _ = services.apply_document(ada_access, DOCUMENTED)

        begun = services.start(ada_access, made, given="What is the answer?")
        work()

        run = Run.objects.get()
        ended = look(begun)
        assert ended["state"] == "SUCCEEDED"
        assert ended["nodes"]["llm_call_1"]["output"] == run.output_text
        assert (run.profile_id, run.project.slug, run.effort) == (
            "prof_anthropic_deep_reasoning",
            "my-project",
            "high",
        )
        assert run.input.body["system"] == "You are an expert problem solver. Think deeply."
        assert run.input.body["messages"] == [
            {"role": "user", "content": [{"type": "text", "text": "What is the answer?"}]}
        ]
        assert_explained(simulator)


class TestNodes:
    def test_run_one_after_the_other_with_each_others_output(self, ready: Any, begin: Any, work: Any) -> None:
        begun = begin(*reversed(CHAIN))

        work()

        ended = look(begun)
        assert ended["state"] == "SUCCEEDED"
        assert ended["nodes"]["c"]["output"] == "one two three"
        assert ended["cost"]["amountUsd"] is not None
        assert ended["startedAt"] <= ended["finishedAt"]
        assert_explained(ready)

    def test_that_wait_for_nothing_are_dispatched_at_once(self, ready: Any, begin: Any) -> None:
        begun = begin(node("a", "A"), node("b", "B"), node("c", "{{ nodes.a.output }}", needs=["b"]))

        assert states(begun) == {"a": "RUNNING", "b": "RUNNING", "c": "PENDING"}
        assert Run.objects.filter(state="QUEUED").count() == 2

    def test_that_are_many_are_dispatched_batch_by_batch(
        self, ready: Any, begin: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(execution, "BATCH", 2)

        begun = begin(*(node(f"n{place}", "Hi.") for place in range(5)), node("last", "{{ nodes.n4.output }}"))

        assert states(begun) == {f"n{place}": "RUNNING" for place in range(5)} | {"last": "PENDING"}
        assert WorkflowRun.objects.get().leased_until is None

    def test_run_side_by_side(self, ready: Any, begin: Any, worker: Any) -> None:
        slow = "[[reply 10 words]] [[slow 0.1]]"
        begun = begin(node("a", slow), node("b", slow), node("c", slow), node("d", needs=["a", "b", "c"]), given="Hi.")

        wait_until(WorkflowRun.objects.filter(state__in=WorkflowRun.ENDED).exists, seconds=60, what="the end")

        assert look(begun)["state"] == "SUCCEEDED"
        spans = [(run.started_at, run.finished_at) for run in Run.objects.exclude(metadata__nodeId="d")]
        assert max(start for start, _ in spans) < min(end for _, end in spans)
        last = Run.objects.get(metadata__nodeId="d")
        assert last.created_at >= max(end for _, end in spans)

    def test_say_more_than_their_profile(self, simulator: Any, connect: Any, make_profile: Any, begin: Any) -> None:
        connect()
        make_profile(system="The profile's.", effort="low", provider_config={"anthropic": {"contextWindow": 50_000}})

        begin(
            node("a", "A", systemPrompt="The node's.", effort="high"),
            node("b", "B", providerConfig={"anthropic": {"contextWindow": 60_000}}),
        )

        a, b = (Run.objects.get(metadata__nodeId=name) for name in "ab")
        assert (a.effort, a.input.body["system"], a.context_window_tokens) == ("high", "The node's.", 50_000)
        assert (b.effort, b.input.body["system"], b.context_window_tokens) == ("low", "The profile's.", 60_000)

    def test_send_images_before_their_prompt(self, ready: Any, begin: Any, work: Any) -> None:
        picture = io.BytesIO()
        Image.new("RGB", (40, 30), "teal").save(picture, "PNG")
        data = base64.b64encode(picture.getvalue()).decode()
        source = {"type": "base64", "media_type": "image/png", "data": data}

        begun = begin(
            node("a", "What is it?", images=[f"data:image/png;base64,{data}", source]),
            node("b", "And this?", images=["{{ input.picture }}", {"type": "image", "source": source}]),
            given={"picture": f"data:image/png;base64,{data}"},
        )
        work()

        ended = look(begun)
        assert ended["state"] == "SUCCEEDED", ended
        for name in "ab":
            sent = Run.objects.get(metadata__nodeId=name).input.body["messages"][0]["content"]
            assert [block["type"] for block in sent] == ["image", "image", "text"]
            assert ended["nodes"][name]["output"].count("image/png") == 2

    def test_do_not_read_references_in_what_is_put_in(self, ready: Any, begin: Any, work: Any) -> None:
        begun = begin(
            node("a", "[[echo {{ input.said }}]]"),
            node("b", "[[echo {{ nodes.a.output }}]]"),
            given={"said": "{{ input.secret }}", "secret": "canary"},
        )

        work()

        assert look(begun)["nodes"]["b"]["output"] == "{{ input.secret }}"


class TestAFailure:
    def test_of_a_run_fails_its_dependants_and_lets_others_go_on(
        self, simulator: Any, connect: Any, make_profile: Any, begin: Any, work: Any
    ) -> None:
        connect()
        revoked = connect("revoked")
        make_profile()
        make_profile(name="bad", integration=revoked)

        begun = begin(
            {**node("a"), "config": {"profileId": "prof_bad", "prompt": "A"}},
            node("b", "{{ nodes.a.output }}"),
            node("c", "{{ nodes.b.output }}"),
            node("d", "[[echo D]]"),
            node("e", "[[echo {{ nodes.d.output }} E]]"),
        )
        work()

        ended = look(begun)
        assert ended["state"] == "FAILED"
        assert states(begun) == {"a": "FAILED", "b": "SKIPPED", "c": "SKIPPED", "d": "SUCCEEDED", "e": "SUCCEEDED"}
        codes = {name: (one["error"] or {}).get("code") for name, one in ended["nodes"].items()}
        assert codes == dict.fromkeys("abc", "PROVIDER_AUTH_FAILED") | dict.fromkeys("de")
        assert "'a' did not succeed" in ended["nodes"]["b"]["error"]["detail"]
        assert ended["nodes"]["b"]["runId"] is None
        assert ended["nodes"]["e"]["output"] == "D E"

    def test_of_a_dispatch_gives_its_refusal(self, simulator: Any, make_profile: Any, begin: Any) -> None:
        make_profile()

        begun = begin(node("a", "A"), node("b", "{{ nodes.a.output }}"))

        ended = look(begun)
        assert (ended["state"], states(begun)) == ("FAILED", {"a": "FAILED", "b": "SKIPPED"})
        assert ended["nodes"]["a"]["error"]["code"] == "BYOK_NOT_CONFIGURED"
        assert not Run.objects.exists()

    def test_names_a_profile_that_went_meanwhile(
        self, ready: Any, begin: Any, work: Any, ada_access: Access, make_profile: Any
    ) -> None:
        other = make_profile(name="other")
        begun = begin(node("a", "A"), {**node("b", needs=["a"]), "config": {"profileId": "prof_other", "prompt": "B"}})

        profiles.delete_profile(ada_access, other)
        work()

        assert states(begun) == {"a": "SUCCEEDED", "b": "FAILED"}
        assert "'prof_other'" in look(begun)["nodes"]["b"]["error"]["detail"]

    @pytest.mark.parametrize("how", ["left", "auditor", "inactive"])
    def test_stops_the_workflow_of_a_member_who_may_no_more(
        self, ready: Any, begin: Any, work: Any, ada_access: Access, mia: User, access_of: Any, how: str
    ) -> None:
        begun = begin(*CHAIN, access=access_of(mia))

        membership = Membership.objects.get(user=mia)
        if how == "left":
            orgs.remove_member(ada_access, membership)
        elif how == "auditor":
            orgs.change_role(ada_access, membership, role="auditor")
        else:
            User.objects.filter(pk=mia.pk).update(is_active=False)
        work()

        ended = look(begun)
        assert ended["state"] == "FAILED"
        assert states(begun) == {"a": "SUCCEEDED", "b": "FAILED", "c": "SKIPPED"}
        assert ended["nodes"]["b"]["error"]["code"] == "NOT_PERMITTED"
        assert "The person who started" in ended["nodes"]["b"]["error"]["detail"]
        assert Run.objects.count() == 1

    def test_of_a_text_that_grew_too_long_is_a_refusal(
        self, ready: Any, begin: Any, work: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rensei.workflows.templates.LONGEST_RENDERED", 2000)

        begun = begin(node("a", "[[reply 100 words]]"), node("b", "{{ nodes.a.output }}" * 50))
        work()

        assert look(begun)["nodes"]["b"]["error"]["code"] == "REQUEST_TOO_LARGE"


class TestCancel:
    def test_hangs_up_what_runs_and_drops_what_waits(
        self, ready: Any, begin: Any, ada_access: Access, worker: Any
    ) -> None:
        begun = begin(node("a", "[[reply 500 words]] [[slow 0.1]]"), node("b", "{{ nodes.a.output }}"))
        wait_until(Run.objects.filter(state="RUNNING").exists, what="the first run")

        services.cancel(ada_access, begun)
        wait_until(WorkflowRun.objects.filter(state__in=WorkflowRun.ENDED).exists, what="the end")

        assert look(begun)["state"] == "CANCELLED"
        assert states(begun) == {"a": "CANCELLED", "b": "CANCELLED"}
        assert Run.objects.get().state == "CANCELLED"

    def test_of_one_nodes_run_cancels_what_needs_it(
        self, ready: Any, begin: Any, ada_access: Access, work: Any
    ) -> None:
        from rensei.dispatch import services as runs

        begun = begin(node("a", "A"), node("b", "{{ nodes.a.output }}"), node("c", "C"))

        runs.cancel_run(ada_access, Run.objects.get(metadata__nodeId="a"))
        work()

        assert states(begun) == {"a": "CANCELLED", "b": "CANCELLED", "c": "SUCCEEDED"}
        assert look(begun)["state"] == "CANCELLED"

    def test_finds_the_run_that_a_killed_process_dispatched_last(
        self, ready: Any, begin: Any, ada_access: Access
    ) -> None:
        begun = begin(node("a", "A"))
        begun.nodes.update(state="PENDING", run=None)

        services.cancel(ada_access, begun)

        assert Run.objects.get().state == "CANCELLED"
        assert look(begun)["state"] == "CANCELLED"


class TestAdvance:
    def test_does_nothing_while_somebody_else_does_it(self, ready: Any, begin: Any, work: Any) -> None:
        begun = begin(*CHAIN)
        WorkflowRun.objects.update(leased_until=database_now() + execution.LEASE)

        work()

        assert states(begun) == {"a": "RUNNING", "b": "PENDING", "c": "PENDING"}
        assert WorkflowRun.objects.get().changes > WorkflowRun.objects.get().advanced

    def test_waits_while_the_organization_has_no_tokens_left(
        self, ready: Any, begin: Any, work: Any, settings: Any, ada_access: Access
    ) -> None:
        settings.RENSEI_GATEWAY_TOKENS = {**settings.RENSEI_GATEWAY_TOKENS, "org": "1/hour"}
        key = token_rate.key_of(ada_access.org.id)
        rates.count(key, seconds=3600)

        begun = begin(*CHAIN)
        execution.advance_due()
        waiting = states(begun)
        rates.forget(key)
        WorkflowRun.objects.update(leased_until=None)
        execution.advance_due()

        assert waiting == {"a": "PENDING", "b": "PENDING", "c": "PENDING"}
        assert states(begun) == {"a": "RUNNING", "b": "PENDING", "c": "PENDING"}

    def test_dispatches_no_node_twice(self, ready: Any, begin: Any, work: Any) -> None:
        begun = begin(*CHAIN)
        begun.nodes.update(state="PENDING", run=None)
        WorkflowRun.objects.update(changes=9)

        execution.advance_due()
        work()

        assert look(begun)["state"] == "SUCCEEDED"
        assert Run.objects.count() == 3

    def test_of_one_that_fails_leaves_the_others_alone(
        self, ready: Any, begin: Any, work: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = begin(node("a", "[[echo first]]"))
        second = begin(node("a", "[[echo second]]"))
        advance = execution.advance

        def fail_for_the_first(workflow_run_id: str) -> None:
            if workflow_run_id == first.id:
                raise RuntimeError("a bug")
            advance(workflow_run_id)

        monkeypatch.setattr(execution, "advance", fail_for_the_first)
        WorkflowRun.objects.update(changes=9)
        work()
        execution.advance_due()

        assert look(first)["state"] == "RUNNING"
        assert look(second)["state"] == "SUCCEEDED"

    def test_is_not_moved_by_another_organizations_run(self, ready: Any, begin: Any, eve: User, access_of: Any) -> None:
        begun = begin(*CHAIN)
        before = WorkflowRun.objects.get().changes
        theirs = Run(org=access_of(eve, "evil").org, metadata={"workflowRunId": begun.id})

        execution.note_end(Run, theirs)

        assert WorkflowRun.objects.get().changes == before


@pytest.mark.parametrize(
    "point",
    [
        "before-the-next-look",
        "before-the-dispatch",
        "after-the-dispatch",
        "after-it-is-recorded",
        "after-the-look",
    ],
)
class TestAWorkerThatIsKilledBetweenNodes:
    def test_is_gone_on_from_and_no_node_runs_twice(self, ready: Any, begin: Any, work: Any, point: str) -> None:
        begun = begin(*CHAIN)

        die_at(point, plant=plant_death)
        assert states(begun)["c"] == "PENDING"
        WorkflowRun.objects.filter(leased_until__isnull=False).update(leased_until=database_now() - execution.LEASE)
        execution.advance_due()
        work()

        ended = look(begun)
        assert ended["state"] == "SUCCEEDED"
        assert ended["nodes"]["c"]["output"] == "one two three"
        assert sorted(Run.objects.values_list("metadata__nodeId", flat=True)) == ["a", "b", "c"]
        assert Attempt.objects.count() == 3
        assert_explained(ready)
