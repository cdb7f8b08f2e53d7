"""What an authenticator app computes: time-based one-time passwords, by RFC 6238."""

import base64
import hashlib
import hmac
import struct
import time

PERIOD_SECONDS = 30


def code_now(key: str, *, wait: bool = True) -> str:
    """Compute the code of this moment. One that is about to change is waited out, as a person would."""
    if wait and time.time() % PERIOD_SECONDS > PERIOD_SECONDS - 5:
        time.sleep(PERIOD_SECONDS - time.time() % PERIOD_SECONDS + 0.1)
    return code_at(key, time.time())


def code_at(key: str, seconds: float) -> str:
    counter = struct.pack(">Q", int(seconds) // PERIOD_SECONDS)
    digest = hmac.new(base64.b32decode(key), counter, hashlib.sha1).digest()
    start = digest[-1] & 0x0F
    number = struct.unpack(">I", digest[start : start + 4])[0] & 0x7FFFFFFF
    return f"{number % 10**6:06d}"
