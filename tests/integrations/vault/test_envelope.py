"""The sealed record by itself, without a database."""

import json
import os
import uuid
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from integrations.vault import envelope
from integrations.vault.errors import RecordInvalid, VaultFault
from integrations.vault.vault import SealContext
from rensei.orgs.models import Org

GOLDEN = json.loads((Path(__file__).parent / "golden_v1.json").read_text())
KEY_ID = uuid.UUID(int=7)
CONTEXT = ("org_1", "", "int_1", "api_key", "1", "claude", "default")


@pytest.fixture(scope="module")
def key() -> bytes:
    return os.urandom(32)


@pytest.fixture(scope="module")
def sealed(key: bytes) -> bytes:
    return envelope.seal(b"a plain text of some length", key=key, key_id=KEY_ID, context=CONTEXT)


class TestSeal:
    def test_opens_again(self, key: bytes, sealed: bytes) -> None:
        opened = envelope.open_sealed(sealed, key=key, context=CONTEXT)

        assert opened == b"a plain text of some length"

    def test_has_the_documented_layout(self, sealed: bytes) -> None:
        assert sealed[:6] == b"RNS1\x01\x01"
        assert sealed[6:22] == KEY_ID.bytes
        assert len(sealed) == 22 + 32 + 32 + 12 + len(b"a plain text of some length") + 16

    def test_never_uses_a_salt_or_a_nonce_twice(self, key: bytes) -> None:
        records = [envelope.seal(b"x", key=key, key_id=KEY_ID, context=CONTEXT) for _ in range(2000)]

        assert len({record[22:54] for record in records}) == 2000
        assert len({record[86:98] for record in records}) == 2000

    def test_hides_the_plain_text(self, sealed: bytes) -> None:
        assert b"plain" not in sealed


class TestOpenSealed:
    def test_refuses_every_flipped_bit(self, key: bytes, sealed: bytes) -> None:
        for place, bit in product(range(len(sealed)), range(8)):
            flipped = bytearray(sealed)
            flipped[place] ^= 1 << bit

            with pytest.raises(RecordInvalid):
                envelope.open_sealed(bytes(flipped), key=key, context=CONTEXT)

    def test_refuses_every_truncation(self, key: bytes, sealed: bytes) -> None:
        for length in range(len(sealed)):
            for part in (sealed[:length], sealed[len(sealed) - length :]):
                with pytest.raises(RecordInvalid):
                    envelope.open_sealed(part, key=key, context=CONTEXT)

    def test_refuses_added_bytes(self, key: bytes, sealed: bytes) -> None:
        with pytest.raises(RecordInvalid):
            envelope.open_sealed(sealed + b"\0", key=key, context=CONTEXT)

    def test_refuses_another_key(self, sealed: bytes) -> None:
        with pytest.raises(RecordInvalid):
            envelope.open_sealed(sealed, key=os.urandom(32), context=CONTEXT)

    def test_refuses_a_context_that_only_joins_to_the_same_text(self, key: bytes) -> None:
        record = envelope.seal(b"x", key=key, key_id=KEY_ID, context=("ab", "c"))

        for other in [("a", "bc"), ("abc",), ("abc", ""), ("ab", "c", "")]:
            with pytest.raises(RecordInvalid):
                envelope.open_sealed(record, key=key, context=other)

    def test_refuses_every_other_place_under_the_same_key(self, key: bytes) -> None:
        owners = [(Org(id="org_a"), ""), (Org(id="org_b"), ""), (None, "metered"), (None, "shared")]
        places = [
            SealContext(
                org=org, pool=pool, record_id=record, field=field, version=version, provider=provider, destination=url
            ).parts()
            for (org, pool), record, field, version, (provider, url) in product(
                owners,
                ("int_1", "int_2", "int_3"),
                ("api_key", "token"),
                (1, 2, 12),
                [
                    ("claude", "default"),
                    ("claude", "https://a.example"),
                    ("claude", "https://b.example"),
                    ("toy", "default"),
                    ("toy", "https://a.example"),
                ],
            )
        ]
        records = [envelope.seal(str(place).encode(), key=key, key_id=KEY_ID, context=place) for place in places]

        accepted, pairs = 0, 0
        for (here, record), there in product(zip(places, records, strict=True), places):
            pairs += here != there
            try:
                envelope.open_sealed(record, key=key, context=there)
            except RecordInvalid:
                continue
            accepted += here != there

        assert len(set(places)) == 360
        assert pairs >= 100_000
        assert accepted == 0

    def test_refuses_a_text_that_gcm_opens_under_two_keys(self) -> None:
        """GCM does not commit to its key: with both keys known, one text can be made to open under each."""
        salt, nonce = os.urandom(32), os.urandom(12)
        keys = [os.urandom(32), os.urandom(32)]
        (first, commitment), (second, _) = (envelope._derive(key, salt) for key in keys)
        header = b"RNS1\x01\x01" + KEY_ID.bytes
        aad = envelope._associated_data(header, CONTEXT)
        crafted = _open_under_both(first, second, nonce=nonce, aad=aad)
        record = header + salt + commitment + nonce + crafted
        assert AESGCM(first).decrypt(nonce, crafted, aad) != AESGCM(second).decrypt(nonce, crafted, aad)

        assert len(envelope.open_sealed(record, key=keys[0], context=CONTEXT)) == 16
        with pytest.raises(RecordInvalid):
            envelope.open_sealed(record, key=keys[1], context=CONTEXT)

    @given(st.binary(max_size=300))
    def test_answers_any_bytes_with_one_kind_of_error(self, junk: bytes) -> None:
        for candidate in (junk, b"RNS1\x01\x01" + junk):
            with pytest.raises(VaultFault):
                envelope.open_sealed(candidate, key=bytes(range(32)), context=CONTEXT)

    def test_tells_the_cause_without_any_of_the_bytes(self, sealed: bytes) -> None:
        with pytest.raises(RecordInvalid) as caught:
            envelope.open_sealed(sealed, key=os.urandom(32), context=CONTEXT)

        assert sealed[22:54].hex() not in str(caught.value)
        assert caught.value.__cause__ is None


class TestKeyIdOf:
    def test_reads_which_data_key_opens_a_record(self, sealed: bytes) -> None:
        assert envelope.key_id_of(sealed) == KEY_ID

    @pytest.mark.parametrize(("place", "value"), [(0, 0x53), (4, 2), (5, 2)])
    def test_refuses_another_format(self, sealed: bytes, place: int, value: int) -> None:
        other = bytearray(sealed)
        other[place] = value

        with pytest.raises(RecordInvalid):
            envelope.key_id_of(bytes(other))


class TestFormatVersion1:
    """Records that an earlier build sealed. Every later one must open them."""

    @pytest.mark.parametrize("record", GOLDEN["records"], ids=lambda record: record["plaintext"])
    def test_opens_what_was_sealed_before(self, record: dict[str, Any]) -> None:
        sealed = bytes.fromhex(record["sealed"])

        opened = envelope.open_sealed(sealed, key=bytes.fromhex(GOLDEN["key"]), context=record["context"])

        assert opened.decode() == record["plaintext"]

    def test_is_a_set_of_fifty(self) -> None:
        assert len(GOLDEN["records"]) == 50


def _open_under_both(first: bytes, second: bytes, *, nonce: bytes, aad: bytes) -> bytes:
    """
    Craft one block and a tag that AES-GCM accepts under both keys.

    The tag is a polynomial in the hash key, so one free ciphertext block is the solution of a linear equation:
    block × (H1² + H2²) = the difference of everything else. NIST SP 800-38D, 6.4 and 7.1.
    """
    blocks = [aad[start : start + 16].ljust(16, b"\0") for start in range(0, len(aad), 16)]
    lengths = (8 * len(aad)).to_bytes(8, "big") + (128).to_bytes(8, "big")

    def rest(key: bytes) -> tuple[int, int]:
        hash_key = int.from_bytes(_aes(key, bytes(16)), "big")
        total = 0
        for block in [*blocks, bytes(16), lengths]:
            total = _multiply(total ^ int.from_bytes(block, "big"), hash_key)
        mask = int.from_bytes(_aes(key, nonce + b"\0\0\0\1"), "big")
        return _multiply(hash_key, hash_key), total ^ mask

    (square1, rest1), (square2, rest2) = rest(first), rest(second)
    block = _multiply(rest1 ^ rest2, _inverse(square1 ^ square2))
    tag = _multiply(block, square1) ^ rest1
    return block.to_bytes(16, "big") + tag.to_bytes(16, "big")


def _aes(key: bytes, block: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)


def _multiply(left: int, right: int) -> int:
    """Multiply in GF(2^128) as GCM writes it, the highest bit first."""
    product_ = 0
    for place in range(127, -1, -1):
        if left >> place & 1:
            product_ ^= right
        right = right >> 1 ^ (0xE1 << 120 if right & 1 else 0)
    return product_


def _inverse(value: int) -> int:
    """Raise to 2^128 - 2, which is one over the value."""
    result, power = 1 << 127, value
    for _ in range(127):
        power = _multiply(power, power)
        result = _multiply(result, power)
    return result
