"""
Catalog entries of organizations: apply policies to the models that actually answer requests for them.

An answer is settled under the model that made it. If a policy denies that model, the next call is refused.
"""

from collections.abc import Iterable

from catalog import identities
from catalog.identities import Answered
from catalog.models import CatalogEntry
from rensei.audit.record import record_system
from rensei.core.auth_modes import AuthMode
from rensei.dispatch.context import offered_model
from rensei.dispatch.models import Run
from rensei.policies import services as policies
from rensei.policies.documents import as_policies
from rensei.policies.resolver import Denial, ModelNotAllowedByPolicy, find_denial


def note_answers(answers: Iterable[tuple[Run, str]]) -> None:
    """
    Record which models answered runs, by the name in each answer, within the transaction that settles them.

    If a model answers under its own id, nothing is read.
    """
    by_run = {run.id: (run, name) for run, name in answers if name not in {"", run.served_model_id}}
    noted = identities.note(
        [
            Answered(org=run.org, provider=run.provider, model_id=run.served_model_id, name=name, run_id=run.id)
            for run, name in by_run.values()
        ]
    )
    for answer, entry in noted:
        run, _ = by_run[answer.run_id]
        _record(run, entry, _denial(run, [entry]))


def require_allowed(run: Run, entry: CatalogEntry) -> None:
    """
    Check the policies again before the call: answers to other runs may have shown which model the entry really calls.

    :raises ModelNotAllowedByPolicy: if a policy denies a model that has answered requests for the entry
    """
    answered_by = identities.answered_by([entry]).get(entry.pk)
    denial = _denial(run, answered_by) if answered_by else None
    if denial is not None:
        reason = (
            f"'{entry.model_id}' has been answered by '{denial.model_id}', and {denial.of(AuthMode(run.auth_mode))}"
        )
        raise ModelNotAllowedByPolicy(reasons=reason)


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
