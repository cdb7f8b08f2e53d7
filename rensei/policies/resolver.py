"""
Which auth mode a call uses, and why. Pure: values in, a decision with its trace out.

The policies of the system, the organization and the project are combined, and each may only narrow the
one above it. The remaining modes of the profile, the model and the provider are picked in the
order byok > metered > shared > host-session > local. A gate that fails later refuses the call; it never
falls through to the next mode, so that no unexpected party pays.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from rensei.core.auth_modes import AuthMode
from rensei.core.errors import RenseiError, Said

ANY = "*"


class AuthModesUnsatisfiable(RenseiError):
    """The policies, the model and the provider leave none of the profile's modes."""

    code = "AUTHMODES_UNSATISFIABLE"
    status = 403
    title = "No auth mode is left"
    message = Said(
        "No auth mode of this profile is allowed here: {reasons}.",
        "Add an allowed mode to the profile, or ask an owner to change the access policy.",
    )


class ModelNotAllowedByPolicy(RenseiError):
    """A model that a policy denies has answered for a catalog entry that the organization made."""

    code = "MODEL_NOT_ALLOWED_BY_POLICY"
    status = 403
    title = "Model not allowed by policy"
    message = Said(
        "No auth mode is left for this model: {reasons}.",
        "Name another model, or ask an owner to change that row of the access policy.",
    )


class Verdict(StrEnum):
    CHOSEN = "chosen"
    ALLOWED = "allowed"
    NOT_IN_PROFILE = "not-in-profile"
    NOT_OFFERED = "not-offered"
    DENIED_BY_POLICY = "denied-by-policy"
    GATE_FAILED = "gate-failed"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """One access policy: its scope, and `{"<modelId | provider | *>": {"<mode>": {"allowed": bool}}}`."""

    scope: str
    matrix: Mapping[str, Mapping[str, Mapping[str, bool]]]

    def says(self, mode: AuthMode, *, model_id: str, provider: str, names: Collection[str] = ()) -> bool | None:
        """Look a mode up: the model's row, else the provider's, else `*`; None if no row has it."""
        found = self.row_for(mode, model_id=model_id, provider=provider, names=names)
        return None if found is None else found[1]

    def row_for(
        self, mode: AuthMode, *, model_id: str, provider: str, names: Collection[str] = ()
    ) -> tuple[str, bool] | None:
        """
        Find the row that decides about a mode, and its value.

        A row under another name of the model only denies: it may have been written for an entry of that name, and
        its permission was for that entry.
        """
        for name in sorted(names):
            if (cell := self._cell(name, mode)) and not cell["allowed"]:
                return name, False
        rows = ((name, self._cell(name, mode)) for name in (model_id, provider, ANY))
        return next(((name, cell["allowed"]) for name, cell in rows if cell), None)

    def denies_some(self, mode: AuthMode) -> bool:
        """Check whether it denies a mode to any model at all."""
        return any(not cell["allowed"] for row in self.matrix.values() if (cell := row.get(mode)))

    def _cell(self, row: str, mode: AuthMode) -> Mapping[str, bool] | None:
        return self.matrix.get(row, {}).get(mode)


@dataclass(frozen=True, kw_only=True)
class OfferedModel:
    """
    A model as input to the resolver: its id, the modes that its catalog entry offers, and its other names.

    `answered_by` are the platform's models that have answered in its name. A denial of one of them applies to it too.
    """

    model_id: str
    auth_modes: Collection[str]
    names: Collection[str] = ()
    answered_by: Sequence["OfferedModel"] = ()


@dataclass(frozen=True, kw_only=True)
class Denial:
    """Which row of which policy denies a mode to a model."""

    scope: str
    row: str
    model_id: str

    def of(self, mode: AuthMode) -> str:
        return f"the row '{self.row}' of the {self.scope}'s access policy denies {mode.value} to '{self.model_id}'"


@dataclass(frozen=True, kw_only=True)
class TraceLine:
    """The result for one mode. `denied_by` is system, organization or project."""

    mode: AuthMode
    verdict: Verdict
    detail: str
    code: str | None = None
    denied_by: str | None = None

    def wire(self) -> dict[str, Any]:
        return {
            "mode": self.mode.value,
            "verdict": self.verdict.value,
            "code": self.code,
            "deniedBy": self.denied_by,
            "detail": self.detail,
        }


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The mode that was picked, or None, and the results for all five, in order."""

    mode: AuthMode | None
    trace: tuple[TraceLine, ...]

    @property
    def candidates(self) -> list[AuthMode]:
        return [line.mode for line in self.trace if line.verdict in {Verdict.CHOSEN, Verdict.ALLOWED}]

    def gate_failed(self, refusal: RenseiError, mode: AuthMode | None = None) -> "Decision":
        """Add to the trace that the gate of a mode, by default the picked one, refused."""
        refused = mode or self.mode
        return replace(
            self,
            trace=tuple(
                replace(line, verdict=Verdict.GATE_FAILED, code=refusal.code, detail=refusal.detail)
                if line.mode is refused
                else line
                for line in self.trace
            ),
        )

    def noted(self, sentence: str) -> "Decision":
        """Add a sentence, if there is one, to the line of the picked mode."""
        if not sentence:
            return self
        return replace(
            self,
            trace=tuple(
                replace(line, detail=f"{line.detail} {sentence}") if line.verdict is Verdict.CHOSEN else line
                for line in self.trace
            ),
        )

    def refusal(self) -> RenseiError:
        """Make the error for a decision without a mode, with the scope that denied each mode of the profile."""
        reasons = [
            f"{line.mode.value} ({line.detail})" for line in self.trace if line.verdict is not Verdict.NOT_IN_PROFILE
        ]
        is_blocked = any(line.code == ModelNotAllowedByPolicy.code for line in self.trace)
        refusal = ModelNotAllowedByPolicy if is_blocked else AuthModesUnsatisfiable
        return refusal(reasons="; ".join(reasons), extra={"trace": self.wire()})

    def wire(self) -> list[dict[str, Any]]:
        return [line.wire() for line in self.trace]


def resolve(
    *,
    profile_modes: Collection[str],
    provider: str,
    provider_modes: Collection[str],
    requested: OfferedModel,
    served: Mapping[AuthMode, OfferedModel | None],
    policies: Sequence[Policy],
) -> Decision:
    """
    Pick the most preferred mode that all of them allow.

    `served` names the model that each mode would actually call: the requested one, or the replacement of a
    retired one; None if a mode has none. A mode must be allowed for both. `policies` are in the order
    system, organization, project.
    """
    lines: list[TraceLine] = []
    chosen: AuthMode | None = None
    for mode in AuthMode:
        line = _trace_line(
            mode,
            profile_modes=profile_modes,
            provider=provider,
            provider_modes=provider_modes,
            requested=requested,
            served=served.get(mode),
            policies=policies,
        )
        if line.verdict is Verdict.ALLOWED and chosen is None:
            chosen = mode
            line = replace(line, verdict=Verdict.CHOSEN)
        lines.append(line)
    return Decision(mode=chosen, trace=tuple(lines))


def effective(
    policies: Sequence[Policy], *, provider: str, model_id: str, names: Collection[str] = ()
) -> dict[AuthMode, str | None]:
    """Combine the policies for one model: each mode with the scope that denies it, or None if it is allowed."""
    model = OfferedModel(model_id=model_id, auth_modes=(), names=names)
    denials = {mode: find_denial(mode, policies, provider=provider, models=(model,)) for mode in AuthMode}
    return {mode: denial.scope if denial else None for mode, denial in denials.items()}


def find_denial(
    mode: AuthMode, policies: Sequence[Policy], *, provider: str, models: Collection[OfferedModel]
) -> Denial | None:
    """Find what denies a mode to one of some models: the first policy from the system's down."""
    for policy in policies:
        for model in models:
            row = policy.row_for(mode, model_id=model.model_id, provider=provider, names=model.names)
            if row is not None and not row[1]:
                return Denial(scope=policy.scope, row=row[0], model_id=model.model_id)
    return None


def _trace_line(
    mode: AuthMode,
    *,
    profile_modes: Collection[str],
    provider: str,
    provider_modes: Collection[str],
    requested: OfferedModel,
    served: OfferedModel | None,
    policies: Sequence[Policy],
) -> TraceLine:
    if mode not in profile_modes:
        return TraceLine(mode=mode, verdict=Verdict.NOT_IN_PROFILE, detail="The profile does not list it.")
    if mode not in provider_modes:
        return TraceLine(mode=mode, verdict=Verdict.NOT_OFFERED, detail=f"Provider '{provider}' does not offer it.")
    if mode not in requested.auth_modes:
        return TraceLine(
            mode=mode, verdict=Verdict.NOT_OFFERED, detail=f"Model '{requested.model_id}' does not offer it."
        )
    if served is None:
        return TraceLine(
            mode=mode, verdict=Verdict.NOT_OFFERED, detail=f"Model '{requested.model_id}' is retired under it."
        )
    if mode not in served.auth_modes:
        return TraceLine(mode=mode, verdict=Verdict.NOT_OFFERED, detail=f"Model '{served.model_id}' does not offer it.")
    denial = find_denial(mode, policies, provider=provider, models=(requested, served))
    if denial is not None:
        return TraceLine(
            mode=mode,
            verdict=Verdict.DENIED_BY_POLICY,
            denied_by=denial.scope,
            detail=f"The {denial.scope}'s access policy denies it.",
        )
    denial = find_denial(mode, policies, provider=provider, models=served.answered_by)
    if denial is not None:
        return TraceLine(
            mode=mode,
            verdict=Verdict.DENIED_BY_POLICY,
            code=ModelNotAllowedByPolicy.code,
            denied_by=denial.scope,
            detail=f"'{served.model_id}' has been answered by '{denial.model_id}', and {denial.of(mode)}.",
        )
    detail = "Allowed by the profile, the model and every access policy."
    if served.model_id != requested.model_id:
        detail += f" '{requested.model_id}' is retired and served by '{served.model_id}'."
    return TraceLine(mode=mode, verdict=Verdict.ALLOWED, detail=detail)
