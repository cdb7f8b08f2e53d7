from collections.abc import Callable
from typing import Any

import pytest

from billing.models import CostEvent, Hold
from integrations.models import Integration
from profiles.models import ModelProfile
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Attempt, Run
from rensei.orgs.access import Access

pytestmark = pytest.mark.django_db(transaction=True)


def ask(text: str, **fields: Any) -> DispatchRequest:
    return DispatchRequest(profile_id="prof_deep", messages=messages_from(text=text, messages=None), **fields)


class TestExecute:
    def test_answers_a_byok_run_and_charges_it_to_nobody_but_the_organization(
        self,
        simulator: Any,
        ada_access: Access,
        connect: Callable[..., Integration],
        make_profile: Callable[..., ModelProfile],
        work: Callable[[], list[Run]],
    ) -> None:
        connect()
        make_profile()

        admit.dispatch(ada_access, ask("What is two and two?"))
        (run,) = work()

        assert run.error is None
        assert run.state == Run.State.SUCCEEDED
        assert run.output_text
        charge = CostEvent.objects.get()
        assert charge.amount_picodollars == run.amount_picodollars > 0
        assert not charge.billed
        assert charge.payer == "organization"
        assert charge.attempt_id == Attempt.objects.get().id
        assert not Hold.objects.exists()
        (call,) = [r for r in simulator.requests() if r["path"] == "/v1/messages"]
        assert call["attempt_id"] == charge.attempt_id

    def test_stores_an_answer_that_holds_what_no_database_stores(
        self,
        simulator: Any,
        ada_access: Access,
        connect: Callable[..., Integration],
        make_profile: Callable[..., ModelProfile],
        work: Callable[[], list[Run]],
    ) -> None:
        connect()
        make_profile()

        admit.dispatch(ada_access, ask("Say something odd. [[fault:odd-text]]"))
        (run,) = work()

        assert run.error is None
        assert run.output_text.endswith("nul \ufffd half \ufffd end")
        assert CostEvent.objects.get().estimated is False
