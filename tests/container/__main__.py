"""
`make container`: build the image, look into it, and run every process of compose.yaml from it, after an upgrade.

There is no registry and no container engine: the base is made of Debian's packages, and buildah runs each process in a
chroot with this machine's network, against a PostgreSQL and a Redis of its own. What an engine adds, a read-only root
and limits, is not tried here; that no process can write outside its volume is, because the root file system is not its.
"""

import json
import resource
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rensei.simulator import server as simulator_server
from tests import servers
from tests.container.images import ROOT, Container, Storage
from tests.container.installation import USER, Installation

BASE, IMAGE, PREVIOUS = "localhost/rensei-base", "localhost/rensei", "localhost/rensei-previous"
SIZE_MAX_MB = 500
# What an engine gives a container besides its volume.
SCRATCH = {"/tmp", "/var/tmp", "/run/lock", "/var/lock"}
BEGAN = time.monotonic()
BUILD_TOOLS = ("pip", "gcc", "cc", "make", "ld", "git", "curl", "wget", "uv")


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
    with tempfile.TemporaryDirectory(prefix="rensei-container-", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        place.chmod(0o755)
        storage = Storage(folder=place)
        try:
            _say("begins")
            storage.make_base(BASE)
            _say("made a base of Debian's packages")
            storage.build(ROOT, base=BASE, tag=IMAGE)
            _say("built the image")
            _examine(storage)
            _say("looked into it")
            commit = _previous_commit()
            storage.build(_check_out(commit, place / "previous"), base=BASE, tag=PREVIOUS)
            _say(f"built the image of {commit[:12]}")
            _run_everything(storage, place)
        finally:
            storage.buildah("rm", "--all", check=False)
            storage.buildah("rmi", "--all", "--force", check=False)
    return 0


def _say(what: str) -> None:
    """Print a step, with the time and the CPU time so far of what has ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{time.monotonic() - BEGAN:5.0f} s {used.ru_utime + used.ru_stime:5.0f} s CPU  {what}", flush=True)


def _previous_commit() -> str:
    """Find the newest tag before this commit. While there is none: where the migrations were last written anew."""
    tag = _git("describe", "--tags", "--abbrev=0", "HEAD^")
    if tag:
        return tag
    if _git("rev-parse", "--is-shallow-repository") == "true":
        _say("this clone has no history: the upgrade is one to the same version")
        return "HEAD"
    commit = _git("log", "-1", "--format=%H", "--diff-filter=MDR", "HEAD", "--", "*/migrations/*.py")
    assert commit, "The upgrade begins at an earlier commit, and there is none that changed a migration."
    return commit


def _git(*words: str) -> str:
    return subprocess.run(("git", *words), cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _check_out(commit: str, folder: Path) -> Path:
    folder.mkdir()
    # With the modes of a checkout: files with others are other files to buildah, which then installs all packages anew.
    command = ("git", "-c", "tar.umask=0022", "archive", commit)
    archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    subprocess.run(("tar", "--extract", "--directory", str(folder)), input=archive.stdout, check=True)
    return folder


def _examine(storage: Storage) -> None:
    """Check the user, the files and the size."""
    name = storage.buildah("from", "--pull-never", IMAGE)
    config = json.loads(storage.buildah("inspect", name))["Docker"]["config"]
    assert config["User"] == f"{USER}:{USER}", config["User"]
    assert config["StopSignal"] == "SIGTERM", config
    assert config["Healthcheck"]["Test"], config
    assert config["Volumes"].keys() == {"/var/lib/rensei"}, config
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
    whole, packages = _megabytes(tree), _megabytes(tree / "opt/rensei")
    largest = sorted((tree / "opt/rensei/lib").glob("python3.*/site-packages/*"), key=_megabytes, reverse=True)[:5]
    print(f"         {whole} MB unpacked: {whole - packages} MB Debian and Python, {packages} MB Rensei's packages,")
    print(f"         of which {', '.join(f'{path.name} {_megabytes(path)}' for path in largest)}")
    assert whole < SIZE_MAX_MB, whole
    storage.buildah("rm", name)


def _megabytes(place: Path) -> int:
    listed = subprocess.run(["du", "-sm", "--apparent-size", str(place)], capture_output=True, text=True, check=True)
    return int(listed.stdout.split()[0])


def _run_everything(storage: Storage, place: Path) -> None:
    """Run the previous image and then this one on the same data, as an upgrade does."""
    simulator = simulator_server.start()
    with servers.run_postgres() as postgres, servers.start_redis() as broker:
        rensei = Installation(storage=storage, place=place, database_url=postgres.url, simulator=simulator)
        rensei.create(PREVIOUS)
        with rensei.running(PREVIOUS, "web", "worker"):
            token = _open_organization(rensei)
            before = _dispatch(rensei, PREVIOUS, token)
            seen = rensei.ask(f"/api/v1/runs/{before}", token=token)
            _say("made an organization, and dispatched a run, with the previous image")
        with rensei.running(IMAGE, "web", "worker", "celery", "celery", broker=broker) as (_, _, first, _):
            _say("upgraded, and started web, worker and two of Celery")
            rensei.container(IMAGE).run("rensei-manage", "verify_ledger")
            found = rensei.ask(f"/api/v1/runs/{before}", token=token)
            assert {name: found[name] for name in seen} == seen, (seen, found)
            _say("found the earlier run as it was, and the ledger whole")
            after = _dispatch(rensei, IMAGE, token)
            message = {"model": "prof_deep", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]}
            assert rensei.ask("/v1/messages", token=token, body=message)["type"] == "message"
            _say("dispatched a run with the key from before, and called the gateway")
            first.kill()
            last = _dispatch(rensei, IMAGE, token)
            assert {before, after, last} <= {run["id"] for run in rensei.ask("/api/v1/runs", token=token)["results"]}
            _say("killed one of Celery, and dispatched another run")
        _say("stopped each within its grace time")
    simulator.stop()


def _open_organization(rensei: Installation) -> str:
    """Make an organization with a key and a profile, with the previous image, and return its owner's token."""
    organization = ("--name", "Acme", "--slug", "acme", "--owner", "ada@acme.test", "--password-stdin", "--json")
    made = rensei.container(PREVIOUS).run(
        "rensei-manage", "create_org", *organization, given=f"{secrets.token_urlsafe(16)}\n"
    )
    token: str = json.loads(made)["token"]
    key = "-".join(["sk-ant-api03", secrets.token_hex(24)])
    profile = {"name": "Deep", "provider": "claude", "modelId": "claude-sonnet-5-5", "authModes": ["byok"]}
    rensei.ask("/api/v1/integrations", token=token, body={"provider": "claude", "apiKey": key})
    rensei.ask("/api/v1/profiles", token=token, body=profile)
    return token


def _dispatch(rensei: Installation, image: str, token: str) -> str:
    """Dispatch a run by the command of the image, and return its id."""
    command = rensei.container(image, RENSEI_API_URL=rensei.url, RENSEI_AUTH_TOKEN=token, HOME="/tmp")
    answer = command.run(
        "rensei", "dispatch", "--profile", "prof_deep", "--input", "What is an envelope key?", "--json"
    )
    run = json.loads(answer)
    assert run["state"] == "SUCCEEDED", run
    assert "This is the Anthropic simulator" in run["output"]["text"], run
    return str(run["id"])


if __name__ == "__main__":
    sys.exit(main())
