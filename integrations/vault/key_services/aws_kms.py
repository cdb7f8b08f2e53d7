"""
A symmetric key of AWS KMS.

`awskms://<region>/<key id>?endpoint=…`. The context of a data key is its encryption context, which AWS writes into
CloudTrail and which key policies can require. Credentials come from where AWS's own tools read them.
https://docs.aws.amazon.com/kms/latest/APIReference/
"""

import os
import re
import threading
from typing import Any
from urllib.parse import SplitResult

from integrations.vault.errors import VaultFault
from integrations.vault.kek import Context, Wrapped
from integrations.vault.key_services.base import (
    AddressInvalid,
    KeyService,
    altered,
    denied,
    disabled,
    library,
    name_of,
    not_found,
    options,
    require_safe,
    silent,
    unexpected,
)
from integrations.vault.key_services.rest import ANSWER_SECONDS, CONNECT_SECONDS, SERVER_ERRORS

# An alias may point to another key tomorrow, so it is not taken.
KEY_ID = re.compile(r"mrk-[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
FAULTS = {
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
        endpoint = options(address, "endpoint").get("endpoint", "")
        key = address.path.strip("/")
        if not REGION.fullmatch(address.netloc) or not KEY_ID.fullmatch(key):
            raise AddressInvalid("it is awskms://<region>/<key id>, and an alias is no key id")
        if endpoint:
            require_safe(endpoint)
        self._region, self._key, self._endpoint = address.netloc, key, endpoint
        self._lock = threading.Lock()
        self._client: tuple[int, Any] | None = None
        # A multi-region key has the same id and the same bytes everywhere.
        self.kek_id = name_of(address, key)

    def describe(self) -> str:
        return f"AWS KMS, {self._region}: {self._key}"

    def wrap(self, key: bytes, *, kek_id: str, context: Context) -> Wrapped:
        answer = self._call("encrypt", Plaintext=key, EncryptionContext=dict(context))
        return Wrapped(blob=answer["CiphertextBlob"])

    def unwrap(self, wrapped: Wrapped, *, kek_id: str, context: Context) -> bytes:
        if not wrapped.blob:
            raise altered()
        answer = self._call("decrypt", CiphertextBlob=wrapped.blob, EncryptionContext=dict(context))
        plaintext: bytes = answer["Plaintext"]
        return plaintext

    def _call(self, operation: str, **request: Any) -> dict[str, Any]:
        exceptions = library("botocore.exceptions", extra="aws")
        try:
            answer: dict[str, Any] = getattr(self._own_client(), operation)(KeyId=self._key, **request)
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
