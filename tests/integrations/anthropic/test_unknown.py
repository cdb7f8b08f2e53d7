"""What is not known in a request is found, wherever it is; what the SDK and real clients send is known."""

import copy
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import pytest
from anthropic.types import beta as sdk
from anthropic.types.anthropic_beta_param import AnthropicBetaParam
from anthropic.types.beta.beta_content_block import BetaContentBlock
from anthropic.types.beta.beta_content_block_param import BetaContentBlockParam
from anthropic.types.beta.beta_tool_union_param import BetaToolUnionParam
from anthropic.types.beta.message_create_params import MessageCreateParamsBase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from typing_extensions import is_typeddict

from integrations.providers.anthropic import known, known_headers
from integrations.providers.anthropic.known_headers import unknown_headers
from integrations.providers.anthropic.other_models import provider_chooses
from integrations.providers.anthropic.unknown import NAMES_MAX, unknown_in
from rensei.simulator.betas import KNOWN_BETAS
from tests.gateway import corpus
from tests.integrations.anthropic import bodies

HAIKU = "claude-haiku-4-5-20251001"
# Members that hold any JSON of the caller's.
_OPEN = {"input", "input_schema", "schema", "properties"}


def _objects(value: Any) -> list[dict[str, Any]]:
    """List the objects of a body, but not those that may hold anything."""
    if isinstance(value, list):
        return [found for each in value for found in _objects(each)]
    if not isinstance(value, dict):
        return []
    return [value, *(found for name, each in value.items() if name not in _OPEN for found in _objects(each))]


def _ask(*blocks: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": list(blocks)}], **fields}


def _names(body: dict[str, Any]) -> set[tuple[str, str]]:
    return unknown_in(body).names


class TestWhatIsKnown:
    def test_is_all_that_real_clients_send(self) -> None:
        recorded = corpus.load(key_sha256="0" * 64)

        for each in recorded:
            headers = {name: each.header(name) for name, _ in each.lines}
            assert _names(each.body) == set(), each.client
            assert list(unknown_headers(headers, "beta=true")) == [], each.client
        assert len(recorded) > 60

    @given(body=bodies.known_bodies)
    @settings(max_examples=bodies.NUMBER, deadline=None, suppress_health_check=list(HealthCheck))
    def test_is_all_of_a_body_without_a_made_up_part(self, body: dict[str, Any]) -> None:
        assert _names(body) == set()

    @pytest.mark.parametrize(
        ("union", "table"),
        [
            (BetaContentBlockParam, known.BLOCKS),
            (BetaContentBlock, known.BLOCKS),
            (BetaToolUnionParam, known.TOOLS),
            (sdk.BetaSystemMessageParam, None),
            (sdk.BetaUserMessageParam, None),
        ],
        ids=["blocks", "answers", "tools", "system", "user"],
    )
    def test_is_each_member_of_the_sdks_types(self, union: Any, table: known.Table | None) -> None:
        types = _types_in(union)

        for each in types:
            members = typing.get_type_hints(each) if is_typeddict(each) else _members(each)
            kinds = _literals(members.get("type"))
            if table is None:
                assert members.keys() <= known.MESSAGE
            for kind in kinds:
                assert table is not None
                assert members.keys() <= table.members[kind], kind
        assert types

    def test_is_each_part_of_a_request_that_the_sdk_types_however_deep(self) -> None:
        fields = typing.get_type_hints(MessageCreateParamsBase)
        found: dict[tuple[str, str], object] = {}
        for name in fields.keys() & known.FIELDS:
            for value in _values_of(fields[name], within=()):
                found |= dict.fromkeys(_names({"messages": [], name: value}), value)

        # A region is a text of the caller's, of which two have a price.
        assert found.keys() == {("value", "inference_geo: text")}
        # These are headers, and parameters of the SDK's own.
        assert fields.keys() - known.FIELDS == {"betas", "user_profile_id", "workspace_id"}

    def test_is_each_beta_of_the_sdk_and_of_the_simulator(self) -> None:
        assert set(_literals(AnthropicBetaParam)) <= known_headers.BETAS
        assert known_headers.BETAS | known_headers.UNDOCUMENTED >= KNOWN_BETAS
        assert known_headers.BETAS.isdisjoint(known_headers.UNDOCUMENTED)


def _types_in(union: Any) -> list[Any]:
    if is_typeddict(union) or (isinstance(union, type) and issubclass(union, BaseModel)):
        return [union]
    return [found for each in typing.get_args(union) for found in _types_in(each)]


def _values_of(hint: Any, *, within: tuple[Any, ...]) -> list[Any]:
    """Make values of a type that have, taken together, each member that it has and each type that a member may have."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if is_typeddict(hint):
        return [] if hint in within else list(_objects_of(hint, within=(*within, hint)))
    if origin is Literal:
        return list(inner)
    if origin in {list, Iterable, Sequence}:
        return [[value] for value in _values_of(inner[0], within=within)]
    if hint is object:
        return []
    if origin in {dict, Mapping}:
        return [{}]
    if inner:
        return [value for each in inner if each is not type(None) for value in _values_of(each, within=within)]
    return [{str: "text", int: 1, float: 1.0, bool: True}.get(hint, "text")]


def _objects_of(kind: Any, *, within: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    members = {name: _values_of(each, within=within) for name, each in typing.get_type_hints(kind).items()}
    first = {name: values[0] for name, values in members.items() if values}
    yield first
    for name, values in members.items():
        yield from ({**first, name: value} for value in values[1:])


def _members(model: type[BaseModel]) -> dict[str, Any]:
    return {each.alias or name: each.annotation for name, each in model.model_fields.items()}


def _literals(hint: Any) -> list[str]:
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    return [found for each in typing.get_args(hint) for found in _literals(each)]


class TestWhatIsNotKnown:
    @given(body=bodies.known_bodies, value=bodies.values, data=st.data())
    @settings(max_examples=bodies.NUMBER, deadline=None, suppress_health_check=list(HealthCheck))
    def test_is_found_wherever_it_is_put(self, body: dict[str, Any], value: Any, data: st.DataObject) -> None:
        body = copy.deepcopy(body)
        place = data.draw(st.sampled_from(_objects(body)))
        change = data.draw(st.sampled_from(["member", "type", "dotted"]))
        if change == "member" or not isinstance(place.get("type"), str):
            place["made_up"] = {"value": value}
        else:
            place["type"] = "made_up" if change == "type" else ".citations"

        names = [name for _, name in _names(body)]

        assert len(names) == 1
        assert "made_up" in names[0] or ".citations" in names[0]

    @pytest.mark.parametrize(
        ("body", "found"),
        [
            (_ask(made_up=1), ("request_field", "made_up")),
            (_ask({"type": "tool_set_2027", "x": {}}), ("block_type", "tool_set_2027")),
            (_ask(tools=[{"type": "web_search_20990101"}]), ("tool_type", "web_search_20990101")),
            (_ask(fallbacks=[{"model": "m", "fallbacks": []}]), ("member", "fallbacks.fallbacks")),
            (_ask({"type": "text", "text": "a", "file_id": "f"}), ("member", "text.file_id")),
            (
                _ask({"type": "tool_result", "content": [{"type": "tool_addition", "tool": {}}]}),
                ("block_type", "tool_addition"),
            ),
            (_ask(service_tier="dearest"), ("value", "service_tier: dearest")),
            (_ask(speed="warp"), ("value", "speed: warp")),
            (_ask(inference_geo="not_available"), ("value", "inference_geo: not_available")),
            (_ask(cache_control={"type": "ephemeral", "ttl": "1y"}), ("value", "ttl: 1y")),
            (_ask(context_management={"edits": [{"type": "grow_20990101"}]}), ("context_edit", "grow_20990101")),
            (_ask(thinking={"type": "enabled", "helpers": 9}), ("member", "enabled.helpers")),
        ],
        ids=lambda each: each[1] if isinstance(each, tuple) else "",
    )
    def test_has_a_name(self, body: dict[str, Any], found: tuple[str, str]) -> None:
        assert _names(body) == {found}

    @given(body=st.recursive(bodies.any_bodies, lambda inner: st.fixed_dictionaries({"messages": inner})))
    @settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
    def test_never_fails(self, body: Any) -> None:
        unknown_in(body)

    def test_has_a_bounded_number_of_names(self) -> None:
        found = unknown_in(_ask(**{f"made_up_{number}": "x" for number in range(1000)}))

        assert len(found.names) == NAMES_MAX

    @pytest.mark.parametrize(
        ("headers", "query", "found"),
        [
            ({"anthropic-beta": "fast-mode-2026-02-01, giant-2027-01-01"}, "", "anthropic-beta: giant-2027-01-01"),
            ({"anthropic-spend": "more"}, "", "anthropic-spend"),
            ({"anthropic-version": "2099-01-01"}, "", "anthropic-version: 2099-01-01"),
            ({}, "beta=true&tier=best", "tier"),
            ({"x-stainless-lang": "python", "anthropic-version": "2023-06-01"}, "beta=true", None),
        ],
    )
    def test_may_be_a_header(self, headers: dict[str, str], query: str, found: str | None) -> None:
        assert [name for _, name in unknown_headers(headers, query)] == ([found] if found else [])


class TestAModelThatTheProviderChooses:
    @pytest.mark.parametrize(
        ("body", "may_be"),
        [
            (_ask(), False),
            (_ask(fallbacks=[{"model": HAIKU, "speed": "fast", "max_tokens": 5}]), False),
            (_ask(fallbacks="default"), True),
            (_ask(fallbacks=[{"model": "m", "fallbacks": [{"model": HAIKU}]}]), True),
            (_ask(router={"to": "best"}), True),
            (_ask(safeguards={"level": "high"}), False),
            (_ask({"type": "tool_set_2027", "x": {"definition": {"model": HAIKU}}}), True),
            (_ask({"type": "made_up", "y": [{"z": HAIKU}]}), True),
            (_ask({"type": "made_up", "y": ["words"]}), True),
            (_ask(tools=[{"type": "subagent_20270101", "name": "s"}]), True),
            (_ask({"type": "text", "text": "a", "made_up": 1}), False),
            (_ask({"type": "text", "text": "a", "answered_by": HAIKU}), True),
            (_ask(tools=[{"name": "own", "input_schema": {"properties": {"model": {}}}}]), False),
        ],
    )
    def test_is_one_that_an_unknown_part_may_name(self, body: dict[str, Any], may_be: bool) -> None:
        assert provider_chooses(body, unknown_in(body)) is may_be
