"""Images without a registry and without the right to make a container of one's own: buildah in a chroot."""

import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
KILL_SECONDS_MAX = 30
SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
# What the published slim images leave out too.
LEFT_OUT = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/cache/apt",
    "var/lib/apt/lists",
)


@dataclass(frozen=True, kw_only=True)
class Storage:
    """A place of its own for images and containers, so that none of this machine's are touched."""

    folder: Path

    def buildah(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, check=False, env=self._environment()
        )
        if check and done.returncode:
            raise RuntimeError(f"buildah {words[0]} failed:\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
        return done.stdout.strip()

    def command(self, *words: str) -> list[str]:
        place = ("--root", str(self.folder / "images"), "--runroot", str(self.folder / "run"))
        return ["buildah", *place, *words]

    def make_base(self, name: str) -> None:
        """Make a base of Debian's own packages."""
        tree = self.folder / "base"
        subprocess.run(
            ["debootstrap", "--variant=minbase", SUITE, str(tree), MIRROR], check=True, stdout=subprocess.DEVNULL
        )
        for folder in LEFT_OUT:
            subprocess.run(["find", str(tree / folder), "-mindepth", "1", "-delete"], check=True)
        made = self.buildah("from", "scratch")
        self.buildah("add", "--quiet", made, str(tree), "/")
        self.buildah("commit", "--quiet", "--rm", made, name)

    def build(self, checkout: Path, *, base: str, tag: str) -> None:
        """
        Build the image of a checkout as today's Dockerfile says, with this machine's certificates for pip and uv.

        Layers are kept, so a second checkout with the same locked packages does not install them again.
        """
        certificates = os.environ.get("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt")
        trusted = ("--build-arg", "PIP_CERT=/machine/ca.crt", "--build-arg", "SSL_CERT_FILE=/machine/ca.crt")
        self.buildah(
            *("build", "--isolation", "chroot", "--format", "docker", "--quiet", "--layers"),
            *("--volume", f"{certificates}:/machine/ca.crt:ro", *trusted),
            *("--build-arg", f"BASE_IMAGE={base}", "--tag", tag, "--file", str(ROOT / "Dockerfile"), str(checkout)),
        )

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self.folder)}


@dataclass(kw_only=True)
class Container:
    """One process of an image, with these folders mounted and the network of this machine."""

    storage: Storage
    name: str
    mounts: Mapping[Path, str]
    environment: Mapping[str, str]
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    def command(self, *words: str) -> list[str]:
        mounts = [word for place, inside in self.mounts.items() for word in ("--volume", f"{place}:{inside}")]
        variables = [word for name, value in self.environment.items() for word in ("--env", f"{name}={value}")]
        return self.storage.command("run", "--isolation", "chroot", *mounts, *variables, self.name, "--", *words)

    def run(self, *words: str, given: str = "") -> str:
        """Run a command to its end. One that fails ends everything here."""
        done = subprocess.run(
            self.command(*words), input=given, capture_output=True, text=True, check=False, timeout=300
        )
        if done.returncode:
            raise RuntimeError(f"{words} failed:\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
        return done.stdout

    def start(self, *words: str, log: Path) -> None:
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                self.command(*words), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal as an engine does: the first process of the container gets it."""
        assert self.process is not None
        os.kill(first_process(self.process.pid), number)

    def stop(self, *, seconds_max: float) -> None:
        """
        Tell the process to stop.

        :raises TimeoutExpired: if it takes longer
        """
        self.signal(signal.SIGTERM)
        self.wait(seconds_max=seconds_max)

    def kill(self) -> None:
        """Do as `kill -9` does."""
        self.signal(signal.SIGKILL)
        self.wait(seconds_max=KILL_SECONDS_MAX)

    def wait(self, *, seconds_max: float) -> None:
        assert self.process is not None
        self.process.wait(timeout=seconds_max)


def first_process(pid: int) -> int:
    """Find what runs in the chroot below buildah's own processes."""
    while b"buildah" in Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]:
        # A thread of its own may have started the child.
        lists = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
        (pid,) = (int(child) for each in lists for child in each)
    return pid
