"""
A symmetric key of AWS KMS.

`awskms://<region>/<key id>?endpoint=…`. The context of a data key is its encryption context, which AWS writes into
CloudTrail and which key policies can require. Credentials come from where AWS's own tools read them. With
`per-org=yes`, each organization has a key of its own, which is made at its first use and found by an alias.
https://docs.aws.amazon.com/kms/latest/APIReference/
"""

import os
import re
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import SplitResult

import structlog

from integrations.vault.errors import KekNotFound, VaultFault
from integrations.vault.kek import Context, DestroyedKey, Wrapped
from integrations.vault.key_services.base import (
    AddressInvalid,
    KeyService,
    altered,
    denied,
    disabled,
    is_per_org,
    library,
    name_of,
    not_found,
    options,
    own_key_of,
    require_safe,
    silent,
    unexpected,
)
from integrations.vault.key_services.rest import ANSWER_SECONDS, CONNECT_SECONDS, SERVER_ERRORS

# An alias may point to another key tomorrow, so it is not taken.
KEY_ID = re.compile(r"mrk-[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
PENDING_DAYS = 7

logger = structlog.get_logger(__name__)


class _AliasTaken(VaultFault):
    """Another process has made the key of an organization."""


FAULTS: dict[str, Callable[[], VaultFault]] = {
    "AlreadyExistsException": lambda: _AliasTaken("the key service has such a key already"),
    "AccessDeniedException": denied,
    "UnrecognizedClientException": denied,
    "ExpiredTokenException": denied,
    "InvalidClientTokenId": denied,
    "DisabledException": disabled,
    "KMSInvalidStateException": disabled,
    "NotFoundException": not_found,
    "InvalidCiphertextException": altered,
    "IncorrectKeyException": altered,
}
SILENT = {"KMSInternalException", "DependencyTimeoutException", "KeyUnavailableException", "ThrottlingException"}


class AwsKms(KeyService):
    def __init__(self, address: SplitResult) -> None:
        chosen = options(address, "endpoint", "per-org")
        endpoint = chosen.get("endpoint", "")
        key = address.path.strip("/")
        if not REGION.fullmatch(address.netloc) or not KEY_ID.fullmatch(key):
            raise AddressInvalid("it is awskms://<region>/<key id>, and an alias is no key id")
        if endpoint:
            require_safe(endpoint)
        self._region, self._key, self._endpoint = address.netloc, key, endpoint
        self._lock = threading.Lock()
        self._client: tuple[int, Any] | None = None
        # A multi-region key has the same id and the same bytes everywhere.
        self._is_per_org = is_per_org(chosen)
        self.kek_id = name_of(address, f"{key}/per-org" if self._is_per_org else key)

    def describe(self) -> str:
        return f"AWS KMS, {self._region}: {self._key}"

    def wrap(self, key: bytes, *, kek_id: str, context: Context) -> Wrapped:
        owner = own_key_of(context) if self._is_per_org else ""
        name = self._alias(owner) if owner else self._key
        request: dict[str, Any] = {"KeyId": name, "Plaintext": key, "EncryptionContext": dict(context)}
        try:
            answer = self._call("encrypt", **request)
        except KekNotFound:
            if not owner:
                raise
            self._make_key_of(owner)
            answer = self._call("encrypt", **request)
        return Wrapped(blob=answer["CiphertextBlob"])

    def unwrap(self, wrapped: Wrapped, *, kek_id: str, context: Context) -> bytes:
        if not wrapped.blob:
            raise altered()
        owner = own_key_of(context) if self._is_per_org else ""
        # It opens only if the key that it names is the one that wrapped.
        key = self._alias(owner) if owner else self._key
        answer = self._call("decrypt", KeyId=key, CiphertextBlob=wrapped.blob, EncryptionContext=dict(context))
        plaintext: bytes = answer["Plaintext"]
        return plaintext

    def destroy_key_of(self, owner: str, *, has_wrapped: bool) -> DestroyedKey | None:
        """AWS lets a key be destroyed after seven days at the earliest. Until then it cannot be used."""
        found = self._describe(owner)
        if not found:
            return None
        final_at = found.get("DeletionDate")
        if found.get("KeyState") != "PendingDeletion" or final_at is None:
            final_at = self._destroy(found["KeyId"])
        return DestroyedKey(name=f"awskms:{found['KeyId']}", final_at=final_at)

    def forget_key_of(self, owner: str) -> None:
        if self._describe(owner).get("KeyState") == "PendingDeletion":
            self._call("delete_alias", AliasName=self._alias(owner))

    def _describe(self, owner: str) -> dict[str, Any]:
        """Describe the key of an organization; empty if there is none."""
        if not self._is_per_org:
            return {}
        try:
            found: dict[str, Any] = self._call("describe_key", KeyId=self._alias(owner))["KeyMetadata"]
        except KekNotFound:
            return {}
        return found

    def _alias(self, owner: str) -> str:
        return f"alias/rensei/{self._key}/{owner}"

    def _make_key_of(self, owner: str) -> None:
        """
        Make the key of an organization. Of two processes that do so at once, the alias takes one.

        A key without an alias would stay and cost, unseen, so it is destroyed. If the service is silent then, the log
        names it.
        """
        tags = [{"TagKey": "rensei-organization", "TagValue": owner}]
        made = self._call("create_key", Description=f"Rensei, organization {owner}", Tags=tags)["KeyMetadata"]["KeyId"]
        try:
            self._call("create_alias", AliasName=self._alias(owner), TargetKeyId=made)
        except VaultFault as fault:
            logger.warning("key_without_alias", key=made, fault=str(fault))
            # An answer may have been lost after the alias was made.
            if self._describe(owner).get("KeyId") == made:
                return
            self._destroy(made)
            if not isinstance(fault, _AliasTaken):
                raise

    def _destroy(self, key: str) -> datetime:
        answer = self._call("schedule_key_deletion", KeyId=key, PendingWindowInDays=PENDING_DAYS)
        final_at: datetime = answer["DeletionDate"]
        return final_at

    def _call(self, operation: str, **request: Any) -> dict[str, Any]:
        exceptions = library("botocore.exceptions", extra="aws")
        try:
            answer: dict[str, Any] = getattr(self._own_client(), operation)(**request)
        except exceptions.ClientError as fault:
            raise _fault(fault.response) from None
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.CredentialRetrievalError):
            raise denied() from None
        except exceptions.BotoCoreError as fault:
            raise silent(type(fault).__name__) from None
        return answer

    def _own_client(self) -> Any:
        with self._lock:
            if self._client is None or self._client[0] != os.getpid():
                self._client = os.getpid(), self._make()
            return self._client[1]

    def _make(self) -> Any:
        boto3, config = library("boto3", extra="aws"), library("botocore.config", extra="aws")
        # The circuit in front of every key service repeats calls, so the library does not.
        return boto3.session.Session().client(
            "kms",
            region_name=self._region,
            endpoint_url=self._endpoint or None,
            config=config.Config(
                connect_timeout=CONNECT_SECONDS, read_timeout=ANSWER_SECONDS, retries={"total_max_attempts": 1}
            ),
        )


def _fault(answer: dict[str, Any]) -> VaultFault:
    code = str(answer.get("Error", {}).get("Code", ""))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in FAULTS:
        return FAULTS[code]()
    if code in SILENT or status >= SERVER_ERRORS:
        return silent(code)
    return unexpected(code)
