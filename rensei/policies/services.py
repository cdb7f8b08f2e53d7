"""The stored access policies: which auth modes the system, an organization or a project allows."""

from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

from django.db.models import Q, QuerySet
from django.utils import timezone

from rensei.audit.models import AuditEvent
from rensei.audit.record import record, record_operator
from rensei.core.auth_modes import AuthMode
from rensei.core.errors import ERRORS_MAX, FieldError, NotFound, NotPermitted, json_pointer
from rensei.core.limits import limit
from rensei.core.transactions import assert_open, durable
from rensei.orgs import locks
from rensei.orgs.access import Access
from rensei.orgs.models import Org, Project, User
from rensei.policies.models import AccessPolicy

Matrix = dict[str, dict[str, dict[str, bool]]]

ANY_MODEL = "*"
ROW_LIMIT = limit(
    500,
    "rows, of which the audit log keeps those that a change has altered, as they were and as they are",
    what="Access policy of an organization or of a project",
    told="the caller: 400 `VALIDATION_FAILED`",
)
ROW_NAME_LENGTH = 128
_ORDER = {AccessPolicy.Scope.SYSTEM: 0, AccessPolicy.Scope.ORGANIZATION: 1, AccessPolicy.Scope.PROJECT: 2}


def applying_policies(org: Org, *, project_ids: Collection[int]) -> list[AccessPolicy]:
    """List the policies of the system, an organization and some of its projects, in that order, in one query."""
    applies = Q(scope=AccessPolicy.Scope.SYSTEM) | Q(scope=AccessPolicy.Scope.ORGANIZATION, org=org)
    if project_ids:
        applies |= Q(scope=AccessPolicy.Scope.PROJECT, org=org, project__in=project_ids)
    found = AccessPolicy.objects.filter(applies)
    return sorted(found, key=lambda policy: _ORDER[AccessPolicy.Scope(policy.scope)])


def stored_matrix(org: Org, project: Project | None = None) -> Matrix:
    """Read the document of an organization, or of one of its projects. An absent one is empty."""
    matrix: Matrix | None = AccessPolicy.objects.filter(**_owner(org, project)).values_list("matrix", flat=True).first()
    return matrix or {}


def matrices_of(projects: Collection[Project]) -> dict[int, Matrix]:
    """Read the documents of projects that have one, by the projects' keys."""
    return dict(AccessPolicy.objects.filter(project__in=projects).values_list("project", "matrix"))


def all_policies(org: Org) -> QuerySet[AccessPolicy]:
    """List the policies of the system, an organization and all its projects, with those projects prefetched."""
    applies = Q(scope=AccessPolicy.Scope.SYSTEM) | Q(org=org)
    return AccessPolicy.objects.filter(applies).select_related("project")


def changes_of(org: Org, project: Project | None = None) -> QuerySet[AuditEvent]:
    """List the past changes of a policy, newest first: who, when, and the rows that differ in `detail`."""
    changes: QuerySet[AuditEvent] = AuditEvent.objects.for_org(org).filter(action="policy.set")
    return changes.filter(object_id=_object_id(org, project)).order_by("-id")


def require_setter(access: Access, project: Project | None) -> None:
    """
    Check that the caller may set the policy of the organization or of a project.

    :raises NotPermitted: if the role or the token does not allow it
    :raises NotFound: if the project is another organization's
    """
    access.require_manager()
    if project is not None and project.org_id != access.org.pk:
        raise NotFound
    if access.project is not None and access.project != project:
        raise NotPermitted


def set_policy(
    access: Access,
    *,
    matrix: Matrix,
    project: Project | None = None,
    known: Collection[str] | None = None,
    expected: Matrix | None = None,
) -> AccessPolicy:
    """
    Replace the policy of the organization or of a project. The audit log keeps the rows that differ.

    `expected` is the document that the caller has read; a different stored one is not overwritten.

    :raises FieldError: if the document has the wrong form, or the stored one is not the expected one
    """
    require_setter(access, project)
    validate_matrix(matrix, known=known)
    with durable():
        locks.lock(access.org.pk)
        old = stored_matrix(access.org, project)
        if expected is not None and old != expected:
            raise FieldError(pointer="/matrix", reason="This policy was changed since you opened it. Load it again.")
        policy, _ = AccessPolicy.objects.update_or_create(
            **_owner(access.org, project), defaults={"matrix": matrix, "updated_at": timezone.now()}
        )
        object_id = _object_id(access.org, project)
        was, new = _difference(old, matrix)
        record(access, "policy.set", object_id=object_id, scope=policy.scope, old=was, new=new)
    return policy


def set_system_policy(*, operator: User, matrix: Matrix) -> AccessPolicy:
    """
    Replace the policy above every organization's, within the caller's transaction. Only operators can call this.

    :raises FieldError: if the document has the wrong form
    """
    assert_open()
    validate_matrix(matrix)
    stored = AccessPolicy.objects.select_for_update().filter(scope=AccessPolicy.Scope.SYSTEM).first()
    policy, _ = AccessPolicy.objects.update_or_create(
        scope=AccessPolicy.Scope.SYSTEM, defaults={"matrix": matrix, "updated_at": timezone.now()}
    )
    old, new = _difference(stored.matrix if stored else {}, matrix)
    record_operator(operator, "policy.set", object_id="system", scope=policy.scope, old=old, new=new)
    return policy


def validate_matrix(matrix: Any, *, known: Collection[str] | None = None) -> None:
    """
    Check that a document is `{"<model | provider | *>": {"<mode>": {"allowed": true | false}}}`.

    `known` names the models and providers that exist; without it any row name is valid.

    :raises FieldError: with the first rows that are wrong
    """
    found = list(islice(_mistakes(matrix, known), ERRORS_MAX))
    if found:
        raise FieldError.several(found)


def _owner(org: Org, project: Project | None) -> dict[str, Any]:
    scope = AccessPolicy.Scope.PROJECT if project else AccessPolicy.Scope.ORGANIZATION
    return {"scope": scope, "org": org, "project": project}


def _difference(old: Matrix, new: Matrix) -> tuple[Matrix, Matrix]:
    """Reduce both documents to the rows that differ: the audit log stores them permanently."""
    was = {name: row for name, row in old.items() if new.get(name) != row}
    return was, {name: row for name, row in new.items() if old.get(name) != row}


def _object_id(org: Org, project: Project | None) -> str:
    return str(project.slug if project else org.id)


def _mistakes(matrix: Any, known: Collection[str] | None) -> Iterator[FieldError]:
    if not isinstance(matrix, dict):
        yield FieldError(pointer="/matrix", reason="The matrix is an object from models to auth modes.")
        return
    if len(matrix) > ROW_LIMIT:
        yield FieldError(pointer="/matrix", reason=f"The matrix has at most {ROW_LIMIT} rows.")
        return
    for name, row in matrix.items():
        yield from _mistakes_of_row(name, row, known)


def _mistakes_of_row(name: str, row: Any, known: Collection[str] | None) -> Iterator[FieldError]:
    if not name or len(name) > ROW_NAME_LENGTH or not name.isprintable():
        yield FieldError(
            pointer=json_pointer("matrix", name),
            reason=f"A row is named by a model id, a provider id or {ANY_MODEL}.",
        )
    elif known is not None and name != ANY_MODEL and name not in known:
        yield FieldError(
            pointer=json_pointer("matrix", name),
            reason=f"'{name}' is no model of the catalog, no provider, and not {ANY_MODEL}.",
        )
    if not isinstance(row, dict):
        yield FieldError(
            pointer=json_pointer("matrix", name), reason=f"The row '{name}' is an object from auth modes to rules."
        )
        return
    for mode, rule in row.items():
        if mode not in AuthMode.values:
            yield FieldError(
                pointer=json_pointer("matrix", name, mode),
                reason=f"'{mode}' in the row '{name}' is no auth mode. Choose from {', '.join(AuthMode.values)}.",
            )
        elif not isinstance(rule, dict) or set(rule) != {"allowed"} or not isinstance(rule["allowed"], bool):
            yield FieldError(
                pointer=json_pointer("matrix", name, mode),
                reason=f"The rule for '{mode}' in the row '{name}' is {{\"allowed\": true}} or {{\"allowed\": false}}.",
            )
