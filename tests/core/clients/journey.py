"""Connects a key, makes a profile and dispatches a run, with the client that was made from the OpenAPI document."""

import json
import os
from http import HTTPStatus

from rensei_client import AuthenticatedClient
from rensei_client.api.integrations import integrations_create
from rensei_client.api.profiles import profiles_create
from rensei_client.api.runs import runs_create
from rensei_client.models import (
    AuthMode,
    ConnectableProvider,
    Integration,
    ModelProvider,
    NewIntegration,
    NewProfile,
    Problem,
    Profile,
    Run,
    RunBody,
)

client = AuthenticatedClient(base_url=os.environ["RENSEI"], token=os.environ["TOKEN"], timeout=90)
integration = integrations_create.sync(
    client=client, body=NewIntegration(provider=ConnectableProvider.CLAUDE, api_key=os.environ["KEY"])
)
assert isinstance(integration, Integration), integration
profile = profiles_create.sync(
    client=client,
    body=NewProfile(
        name="python", provider=ModelProvider.CLAUDE, model_id=os.environ["MODEL"], auth_modes=[AuthMode.BYOK]
    ),
)
assert isinstance(profile, Profile), profile
run = runs_create.sync(client=client, body=RunBody(profile_id=profile.id, input_="Hello."), prefer="wait=60")
assert isinstance(run, Run), run
refused = runs_create.sync_detailed(client=client, body=RunBody(profile_id="prof_unknown", input_="Hello."))
assert isinstance(refused.parsed, Problem), refused
assert refused.status_code == HTTPStatus.NOT_FOUND
print(
    json.dumps(
        {
            "integration": integration.status.value,
            "profile": profile.id,
            "state": run.state.value,
            "text": run.output.text if run.output else None,
            "cost": run.cost.amount_usd,
            "refused": refused.parsed.code,
        }
    )
)
