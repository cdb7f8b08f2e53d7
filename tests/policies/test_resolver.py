"""The resolver against a brute-force oracle, and its rules one by one."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rensei.core.auth_modes import AuthMode
from rensei.policies.resolver import AuthModesUnsatisfiable, OfferedModel, Policy, Verdict, effective, resolve

MODES = list(AuthMode)
OLD, NEW, PROVIDER = "old-model", "new-model", "claude"
ROWS = (OLD, NEW, PROVIDER, "*", "unrelated-model")
SCOPES = ("system", "organization", "project")

modes = st.sets(st.sampled_from([mode.value for mode in MODES]))
cells = st.dictionaries(
    st.sampled_from([mode.value for mode in MODES]), st.booleans().map(lambda yes: {"allowed": yes})
)
matrices = st.dictionaries(st.sampled_from(ROWS), cells)


def oracle_allows(matrix: dict[str, Any], mode: str, model_id: str) -> bool:
    """Whether one policy leaves a mode of one model alone, spelled out as the documentation has it."""
    rows = [matrix[row] for row in (model_id, PROVIDER, "*") if row in matrix]
    answers = [row[mode]["allowed"] for row in rows if mode in row]
    return answers[0] if answers else True


def oracle(profile: Any, provider: Any, requested: Any, served: Any, policies: Any, redirected: bool) -> str | None:
    ids = (OLD, NEW) if redirected else (OLD,)
    left = [
        mode.value
        for mode in MODES
        if mode.value in profile
        and mode.value in provider
        and mode.value in requested
        and mode.value in served
        and all(oracle_allows(matrix, mode.value, model_id) for matrix in policies for model_id in ids)
    ]
    return left[0] if left else None


def decide(
    profile: Any,
    *,
    provider: Any = MODES,
    requested: Any = MODES,
    served: Any = MODES,
    policies: Any = (),
    redirected: bool = False,
) -> Any:
    target = OfferedModel(model_id=NEW, auth_modes=served) if redirected else None
    asked = OfferedModel(model_id=OLD, auth_modes=requested)
    return resolve(
        profile_modes=profile,
        provider=PROVIDER,
        provider_modes=provider,
        requested=asked,
        served=dict.fromkeys(MODES, target or asked),
        policies=[Policy(scope=scope, matrix=matrix) for scope, matrix in zip(SCOPES, policies, strict=False)],
    )


class TestResolve:
    @settings(max_examples=600, deadline=None)
    @given(modes, modes, modes, modes, st.lists(matrices, max_size=3), st.booleans())
    def test_agrees_with_the_oracle(
        self, profile: Any, provider: Any, requested: Any, served: Any, policies: Any, redirected: bool
    ) -> None:
        served = served if redirected else requested

        decision = decide(
            profile, provider=provider, requested=requested, served=served, policies=policies, redirected=redirected
        )

        expected = oracle(profile, provider, requested, served, policies, redirected)
        assert (decision.mode.value if decision.mode else None) == expected
        assert [line.mode for line in decision.trace] == MODES
        assert sum(line.verdict is Verdict.CHOSEN for line in decision.trace) == (expected is not None)

    def test_agrees_with_the_oracle_for_every_subset_of_modes_and_every_denial(self) -> None:
        subsets = list(product([False, True], repeat=len(MODES)))
        for chosen, denied, redirected in product(subsets, subsets, [False, True]):
            profile = [mode.value for mode, yes in zip(MODES, chosen, strict=True) if yes]
            matrix = {"*": {m.value: {"allowed": False} for m, no in zip(MODES, denied, strict=True) if no}}

            decision = decide(profile, policies=[{}, matrix], redirected=redirected)

            expected = oracle(profile, MODES, MODES, MODES, [matrix], redirected)
            assert (decision.mode.value if decision.mode else None) == expected

    @settings(max_examples=200, deadline=None)
    @given(st.permutations([mode.value for mode in MODES]), st.lists(matrices, max_size=3))
    def test_does_not_care_in_which_order_a_profile_lists_its_modes(self, order: Any, policies: Any) -> None:
        assert decide(order, policies=policies) == decide(sorted(order), policies=policies)

    @settings(max_examples=300, deadline=None)
    @given(modes, st.lists(matrices, min_size=3, max_size=3), st.integers(min_value=0, max_value=2))
    def test_never_gains_a_mode_from_a_policy(self, profile: Any, policies: Any, place: int) -> None:
        without = [{} if number == place else matrix for number, matrix in enumerate(policies)]

        narrowed = {line.mode for line in decide(profile, policies=policies).trace if _is_left(line)}
        wide = {line.mode for line in decide(profile, policies=without).trace if _is_left(line)}

        assert narrowed <= wide

    @pytest.mark.parametrize(
        ("matrix", "allowed"),
        [
            ({}, True),
            ({"*": {"byok": {"allowed": False}}}, False),
            ({"*": {"byok": {"allowed": False}}, PROVIDER: {"byok": {"allowed": True}}}, True),
            ({"*": {"byok": {"allowed": True}}, PROVIDER: {"byok": {"allowed": False}}}, False),
            ({PROVIDER: {"byok": {"allowed": False}}, OLD: {"byok": {"allowed": True}}}, True),
            ({PROVIDER: {"byok": {"allowed": True}}, OLD: {"byok": {"allowed": False}}}, False),
            ({OLD: {"metered": {"allowed": True}}, PROVIDER: {"byok": {"allowed": False}}}, False),
            ({OLD: {}, "*": {"byok": {"allowed": False}}}, False),
            ({"unrelated-model": {"byok": {"allowed": False}}}, True),
        ],
    )
    def test_looks_up_the_model_then_the_provider_then_the_star(self, matrix: Any, allowed: bool) -> None:
        assert (decide(["byok"], policies=[matrix]).mode is not None) is allowed

    @pytest.mark.parametrize("place", [0, 1])
    def test_is_not_widened_by_a_grant_below_a_denial(self, place: int) -> None:
        policies: list[Any] = [{}, {}, {OLD: {"byok": {"allowed": True}}}]
        policies[place] = {"*": {"byok": {"allowed": False}}}

        decision = decide(["byok"], policies=policies)

        assert decision.mode is None
        assert decision.trace[0].denied_by == SCOPES[place]

    @pytest.mark.parametrize("row", [OLD, NEW])
    def test_asks_that_a_mode_be_allowed_for_the_requested_and_the_served_model(self, row: str) -> None:
        decision = decide(["byok", "metered"], policies=[{row: {"byok": {"allowed": False}}}], redirected=True)

        assert decision.mode is AuthMode.METERED

    def test_notes_in_the_trace_what_a_retired_model_is_served_by(self) -> None:
        assert f"'{OLD}' is retired and served by '{NEW}'" in decide(["byok"], redirected=True).trace[0].detail

    def test_says_for_each_mode_of_the_profile_why_nothing_is_left(self) -> None:
        decision = decide(["byok", "local"], provider=["byok"], policies=[{"*": {"byok": {"allowed": False}}}])

        refusal = decision.refusal()

        assert isinstance(refusal, AuthModesUnsatisfiable)
        assert "byok (The system's access policy denies it.)" in refusal.detail
        assert "local (Provider 'claude' does not offer it.)" in refusal.detail

    def test_marks_a_failed_gate_and_falls_through_to_nothing(self) -> None:
        decision = decide(["byok", "metered"])

        failed = decision.gate_failed(AuthModesUnsatisfiable(reasons="x"))

        assert failed.mode is AuthMode.BYOK
        assert failed.trace[0].verdict is Verdict.GATE_FAILED
        assert failed.trace[1].verdict is Verdict.ALLOWED


class TestEffective:
    def test_names_the_highest_scope_that_denies(self) -> None:
        deny = {"*": {"shared": {"allowed": False}}}
        policies = [Policy(scope=scope, matrix=deny) for scope in SCOPES]

        folded = effective(policies, provider=PROVIDER, model_id=OLD)

        assert folded[AuthMode.SHARED] == "system"
        assert folded[AuthMode.BYOK] is None


def _is_left(line: Any) -> bool:
    return line.verdict in {Verdict.CHOSEN, Verdict.ALLOWED}
