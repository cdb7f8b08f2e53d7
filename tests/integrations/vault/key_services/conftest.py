"""One fixture for each kind of key service: its address, and what an operator could do to its key."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from integrations.vault import data_keys, kek_providers
from integrations.vault.errors import KekUnavailable
from integrations.vault.key_services.aws_kms import AwsKms
from tests import servers
from tests.integrations.vault.key_services.stand_ins import (
    AzureService,
    GoogleService,
    Service,
    TransitService,
    serving,
)
from tests.waiting import wait_until

SOFTHSM = next(Path("/usr/lib").glob("**/libsofthsm2.so"), None)


@dataclass(kw_only=True)
class Stage:
    """A key service with one key. `service` is the stand-in; the real ones have none."""

    url: str
    service: Service | None = None
    replace: Callable[[], object] | None = None
    environment: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """Moto's server: AWS KMS over HTTP, with real AES-GCM."""
    port = servers.free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _answers(url), what="moto's server")
        yield url
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/moto-api/", trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


@pytest.fixture
def aws_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, secrets.token_hex(10))


@pytest.fixture
def aws(moto: str, aws_credentials: None) -> Stage:
    import boto3

    with contextlib.closing(
        boto3.session.Session().client("kms", region_name="eu-central-1", endpoint_url=moto)
    ) as client:
        key = client.create_key()["KeyMetadata"]["KeyId"]
    return Stage(url=f"awskms://eu-central-1/{key}?endpoint={moto}")


@pytest.fixture
def transit(tmp_path: Path) -> Iterator[Stage]:
    service = TransitService()
    token = tmp_path / "token"
    token.write_text(f"{service.token}\n")
    with serving(service) as url:
        host = url.removeprefix("http://")
        address = f"vault://{host}/transit/rensei?tls=off&namespace=team&token-file={token}"
        yield Stage(url=address, service=service, replace=service.replace)


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    service = GoogleService()
    with serving(service) as url:
        (tmp_path / "account.json").write_text(json.dumps(service.account_file(url)))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
        yield Stage(url=f"gcpkms://{service.name}?endpoint={url}", service=service, replace=service.replace)


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    service = AzureService()
    with serving(service) as url:
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{url}/identity")
        monkeypatch.setenv("IDENTITY_HEADER", "made-up")
        address = f"azurekv://made-up.managedhsm.azure.net/rensei?endpoint={url}"
        yield Stage(url=address, service=service, replace=service.replace)


@pytest.fixture(scope="session")
def softhsm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SoftHSM 2 with an empty token. A process reads its configuration once, so all tests share it."""
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    pin = secrets.token_hex(8)
    command = ["softhsm2-util", "--init-token", "--free", "--label", "rensei", "--pin", pin, "--so-pin", pin]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "pin").write_text(pin)
    (folder / "pin").chmod(0o600)
    assert SOFTHSM is not None
    return {"module": SOFTHSM, "pin": folder / "pin"}


@pytest.fixture
def hsm(softhsm: dict[str, Path]) -> Stage:
    label = f"kek-{secrets.token_hex(4)}"
    keys = HsmKeys(softhsm["module"], pin=softhsm["pin"].read_text(), label=label)
    keys.make()
    address = f"pkcs11:token=rensei;object={label}?module-path={softhsm['module']}&pin-source=file:{softhsm['pin']}"
    return Stage(url=address, replace=keys.replace)


class HsmKeys:
    """What an operator does with a key in the token, in a process of their own: a process has one login."""

    def __init__(self, module: Path, *, pin: str, label: str) -> None:
        self.arguments = [str(module), pin, label]

    def make(self) -> None:
        self._do("""
            template = {pkcs11.Attribute.SENSITIVE: True, pkcs11.Attribute.EXTRACTABLE: False}
            session.generate_key(pkcs11.KeyType.AES, 256, label=label, store=True, template=template)""")

    def remove(self) -> None:
        self._do("""
            for key in session.get_objects({pkcs11.Attribute.LABEL: label}):
                key.destroy()""")

    def replace(self) -> None:
        self.remove()
        self.make()

    def _do(self, work: str) -> None:
        program = f"""if True:
        import sys, pkcs11
        module, pin, label = sys.argv[1:]
        with pkcs11.lib(module).get_token(token_label="rensei").open(user_pin=pin, rw=True) as session:{work}
        """
        subprocess.run([sys.executable, "-c", program, *self.arguments], check=True, capture_output=True)


@pytest.fixture(params=["aws", "azure", "google", pytest.param("hsm", marks=pytest.mark.softhsm), "transit"])
def stage(request: pytest.FixtureRequest) -> Stage:
    found: Stage = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["azure", "google", "transit"])
def versioned(request: pytest.FixtureRequest) -> Stage:
    """The services that tell the version of a key."""
    found: Stage = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def use(settings: Any) -> Iterator[Callable[..., None]]:
    """Configure providers of outer keys, as after a restart."""

    def configure(*urls: str) -> None:
        _forget()
        settings.RENSEI_KEK_URL = " ".join(urls)

    yield configure
    _forget()


def _forget() -> None:
    """Forget the providers and the data keys, as a restart does, and close the connections."""
    with contextlib.suppress(KekUnavailable):
        for provider in kek_providers.configured():
            service: Any = getattr(provider, "_service", None)
            for held in ("_rest", "_credential"):
                if getattr(service, held, None) is not None:
                    getattr(service, held).close()
            if isinstance(service, AwsKms) and service._client is not None:
                service._client[1].close()
    kek_providers._built.cache_clear()
    data_keys.unwrapped.clear()
