"""Repositories that are cloned for agents: git's own server, a cloud's stand-in, and the runner itself."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps

from integrations.keys import services as integrations
from integrations.models import Integration
from rensei.core.clock import database_now
from rensei.core.errors import FieldError
from rensei.core.models import WorkerHeartbeat
from rensei.core.secret import Secret
from rensei.dispatch import agents, services, withheld
from rensei.dispatch.admission import admit, repeating
from rensei.dispatch.admission.requests import DispatchRequest, messages_from
from rensei.dispatch.execution.sandboxes import Sandboxes
from rensei.dispatch.models import Run, RunFile
from rensei.dispatch.pools import GitHostNotAllowed, agent_runner
from rensei.dispatch.pools.driver import GitLogin
from rensei.orgs.access import Access
from tests import git_server
from tests.cloud_stand_in import StandIn
from tests.dispatch.reconcile import assert_explained
from tests.gateway.server import Server
from tests.gateway.test_agents import DOLLAR, log_of
from tests.git_server import TOKEN, GitServer

pytestmark = pytest.mark.django_db(transaction=True)

HOST, GIT_HOST = "rensei.example.com", "git.example.com"
URL = f"https://{GIT_HOST}/team/project.git"
SHOWS = [
    "sh",
    "-c",
    "cat README; git log -1 --format=%s; cat mine.txt; git fetch -q --depth=1 origin main && echo again",
]


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GitServer, str]]:
    with git_server.serving(tmp_path_factory.mktemp("git")) as server:
        yield server


@pytest.fixture
def repository(hosted: tuple[GitServer, str]) -> GitServer:
    hosted[0].logins = None
    hosted[0].asked.clear()
    return hosted[0]


@pytest.fixture
def account(stand_in: StandIn, settings: Any, ada_access: Access) -> Integration:
    """Acme's account in a cloud."""
    settings.PUBLIC_URL = f"https://{HOST}"
    made = integrations.add_integration(
        ada_access, provider=stand_in.provider, api_key=Secret(stand_in.key), workspace_id=stand_in.workspace_id
    )
    config: dict[str, object] = {"egress": [GIT_HOST]}
    services.create_pool(ada_access, name="with-git", provider_id=stand_in.provider, config=config)
    return made


@pytest.fixture
def cloud(
    server: Server, running: Sandboxes, account: Integration, hosted: tuple[GitServer, str], stand_in: StandIn
) -> StandIn:
    """The cloud, which reaches the gateway and the repository under public names."""
    stand_in.hosts.update({HOST: server.url, GIT_HOST: hosted[1]})
    return stand_in


def dispatch(
    access: Access, *, pool: str = "with-git", program: Any = SHOWS, outputs: Sequence[str] = (), **git: Any
) -> Run:
    spec = {
        "program": program,
        "git": {"url": URL, **git},
        "files": [{"path": "mine.txt", "content": "Mine.\n"}],
        "outputs": list(outputs),
    }
    request = DispatchRequest(
        profile_id="prof_deep",
        messages=messages_from(text="My task.", messages=None),
        pool=pool,
        max_cost_picodollars=DOLLAR,
        agent=agents.checked(spec),
    )
    return admit.dispatch(access, request)


class TestAnAgent:
    def test_works_in_one_revision_of_a_repository(
        self, byok: Any, cloud: StandIn, repository: GitServer, ada_access: Access, finish: Any, simulator: Any
    ) -> None:
        run = finish(dispatch(ada_access, ref="other", outputs=["**"]))

        assert (run.state, run.error) == (Run.State.SUCCEEDED, None)
        # Git would run commands that its own files name, on the machine that they are downloaded to.
        kept = set(RunFile.objects.filter(run=run).values_list("path", flat=True))
        assert "mine.txt" in kept
        assert not any(agents.is_of_git(path) for path in kept)
        assert run.output_text == "Second.\nSecond\nMine.\nagain\n"
        assert log_of(run) == f"Cloned {URL} at {repository.head}.\n"
        assert set(repository.asked) == {None}
        assert_explained(simulator)

    def test_clones_with_a_token_that_is_nowhere_in_its_sandbox_or_in_the_database(
        self,
        byok: Any,
        cloud: StandIn,
        repository: GitServer,
        ada_access: Access,
        finish: Any,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        repository.require("deploy", TOKEN)
        looks = [
            "sh",
            "-c",
            "env; cat /proc/*/environ /proc/*/cmdline; grep -r t0ken[t]0ken /run /vercel /workspace /home /tmp",
        ]

        run = finish(
            dispatch(ada_access, ref="other", token=TOKEN, username="deploy", program=[*looks[:2], looks[2] + "; true"])
        )

        assert (run.state, run.error) == (Run.State.SUCCEEDED, None)
        (box,) = cloud.boxes.values()
        if cloud.adds_token:
            assert box.rules[GIT_HOST]["Authorization"] in (repository.logins or ())
        assert "t0kent0ken" not in run.output_text + log_of(run) + caplog.text
        assert not any(TOKEN in text for text in stored_texts())
        assert withheld.body_of(run)["agent"]["git"]["token"] == TOKEN
        withheld.drop_of_ended_runs()
        run.input.refresh_from_db()
        assert run.input.original is None

    @pytest.mark.parametrize(
        ("git", "code", "said"),
        [
            ({"ref": "gone"}, "GIT_CLONE_FAILED", "it has no ref 'gone'."),
            ({"ref": "0" * 40}, "GIT_CLONE_FAILED", f"it has no ref '{'0' * 40}'."),
            ({"token": "wrong"}, "GIT_CLONE_FAILED", f"{GIT_HOST} does not accept the token"),
            ({"url": f"https://{GIT_HOST}/team/other.git"}, "GIT_CLONE_FAILED", f"{GIT_HOST} knows no such repository"),
        ],
    )
    def test_is_told_why_nothing_was_cloned(
        self,
        byok: Any,
        cloud: StandIn,
        repository: GitServer,
        ada_access: Access,
        finish: Any,
        git: Any,
        code: str,
        said: str,
    ) -> None:
        if "token" in git:
            repository.require("deploy", TOKEN)

        run = finish(dispatch(ada_access, **git))

        assert (run.state, run.error["code"]) == (Run.State.FAILED, code)
        assert said in run.error["detail"]
        assert not run.attempts.exists()

    def test_is_repeated_only_without_a_token(
        self, byok: Any, account: Integration, repository: GitServer, ada_access: Access
    ) -> None:
        with_token, without = dispatch(ada_access, token=TOKEN), dispatch(ada_access)

        with pytest.raises(FieldError, match="was not kept"):
            repeating.repeat(ada_access, with_token)
        repeated = repeating.repeat(ada_access, without)
        assert repeated.input.body["agent"]["git"] == {"url": URL, "ref": "HEAD"}
        for run in (with_token, without, repeated):
            services.cancel_run(ada_access, run)


class TestADispatch:
    @pytest.mark.parametrize(
        ("pool", "url", "said"),
        [
            ("with-git", "https://github.com/a/b", '{"egress": ["github.com"]}'),
            ("with-git", f"https://{HOST}/a/b", "this is the address of Rensei"),
            ("sandbox", URL, "its sandboxes have no network. Clone it yourself and send the files"),
        ],
    )
    def test_is_refused_where_no_sandbox_reaches_the_host(
        self, byok: Any, account: Integration, ada_access: Access, pool: str, url: str, said: str
    ) -> None:
        WorkerHeartbeat.objects.update_or_create(
            worker="test", defaults={"seen_at": database_now(), "offers_sandboxes": True}
        )

        with pytest.raises(GitHostNotAllowed) as refused:
            dispatch(ada_access, pool=pool, url=url)

        assert said in refused.value.detail
        assert not Run.objects.exists()

    @pytest.mark.parametrize(
        ("git", "pointer"),
        [
            ({"url": "http://git.example.com/a"}, "url"),
            ({"url": "https://user:secret@git.example.com/a"}, "url"),
            ({"url": "https://git.example.com:8443/a"}, "url"),
            ({"url": "https://git.example.com:x/a"}, "url"),
            ({"url": "https://git.example.com/a?token=secret"}, "url"),
            ({"url": "https://git.example.com/"}, "url"),
            ({"url": "https://git.example.com/a b"}, "url"),
            ({"url": "ext::sh -c id"}, "url"),
            ({"url": 1}, "url"),
            ({"ref": "--upload-pack=id"}, "ref"),
            ({"ref": "a:b"}, "ref"),
            ({"ref": "a..b"}, "ref"),
            ({"ref": "a/.b"}, "ref"),
            ({"ref": "a.lock"}, "ref"),
            ({"ref": ""}, "ref"),
            ({"token": "a secret"}, "token"),
            ({"token": "secret\n"}, "token"),
            ({"token": "secret" * 1000}, "token"),
            ({"token": "secret", "username": "a:b"}, "username"),
            ({"username": "a"}, "username"),
        ],
    )
    def test_is_refused_with_what_git_would_not_take(self, git: Any, pointer: str) -> None:
        with pytest.raises(FieldError) as refused:
            agents.checked({"program": ["true"], "git": {"url": URL, **git}})

        assert refused.value.errors[0]["pointer"] == f"/agent/git/{pointer}"
        assert "secret" not in str(refused.value)

    @pytest.mark.parametrize("git", ["x", {}, {"url": URL, "more": 1}])
    def test_is_refused_with_anything_else(self, git: Any) -> None:
        with pytest.raises(FieldError):
            agents.checked({"program": ["true"], "git": git})


class TestTheRunner:
    """Where a provider adds no headers, the token is in a file that is read once."""

    @pytest.fixture
    def clone(self, tmp_path: Path, hosted: tuple[GitServer, str]) -> Callable[..., list[dict[str, Any]]]:
        def run(*, path: str = "team/project.git", **variables: str) -> list[dict[str, Any]]:
            (tmp_path / "work").mkdir()
            job = {"url": f"{hosted[1]}/{path}", "ref": "other"}
            script = (
                f"import sys; sys.path.insert(0, {str(Path(agent_runner.__file__).parent)!r})\n"
                "import asyncio, json, pathlib, agent_runner as runner\n"
                f"runner.HERE = pathlib.Path({str(tmp_path)!r}); runner.WORKSPACE = runner.HERE / 'work'\n"
                "async def main():\n"
                f"    print(json.dumps({{'cloned': await runner.clone({job!r}, asyncio.Future())}}))\n"
                "asyncio.run(main())"
            )
            ended = subprocess.run(
                [sys.executable, "-I", "-c", script],
                env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **variables},
                stdout=subprocess.PIPE,
                check=True,
            )
            return [json.loads(line) for line in ended.stdout.splitlines()]

        return run

    def test_reads_the_token_once(self, tmp_path: Path, repository: GitServer, clone: Any) -> None:
        repository.require("deploy", TOKEN)
        login = GitLogin(host="127.0.0.1", username="deploy", token=Secret(TOKEN))
        (tmp_path / "git-login").write_bytes(login.file)

        *_, told = clone()

        assert told == {"cloned": True}
        assert (tmp_path / "work/README").read_text() == "Second.\n"
        assert not (tmp_path / "git-login").exists()
        assert TOKEN not in "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())

    def test_says_what_is_wrong_with_a_token(self, tmp_path: Path, repository: GitServer, clone: Any) -> None:
        repository.require("deploy", TOKEN)
        (tmp_path / "git-login").write_bytes(b"username=deploy\npassword=wrong\n")

        said, told = clone()

        assert (said["git"]["failure"], told) == ("REFUSED", {"cloned": False})
        assert not (tmp_path / "git-login").exists()

    def test_says_that_there_is_no_git(self, clone: Any) -> None:
        said, _ = clone(PATH="/nowhere")

        assert said["git"]["failure"] == "NO_GIT"


def stored_texts() -> Iterator[str]:
    """Everything that the database holds of dispatches, as text."""
    for model in apps.get_app_config("dispatch").get_models():
        for row in model.objects.all().values():
            yield str(row)
