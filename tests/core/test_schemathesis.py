"""
Requests made from the OpenAPI document by schemathesis, in and out of its form, to the real server over HTTP.

It checks that none is a fault of the server, that statuses, media types, headers and bodies are the declared ones, that
what the document allows is accepted and what it does not is refused, and that signing in is needed. A few for each
operation here, as three people and a machine; `make attack` sends many, in all the ways that schemathesis has.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from integrations.keys import services as integrations
from integrations.models import Integration
from rensei.core.secret import Secret
from rensei.orgs.access import Access
from rensei.orgs.models import User
from rensei.orgs.scopes import DEFAULT
from rensei.tokens.machines import register_host
from rensei.tokens.services import create_token
from tests import answers
from tests.architecture.test_isolation import Stage, stage  # noqa: F401 - a fixture
from tests.gateway import server

HERE = Path(__file__).parent
WHOLE = os.environ.get("ATTACK") == "1"
SEED = "20261129"
PHASES = "examples,coverage,fuzzing,stateful" if WHOLE else "fuzzing"
EXAMPLES = "30" if WHOLE else "1"
OPERATIONS = sum(len(methods) for methods in answers.document()["paths"].values())
LEASES = "/lease"
# They would end what the requests are signed with.
ENDING = ("tokens_delete", "members_delete")
RATES = ("RENSEI_RATE_API", "RENSEI_RATE_ORG", "RENSEI_RATE_SENSITIVE")

pytestmark = [
    # What an answer looks like does not depend on the database.
    pytest.mark.outside,
    pytest.mark.attack,
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(3600 if WHOLE else 300),
]


@dataclass(frozen=True, kw_only=True)
class Fuzzer:
    """Sends requests to one server with one token."""

    url: str
    token: Secret
    folder: Path
    phases: str = PHASES

    def send(self, *options: str, ids: dict[str, Any] | None = None) -> tuple[int, int]:
        """Fail with the report unless every check passed, and count the operations and the requests."""
        config, report = self.folder / "schemathesis.toml", self.folder / "report.json"
        places = "".join(f'"path.{name}" = {json.dumps(str(one))}\n' for name, one in (ids or {}).items())
        config.write_text(f"[parameters]\n{places}\n{(HERE / 'schemathesis.toml').read_text()}")
        command = [sys.executable, "-m", "schemathesis.cli", "--no-color", "--config-file", str(config), "run"]
        command += [f"{self.url}/api/v1/schema", "--header", f"Authorization: Bearer {self.token.reveal()}"]
        command += ["--seed", SEED, "--max-examples", EXAMPLES, "--phases", self.phases, "--continue-on-failure"]
        command += ["--report", "json", "--report-json-path", str(report), *options]
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.core.schemathesis_formats"}
        done = subprocess.run(
            command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
        found = json.loads(report.read_text())
        return found["operations"]["tested"], found["test_cases"]["generated"]


@pytest.mark.parametrize("role", ["ada", "mia", "otto"])
def test_people_are_answered_as_documented(
    stage: Stage,  # noqa: F811
    access_of: Callable[..., Access],
    make_key: Callable[..., str],
    simulator: Any,
    tmp_path: Path,
    settings: Any,
    request: pytest.FixtureRequest,
    role: str,
) -> None:
    person: User = request.getfixturevalue(role)
    # The stage's own holds no key.
    Integration.objects.all().delete()
    owner = access_of(request.getfixturevalue("ada"))
    key = integrations.add_integration(owner, provider="claude", api_key=Secret(make_key()))
    _, token = create_token(access_of(person), name="fuzz", scopes=list(DEFAULT))
    ids = {name: one for name, one in stage.ids.items() if name.endswith("_id")} | {"integration_id": key.pk}

    with server.start(
        folder=settings.RENSEI_VAULT_KEYRING.parent, upstream=simulator.url, **dict.fromkeys(RATES, "1000000/min")
    ) as running:
        # What one operation answers is what the next is asked about: in the suite for one role, as it takes its time.
        phases = "fuzzing,stateful" if role == "mia" and not WHOLE else PHASES
        fuzzer = Fuzzer(url=running.url, token=token, folder=tmp_path, phases=phases)
        there, _ = fuzzer.send("--include-path-regex", r"\{", "--exclude-method", "DELETE", ids=ids)
        most, cases = fuzzer.send(*(f"--exclude-operation-id={name}" for name in ENDING))
        if WHOLE:
            fuzzer.send(*(f"--include-operation-id={name}" for name in ENDING))

    assert most == OPERATIONS - len(ENDING)
    assert there > OPERATIONS / 3
    assert cases > OPERATIONS


def test_a_machine_is_answered_as_documented(
    stage: Stage,  # noqa: F811
    ada: User,
    access_of: Callable[..., Access],
    simulator: Any,
    tmp_path: Path,
    settings: Any,
) -> None:
    host, _, token = register_host(access_of(ada), name="fuzz")

    with server.start(
        folder=settings.RENSEI_VAULT_KEYRING.parent, upstream=simulator.url, **dict.fromkeys(RATES, "1000000/min")
    ) as running:
        fuzzer = Fuzzer(url=running.url, token=token, folder=tmp_path)
        operations, _ = fuzzer.send(
            "--include-path-regex", LEASES, ids={"host_id": host.pk, "run_id": stage.ids["run_id"]}
        )

    assert operations == 4
