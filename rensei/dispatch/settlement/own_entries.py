"""
Apply policies and kill switches to the models that actually answer requests for catalog entries.

An answer is settled under the model that made it. If a policy denies that model, the next call is refused.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from catalog import identities
from catalog.identities import Answered
from catalog.models import CatalogEntry
from rensei.audit.record import record_system
from rensei.core.auth_modes import AuthMode
from rensei.dispatch.context import offered_model
from rensei.dispatch.models import Run
from rensei.orgs import kill_switches
from rensei.policies import services as policies
from rensei.policies.documents import as_policies
from rensei.policies.resolver import Denial, ModelNotAllowedByPolicy, find_denial


@dataclass(frozen=True, kw_only=True)
class Told:
    """
    What an answer tells of the models that made it: their names, that of the answering model first.

    `named` are the models that the request itself names besides its own, which policies allowed at its admission.
    """

    run: Run
    names: Sequence[str]
    named: Collection[str] = ()


def note_answers(answers: Iterable[Told]) -> None:
    """
    Record which models answered runs, or had a part in an answer, within the transaction that settles them.

    If a model answers under its own id, nothing is read.
    """
    told = {answer.run.id: answer for answer in answers}
    found = [
        Answered(org=run.org, provider=run.provider, model_id=run.served_model_id, name=name, run_id=run.id)
        for run, each in ((each.run, each) for each in told.values())
        for name in sorted(set(each.names) - {"", run.served_model_id, *each.named})
    ]
    for answer, entry, is_own in identities.answerers(found):
        each = told[answer.run_id]
        if entry.model_id in each.named:
            continue
        if each.run.auth_mode == AuthMode.HOST_SESSION and not is_own:
            # A member's machine tells it, which decides nothing about a model of the platform for all others.
            continue
        denial = _denial(each.run, [entry])
        # An own entry is what answers to it. A model that it only consulted tells nothing of it, unless it is denied.
        is_it = is_own and answer.name == each.names[0]
        if (is_it or denial is not None) and identities.note(answer, entry):
            _record(each.run, entry, denial)


def require_allowed(run: Run, entry: CatalogEntry) -> None:
    """
    Check the policies and the kill switches again before the call: answers to other runs may have shown which model an
    own entry really calls, and its name may have become a name of another entry.

    :raises ModelNotAllowedByPolicy: if a policy denies a model that the name means now, or that has answered for it
    :raises PausedByOperator: if an operator has paused it
    """
    answered_by = identities.answered_by([entry]).get(entry.pk, [])
    is_renamed = entry.model_id != run.served_model_id
    really_called = [entry, *answered_by] if is_renamed else answered_by
    if not really_called:
        return
    if denial := _denial(run, really_called):
        is_entry = is_renamed and denial.model_id == entry.model_id
        what = "is a name of" if is_entry else "has been answered by"
        reason = f"'{run.served_model_id}' {what} '{denial.model_id}', and {denial.of(AuthMode(run.auth_mode))}"
        raise ModelNotAllowedByPolicy(reasons=reason)
    kill_switches.stopped_for(run.org).require_running(
        org_id=run.org_id,
        provider=run.provider,
        model_ids={each.model_id for each in really_called},
        mode=run.auth_mode,
        integration_id=run.credential_id,
    )


def _denial(run: Run, entries: Iterable[CatalogEntry]) -> Denial | None:
    applying = policies.applying_policies(run.org, project_ids=[run.project_id] if run.project_id else [])
    models = [offered_model(entry) for entry in entries]
    return find_denial(AuthMode(run.auth_mode), as_policies(applying), provider=run.provider, models=models)


def _record(run: Run, entry: CatalogEntry, denial: Denial | None) -> None:
    detail = {"provider": run.provider, "answeredBy": entry.model_id, "runId": run.id, "mode": run.auth_mode}
    if denial is not None:
        detail |= {"policy": denial.scope, "row": denial.row}
    record_system(
        run.created_by.email if run.created_by else "settlement",
        "catalog_entry.blocked" if denial else "catalog_entry.identified",
        object_id=run.served_model_id,
        org_id=run.org_id,
        user_id=run.created_by_id,
        **detail,
    )
