"""An access policy as a matrix: rows for models, columns for auth modes, and the value of each cell."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from django.http import QueryDict

from catalog.models import CatalogEntry
from catalog.providers import PROVIDERS
from rensei.core.auth_modes import AuthMode
from rensei.core.errors import json_pointer
from rensei.policies.resolver import ANY, Policy, effective
from rensei.policies.services import Matrix

Rules = Mapping[tuple[str, str], "Rule"]


class Rule(StrEnum):
    """The value of a cell. Absent from the document means inherit."""

    INHERIT = "inherit"
    DENY = "deny"
    ALLOW = "allow"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """
    One mode of one row. `locked_by` is the scope above that already denies it; the cell then has no effect.

    `denied_through` is the row of the same policy whose denial a cell inherits.
    """

    field: str
    mode: AuthMode
    rule: Rule
    offered: bool
    locked_by: str | None
    denied_through: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row: all models, a provider, or a model. A model that is no longer in the catalog has the kind `unknown`."""

    name: str
    title: str
    kind: str
    cells: list[Cell]
    error: str

    @property
    def clearable(self) -> bool:
        """Whether the row may be removed: it is a model's, and it has a rule."""
        return self.kind in {"model", "unknown"} and any(cell.rule != Rule.INHERIT for cell in self.cells)


@dataclass(frozen=True, kw_only=True)
class Change:
    """A cell whose rule differs between two policies."""

    row: str
    mode: AuthMode
    old: Rule
    new: Rule


def rows_of(
    matrix: Matrix,
    *,
    parents: Sequence[Policy],
    entries: Collection[CatalogEntry],
    added: Collection[str] = (),
    errors: Mapping[str, str],
) -> list[Row]:
    """
    List the rows of a policy: all models, the providers, and each model with a row in it or in a policy above it.

    `added` names rows to show although they have no rule yet; `errors` is by JSON pointer.
    """
    by_id = {entry.model_id: entry for entry in entries}
    named = {name for policy in parents for name in policy.matrix} | set(matrix) | set(added)
    models = sorted(named - {ANY, *PROVIDERS}, key=lambda name: by_id[name].display_name if name in by_id else name)
    own = Policy(scope="", matrix=matrix)
    rows = []
    for place, name in enumerate([ANY, *sorted(PROVIDERS), *models]):
        entry = by_id.get(name)
        provider = entry.provider if entry else name
        denied = effective(parents, provider=provider, model_id=name)
        cells = [
            Cell(
                field=f"cell.{place}.{mode}",
                mode=mode,
                rule=rule_of(matrix, name, mode),
                offered=_is_offered(mode, name, entry),
                locked_by=denied[mode],
                denied_through=_denied_through(own, mode, name=name, provider=provider),
            )
            for mode in AuthMode
        ]
        pointer = json_pointer("matrix", name)
        error = next((text for at, text in errors.items() if at == pointer or at.startswith(f"{pointer}/")), "")
        rows.append(Row(name=name, title=_title(name, entry), kind=_kind(name, entry), cells=cells, error=error))
    return rows


def read(posted: QueryDict) -> tuple[Matrix, list[str]]:
    """Read the matrix of a form, and the names of its rows. Cells that inherit are omitted."""
    matrix: Matrix = {}
    names = posted.getlist("row")
    for place, name in enumerate(names):
        for mode in AuthMode:
            rule = posted.get(f"cell.{place}.{mode}")
            if rule in {Rule.DENY, Rule.ALLOW}:
                matrix.setdefault(name, {})[mode.value] = {"allowed": rule == Rule.ALLOW}
    return matrix, names


def rule_of(matrix: Matrix, row: str, mode: AuthMode) -> Rule:
    cell = matrix.get(row, {}).get(mode.value)
    if cell is None:
        return Rule.INHERIT
    return Rule.ALLOW if cell["allowed"] else Rule.DENY


def changes(old: Matrix, new: Matrix) -> list[Change]:
    """List the cells that differ between two policies, row by row."""
    cells = [
        Change(row=row, mode=mode, old=rule_of(old, row, mode), new=rule_of(new, row, mode))
        for row in sorted({*old, *new})
        for mode in AuthMode
    ]
    return [cell for cell in cells if cell.old != cell.new]


def fingerprint(matrix: Matrix) -> str:
    """Return a digest of a stored policy, so that a form can detect that the policy was changed meanwhile."""
    return hashlib.sha256(json.dumps(matrix, sort_keys=True).encode()).hexdigest()


def _kind(name: str, entry: CatalogEntry | None) -> str:
    if name == ANY:
        return "any"
    if name in PROVIDERS:
        return "provider"
    return "model" if entry else "unknown"


def _title(name: str, entry: CatalogEntry | None) -> str:
    if name == ANY:
        return "All models"
    if name in PROVIDERS:
        return PROVIDERS[name].display_name
    return entry.display_name if entry else name


def _is_offered(mode: AuthMode, name: str, entry: CatalogEntry | None) -> bool:
    if entry is not None:
        return mode in entry.auth_modes and mode in PROVIDERS[entry.provider].auth_modes
    return mode in PROVIDERS[name].auth_modes if name in PROVIDERS else True


def _denied_through(own: Policy, mode: AuthMode, *, name: str, provider: str) -> str:
    """Return the broader row of the same policy that denies a mode to a row without a rule for it."""
    if mode in own.matrix.get(name, {}) or own.says(mode, model_id=name, provider=provider) is not False:
        return ""
    return provider if mode in own.matrix.get(provider, {}) else ANY
