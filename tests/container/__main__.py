"""
`make container`: build the image, look into it, and run every process of compose.yaml from it, after an upgrade.

There is no registry and no container engine: the base is made of Debian's packages, and buildah runs each process in a
chroot with this machine's network, against a PostgreSQL and a Redis of its own. What an engine adds, a read-only root
and limits, is not tried here; that no process can write outside its volume is, because the root file system is not its.
"""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from rensei.simulator import server as simulator_server
from tests import servers
from tests.container.images import ROOT, Container, Storage
from tests.waiting import wait_until

BASE, IMAGE, PREVIOUS_IMAGE = "localhost/rensei-base", "localhost/rensei", "localhost/rensei-previous"
# While nothing is tagged, an upgrade begins here: the migrations before this commit were written anew.
FIRST_UPGRADABLE = "2a29801"
USER = 10001
SIZE_MAX_MB = 500
# What an engine gives a container besides its volume.
SCRATCH = {"/tmp", "/var/tmp", "/run/lock", "/var/lock"}
BUILD_TOOLS = ("pip", "gcc", "cc", "make", "ld", "git", "curl", "wget", "uv")
START_SECONDS_MAX = 120


def main() -> int:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        # Nothing can be installed that gives a process this right.
        print("SKIPPED: no container was built, because this machine lets no process mount anything. Run it as root.")
        return 0
    if lacking := [name for name in ("buildah", "debootstrap") if not shutil.which(name)]:
        print(
            f"This machine lacks {' and '.join(lacking)}: apt-get install --no-install-recommends buildah debootstrap"
        )
        return 1
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rensei-container-", ignore_cleanup_errors=True) as place:
        storage = Storage(folder=Path(place))
        try:
            storage.make_base(BASE)
            _say(began, "made a base of Debian's packages")
            storage.build(ROOT, base=BASE, tag=IMAGE)
            _say(began, "built the image")
            previous = _previous_commit()
            storage.build(_checkout(previous, Path(place) / "previous"), base=BASE, tag=PREVIOUS_IMAGE)
            _say(began, f"built the image of {previous}")
            _examine(storage)
            _say(began, "looked into it")
            _run_everything(storage, Path(place), began)
        finally:
            storage.buildah("rm", "--all", check=False)
            storage.buildah("rmi", "--all", "--force", check=False)
    return 0


def _previous_commit() -> str:
    """Find the newest tag before this commit."""
    words = ("git", "describe", "--tags", "--abbrev=0", "HEAD^")
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or FIRST_UPGRADABLE


def _checkout(commit: str, folder: Path) -> Path:
    folder.mkdir()
    archive = subprocess.run(("git", "archive", commit), cwd=ROOT, capture_output=True, check=True)
    subprocess.run(("tar", "--extract", "--directory", str(folder)), input=archive.stdout, check=True)
    return folder


def _say(began: float, what: str) -> None:
    print(f"{time.monotonic() - began:5.0f} s  {what}", flush=True)


def _examine(storage: Storage) -> None:
    """Check the user, the files and the size."""
    name = storage.buildah("from", "--pull-never", IMAGE)
    config = json.loads(storage.buildah("inspect", name))["Docker"]["config"]
    assert config["User"] == f"{USER}:{USER}", config["User"]
    assert config["StopSignal"] == "SIGTERM", config
    assert config["Healthcheck"]["Test"], config
    assert config["Labels"]["org.opencontainers.image.title"] == "Rensei", config["Labels"]

    inside = Container(storage=storage, name=name, mounts={}, environment={})
    assert inside.run("id", "-u").strip() == str(USER)
    writable = inside.run(
        *("sh", "-c", r"find / -xdev -writable ! -path '/proc/*' ! -path '/dev/*' ! -path '/sys/*' 2>/dev/null || true")
    )
    assert set(writable.split()) <= SCRATCH | {"/var/lib/rensei"}, writable
    found = inside.run("sh", "-c", f"for each in {' '.join(BUILD_TOOLS)}; do command -v $each || true; done")
    assert not found.strip(), found

    tree = Path(storage.buildah("mount", name))
    sizes = {place: _megabytes(tree / place) for place in ("opt/rensei", "usr", "var", "etc", "")}
    rest = sizes[""] - sizes["opt/rensei"]
    print(f"         {sizes['']} MB unpacked: {sizes['opt/rensei']} MB Rensei's packages, {rest} MB Debian and Python")
    assert sizes[""] < SIZE_MAX_MB, sizes
    storage.buildah("rm", name)


def _megabytes(place: Path) -> int:
    listed = subprocess.run(["du", "-sm", "--apparent-size", str(place)], capture_output=True, text=True, check=True)
    return int(listed.stdout.split()[0])


def _run_everything(storage: Storage, place: Path, began: float) -> None:
    """Run the previous image and then this one on the same data, as an upgrade does."""
    services: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    data, mounted = place / "data", place / "secrets"
    for folder in (data, mounted):
        folder.mkdir()
        os.chown(folder, USER, USER)
    place.chmod(0o755)
    port, simulator = servers.free_port(), simulator_server.start()

    def container(image: str, **more: str) -> Container:
        environment = {
            **services["web"]["environment"],
            "RENSEI_PUBLIC_URL": f"http://{servers.LOOPBACK}:{port}",
            "RENSEI_ANTHROPIC_BASE_URL": simulator.url,
            "RENSEI_METRICS_TOKEN": token,
            **more,
        }
        name = storage.buildah("from", "--pull-never", image)
        return Container(
            storage=storage,
            name=name,
            mounts={data: "/var/lib/rensei", mounted: "/run/secrets"},
            environment=environment,
        )

    @contextlib.contextmanager
    def running(image: str, *names: str, **more: str) -> Iterator[Callable[..., Container]]:
        """Prepare the database and run these processes. They stop in the time that compose.yaml gives them."""
        container(image).run(*services["prepare"]["command"])
        _say(began, "prepared the database")
        commands = {name: services[name].get("command") for name in names}
        commands["web"] = [str(port) if word == "8000" else word for word in _image_command(storage, image)]
        started = {name: container(image, **more) for name in names}
        with _stopping(started):
            for name, command in commands.items():
                started[name].start(*command, log=place / f"{name}.log")
            try:
                wait_until(lambda: _is_ready(port, token), seconds=START_SECONDS_MAX, what="/readyz")
                _say(began, f"started {', '.join(names)}")
                yield partial(container, image)
                for name, one in started.items():
                    one.stop(seconds_max=float(services[name]["stop_grace_period"].removesuffix("s")))
                _say(began, "stopped each within its grace time")
            except BaseException:
                for name in names:
                    print(f"--- {name}\n{(place / f'{name}.log').read_text()[-3000:]}")
                raise

    token = secrets.token_urlsafe(24)
    with servers.run_postgres() as postgres, servers.start_redis() as redis:
        first = container(PREVIOUS_IMAGE, SECRET_KEY_FILE="", DATABASE_URL_FILE="")
        first.run("rensei-manage", "create_secrets", "/run/secrets/made")
        _place_secrets(mounted, database_url=postgres.url)
        _create_database(postgres.url)
        with running(PREVIOUS_IMAGE, "web", "worker") as shell:
            organization_token = _open_organization(shell)
            before = _dispatch(shell, port, organization_token)
            _say(began, "made an organization, and dispatched a run, with the previous image")
        with running(IMAGE, "web", "worker", "celery", CELERY_BROKER_URL=redis) as shell:
            shell().run("rensei-manage", "migrate", "--check")
            shell().run("rensei-manage", "verify_ledger")
            _say(began, "upgraded: no migration is left, and the ledger is whole")
            after = _dispatch(shell, port, organization_token)
            assert {before, after} == _run_ids(port, organization_token), (before, after)
            _call_gateway(port, organization_token)
            _say(began, "found the run from before, dispatched another, and called the gateway")
    simulator.stop()


def _place_secrets(mounted: Path, *, database_url: str) -> None:
    """Give them the names that compose.yaml mounts them by, and the database of this test."""
    made = mounted / "made"
    names = {"secret_key": "secret_key", "keyring.json": "keyring", "ledger_anchor.key": "ledger_anchor_key"}
    for file, name in names.items():
        (made / file).rename(mounted / name)
    (made / "database_url").write_text(database_url + "\n")
    (made / "database_url").rename(mounted / "database_url")


def _create_database(url: str) -> None:
    server, _, name = url.rpartition("/")
    subprocess.run(["psql", f"{server}/postgres", "--quiet", "--command", f"CREATE DATABASE {name}"], check=True)


def _image_command(storage: Storage, image: str) -> list[str]:
    command: list[str] = json.loads(storage.buildah("inspect", "--type", "image", image))["Docker"]["config"]["Cmd"]
    return command


def _is_ready(port: int, token: str) -> bool:
    request = urllib.request.Request(
        f"http://{servers.LOOPBACK}:{port}/readyz", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(json.load(answer)["ready"])
    except OSError:
        return False


def _open_organization(shell: Callable[..., Container]) -> str:
    """Make an organization, and return its owner's token."""
    organization = ("--name", "Acme", "--slug", "acme", "--owner", "ada@acme.test", "--password-stdin", "--json")
    made = json.loads(shell().run("rensei-manage", "create_org", *organization, given=f"{secrets.token_urlsafe(16)}\n"))
    token: str = made["token"]
    return token


def _dispatch(shell: Callable[..., Container], port: int, token: str) -> str:
    """Dispatch a run by the command, and return its id. The first time, connect a key and create a profile."""
    command = shell(RENSEI_API_URL=f"http://{servers.LOOPBACK}:{port}", RENSEI_AUTH_TOKEN=token, HOME="/tmp")
    earlier = _run_ids(port, token)
    if not earlier:
        key = "-".join(["sk-ant-api03", secrets.token_hex(24)])
        command.run("rensei", "integration", "add", "--provider", "claude", given=f"{key}\n")
        profile = ("--name", "Deep", "--provider", "claude", "--model-id", "claude-sonnet-5-5", "--auth-modes", "byok")
        command.run("rensei", "profile", "create", *profile)
    answer = command.run("rensei", "dispatch", "--profile", "prof_deep", "--input", "What is an envelope key?")
    assert "This is the Anthropic simulator" in answer, answer
    (run_id,) = _run_ids(port, token) - earlier
    return run_id


def _run_ids(port: int, token: str) -> set[str]:
    """List the runs that have succeeded."""
    request = urllib.request.Request(
        f"http://{servers.LOOPBACK}:{port}/api/v1/runs?state=SUCCEEDED", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return {run["id"] for run in json.load(answer)["results"]}


def _call_gateway(port: int, token: str) -> None:
    body = {"model": "prof_deep", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]}
    request = urllib.request.Request(
        f"http://{servers.LOOPBACK}:{port}/v1/messages",
        data=json.dumps(body).encode(),
        headers={"x-api-key": token, "anthropic-version": "2023-06-01", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert json.load(reply)["type"] == "message"


@contextlib.contextmanager
def _stopping(started: dict[str, Container]) -> Iterator[None]:
    try:
        yield
    finally:
        for one in started.values():
            if one.process is not None and one.process.poll() is None:
                with contextlib.suppress(Exception):
                    one.stop(seconds_max=60)


if __name__ == "__main__":
    sys.exit(main())
