"""A demo that has been in use for a month: what the screenshots show. Everything is made by the services."""

import random
import time
from datetime import datetime, timedelta

from billing.ledger.charges import Charge
from billing.limits.entitlement import set_metered
from integrations.keys import services as integrations
from integrations.models import Integration
from profiles import services as profiles
from rensei import demo
from rensei.core.auth_modes import PAYER_OF, AuthMode
from rensei.core.clock import database_now
from rensei.core.ids import new_id
from rensei.core.secret import Secret
from rensei.core.transactions import durable
from rensei.core.usage import Usage
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.models import Run
from rensei.orgs import access as org_access
from rensei.orgs import services as orgs
from rensei.orgs.access import Access
from rensei.orgs.models import Membership, Role, User
from rensei.policies import documents
from rensei.tokens.machines import register_host
from rensei.tokens.services import create_token
from rensei.workflows import services as workflows
from tests.billing.conftest import PRICES
from tests.billing.record import record_charges

OPUS, SONNET, HAIKU, RETIRED = "claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5", "claude-opus-4-1-20250514"
RUN_SECONDS_MAX = 60.0
ANSWER = (
    "An envelope key is a key that seals another key. The data key seals your secret, and an outer key, which never "
    "leaves its key service, seals the data key. To change the outer key, you seal one small thing again, not every "
    "secret."
)
QUESTION = "What is an envelope key, in three sentences?"
WORKFLOW = """\
name: Weekly digest
nodes:
  - nodeId: summary
    nodeType: action/llm.inference
    config:
      profileId: prof_first_steps
      prompt: "[[echo Three customers asked for exports, and two for a dark theme.]] Sum up: {{ input.notes }}"
  - nodeId: risks
    nodeType: action/llm.inference
    config:
      profileId: prof_triage
      prompt: "[[echo One renewal is at risk, because an import failed twice.]] Which risks are in: {{ input.notes }}"
  - nodeId: letter
    nodeType: action/llm.inference
    needs: [summary, risks]
    config:
      profileId: prof_first_steps
      prompt: "[[echo Dear all, exports come next week.]] Write a letter: {{ nodes.summary.output }}"
"""


def fill() -> dict[str, str]:
    """Fill the demo, wait until its runs have ended, and give back the ids that the addresses need."""
    owner = User.objects.get(email=demo.OWNER)
    access = org_access.for_member(user=owner, slug=demo.ORG)
    assert access is not None
    _add_people(access)
    research = orgs.create_project(access, slug="research", name="Research")
    _connect_failing_key(access)
    set_metered(org_ids=[access.org.pk], enabled=True, actor_user=User.objects.get(email=demo.OPERATOR))
    _add_profiles(access)
    denied = {mode: {"allowed": False} for mode in (AuthMode.METERED, AuthMode.SHARED)}
    documents.set_policy(access, matrix={"claude": denied}, project=research)
    _spend(access, until=database_now())
    ids = _run(access)
    create_token(access, name="ci")
    host, _, _ = register_host(access, name="adas-laptop", login="claude-code")
    ids |= {"host": host.id}
    _wait(access)
    return ids


def _add_people(access: Access) -> None:
    for name, role in (("Alan", Role.ADMIN), ("Mia", Role.MEMBER), ("Otto", Role.AUDITOR)):
        user = User.objects.create_user(f"{name.lower()}@example.com", name=name)
        Membership.objects.create(org=access.org, user=user, role=role)


def _connect_failing_key(access: Access) -> None:
    key = Secret(demo.sample_key().replace("demo", "revoked"))
    failing = integrations.add_integration(access, provider=demo.PROVIDER, api_key=key, name="Staging")
    integrations.check_integration(access, failing)
    main = Integration.objects.for_org(access.org).exclude(pk=failing.pk).get()
    integrations.update_integration(access, main, name="Production")


def _add_profiles(access: Access) -> None:
    byok, metered = AuthMode.BYOK, AuthMode.METERED
    for name, model, modes, effort in (
        ("anthropic-deep-reasoning", OPUS, [byok, metered], "high"),
        ("Triage", HAIKU, [AuthMode.SHARED], ""),
        ("Billed by Rensei", SONNET, [metered], "low"),
        ("Legacy summaries", RETIRED, [byok], ""),
        ("On my laptop", SONNET, [AuthMode.HOST_SESSION], ""),
    ):
        profiles.create_profile(
            access, name=name, provider=demo.PROVIDER, model_id=model, auth_modes=modes, effort=effort
        )


def _run(access: Access) -> dict[str, str]:
    def dispatch(profile: str, text: str, **fields: str) -> Run:
        asked = DispatchRequest(profile_id=profile, messages=messages_from(text=text, messages=None), **fields)  # type: ignore[arg-type]
        return admit.dispatch(access, asked)

    for text in ("Sort these tickets by urgency.", "Which of these is a refund?", "Is this one spam?"):
        dispatch("prof_triage", text)
    dispatch("prof_billed_by_rensei", "[[reply 80 words]] Write the release notes.", project_id=demo.PROJECT)
    failed = dispatch("prof_first_steps", "[[fault:spendlimit]] Go on.")
    dispatch("prof_legacy_summaries", "[[reply 40 words]] Sum up the minutes.")
    other = dispatch("prof_first_steps", f"[[echo {ANSWER.partition(' To change')[0]}]] {QUESTION}")
    deep = dispatch("prof_anthropic_deep_reasoning", f"[[echo {ANSWER}]] {QUESTION}", system="Think deeply.")
    waiting = dispatch("prof_on_my_laptop", "What is on my disk?", host_id=_machine(access))
    workflow, _ = workflows.apply_document(access, WORKFLOW)
    begun = workflows.start(access, workflow, given={"notes": "Exports, dark theme, a failed import."})
    return {
        "run": deep.id,
        "other": other.id,
        "failed": failed.id,
        "waiting": waiting.id,
        "workflow": workflow.id,
        "workflow_run": begun.id,
    }


def _machine(access: Access) -> str:
    host, _, _ = register_host(access, name="build-box", login="console")
    return str(host.id)


def _spend(access: Access, *, until: datetime) -> None:
    """Enter a month of use into the ledger, more on working days, the same at every time."""
    chance = random.Random(7)
    kinds = (
        (AuthMode.BYOK, "prof_anthropic_deep_reasoning", OPUS, 9),
        (AuthMode.METERED, "prof_billed_by_rensei", SONNET, 6),
        (AuthMode.SHARED, "prof_triage", HAIKU, 3),
    )
    charges = []
    for back in range(29, 0, -1):
        moment = until - timedelta(days=back)
        for mode, profile, model, calls in kinds:
            for _ in range(chance.randint(1, calls) if moment.weekday() < 5 else chance.randint(0, 2)):
                usage = Usage(input_tokens=chance.randint(2_000, 60_000), output_tokens=chance.randint(300, 6_000))
                charges.append(_charge(access, mode, profile, model, usage, moment))
    with durable():
        record_charges(charges)


def _charge(access: Access, mode: AuthMode, profile: str, model: str, usage: Usage, moment: datetime) -> Charge:
    return Charge(
        org_id=access.org.pk,
        run_id=new_id("run"),
        attempt_id=new_id("att"),
        profile_id=profile,
        project_id=demo.PROJECT if mode is AuthMode.METERED else "",
        auth_mode=mode,
        payer=PAYER_OF[mode],
        billing_class=f"{mode}.anthropic",
        pool_id="",
        credential_id="",
        provider=demo.PROVIDER,
        model_id=model,
        served_model_id=model,
        provider_request_id="",
        usage=usage,
        prices=PRICES,
        billed=mode is AuthMode.METERED,
        estimated=False,
        occurred_at=moment,
    )


def _wait(access: Access) -> None:
    """Wait until every run has ended but the one that waits for a machine."""
    deadline = time.monotonic() + RUN_SECONDS_MAX
    while Run.objects.for_org(access.org).exclude(state__in=Run.ENDED).count() > 1:
        if time.monotonic() > deadline:
            raise TimeoutError("The runs of the demo have not ended.")
        time.sleep(0.2)
