"""A run that is repeated asks the provider for exactly what the first one asked."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from integrations.models import Integration
from integrations.providers.base import ADAPTERS
from profiles.models import ModelProfile
from rensei.dispatch.admission import admit
from rensei.dispatch.admission.repeating import repeatable, repeated_request
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution.preparation import build_request
from rensei.dispatch.models import Run
from rensei.orgs.access import Access

pytestmark = pytest.mark.django_db(transaction=True)

MODELS = ["claude-opus-5-5", "claude-haiku-4-5-20251001", "claude-opus-4-1-20250514", "claude-sonnet-5-5"]
LONG = "A long text that is worth keeping in the provider's cache. " * 2000


def parameters(run: Run) -> dict[str, Any]:
    """What a worker would send for a run."""
    run = Run.objects.select_related("org", "input").get(pk=run.pk)
    return build_request(run, ADAPTERS[run.provider], seconds_left=lambda: 60.0).params


def some(chance: random.Random, **choices: list[Any]) -> dict[str, Any]:
    """Choose some of the values, and leave the others out."""
    return {name: chance.choice(values) for name, values in choices.items() if chance.random() < 0.5}


class TestRepeatedRequest:
    @pytest.mark.parametrize("seed", range(40))
    def test_asks_for_the_same(
        self,
        ada_access: Access,
        connect: Callable[..., Integration],
        make_profile: Callable[..., ModelProfile],
        seed: int,
    ) -> None:
        chance = random.Random(seed)
        connect()
        profile = make_profile(
            model_id=chance.choice(MODELS),
            **some(
                chance,
                effort=["low", "high"],
                max_tokens=[1500, 6000],
                system=["Be brief.", LONG],
                prompt_caching=["off", "static"],
                provider_config=[{"anthropic": {"contextWindow": 150_000}}],
            ),
        )
        conversation = [
            {"role": "user", "content": LONG},
            {"role": "assistant", "content": "Yes?"},
            {"role": "user", "content": [{"type": "text", "text": "Go on.", "cache_control": {"type": "ephemeral"}}]},
        ]
        request = DispatchRequest(
            profile_id=profile.public_id,
            messages=chance.choice([conversation, messages_from(text="Hello?", messages=None)]),
            metadata={"case": 1},
            **some(
                chance,
                effort=["low", "medium"],
                max_tokens=[2000, 5000],
                system=["Be kind.", [{"type": "text", "text": LONG}]],
                provider_config=[{"anthropic": {"contextWindow": 120_000}}],
            ),
        )
        first = admit.dispatch(ada_access, request)
        if chance.random() < 0.5:
            ModelProfile.objects.update(
                effort="low", max_tokens=3333, system="Something else.", prompt_caching="off", provider_config={}
            )

        repeats = [first]
        for _ in range(3):
            stored = repeatable(Run.objects.all()).get(pk=repeats[-1].pk)
            repeats.append(admit.dispatch(ada_access, repeated_request(stored)))

        assert [parameters(one) for one in repeats] == [parameters(first)] * 4
        assert len({(one.max_tokens, one.effort, one.context_window_tokens) for one in repeats}) == 1
        assert repeats[-1].metadata == {}
