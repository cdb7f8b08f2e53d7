"""Wrapping data keys, against the vectors of NIST."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import cryptography_vectors
import pytest

from integrations.vault import kek, keyring
from integrations.vault.errors import KekChanged, KekNotFound, WrapInvalid
from integrations.vault.kek import LocalKeyring, Wrapped

# 12 bytes of nonce and 16 of tag are our shape; the files hold other shapes too.
OUR_SHAPE = "[IVlen = 96]", "[Taglen = 128]"


def _vectors(name: str) -> Iterator[dict[str, str]]:
    """Read the NIST CAVP vectors for AES-256-GCM that have our shape."""
    with cryptography_vectors.open_vector_file(f"ciphers/AES/GCM/{name}", "r") as file:
        text = file.read()
    for section in re.split(r"\n(?=\[Keylen)", text):
        if all(mark in section for mark in OUR_SHAPE):
            for case in re.findall(r"Count = .*?(?=\n\n|\Z)", section, re.DOTALL):
                fields = dict(re.findall(r"^(\w+) = ?(.*)$", case, re.MULTILINE))
                yield {**fields, "fails": "FAIL" if "\nFAIL" in case else ""}


def _unwrap(vector: dict[str, str]) -> bytes:
    wrapped = bytes.fromhex(vector["IV"] + vector["CT"] + vector["Tag"])
    return kek.decrypt(wrapped, key=bytes.fromhex(vector["Key"]), bound_to=bytes.fromhex(vector["AAD"]))


class TestNistVectors:
    def test_decrypts_and_refuses_as_nist_says(self) -> None:
        opened, refused = 0, 0

        for vector in _vectors("gcmDecrypt256.rsp"):
            if vector["fails"]:
                with pytest.raises(WrapInvalid):
                    _unwrap(vector)
                refused += 1
            else:
                assert _unwrap(vector) == bytes.fromhex(vector["PT"])
                opened += 1

        assert opened + refused == 375
        assert opened > 150
        assert refused > 150

    def test_opens_what_nist_encrypted(self) -> None:
        vectors = list(_vectors("gcmEncryptExtIV256.rsp"))

        assert len(vectors) == 375
        assert all(_unwrap(vector) == bytes.fromhex(vector["PT"]) for vector in vectors)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    keyring.create(tmp_path / "ring.json")
    return tmp_path / "ring.json"


class TestLocalKeyring:
    def test_unwraps_what_it_wrapped(self, path: Path) -> None:
        keys = LocalKeyring(path)
        key = os.urandom(32)

        wrapped = keys.wrap(key, kek_id=keys.current_id(), context={"owner": "org 1"})

        assert keys.unwrap(wrapped, kek_id=keys.current_id(), context={"owner": "org 1"}) == key
        assert key not in wrapped.blob

    def test_refuses_another_context(self, path: Path) -> None:
        keys = LocalKeyring(path)
        wrapped = keys.wrap(os.urandom(32), kek_id=keys.current_id(), context={"owner": "org 1"})

        with pytest.raises(WrapInvalid):
            keys.unwrap(wrapped, kek_id=keys.current_id(), context={"owner": "org 2"})

    def test_refuses_every_flipped_bit_and_every_truncation(self, path: Path) -> None:
        keys = LocalKeyring(path)
        wrapped = keys.wrap(os.urandom(32), kek_id=keys.current_id(), context={}).blob
        altered = [wrapped[:length] for length in range(len(wrapped))]
        altered += [
            (int.from_bytes(wrapped, "big") ^ 1 << bit).to_bytes(len(wrapped), "big") for bit in range(8 * len(wrapped))
        ]

        for blob in altered:
            with pytest.raises(WrapInvalid):
                keys.unwrap(Wrapped(blob=blob), kek_id=keys.current_id(), context={})

    def test_names_a_key_that_it_does_not_hold(self, path: Path) -> None:
        with pytest.raises(KekNotFound, match="kek_lost"):
            LocalKeyring(path).unwrap(Wrapped(blob=bytes(60)), kek_id="kek_lost", context={})

    def test_gives_a_check_value_that_tells_keys_apart(self, path: Path, tmp_path: Path) -> None:
        keyring.create(tmp_path / "other.json")
        keys, others = LocalKeyring(path), LocalKeyring(tmp_path / "other.json")

        kek_id = keys.current_id()
        value = keys.check_value(kek_id)

        keys.check(kek_id, value)
        assert len(value) == 8
        assert value != others.check_value(others.current_id())
        with pytest.raises(KekChanged, match=kek_id):
            keys.check(kek_id, others.check_value(others.current_id()))

    def test_says_where_the_keys_are_but_not_what(self, path: Path) -> None:
        text = LocalKeyring(path).describe()

        assert text == f"local keyring {path}"
