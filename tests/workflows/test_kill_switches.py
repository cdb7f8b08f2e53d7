"""A workflow whose model or organization an operator has stopped: its nodes fail with the reason, and call nobody."""

from typing import Any

import pytest

from rensei.dispatch.models import Attempt
from rensei.orgs import kill_switches
from rensei.orgs.access import Access
from rensei.orgs.models import KillSwitch, User
from rensei.workflows import services
from rensei.workflows.wire import WorkflowRunDetailAnswer
from tests.workflows.conftest import node, workflow

pytestmark = pytest.mark.django_db(transaction=True)


class TestAWorkflow:
    def test_fails_where_it_is_stopped_and_its_dependants_with_it(
        self, ready: Any, ada_access: Access, grace: User, work: Any
    ) -> None:
        made, _ = services.apply_document(ada_access, workflow(node("a", "Hi."), node("b", "Ho.", needs=["a"])))
        org = ada_access.org
        kill_switches.stop(
            operator=grace, kind=KillSwitch.Kind.ORGANIZATION, target=org.id, reason="Unpaid bills", org=org
        )

        begun = services.start(ada_access, made, given="")
        work()

        body = WorkflowRunDetailAnswer(services.workflow_runs_to_show().get(id=begun.id)).data
        first, second = body["nodes"]
        assert body["state"] == "FAILED"
        assert first["error"]["code"] == "ORG_SUSPENDED"
        assert "Unpaid bills" in first["error"]["detail"]
        assert second["state"] != "SUCCEEDED"
        assert not Attempt.objects.exists()
