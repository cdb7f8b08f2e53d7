"""`rensei receipt verify` needs a file and the public keys, and no server."""

import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from integrations.vault import signing
from rensei.dispatch import receipts
from tests.cli.terminal import Terminal

pytestmark = pytest.mark.outside


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A receipt, the same with another amount, and the keys."""
    secret = secrets.token_bytes(32)
    public = signing.public_key(secret, purpose=receipts.PURPOSE)
    said: dict[str, Any] = {
        "format": receipts.FORMAT,
        "alg": "EdDSA",
        "kid": receipts.kid_of(public),
        "receipt": {"run": {"id": "run_one"}, "lines": [], "total": {"amountUsd": "0.000000"}},
    }
    signature = receipts.encoded(signing.sign(receipts.canonical(said), secret, purpose=receipts.PURPOSE))
    changed = {**said, "receipt": {**said["receipt"], "total": {"amountUsd": "0.000001"}}}
    key = {"kty": "OKP", "crv": "Ed25519", "x": receipts.encoded(public), "kid": said["kid"]}
    written = {"receipt": {**said, "signature": signature}, "changed": {**changed, "signature": signature}}
    written["keys"] = {"keys": [key]}
    paths = {name: tmp_path / f"{name}.json" for name in written}
    for name, path in paths.items():
        path.write_text(json.dumps(written[name], indent=2))
    return paths


class TestVerify:
    def test_needs_no_server_and_no_sign_in(self, tmp_path: Path, files: dict[str, Path]) -> None:
        result = Terminal(tmp_path / "home").run(f"rensei receipt verify {files['receipt']} --keys {files['keys']}")

        assert result.returncode == 0, result.stderr
        assert "run_one" in result.stdout
        assert "genuine" in result.stderr

    def test_ends_with_1_for_a_changed_receipt(self, tmp_path: Path, files: dict[str, Path]) -> None:
        result = Terminal(tmp_path / "home").run(f"rensei receipt verify {files['changed']} --keys {files['keys']}")

        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith("RECEIPT_INVALID: ")
